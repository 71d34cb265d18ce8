/**
 * The model's systems one by one, from host array to host array: upload, run the operation, download. For trying things
 * out and for tests; training plans its memory once instead (see TransformerLM). Leading dimensions are batches.
 */
import { Activations } from "./activations.ts";
import { type ModelConfig, RMSNORM_EPS, resolveModelConfig } from "./config.ts";
import type { Device } from "./device.ts";
import { createBlock } from "./layers/block.ts";
import * as operations from "./operations.ts";
import { ParameterStore } from "./parameters.ts";
import { ropeTable } from "./rope.ts";
import { type NdArray, Tensor, elementCount } from "./tensor.ts";
import { parameterGroups } from "./transformer.ts";

/** Runs `body` with tensors that are freed when it ends; its result comes back as a host array of `shape`. */
function compute(device: Device, shape: number[], body: (make: TensorMaker) => Tensor): NdArray {
  const tensors: Tensor[] = [];
  const keep = (tensor: Tensor) => {
    tensors.push(tensor);
    return tensor;
  };
  try {
    const result = body({
      zeros: (of) => keep(Tensor.zeros(device, of)),
      from: (array) => {
        const expected = elementCount(array.shape);
        if (array.data.length !== expected) {
          throw new RangeError(
            `an array [${array.shape.join(", ")}] must hold ${expected} values, not ${array.data.length}`,
          );
        }
        const data = array.data instanceof Uint8Array ? Float32Array.from(array.data) : array.data;
        return keep(Tensor.from(device, array.shape, data));
      },
    });
    return { shape, data: result.toFloat32Array() };
  } finally {
    for (const tensor of tensors) tensor[Symbol.dispose]();
  }
}

interface TensorMaker {
  zeros(shape: readonly number[]): Tensor;
  from(array: NdArray): Tensor;
}

function lastAxis({ shape }: NdArray): number {
  const size = shape.at(-1);
  if (size === undefined) throw new RangeError("an array without axes has no last axis");
  return size;
}

/** Token ids and positions, which int32 would cut to whole numbers. */
function wholeNumbers(values: NdArray["data"], name: string): Int32Array {
  const result = Int32Array.from(values);
  const at = result.findIndex((value, i) => value !== values[i]);
  if (at >= 0) throw new RangeError(`${name} ${values[at]} at position ${at} is not a whole number within int32`);
  return result;
}

/** x Wᵀ: x [..., dIn], weight [dOut, dIn] → [..., dOut]. */
export function linear(device: Device, x: NdArray, weight: NdArray): NdArray {
  const shape = [...x.shape.slice(0, -1), weight.shape[0]!];
  return compute(device, shape, ({ from, zeros }) => {
    const output = zeros(shape);
    operations.matmul(output, from(x), from(weight), { transposeB: true });
    return output;
  });
}

/** Rows of weight [vocab, d]: tokenIds int [...] → [..., d]. @throws NativeError for an id outside the vocabulary */
export function embedding(device: Device, weight: NdArray, tokenIds: NdArray): NdArray {
  const shape = [...tokenIds.shape, lastAxis(weight)];
  return compute(device, shape, ({ from, zeros }) => {
    const output = zeros(shape);
    operations.embeddingForward(
      output,
      from(weight),
      from({ ...tokenIds, data: wholeNumbers(tokenIds.data, "token id") }),
    );
    return output;
  });
}

/** x / √(mean x² + eps) ⊙ gain over the last axis. */
export function rmsnorm(device: Device, x: NdArray, gain: NdArray, eps = RMSNORM_EPS): NdArray {
  return compute(device, x.shape, ({ from, zeros }) => {
    const [input, output] = [from(x), zeros(x.shape)];
    const outputs = { output, sum: null, rstd: zeros([input.rows]) };
    operations.rmsnormForward(outputs, { input, residual: null, gain: from(gain), eps });
    return output;
  });
}

export function silu(device: Device, x: NdArray): NdArray {
  return compute(device, x.shape, ({ from, zeros }) => {
    const output = zeros(x.shape);
    operations.siluForward(output, from(x));
    return output;
  });
}

