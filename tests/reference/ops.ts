/**
 * Every operation of the assignment, in float64 and as plainly as possible: the oracle the packages are tested against.
 *
 * Convention: arrays are row-major, `[...]` stands for any leading dimensions, nothing is changed in place, and no line
 * here is shared with the packages. Each function follows the formula of the CS336 handout (assignment 1); none is
 * fast. Gradients come from finite differences of these functions (`differences.ts`), so there is no backward code.
 */

/** Row-major input of any number type. */
export interface Numeric {
  shape: readonly number[];
  data: ArrayLike<number>;
}

/** Row-major result in float64. */
export interface Array64 {
  shape: number[];
  data: Float64Array;
}

/** A float64 copy, for example of float32 weights that are to be perturbed by less than float32 resolves. */
export function toFloat64({ shape, data }: Numeric): Array64 {
  return { shape: [...shape], data: new Float64Array(data) };
}

/** weights [dOut, dIn], inFeatures [..., dIn] → inFeatures · weightsᵀ [..., dOut] */
export function linear(weights: Numeric, inFeatures: Numeric): Array64 {
  const [dOut, dIn] = weights.shape;
  const rows = rowsOf(inFeatures, dIn);
  // Nearly all the work of a model is this inner loop; copies of one type and offsets kept in constants make it several
  // times faster.
  const w = toFloat64(weights).data;
  const x = toFloat64(inFeatures).data;
  const result = new Float64Array(rows * dOut);
  for (let row = 0; row < rows; row++) {
    for (let o = 0; o < dOut; o++) {
      const wStart = o * dIn;
      const xStart = row * dIn;
      let sum = 0;
      for (let i = 0; i < dIn; i++) sum += w[wStart + i] * x[xStart + i];
      result[row * dOut + o] = sum;
    }
  }
  return { shape: [...inFeatures.shape.slice(0, -1), dOut], data: result };
}

/** weights [V, d], tokenIds [...] → [..., d] */
export function embedding(weights: Numeric, tokenIds: Numeric): Array64 {
  const [vocabSize, d] = weights.shape;
  const ids = Array.from(tokenIds.data);
  const result = new Float64Array(ids.length * d);
  ids.forEach((id, row) => {
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
      throw new Error(`token id ${id} is outside 0..${vocabSize - 1}`);
    }
    for (let i = 0; i < d; i++) result[row * d + i] = weights.data[id * d + i];
  });
  return { shape: [...tokenIds.shape, d], data: result };
}

/** x_i / sqrt(mean(x²) + eps) · gain_i over the last dimension (Zhang & Sennrich 2019, eq. 4). */
export function rmsnorm(gain: Numeric, x: Numeric, eps = 1e-5): Array64 {
  const [d] = gain.shape;
  const rows = rowsOf(x, d);
  const result = new Float64Array(rows * d);
  for (let row = 0; row < rows; row++) {
    let squares = 0;
    for (let i = 0; i < d; i++) squares += x.data[row * d + i] ** 2;
    const rms = Math.sqrt(squares / d + eps);
    for (let i = 0; i < d; i++) result[row * d + i] = (x.data[row * d + i] / rms) * gain.data[i];
  }
  return { shape: [...x.shape], data: result };
}

/** x · sigmoid(x), elementwise */
export function silu(x: Numeric): Array64 {
  return { shape: [...x.shape], data: Float64Array.from(x.data, (v) => v / (1 + Math.exp(-v))) };
}

/** w2 (SiLU(w1 x) ⊙ w3 x) (Shazeer 2020); w1, w3 [dFf, d], w2 [d, dFf] */
export function swiglu(w1: Numeric, w2: Numeric, w3: Numeric, x: Numeric): Array64 {
  return linear(w2, multiply(silu(linear(w1, x)), linear(w3, x)));
}

/** w2 SiLU(w1 x): the feed-forward network without a gate */
export function siluFeedForward(w1: Numeric, w2: Numeric, x: Numeric): Array64 {
  return linear(w2, silu(linear(w1, x)));
}

/** Softmax along `dim`; a negative dim counts from the end. */
export function softmax(x: Numeric, dim = -1): Array64 {
  const axis = dim < 0 ? dim + x.shape.length : dim;
  if (!(axis >= 0 && axis < x.shape.length)) {
    throw new Error(`dim ${dim} does not exist in an array of shape [${x.shape}]`);
  }
  const length = x.shape[axis];
  const stride = product(x.shape.slice(axis + 1));
  const result = new Float64Array(x.data.length);
  for (let start = 0; start < x.data.length; start++) {
    if (Math.floor(start / stride) % length !== 0) continue; // not the first element along `axis`
    const indices = Array.from({ length }, (_, i) => start + i * stride);
    const maximum = Math.max(...indices.map((i) => x.data[i]));
    let sum = 0;
    for (const i of indices) sum += result[i] = Math.exp(x.data[i] - maximum);
    for (const i of indices) result[i] /= sum;
  }
  return { shape: [...x.shape], data: result };
}

