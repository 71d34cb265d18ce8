/** The float64 backward formulas against finite differences of the float64 forward ones. */
import { expect, test } from "bun:test";
import { expectClose } from "../support/close.ts";
import { randomInts, randomNormal } from "../support/ndarray.ts";
import { numericalGradient } from "./differences.ts";
import * as gradients from "./gradients.ts";
import * as ops from "./ops.ts";

const room = { relative: 1e-6, absolute: 1e-8 };

/** Gradient of Σ run() · dOutput by `input`, which `run` reads. */
function differences(run: () => ops.Array64, dOutput: ops.Numeric, input: ops.Array64): Float64Array {
  return numericalGradient(() => run().data.reduce((sum, value, i) => sum + value * dOutput.data[i], 0), input.data);
}

test("SiLU and SwiGLU", () => {
  const x = ops.toFloat64(randomNormal([3, 10], 1, 2));
  const d = randomNormal([3, 10], 2);
  expectClose(
    differences(() => ops.silu(x), d, x),
    gradients.siluBackward(d, x).data,
    room,
  );
  const half = randomNormal([3, 5], 3);
  expectClose(
    differences(() => gradients.packedSwiglu(x), half, x),
    gradients.packedSwigluBackward(half, x).data,
    room,
  );
});

test("RMSNorm", () => {
  const [x, gain] = [ops.toFloat64(randomNormal([3, 7], 1)), ops.toFloat64(randomNormal([7], 2))];
  const d = randomNormal([3, 7], 3);
  const { dX, dGain } = gradients.rmsnormBackward(d, gain, x, 1e-2);
  const run = () => ops.rmsnorm(gain, x, 1e-2);
  expectClose(differences(run, d, x), dX.data, room);
  expectClose(differences(run, d, gain), dGain.data, room);
});

test("attention: forward as in ops.ts, backward by finite differences", () => {
  const [batch, length, headDim] = [2, 5, 4];
  for (const [heads, kvHeads] of [
    [2, 2],
    [4, 2],
    [3, 1],
  ]) {
    const width = (heads + 2 * kvHeads) * headDim;
    const qkv = ops.toFloat64(randomNormal([batch * length, width], 1));
    const tokenPositions = randomInts([batch, length], 2, 50);
    for (const rope of [undefined, { theta: 100 }, { theta: 100, tokenPositions }]) {
      const shape = { batch, length, heads, kvHeads, headDim };
      const packed = { ...shape, rope: rope && { theta: rope.theta, positions: rope.tokenPositions?.data } };
      // ops.ts projects its input: matrices that pick the columns of q, k and v, and one that changes nothing.
      const pick = (first: number, rows: number, columns: number) => ({
        shape: [rows, columns],
        data: Float64Array.from({ length: rows * columns }, (_, i) =>
          Number(i % columns === first + Math.floor(i / columns)),
        ),
      });
      const [q, k, v] = [
        pick(0, heads * headDim, width),
        pick(heads * headDim, kvHeads * headDim, width),
        pick((heads + kvHeads) * headDim, kvHeads * headDim, width),
      ];
      const output = pick(0, heads * headDim, heads * headDim);
      const inFeatures = { shape: [batch, length, width], data: qkv.data };
      const options = { numHeads: heads, numKeyValueHeads: kvHeads, rope };
      const expected = ops.multiHeadSelfAttention({ q, k, v, output }, inFeatures, options);
      expectClose(gradients.packedAttention(qkv, packed).output.data, expected.data, { absolute: 1e-12 });

      const d = randomNormal([batch * length, heads * headDim], 3);
      const found = gradients.packedAttentionBackward(d, qkv, packed);
      const run = () => gradients.packedAttention(qkv, packed).output;
      expectClose(differences(run, d, qkv), found.data, room);
    }
  }
});

test("attention: log-sum-exp", () => {
  const shape = { batch: 1, length: 3, heads: 1, kvHeads: 1, headDim: 1 };
  const qkv = { shape: [3, 3], data: [1, 2, 0, 1, 3, 0, 0, 5, 0] };
  const { lse } = gradients.packedAttention(qkv, shape);
  expectClose(lse.data, [2, Math.log(Math.exp(2) + Math.exp(3)), Math.log(3)], { absolute: 1e-12 });
  expect(lse.shape).toEqual([1, 1, 3]);
});
