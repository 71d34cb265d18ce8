/**
 * The native operations over tensors: one function per operation of `kernels/mantou.h`, which documents the arithmetic.
 * Here shapes are checked, so that a wrong one is an error and never a wild access. Outputs come first, as tensors
 * that the caller planned: nothing is allocated.
 */
import type { Device } from "./device.ts";
import { ELEMENT_BYTES, MANTOU_DTYPES, type Tensor } from "./tensor.ts";

/** The ABI's number of the type that all of these activations and weights must have. */
function typeOf(operation: string, tensors: Record<string, Tensor | null | undefined>): number {
  const given = Object.values(tensors).filter((tensor) => tensor) as Tensor[];
  const [{ dtype }] = given as [Tensor];
  check(dtype !== "int32" && given.every((tensor) => tensor.dtype === dtype), operation, tensors, "types");
  return MANTOU_DTYPES[dtype as keyof typeof MANTOU_DTYPES];
}

/** Statistics, losses and gradients of parameters are float32 whatever the activations are. */
function checkFloat32(operation: string, tensors: Record<string, Tensor | null | undefined>): void {
  const fits = Object.values(tensors).every((tensor) => !tensor || tensor.dtype === "float32");
  check(fits, `${operation} (these are float32)`, tensors, "types");
}

function check(
  condition: boolean,
  operation: string,
  tensors: Record<string, Tensor | null | undefined>,
  what = "shapes",
): void {
  if (condition) return;
  const shapes = Object.entries(tensors).filter(([, tensor]) => tensor);
  const text = shapes.map(([name, tensor]) => `${name} ${tensor!.dtype} [${tensor!.shape.join(", ")}]`).join(", ");
  throw new RangeError(`${operation}: ${what} do not match: ${text}`);
}

function sameShape(...tensors: (Tensor | null | undefined)[]): boolean {
  const given = tensors.filter((tensor) => tensor) as Tensor[];
  return given.every((tensor) => tensor.count === given[0]!.count && tensor.columns === given[0]!.columns);
}

export interface MatmulOptions {
  transposeA?: boolean;
  transposeB?: boolean;
  /** C += A·B instead of C = A·B. */
  accumulate?: boolean;
}

/**
 * C [m, n] = op(A) · op(B), op as the options say. All are taken as matrices [rows, columns]; A and B have one type, C
 * may have another.
 */
export function matmul(c: Tensor, a: Tensor, b: Tensor, options: MatmulOptions = {}): void {
  const { transposeA = false, transposeB = false, accumulate = false } = options;
  const [m, k] = transposeA ? [a.columns, a.rows] : [a.rows, a.columns];
  const [kb, n] = transposeB ? [b.columns, b.rows] : [b.rows, b.columns];
  check(k === kb && c.rows === m && c.columns === n, "matmul", { a, b, c });
  const [ta, tb, acc] = [Number(transposeA), Number(transposeB), Number(accumulate)];
  const [input, output] = [typeOf("matmul", { a, b }), typeOf("matmul", { c })];
  c.device.run("mantou_matmul", ta, tb, m, n, k, input, a, a.columns, b, b.columns, output, c, n, acc);
}

/** output = a + b; output may be one of them. */
export function add(output: Tensor, a: Tensor, b: Tensor): void {
  check(sameShape(output, a, b), "add", { output, a, b });
  output.device.run("mantou_add", typeOf("add", { output, a, b }), output.count, a, b, output);
}

/** output = input, converted to output's type. */
export function cast(output: Tensor, input: Tensor): void {
  check(sameShape(output, input), "cast", { output, input });
  const [from, to] = [typeOf("cast", { input }), typeOf("cast", { output })];
  output.device.run("mantou_cast", output.count, from, input, to, output);
}

/** result[0] = scale · Σ values (+ result[0]). */
export function sum(result: Tensor, values: Tensor, scale = 1, accumulate = false): void {
  checkFloat32("sum", { result, values });
  check(result.count > 0, "sum", { result, values });
  result.device.run("mantou_sum", values.count, values, scale, Number(accumulate), result);
}

/** values *= factor[0]. */
export function scale(values: Tensor, factor: Tensor): void {
  checkFloat32("scale", { values, factor });
  check(factor.count > 0, "scale", { values, factor });
  values.device.run("mantou_scale", values.count, values, factor);
}

export function siluForward(output: Tensor, input: Tensor): void {
  check(sameShape(output, input), "silu", { output, input });
  output.device.run("mantou_silu_forward", typeOf("silu", { output, input }), output.count, input, output);
}