/**
 * softmax(Q Kᵀ / sqrt(dk)) V (Vaswani et al. 2017, eq. 1).
 *
 * @param Q [..., q, dk]
 * @param K [..., k, dk]
 * @param V [..., k, dv]
 * @param mask [..., q, k], nonzero = attend; its leading dimensions broadcast. A row with nothing to attend to gives
 *   the mean of V, the limit of adding the same large negative number to all of its scores.
 * @returns [..., q, dv]
 */
export function scaledDotProductAttention(Q: Numeric, K: Numeric, V: Numeric, mask?: Numeric): Array64 {
  const [queries, dk] = Q.shape.slice(-2);
  const [keys, dv] = V.shape.slice(-2);
  const lead = Q.shape.slice(0, -2);
  const batches = product(lead);
  const maskOf = mask ? broadcast(mask, [...lead, queries, keys]) : undefined;
  const result = new Float64Array(batches * queries * dv);
  for (let b = 0; b < batches; b++) {
    for (let q = 0; q < queries; q++) {
      const row = b * queries + q;
      const allowed = (k: number) => !maskOf || maskOf(row * keys + k) !== 0;
      const scores = new Float64Array(keys).fill(-Infinity);
      for (let k = 0; k < keys; k++) {
        if (!allowed(k)) continue;
        let dot = 0;
        for (let i = 0; i < dk; i++) dot += Q.data[row * dk + i] * K.data[(b * keys + k) * dk + i];
        scores[k] = dot / Math.sqrt(dk);
      }
      if (scores.every((score) => score === -Infinity)) scores.fill(0);
      const weights = softmax({ shape: [keys], data: scores }).data;
      for (let k = 0; k < keys; k++) {
        for (let j = 0; j < dv; j++) result[row * dv + j] += weights[k] * V.data[(b * keys + k) * dv + j];
      }
    }
  }
  return { shape: [...lead, queries, dv], data: result };
}

/**
 * Rotary position embedding (Su et al. 2021): the pair (x₂ᵢ, x₂ᵢ₊₁) at position p turns by p · theta^(-2i/dk).
 *
 * @param x [..., T, dk]
 * @param tokenPositions broadcast to [..., T]
 * @param scale what becomes of each frequency theta^(-2i/dk)
 */
export function rope(
  theta: number,
  x: Numeric,
  tokenPositions: Numeric,
  scale: (frequency: number) => number = (frequency) => frequency,
): Array64 {
  const dk = x.shape[x.shape.length - 1];
  const position = broadcast(tokenPositions, x.shape.slice(0, -1));
  const result = new Float64Array(x.data.length);
  for (let row = 0; row * dk < x.data.length; row++) {
    for (let i = 0; i < dk; i += 2) {
      const angle = position(row) * scale(theta ** (-i / dk));
      const even = x.data[row * dk + i];
      const odd = x.data[row * dk + i + 1];
      result[row * dk + i] = even * Math.cos(angle) - odd * Math.sin(angle);
      result[row * dk + i + 1] = even * Math.sin(angle) + odd * Math.cos(angle);
    }
  }
  return { shape: [...x.shape], data: result };
}

/** Projections of an attention layer: q, output [dModel, dModel]; k, v [numKeyValueHeads · headDim, dModel]. */
export interface AttentionWeights {
  q: Numeric;
  k: Numeric;
  v: Numeric;
  output: Numeric;
}

/** What an attention layer needs besides its weights. */
export interface AttentionOptions {
  numHeads: number;
  /** Grouped-query attention (Ainslie et al. 2023): query head h reads key/value head ⌊h / (numHeads / this)⌋. */
  numKeyValueHeads?: number;
  /** Rotates queries and keys; absent: no position information. Positions default to 0 … T - 1, broadcast to [..., T]. */
  rope?: { theta: number; scale?: (frequency: number) => number; tokenPositions?: Numeric };
  /** RMSNorm with ε 1e-6 and without a gain on every head of queries and keys. */
  qkNorm?: boolean;
}

