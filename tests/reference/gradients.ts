/**
 * Backward passes in float64, for kernels too large for finite differences: plain loops over the textbook formulas.
 * `gradients.test.ts` proves each of them by finite differences of `ops.ts` on small arrays.
 */
import { type Array64, type Numeric, rope, silu } from "./ops.ts";

/** dOutput · SiLU'(x) with SiLU'(x) = σ(x) (1 + x (1 − σ(x))) */
export function siluBackward(dOutput: Numeric, x: Numeric): Array64 {
  const data = Float64Array.from(x.data, (v, i) => {
    const sigmoid = 1 / (1 + Math.exp(-v));
    return dOutput.data[i] * sigmoid * (1 + v * (1 - sigmoid));
  });
  return { shape: [...x.shape], data };
}

/** gateUp [rows, 2 · dim] holds gate and up: SiLU(gate) ⊙ up [rows, dim]. */
export function packedSwiglu(gateUp: Numeric): Array64 {
  const [rows, width] = gateUp.shape;
  const dim = width / 2;
  const activated = silu(gateUp).data;
  const data = Float64Array.from({ length: rows * dim }, (_, i) => {
    const at = Math.floor(i / dim) * width + (i % dim);
    return activated[at] * gateUp.data[at + dim];
  });
  return { shape: [rows, dim], data };
}

/** Gradient of {@link packedSwiglu} by gateUp. */
export function packedSwigluBackward(dOutput: Numeric, gateUp: Numeric): Array64 {
  const [rows, width] = gateUp.shape;
  const dim = width / 2;
  const activated = silu(gateUp).data;
  const slope = siluBackward({ shape: gateUp.shape, data: new Float64Array(rows * width).fill(1) }, gateUp).data;
  const data = new Float64Array(rows * width);
  for (let row = 0; row < rows; row++) {
    for (let i = 0; i < dim; i++) {
      const [gate, up, d] = [row * width + i, row * width + dim + i, dOutput.data[row * dim + i]];
      data[gate] = d * gateUp.data[up] * slope[gate];
      data[up] = d * activated[gate];
    }
  }
  return { shape: [rows, width], data };
}

/** Gradients of rmsnorm(gain, x, eps) by both; x [rows, dim]. */
export function rmsnormBackward(dOutput: Numeric, gain: Numeric, x: Numeric, eps: number) {
  const [rows, dim] = x.shape;
  const dX: Array64 = { shape: [rows, dim], data: new Float64Array(rows * dim) };
  const dGain: Array64 = { shape: [dim], data: new Float64Array(dim) };
  for (let row = 0; row < rows; row++) {
    const at = row * dim;
    let [squares, dot] = [0, 0];
    for (let i = 0; i < dim; i++) {
      squares += x.data[at + i] ** 2;
      dot += dOutput.data[at + i] * gain.data[i] * x.data[at + i];
    }
    const rstd = 1 / Math.sqrt(squares / dim + eps);
    for (let i = 0; i < dim; i++) {
      dX.data[at + i] = rstd * (dOutput.data[at + i] * gain.data[i] - x.data[at + i] * rstd ** 2 * (dot / dim));
      dGain.data[i] += dOutput.data[at + i] * x.data[at + i] * rstd;
    }
  }
  return { dX, dGain };
}

/** Attention over packed rows q | k | v [batch · length, (heads + 2 · kvHeads) · headDim], as the kernels have it. */
export interface PackedAttention {
  batch: number;
  length: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  /** Rotate queries and keys; positions [batch · length], 0 … length − 1 in every sequence unless given. */
  rope?: { theta: number; positions?: ArrayLike<number> };
  /** What becomes of intermediate results: nothing unless given; rounding makes this a computation in that precision. */
  round?: (value: number) => number;
}

function exact(value: number): number {
  return value;
}

/** One head of one sequence: rotated q and k, v, and the softmax of the scaled causal scores, [length, length]. */
interface HeadOfSequence {
  q: Float64Array;
  k: Float64Array;
  v: Float64Array;
  probabilities: Float64Array;
  lse: Float64Array;
  positions: number[];
}