export function siluBackward(dInput: Tensor, dOutput: Tensor, input: Tensor): void {
  check(sameShape(dInput, dOutput, input), "silu backward", { dInput, dOutput, input });
  const type = typeOf("silu backward", { dInput, dOutput, input });
  dInput.device.run("mantou_silu_backward", type, dInput.count, dOutput, input, dInput);
}

/** output [rows, dim] = SiLU(gate) ⊙ up with gateUp [rows, 2·dim] = gate | up. */
export function swigluForward(output: Tensor, gateUp: Tensor): void {
  check(gateUp.columns === 2 * output.columns && gateUp.rows === output.rows, "swiglu", { output, gateUp });
  const type = typeOf("swiglu", { output, gateUp });
  output.device.run("mantou_swiglu_forward", type, output.rows, output.columns, gateUp, output);
}

/** dGateUp may be gateUp. */
export function swigluBackward(dGateUp: Tensor, dOutput: Tensor, gateUp: Tensor): void {
  const fits = sameShape(dGateUp, gateUp) && gateUp.columns === 2 * dOutput.columns && gateUp.rows === dOutput.rows;
  check(fits, "swiglu backward", { dGateUp, dOutput, gateUp });
  const type = typeOf("swiglu backward", { dGateUp, dOutput, gateUp });
  dOutput.device.run("mantou_swiglu_backward", type, dOutput.rows, dOutput.columns, dOutput, gateUp, dGateUp);
}

/** output [rows, dim] = weight[tokens], tokens int32 [rows] with values < vocab. */
export function embeddingForward(output: Tensor, weight: Tensor, tokens: Tensor): void {
  const fits = tokens.dtype === "int32" && tokens.count === output.rows && output.columns === weight.columns;
  check(fits, "embedding", { output, weight, tokens });
  const { rows, columns } = output;
  const type = typeOf("embedding", { output, weight });
  output.device.run("mantou_embedding_forward", type, rows, weight.rows, columns, tokens, weight, output);
}

/** dWeight[tokens] += dOutput, in row order. */
export function embeddingBackward(dWeight: Tensor, dOutput: Tensor, tokens: Tensor, workspace: Tensor): void {
  const fits = tokens.dtype === "int32" && tokens.count === dOutput.rows && dOutput.columns === dWeight.columns;
  check(fits, "embedding backward", { dWeight, dOutput, tokens });
  const { rows, columns } = dOutput;
  const need = dOutput.device.size("mantou_embedding_backward_workspace", rows, dWeight.rows, columns);
  checkWorkspace("embedding backward", workspace, need);
  checkFloat32("embedding backward", { dWeight });
  const [vocab, device, type] = [dWeight.rows, dOutput.device, typeOf("embedding backward", { dOutput })];
  device.run("mantou_embedding_backward", type, rows, vocab, columns, tokens, dOutput, dWeight, workspace);
}

function checkWorkspace(operation: string, workspace: Tensor, bytes: number): void {
  if (workspace.bytes < bytes) {
    throw new RangeError(`${operation} needs ${bytes} bytes of workspace, got ${workspace.bytes}`);
  }
}

/** sum = input + residual (or input alone); output = sum / rms(sum) ⊙ gain; rstd [rows] = 1 / rms(sum). */
export function rmsnormForward(
  { output, sum, rstd }: { output: Tensor; sum: Tensor | null; rstd: Tensor },
  { input, residual, gain, eps }: { input: Tensor; residual: Tensor | null; gain: Tensor; eps: number },
): void {
  const fits = sameShape(output, sum, input, residual) && gain.count === input.columns && rstd.count === input.rows;
  check(fits, "rmsnorm", { output, sum, rstd, input, residual, gain });
  const { rows, columns, device } = input;
  checkFloat32("rmsnorm", { rstd });
  const type = typeOf("rmsnorm", { output, sum, input, residual, gain });
  device.run("mantou_rmsnorm_forward", type, rows, columns, eps, input, residual, gain, sum, output, rstd);
}