/** w2(SiLU(w1 x) ⊙ w3 x): w1, w3 [dFf, d], w2 [d, dFf], x [..., d]. */
export function swiglu(device: Device, x: NdArray, weights: { w1: NdArray; w2: NdArray; w3: NdArray }): NdArray {
  const { w1, w2, w3 } = weights;
  const dFf = w1.shape[0]!;
  if (w3.shape.join() !== w1.shape.join()) throw new RangeError(`w1 [${w1.shape}] and w3 [${w3.shape}] differ`);
  return compute(device, x.shape, ({ from, zeros }) => {
    const input = from(x);
    const up = from(stack([w1, w3]));
    const [gateUp, hidden, output] = [zeros([input.rows, 2 * dFf]), zeros([input.rows, dFf]), zeros(x.shape)];
    operations.matmul(gateUp, input, up, { transposeB: true });
    operations.swigluForward(hidden, gateUp);
    operations.matmul(output, hidden, from(w2), { transposeB: true });
    return output;
  });
}

/** Softmax over one axis; a negative `dim` counts from the end. */
export function softmax(device: Device, x: NdArray, dim = -1): NdArray {
  const axis = dim < 0 ? dim + x.shape.length : dim;
  if (!Number.isInteger(axis) || axis < 0 || axis >= x.shape.length) {
    throw new RangeError(`dim ${dim} is not an axis of [${x.shape.join(", ")}]`);
  }
  const [outer, inner] = [elementCount(x.shape.slice(0, axis)), elementCount(x.shape.slice(axis + 1))];
  return compute(device, x.shape, ({ from, zeros }) => {
    const output = zeros(x.shape);
    operations.softmax(output, from(x), outer, x.shape[axis]!, inner);
    return output;
  });
}

/**
 * softmax(Q Kᵀ / √dk, masked) V: Q [..., q, dk], K [..., k, dk], V [..., k, dv], mask uint8 [..., q, k] (1 = attend).
 * A row that may attend to nothing gives the mean of V.
 */
export function scaledDotProductAttention(
  device: Device,
  { Q, K, V, mask }: { Q: NdArray; K: NdArray; V: NdArray; mask?: NdArray },
): NdArray {
  const lead = Q.shape.slice(0, -2);
  const batch = elementCount(lead);
  const [queries, dk] = Q.shape.slice(-2) as [number, number];
  const [keys, dv] = V.shape.slice(-2) as [number, number];
  for (const [name, array, expected] of [
    ["K", K, [...lead, keys, dk]],
    ["V", V, [...lead, keys, dv]],
  ] as const) {
    if (array.shape.join() === expected.join()) continue;
    throw new RangeError(`${name} is [${array.shape.join(", ")}], not [${expected.join(", ")}] (Q is [${Q.shape}])`);
  }
  const shape = [...lead, queries, dv];
  const cells = mask && broadcast(mask.shape, Uint8Array.from(mask.data), [...lead, queries, keys], "mask");
  return compute(device, shape, ({ from, zeros }) => {
    const output = zeros([batch, queries, dv]);
    const [q, k, v] = [from(Q), from(K), from(V)];
    const at = (tensor: Tensor, ...sizes: number[]) => tensor.view([batch, ...sizes]);
    operations.attentionMasked(output, at(q, queries, dk), at(k, keys, dk), at(v, keys, dv), cells ?? null);
    return output;
  });
}

export interface RopeOptions {
  theta: number;
  maxSeqLen: number;
  /** int [..., length]; leading dimensions may be left out. Default 0, 1, 2, …. */
  tokenPositions?: NdArray;
}

/** Rotates the pairs (2i, 2i+1) of x [..., length, dK]. */
export function rope(device: Device, x: NdArray, options: RopeOptions): NdArray {
  const dK = lastAxis(x);
  const rows = elementCount(x.shape.slice(0, -1));
  return compute(device, x.shape, ({ from, zeros }) => {
    const output = zeros(x.shape);
    using table = ropeTable(device, options.maxSeqLen, dK, { ropeTheta: options.theta });
    const positions = from({ shape: [rows], data: positionsOf(options, x.shape.slice(0, -1)) });
    operations.rope(output, from(x), table, positions, dK);
    return output;
  });
}