function headOf(qkv: Numeric, shape: PackedAttention, b: number, h: number): HeadOfSequence {
  const { length, heads, kvHeads, headDim, round = exact } = shape;
  const width = (heads + 2 * kvHeads) * headDim;
  const shared = Math.floor(h / (heads / kvHeads));
  const positions = Array.from({ length }, (_, t) => shape.rope?.positions?.[b * length + t] ?? t);
  const part = (head: number, rotate: boolean) => {
    const data = new Float64Array(length * headDim);
    for (let t = 0; t < length; t++) {
      for (let i = 0; i < headDim; i++) data[t * headDim + i] = qkv.data[(b * length + t) * width + head * headDim + i];
    }
    if (!rotate || !shape.rope) return data;
    const turned = rope(shape.rope.theta, { shape: [length, headDim], data }, { shape: [length], data: positions });
    return turned.data.map(round);
  };
  const [q, k, v] = [part(h, true), part(heads + shared, true), part(heads + kvHeads + shared, false)];
  const probabilities = new Float64Array(length * length);
  const lse = new Float64Array(length);
  for (let t = 0; t < length; t++) {
    const row = probabilities.subarray(t * length, t * length + t + 1);
    let maximum = -Infinity;
    for (let j = 0; j <= t; j++) {
      let dot = 0;
      for (let i = 0; i < headDim; i++) dot += q[t * headDim + i] * k[j * headDim + i];
      row[j] = round(dot / Math.sqrt(headDim));
      maximum = Math.max(maximum, row[j]);
    }
    let sum = 0;
    for (let j = 0; j <= t; j++) sum += row[j] = Math.exp(row[j] - maximum);
    for (let j = 0; j <= t; j++) row[j] = round(row[j] / sum);
    lse[t] = maximum + Math.log(sum);
  }
  return { q, k, v, probabilities, lse, positions };
}

/** Causal attention: output [batch · length, heads · headDim], lse [batch, heads, length]. */
export function packedAttention(qkv: Numeric, shape: PackedAttention): { output: Array64; lse: Array64 } {
  const { batch, length, heads, headDim } = shape;
  const output = new Float64Array(batch * length * heads * headDim);
  const lse = new Float64Array(batch * heads * length);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const head = headOf(qkv, shape, b, h);
      lse.set(head.lse, (b * heads + h) * length);
      for (let t = 0; t < length; t++) {
        const to = output.subarray(((b * length + t) * heads + h) * headDim);
        for (let j = 0; j <= t; j++) {
          const p = head.probabilities[t * length + j];
          for (let i = 0; i < headDim; i++) to[i] += p * head.v[j * headDim + i];
        }
      }
    }
  }
  return {
    output: { shape: [batch * length, heads * headDim], data: output },
    lse: { shape: [batch, heads, length], data: lse },
  };
}

/** Gradient of {@link packedAttention}'s output by qkv: with P the probabilities, dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ O)). */
export function packedAttentionBackward(dOutput: Numeric, qkv: Numeric, shape: PackedAttention): Array64 {
  const { batch, length, heads, kvHeads, headDim, round = exact } = shape;
  const width = (heads + 2 * kvHeads) * headDim;
  const result = new Float64Array(batch * length * width);
  const scale = 1 / Math.sqrt(headDim);
  for (let b = 0; b < batch; b++) {
    for (let h = 0; h < heads; h++) {
      const { q, k, v, probabilities, positions } = headOf(qkv, shape, b, h);
      const [dQ, dK, dV] = [q, k, v].map((array) => new Float64Array(array.length));
      const dP = new Float64Array(length);
      for (let t = 0; t < length; t++) {
        const at = ((b * length + t) * heads + h) * headDim;
        let delta = 0;
        for (let j = 0; j <= t; j++) {
          dP[j] = 0;
          for (let i = 0; i < headDim; i++) dP[j] += dOutput.data[at + i] * v[j * headDim + i];
          dP[j] = round(dP[j]);
          delta += dP[j] * probabilities[t * length + j];
        }
        for (let j = 0; j <= t; j++) {
          const p = probabilities[t * length + j];
          const dS = round(p * (dP[j] - delta) * scale);
          for (let i = 0; i < headDim; i++) {
            dQ[t * headDim + i] += dS * k[j * headDim + i];
            dK[j * headDim + i] += dS * q[t * headDim + i];
            dV[j * headDim + i] += p * dOutput.data[at + i];
          }
        }
      }
      const shared = Math.floor(h / (heads / kvHeads));
      // A rotation's transpose is the rotation by the opposite angle.
      const back = { shape: [length], data: positions.map((position) => -position) };
      const parts = [
        { head: h, data: dQ, rotated: true },
        { head: heads + shared, data: dK, rotated: true },
        { head: heads + kvHeads + shared, data: dV, rotated: false },
      ];
      for (const { head, data, rotated } of parts) {
        const turn = rotated && shape.rope;
        const d = turn ? rope(turn.theta, { shape: [length, headDim], data }, back).data : data;
        for (let t = 0; t < length; t++) {
          const to = (b * length + t) * width + head * headDim;
          for (let i = 0; i < headDim; i++) result[to + i] += d[t * headDim + i];
        }
      }
    }
  }
  return { shape: [batch * length, width], data: result };
}