/** dInput = gradient through the norm (+ dResidual); dGain += …; dInput may be dOutput or dResidual. */
export function rmsnormBackward(
  { dInput, dGain }: { dInput: Tensor; dGain: Tensor },
  given: { dOutput: Tensor; x: Tensor; gain: Tensor; rstd: Tensor; dResidual: Tensor | null; workspace: Tensor },
): void {
  const { dOutput, x, gain, rstd, dResidual, workspace } = given;
  const fits = sameShape(dInput, dOutput, x, dResidual) && gain.count === x.columns && dGain.count === x.columns;
  check(fits && rstd.count === x.rows, "rmsnorm backward", { dInput, dGain, dOutput, x, gain, rstd, dResidual });
  const { rows, columns, device } = x;
  checkWorkspace("rmsnorm backward", workspace, device.size("mantou_rmsnorm_backward_workspace", rows, columns));
  const outputs = [dInput, dGain, workspace] as const;
  checkFloat32("rmsnorm backward", { dGain, rstd });
  const type = typeOf("rmsnorm backward", { dInput, dOutput, x, gain, dResidual });
  device.run("mantou_rmsnorm_backward", type, rows, columns, dOutput, x, gain, rstd, dResidual, ...outputs);
}

/** Shape of one attention: `heads` query heads read `kvHeads` key/value heads of `headDim`. */
export interface AttentionShape {
  batch: number;
  length: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  /** cos/sin table [positions, headDim/2, 2] (see ropeTable), or null for no rotation. */
  rope: Tensor | null;
  /** int32 [batch, length], or null for 0, 1, 2, …. */
  positions?: Tensor | null;
}

/** Elements of a packed row q | k | v. */
export function packedWidth({ heads, kvHeads, headDim }: AttentionShape): number {
  return (heads + 2 * kvHeads) * headDim;
}

/** The parts of packed rows q | k | v, and the stride between rows; v may be that of other rows, packed alike. */
function unpack(qkv: Tensor, { heads, kvHeads, headDim }: AttentionShape, values: Tensor | undefined) {
  check(!values || (sameShape(values, qkv) && values.dtype === qkv.dtype), "attention", {
    qkv,
    values: values ?? null,
  });
  const at = ({ memory, byteOffset, dtype }: Tensor, offset: number) => ({
    memory,
    byteOffset: byteOffset + offset * ELEMENT_BYTES[dtype],
  });
  const [q, k] = [at(qkv, 0), at(qkv, heads * headDim)];
  const v = at(values ?? qkv, (heads + kvHeads) * headDim);
  return { q, k, v, stride: qkv.columns, scale: 1 / Math.sqrt(headDim) };
}

/** Positions must lie in the table, which they are read back for: such a call waits, and cannot be captured. */
function checkPositions(operation: string, positions: Tensor | null | undefined, rows: number): void {
  if (!positions) return;
  const host = new Int32Array(new ArrayBuffer(positions.bytes));
  positions.download(host);
  const at = host.findIndex((position) => position < 0 || position >= rows);
  if (at >= 0) throw new RangeError(`${operation}: position ${host[at]} in row ${at} is not in a table of ${rows}`);
}

function checkAttention(operation: string, qkv: Tensor, output: Tensor, shape: AttentionShape): void {
  const { batch, length, heads, headDim, rope, positions } = shape;
  const rows = batch * length;
  const packed = qkv.columns === packedWidth(shape) && qkv.rows === rows;
  check(packed && output.count === rows * heads * headDim, operation, { qkv, output });
  const table = !rope || (rope.count % headDim === 0 && (positions || rope.count / headDim >= length));
  check(Boolean(table), `${operation} (positions beyond the table)`, { rope, qkv });
  check(!positions || (positions.dtype === "int32" && positions.count === rows), operation, { qkv, positions });
  if (rope) checkPositions(operation, positions, rope.count / headDim);
}

/**
 * Whether q and k had better be rotated once, by `rotatePacked`, than by attention as it loads them: where it would load
 * them again and again.
 */
export function rotatesFirst(device: Device, { rope, length }: Pick<AttentionShape, "rope" | "length">): boolean {
  return rope !== null && device.size("mantou_attention_rotate_first", length) === 1;
}

/** Rotates q and k of packed rows [batch·length, (heads + 2·kvHeads)·headDim] in place, as attention would. */
export function rotatePacked(qkv: Tensor, shape: AttentionShape): void {
  const { batch, length, heads, kvHeads, headDim, rope, positions = null } = shape;
  const fits = qkv.columns === packedWidth(shape) && qkv.rows === batch * length;
  check(fits && (positions !== null || rope!.count / headDim >= length), "rotation", { qkv, rope, positions });
  if (rope) checkPositions("rotation", positions, rope.count / headDim);
  const type = typeOf("rotation", { qkv });
  const place = [qkv, qkv.columns] as const;
  qkv.device.run(
    "mantou_rope",
    type,
    qkv.rows,
    length,
    heads + kvHeads,
    headDim,
    rope,
    positions,
    ...place,
    ...place,
    0,
  );
}