/** Positions int32 [...shape], as many as there are rows. */
function positionsOf({ tokenPositions, maxSeqLen }: RopeOptions, shape: readonly number[]): Int32Array {
  const length = shape.at(-1) ?? 1;
  const given = tokenPositions ?? { shape: shape.slice(-1), data: Int32Array.from({ length }, (_, i) => i) };
  const data = wholeNumbers(given.data, "token position");
  const wrong = data.find((position) => position < 0 || position >= maxSeqLen);
  if (wrong !== undefined) throw new RangeError(`token position ${wrong} is not below maxSeqLen ${maxSeqLen}`);
  return broadcast(given.shape, data, shape, "tokenPositions");
}

/** `data` of `shape` repeated to `target`: aligned at the last axis, axes of length 1 repeated, as in NumPy. */
function broadcast<T extends Int32Array | Uint8Array>(
  shape: readonly number[],
  data: T,
  target: readonly number[],
  name: string,
): T {
  const own = [...Array<number>(Math.max(0, target.length - shape.length)).fill(1), ...shape];
  const fits = own.length === target.length && own.every((size, axis) => size === 1 || size === target[axis]);
  if (!fits || data.length !== elementCount(shape)) {
    const given = `${name} [${shape.join(", ")}] with ${data.length} values`;
    throw new RangeError(`${given} cannot be broadcast to [${target.join(", ")}]`);
  }
  const count = elementCount(target);
  if (data.length === count) return data;
  const result = data instanceof Int32Array ? new Int32Array(count) : new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    let [rest, stride, source] = [i, 1, 0];
    for (let axis = target.length - 1; axis >= 0; axis--) {
      if (own[axis] !== 1) source += (rest % target[axis]!) * stride;
      rest = Math.floor(rest / target[axis]!);
      stride *= own[axis]!;
    }
    result[i] = data[source]!;
  }
  return result as T;
}

export interface SelfAttentionOptions {
  numHeads: number;
  /** [dModel, dModel]. */
  qProjWeight: NdArray;
  kProjWeight: NdArray;
  vProjWeight: NdArray;
  oProjWeight: NdArray;
  /** Rotary position embedding of queries and keys, or none. */
  rope?: RopeOptions;
}

/** Causal multi-head self-attention of x [..., length, dModel]. */
export function multiheadSelfAttention(device: Device, x: NdArray, options: SelfAttentionOptions): NdArray {
  const { numHeads: heads, qProjWeight, kProjWeight, vProjWeight, oProjWeight, rope: rotation } = options;
  const dModel = lastAxis(x);
  const length = x.shape.at(-2) ?? 1;
  const rows = elementCount(x.shape.slice(0, -1));
  const headDim = qProjWeight.shape[0]! / heads;
  const kvHeads = kProjWeight.shape[0]! / headDim;
  if (!Number.isInteger(headDim) || !Number.isInteger(kvHeads)) {
    throw new RangeError(`${qProjWeight.shape[0]} rows of qProjWeight are not ${heads} heads`);
  }
  return compute(device, x.shape, ({ from, zeros }) => {
    const packed = from(stack([qProjWeight, kProjWeight, vProjWeight]));
    const qkv = zeros([rows, packed.rows]);
    operations.matmul(qkv, from(x).view([rows, dModel]), packed, { transposeB: true });
    using table = rotation ? ropeTable(device, rotation.maxSeqLen, headDim, { ropeTheta: rotation.theta }) : null;
    const positions = rotation && from({ shape: [rows], data: positionsOf(rotation, x.shape.slice(0, -1)) });
    const shape = { batch: rows / length, length, heads, kvHeads, headDim, rope: table, positions };
    const [attended, output] = [zeros([rows, heads * headDim]), zeros([rows, dModel])];
    operations.attentionForward(attended, zeros([heads * rows]), qkv, shape);
    operations.matmul(output, attended, from(oProjWeight), { transposeB: true });
    return output;
  });
}