/** Causal multi-head self-attention: inFeatures [..., T, dModel] → [..., T, dModel] */
export function multiHeadSelfAttention(
  weights: AttentionWeights,
  inFeatures: Numeric,
  { numHeads, numKeyValueHeads = numHeads, rope: rotation, qkNorm = false }: AttentionOptions,
): Array64 {
  const T = inFeatures.shape[inFeatures.shape.length - 2];
  const lead = inFeatures.shape.slice(0, -2);
  const headDim = weights.q.shape[0] / numHeads;
  const group = numHeads / numKeyValueHeads;
  const positions = rotation?.tokenPositions ?? { shape: [T], data: Array.from({ length: T }, (_, t) => t) };
  const rotate = (x: Array64) => (rotation ? rope(rotation.theta, x, positions, rotation.scale) : x);
  const ones = { shape: [headDim], data: new Float64Array(headDim).fill(1) };
  const normalise = (x: Array64) => (qkNorm ? rmsnorm(ones, x, 1e-6) : x);
  const causal = {
    shape: [T, T],
    data: Array.from({ length: T * T }, (_, i) => (i % T <= Math.floor(i / T) ? 1 : 0)),
  };

  const q = linear(weights.q, inFeatures);
  const k = linear(weights.k, inFeatures);
  const v = linear(weights.v, inFeatures);
  const joined: Array64 = { shape: [...lead, T, numHeads * headDim], data: new Float64Array(q.data.length) };
  for (let h = 0; h < numHeads; h++) {
    const shared = Math.floor(h / group);
    const queries = rotate(normalise(columns(q, h * headDim, headDim)));
    const keys = rotate(normalise(columns(k, shared * headDim, headDim)));
    const values = columns(v, shared * headDim, headDim);
    const attended = scaledDotProductAttention(queries, keys, values, causal);
    for (let row = 0; row * headDim < attended.data.length; row++) {
      for (let i = 0; i < headDim; i++) {
        joined.data[(row * numHeads + h) * headDim + i] = attended.data[row * headDim + i];
      }
    }
  }
  return linear(weights.output, joined);
}

/** cap tanh(x / cap), elementwise */
export function softCap(x: Numeric, cap: number): Array64 {
  return { shape: [...x.shape], data: Float64Array.from(x.data, (value) => cap * Math.tanh(value / cap)) };
}

/** Mean over the rows of -log softmax(inputs)[target] + zLoss (log Σ exp inputs)²; inputs [n, V], targets [n] */
export function crossEntropy(inputs: Numeric, targets: Numeric, zLoss = 0): number {
  const V = inputs.shape[inputs.shape.length - 1];
  const n = targets.data.length;
  let total = 0;
  for (let row = 0; row < n; row++) {
    const logits = Array.from({ length: V }, (_, i) => inputs.data[row * V + i]);
    const maximum = Math.max(...logits);
    const logSum = maximum + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - maximum), 0));
    total += logSum - logits[targets.data[row]] + zLoss * logSum ** 2;
  }
  return total / n;
}

/** a + b, elementwise */
export function add(a: Numeric, b: Numeric): Array64 {
  return { shape: [...a.shape], data: Float64Array.from(a.data, (value, i) => value + b.data[i]) };
}

/** a ⊙ b, elementwise */
function multiply(a: Numeric, b: Numeric): Array64 {
  return { shape: [...a.shape], data: Float64Array.from(a.data, (value, i) => value * b.data[i]) };
}

function product(lengths: readonly number[]): number {
  return lengths.reduce((result, length) => result * length, 1);
}

function rowsOf(x: Numeric, width: number): number {
  if (x.shape[x.shape.length - 1] !== width) {
    throw new Error(`expected a last dimension of ${width}, got an array of shape [${x.shape}]`);
  }
  return x.data.length / width;
}

/** Columns start … start + width - 1 of the last dimension. */
function columns(x: Array64, start: number, width: number): Array64 {
  const total = x.shape[x.shape.length - 1];
  const rows = x.data.length / total;
  const data = new Float64Array(rows * width);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < width; i++) data[row * width + i] = x.data[row * total + start + i];
  }
  return { shape: [...x.shape.slice(0, -1), width], data };
}

/** Reads `array` as if it had the larger `shape`, aligned at the last dimension, dimensions of length 1 repeated. */
function broadcast(array: Numeric, shape: readonly number[]): (index: number) => number {
  const own = [...shape.map(() => 1), ...array.shape].slice(-shape.length);
  if (array.shape.length > shape.length || own.some((length, axis) => length !== 1 && length !== shape[axis])) {
    throw new Error(`an array of shape [${array.shape}] does not broadcast to [${shape}]`);
  }
  return (index) => {
    let source = 0;
    let stride = 1;
    for (let axis = shape.length - 1, rest = index; axis >= 0; axis--) {
      const coordinate = rest % shape[axis];
      rest = Math.floor(rest / shape[axis]);
      if (own[axis] !== 1) source += coordinate * stride;
      stride *= own[axis];
    }
    return array.data[source];
  };
}