/**
 * Causal attention over packed rows qkv [batch·length, (heads + 2·kvHeads)·headDim]; lse [batch, heads, length].
 * @param values rows, packed alike, whose v is taken instead of qkv's
 */
export function attentionForward(
  output: Tensor,
  lse: Tensor,
  qkv: Tensor,
  shape: AttentionShape,
  values?: Tensor,
): void {
  checkAttention("attention", qkv, output, shape);
  const { batch, length, heads, kvHeads, headDim, rope, positions = null } = shape;
  check(lse.count === batch * heads * length, "attention", { lse, qkv });
  const { q, k, v, stride, scale } = unpack(qkv, shape, values);
  const sizes = [batch, length, heads, kvHeads, headDim, scale] as const;
  const inputs = [q, stride, k, v, stride, rope, positions] as const;
  checkFloat32("attention", { lse, rope });
  const type = typeOf("attention", { output, qkv });
  qkv.device.run("mantou_attention_forward", type, ...sizes, ...inputs, output, lse);
}

/**
 * dQkv [batch·length, (heads + 2·kvHeads)·headDim], with respect to q and k before rotation, also where `rotated` says
 * that they come rotated. Where v came from rows of its own, so does its gradient go to rows of its own, dValues; the
 * other parts of both are left as they are.
 */
export function attentionBackward(
  dQkv: Tensor,
  given: {
    dOutput: Tensor;
    qkv: Tensor;
    output: Tensor;
    lse: Tensor;
    workspace: Tensor;
    values?: Tensor;
    dValues?: Tensor;
    rotated?: boolean;
  },
  shape: AttentionShape,
): void {
  const { dOutput, qkv, output, lse, workspace, values, dValues, rotated = false } = given;
  checkAttention("attention backward", qkv, output, shape);
  check(sameShape(dQkv, qkv) && sameShape(dOutput, output), "attention backward", { dQkv, qkv, dOutput, output });
  const { batch, length, heads, kvHeads, headDim, rope, positions = null } = shape;
  const device = qkv.device;
  const sizes = [batch, length, heads, kvHeads, headDim] as const;
  checkWorkspace("attention backward", workspace, device.size("mantou_attention_backward_workspace", ...sizes));
  const { q, k, v, stride, scale } = unpack(qkv, shape, values);
  const d = unpack(dQkv, shape, dValues);
  const inputs = [scale, dOutput, q, stride, k, v, stride, rope, positions, rotated ? 1 : 0, output, lse] as const;
  checkFloat32("attention backward", { lse, rope });
  const type = typeOf("attention backward", { dQkv, dOutput, qkv, output });
  device.run("mantou_attention_backward", type, ...sizes, ...inputs, d.q, d.k, d.v, workspace);
}

/**
 * Generation: appends the keys and values of `length` new tokens of every sequence to the caches, from position starts[b]
 * on in slot slots[b] (b where there are no slots), and attends over everything up to each token.
 */
export function attentionCached(
  output: Tensor,
  given: {
    qkv: Tensor;
    /** As in attentionForward. */
    values?: Tensor;
    kCache: Tensor;
    vCache: Tensor;
    capacity: number;
    starts: Tensor;
    slots?: Tensor | null;
  },
  shape: AttentionShape,
): void {
  const { qkv, values, kCache, vCache, capacity, starts, slots = null } = given;
  const { batch, length, heads, kvHeads, headDim, rope } = shape;
  checkAttention("attention (cached)", qkv, output, shape);
  const slotCount = kCache.count / (capacity * kvHeads * headDim);
  const fits = Number.isInteger(slotCount) && kCache.count === vCache.count && slotCount >= batch;
  check(fits && (!rope || rope.count / headDim >= capacity), "attention (cached)", { qkv, kCache, vCache, rope });
  const areIndices = [starts, slots].every((each) => !each || (each.dtype === "int32" && each.count === batch));
  check(areIndices, "attention (cached)", { qkv, starts, slots });
  const { q, k, v, stride, scale } = unpack(qkv, shape, values);
  const sizes = [batch, length, starts, slots, slotCount, capacity, heads, kvHeads, headDim, scale] as const;
  const inputs = [q, stride, k, v, stride, rope] as const;
  const type = typeOf("attention (cached)", { output, qkv, kCache, vCache });
  qkv.device.run("mantou_attention_cached", type, ...sizes, ...inputs, kCache, vCache, output);
}