/** Stacks matrices with equal columns on top of each other. */
function stack(parts: NdArray[]): NdArray {
  const columns = lastAxis(parts[0]!);
  const data = new Float32Array(parts.reduce((sum, part) => sum + part.data.length, 0));
  let at = 0;
  for (const part of parts) {
    if (lastAxis(part) !== columns) throw new RangeError(`matrices of ${columns} and ${lastAxis(part)} columns`);
    data.set(part.data, at);
    at += part.data.length;
  }
  return { shape: [data.length / columns, columns], data };
}

/**
 * One block of x [batch, length, dModel]. Weights are named as in the model, without the `layers.{i}.` in front.
 * @param config sizes of the block; vocabSize and numLayers do not matter
 */
export function transformerBlock(
  device: Device,
  x: NdArray,
  config: Omit<ModelConfig, "vocabSize" | "numLayers">,
  weights: Record<string, NdArray>,
): NdArray {
  const resolved = resolveModelConfig({ ...config, vocabSize: 1, numLayers: 1 });
  const [length, rows] = [x.shape.at(-2) ?? 1, elementCount(x.shape.slice(0, -1))];
  if (length > resolved.contextLength) throw new RangeError(`${length} tokens are more than ${resolved.contextLength}`);
  const groups = parameterGroups(resolved).filter((group) => group[0]!.name.startsWith("layers.0."));
  using store = new ParameterStore(device, groups);
  for (const parameter of store.byName.values()) {
    const { name, shape } = parameter;
    const given = weights[name.replace("layers.0.", "")];
    if (given?.shape.join() !== shape.join()) throw new RangeError(`weight ${name} must be [${shape.join(", ")}]`);
    parameter.set(Float32Array.from(given.data));
  }
  using activations = new Activations(device, rows / length, length);
  const headDim = resolved.dModel / resolved.numHeads;
  using table = resolved.position === "rope" ? ropeTable(device, length, headDim, resolved) : null;
  return compute(device, x.shape, ({ from }) => {
    const block = createBlock(store, 0, resolved, table, activations);
    const { stream, update } = block.forward({ stream: from(x).view([rows, resolved.dModel]), update: null }, length);
    if (update) operations.add(stream, stream, update);
    return stream;
  });
}

/** Mean cross-entropy in nats: inputs [n, vocab], targets int [n]. */
export function crossEntropy(device: Device, inputs: NdArray, targets: NdArray): number {
  const rows = targets.data.length;
  if (inputs.data.length !== rows * lastAxis(inputs)) {
    throw new RangeError(`inputs [${inputs.shape.join(", ")}] are not one row of logits for each of ${rows} targets`);
  }
  const result = compute(device, [1], ({ from, zeros }) => {
    const [losses, mean] = [zeros([rows]), zeros([1])];
    const logits = from(inputs).view([rows, lastAxis(inputs)]);
    operations.crossEntropy(losses, logits, from({ shape: [rows], data: wholeNumbers(targets.data, "target") }), 0);
    operations.sum(mean, losses, 1 / rows);
    return mean;
  });
  return result.data[0]!;
}

/**
 * Scales float32 gradients in place so that their combined L2 norm is at most `maxL2Norm` (ε = 1e-6, as PyTorch).
 * @returns the norm before
 */
export function clipGradients(device: Device, gradients: NdArray[], maxL2Norm: number): number {
  const total = gradients.reduce((sum, { data }) => sum + data.length, 0);
  if (total === 0) return 0;
  let norm = 0;
  const clipped = compute(device, [total], ({ from, zeros }) => {
    const flat = from(stack(gradients.map(({ data }) => ({ shape: [data.length, 1], data }))));
    const result = zeros([2]);
    const workspace = zeros([Math.ceil(device.size("mantou_gradient_norm_workspace", total) / 4)]);
    operations.gradientNorm(result, flat, maxL2Norm, workspace);
    operations.scale(flat, result.view([1], 1));
    norm = result.toFloat32Array()[0]!;
    return flat;
  });
  let at = 0;
  for (const { data } of gradients) {
    data.set(clipped.data.subarray(at, at + data.length));
    at += data.length;
  }
  return norm;
}