/** Rotates pairs (2i, 2i+1) of every head of input [rows, heads·headDim] at the positions given (int32 [rows]). */
export function rope(output: Tensor, input: Tensor, table: Tensor, positions: Tensor, headDim: number): void {
  const heads = input.columns / headDim;
  const fits = sameShape(output, input) && Number.isInteger(heads) && positions.count === input.rows;
  check(fits && positions.dtype === "int32" && table.columns * table.shape.at(-2)! === headDim, "rope", {
    output,
    input,
    table,
    positions,
  });
  checkPositions("rope", positions, table.count / headDim);
  const stride = input.columns;
  const rows = [input.rows, input.rows, heads, headDim] as const;
  const type = typeOf("rope", { output, input });
  input.device.run("mantou_rope", type, ...rows, table, positions, input, stride, output, stride, 0);
}

/** softmax(q kᵀ / √dk, masked) v: q [batch, queries, dk], k [batch, keys, dk], v [batch, keys, dv], mask uint8. */
export function attentionMasked(output: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Uint8Array | null): void {
  const [batch, queries, dk] = q.shape as [number, number, number];
  const [, keys, dv] = v.shape as [number, number, number];
  const fits = k.count === batch * keys * dk && v.count === batch * keys * dv;
  check(fits && output.count === batch * queries * dv, "attention (masked)", { q, k, v, output });
  if (mask && mask.length !== batch * queries * keys) {
    throw new RangeError(`mask has ${mask.length} elements, not ${batch} × ${queries} × ${keys}`);
  }
  const device = q.device;
  using memory = mask ? device.allocate(Math.max(mask.length, 1)) : null;
  const slice = memory ? { memory, byteOffset: 0 } : null;
  if (mask && slice) device.run("mantou_copy", slice, mask, mask.length);
  const sizes = [batch, queries, keys, dk, dv, 1 / Math.sqrt(dk)] as const;
  const type = typeOf("attention (masked)", { output, q, k, v });
  device.run("mantou_attention_masked", type, ...sizes, q, k, v, slice, output);
}

/** Softmax over the middle axis of [outer, dim, inner]. */
export function softmax(output: Tensor, input: Tensor, outer: number, dim: number, inner: number): void {
  check(sameShape(output, input) && outer * dim * inner === input.count, "softmax", { output, input });
  input.device.run("mantou_softmax", typeOf("softmax", { output, input }), outer, dim, inner, input, output);
}

/** What a loss is taken of, and what else is minimised; see `ModelConfig.logitSoftCap` and `TransformerOptions.zLoss`. */
export interface CrossEntropyOptions {
  /** Columns from here on have no part in it; their gradient is 0. Default: all. */
  vocabSize?: number;
  /** 0, the default: none. */
  softCap?: number;
  /** Changes the gradient alone. Default 0. */
  zLoss?: number;
}

/** losses [rows]; where gradientScale is not 0, logits [rows, columns] become gradientScale · ∂(loss + zLoss · log²Z). */
export function crossEntropy(
  losses: Tensor,
  logits: Tensor,
  targets: Tensor,
  gradientScale: number,
  { vocabSize = logits.columns, softCap = 0, zLoss = 0 }: CrossEntropyOptions = {},
): void {
  const { rows, columns, device } = logits;
  const isBatch = losses.count === rows && targets.count === rows && targets.dtype === "int32";
  const fits = isBatch && vocabSize <= columns;
  check(fits, "cross-entropy", { losses, logits, targets });
  checkFloat32("cross-entropy", { losses });
  const type = typeOf("cross-entropy", { logits });
  const scalars = [softCap, zLoss, gradientScale] as const;
  device.run("mantou_cross_entropy", type, rows, vocabSize, logits, columns, targets, ...scalars, losses);
}

/** result [2] = ‖gradients‖₂ and min(1, maxNorm / (norm + 1e-6)), the factor of torch's clip_grad_norm_. */
export function gradientNorm(result: Tensor, gradients: Tensor, maxNorm: number, workspace: Tensor): void {
  const device = gradients.device;
  check(result.count === 2, "gradient norm", { result });
  checkFloat32("gradient norm", { result, gradients });
  checkWorkspace("gradient norm", workspace, device.size("mantou_gradient_norm_workspace", gradients.count));
  device.run("mantou_gradient_norm", gradients.count, gradients, maxNorm, 1e-6, result, workspace);
}
