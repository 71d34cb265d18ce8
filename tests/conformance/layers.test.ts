/**
 * The adapters of attention, blocks and the language model against the naive float64 reference: lengths and head sizes
 * that fit no vector or tile, any leading dimensions, and what they refuse.
 */
import { describe, expect, test } from "bun:test";
import * as adapters from "../adapters.ts";
import * as ops from "../reference/ops.ts";
import { transformerBlock, transformerLm } from "../reference/transformer.ts";
import { expectClose } from "../support/close.ts";
import { goldenModels } from "../support/golden.ts";
import {
  type FloatArray,
  type NdArray,
  floats,
  ints,
  randomInts,
  randomNormal,
  sizeOf,
  zeros,
} from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";
import { gain, leads, matrix, projections, rounding } from "./inputs.ts";

type Projections = ReturnType<typeof projections>;

function referenceAttention(
  weights: Projections,
  inFeatures: NdArray,
  numHeads: number,
  rope?: { theta: number; tokenPositions?: NdArray },
) {
  const { qProjWeight: q, kProjWeight: k, vProjWeight: v, oProjWeight: output } = weights;
  return ops.multiHeadSelfAttention({ q, k, v, output }, inFeatures, { numHeads, rope });
}

onEveryBackend((backend) => {
  describe("scaled dot-product attention", () => {
    const shapes = [
      { lead: [], queries: 1, keys: 1, dk: 1, dv: 1 },
      { lead: [2], queries: 3, keys: 17, dk: 6, dv: 5 },
      { lead: [1, 3], queries: 65, keys: 2, dk: 16, dv: 33 },
      { lead: [2, 1, 2], queries: 17, keys: 77, dk: 32, dv: 32 },
      { lead: [2], queries: 64, keys: 64, dk: 64, dv: 64 },
      { lead: [], queries: 77, keys: 193, dk: 128, dv: 128 },
      { lead: [], queries: 193, keys: 65, dk: 65, dv: 3 },
    ];
    for (const { lead, queries, keys, dk, dv } of shapes) {
      test(`[${[...lead, queries]}] queries, ${keys} keys, dk ${dk}, dv ${dv}: no mask, random mask, empty rows`, () => {
        const Q = randomNormal([...lead, queries, dk], 1);
        const K = randomNormal([...lead, keys, dk], 2);
        const V = randomNormal([...lead, keys, dv], 3);
        const plain = adapters.runScaledDotProductAttention({ backend, Q, K, V });
        expectClose(plain, ops.scaledDotProductAttention(Q, K, V), rounding);

        const cells = Uint8Array.from(randomInts([sizeOf(lead) * queries * keys], 4, 2).data);
        for (let row = 0; row * keys < cells.length; row += 3) cells.fill(0, row * keys, (row + 1) * keys);
        const mask = { shape: [...lead, queries, keys], data: cells };
        const masked = adapters.runScaledDotProductAttention({ backend, Q, K, V, mask });
        expectClose(masked, ops.scaledDotProductAttention(Q, K, V, mask), rounding);
      });
    }

    test("masks broadcast as in NumPy", () => {
      const [Q, K, V] = [1, 2, 3].map((seed) => randomNormal([2, 3, 4, 6], seed));
      for (const shape of [
        [4, 4],
        [1, 4, 4],
        [3, 4, 4],
        [2, 1, 4, 4],
        [2, 3, 1, 4],
        [2, 1, 4, 1],
      ]) {
        const mask = { shape, data: Uint8Array.from(randomInts(shape, 5, 2).data) };
        const expected = ops.scaledDotProductAttention(Q, K, V, mask);
        expectClose(
          adapters.runScaledDotProductAttention({ backend, Q, K, V, mask }),
          expected,
          rounding,
          `[${shape}]`,
        );
      }
    });

    test("scores of 1e4, exact in float32", () => {
      const whole = (seed: number, shape: number[]) => {
        const { data } = randomInts(shape, seed, 101);
        return floats(
          shape,
          Float32Array.from(data, (value) => value - 50),
        );
      };
      const [Q, K, V] = [whole(1, [2, 17, 16]), whole(2, [2, 33, 16]), randomNormal([2, 33, 5], 3)];
      const expected = ops.scaledDotProductAttention(Q, K, V);
      expectClose(adapters.runScaledDotProductAttention({ backend, Q, K, V }), expected, rounding);
    });

    test("a fully masked row gives the mean of V", () => {
      const [Q, K, V] = [randomNormal([1, 1, 4], 1, 1e4), randomNormal([1, 3, 4], 2), floats([1, 3, 1], [1, 2, 6])];
      const mask = { shape: [1, 3], data: new Uint8Array(3) };
      expectClose(adapters.runScaledDotProductAttention({ backend, Q, K, V, mask }).data, [3], { relative: 1e-6 });
    });

    test("rejects keys, values and masks that do not fit", () => {
      const [Q, K, V] = [zeros([2, 3, 4]), zeros([2, 5, 4]), zeros([2, 5, 6])];
      const run = (options: object) => () => adapters.runScaledDotProductAttention({ backend, Q, K, V, ...options });
      for (const shape of [
        [2, 5, 3],
        [2, 6, 4],
        [1, 5, 4],
        [10, 4],
      ]) {
        expect(run({ K: zeros(shape) })).toThrow(`K is [${shape.join(", ")}], not [2, 5, 4]`);
      }
      expect(run({ V: zeros([3, 5, 6]) })).toThrow("V is [3, 5, 6], not [2, 5, 6]");
      expect(run({ mask: { shape: [3, 4], data: new Uint8Array(12) } })).toThrow("mask [3, 4]");
      expect(run({ mask: { shape: [3, 5], data: new Uint8Array(5) } })).toThrow("mask [3, 5]");
    });
  });

  describe("rope", () => {
    for (const dK of [2, 6, 16, 128]) {
      test(`dK ${dK}`, () => {
        for (const [lead, T] of [
          [[], 1],
          [[3], 17],
          [[2, 3], 65],
        ] as const) {
          const inQueryOrKey = randomNormal([...lead, T, dK], 1);
          const tokenPositions = randomInts([T], 2, 200);
          const actual = adapters.runRope({ backend, dK, theta: 1e4, maxSeqLen: 200, inQueryOrKey, tokenPositions });
          expectClose(actual, ops.rope(1e4, inQueryOrKey, tokenPositions), rounding);
        }
      });
    }

    test("positions per sequence broadcast over the heads", () => {
      const inQueryOrKey = randomNormal([2, 3, 5, 6], 1);
      for (const shape of [[5], [1, 5], [2, 1, 5], [2, 3, 5], [3, 1], [1, 1, 1]]) {
        const tokenPositions = randomInts(shape, 2, 31);
        const actual = adapters.runRope({ backend, dK: 6, theta: 100, maxSeqLen: 31, inQueryOrKey, tokenPositions });
        expectClose(actual, ops.rope(100, inQueryOrKey, tokenPositions), rounding, `[${shape}]`);
      }
    });

    test("without positions: 0, 1, 2, …", () => {
      const inQueryOrKey = randomNormal([2, 5, 6], 1);
      const expected = ops.rope(1e4, inQueryOrKey, ints([5], [0, 1, 2, 3, 4]));
      expectClose(adapters.runRope({ backend, dK: 6, theta: 1e4, maxSeqLen: 5, inQueryOrKey }), expected, rounding);
    });

    test("names a position beyond maxSeqLen, and positions that do not fit", () => {
      const options = { backend, dK: 4, theta: 1e4, maxSeqLen: 8, inQueryOrKey: zeros([2, 3, 4]) };
      const at = (shape: number[], values: number[]) => () =>
        adapters.runRope({ ...options, tokenPositions: ints(shape, values) });
      expect(at([3], [0, 8, 1])).toThrow("position 8");
      expect(at([3], [0, -1, 1])).toThrow("position -1");
      expect(at([2], [0, 1])).toThrow("tokenPositions [2]");
      expect(() => adapters.runRope({ ...options, maxSeqLen: 2 })).toThrow("position 2");
    });
  });

  describe("multi-head self-attention", () => {
    const shapes = [
      { T: 1, numHeads: 3, headDim: 16, lead: [2] },
      { T: 64, numHeads: 2, headDim: 32, lead: [1] },
      { T: 77, numHeads: 3, headDim: 64, lead: [] },
      { T: 193, numHeads: 1, headDim: 128, lead: [] },
      { T: 193, numHeads: 5, headDim: 6, lead: [2] },
      { T: 65, numHeads: 1, headDim: 2, lead: [2, 1, 2] },
    ];
    for (const { T, numHeads, headDim, lead } of shapes) {
      test(`[${[...lead, T]}] tokens, ${numHeads} heads of ${headDim}, with and without rope`, () => {
        const dModel = numHeads * headDim;
        const options = {
          dModel,
          numHeads,
          ...projections(dModel, 1),
          inFeatures: randomNormal([...lead, T, dModel], 5),
        };
        const plain = adapters.runMultiheadSelfAttention({ backend, ...options });
        expectClose(plain, referenceAttention(options, options.inFeatures, numHeads), rounding);

        const rope = { maxSeqLen: 400, theta: 1e4 };
        const rotated = adapters.runMultiheadSelfAttentionWithRope({ backend, ...options, ...rope });
        expectClose(rotated, referenceAttention(options, options.inFeatures, numHeads, rope), rounding);

        const tokenPositions = randomInts([T], 6, 400);
        const placed = adapters.runMultiheadSelfAttentionWithRope({ backend, ...options, ...rope, tokenPositions });
        const expected = referenceAttention(options, options.inFeatures, numHeads, { ...rope, tokenPositions });
        expectClose(placed, expected, rounding, "given positions");
      });
    }

    test("scores of 1e4, exact in float32", () => {
      const dModel = 16;
      const identity = floats(
        [dModel, dModel],
        Array.from({ length: dModel ** 2 }, (_, i) => Number(i % (dModel + 1) === 0)),
      );
      const weights = { qProjWeight: identity, kProjWeight: identity, vProjWeight: identity, oProjWeight: identity };
      const { data } = randomInts([2 * 77 * dModel], 1, 101);
      const inFeatures = floats(
        [2, 77, dModel],
        Float32Array.from(data, (value) => value - 50),
      );
      const actual = adapters.runMultiheadSelfAttention({ backend, dModel, numHeads: 1, ...weights, inFeatures });
      expectClose(actual, referenceAttention(weights, inFeatures, 1), { relative: 1e-5, absolute: 1e-4 });
    });

    test("positions per sequence, and positions beyond maxSeqLen", () => {
      const options = { backend, dModel: 12, numHeads: 2, ...projections(12, 1), maxSeqLen: 9, theta: 1e4 };
      const inFeatures = randomNormal([2, 3, 12], 5);
      const tokenPositions = ints([2, 3], [0, 1, 2, 6, 7, 8]);
      const actual = adapters.runMultiheadSelfAttentionWithRope({ ...options, inFeatures, tokenPositions });
      expectClose(actual, referenceAttention(options, inFeatures, 2, { theta: 1e4, tokenPositions }), rounding);
      const far = ints([3], [7, 8, 9]);
      expect(() => adapters.runMultiheadSelfAttentionWithRope({ ...options, inFeatures, tokenPositions: far })).toThrow(
        "position 9",
      );
      expect(() =>
        adapters.runMultiheadSelfAttentionWithRope({ ...options, inFeatures: randomNormal([10, 12], 5) }),
      ).toThrow("position 9");
    });

    test("rejects a width that is not a whole number of heads", () => {
      const options = { dModel: 12, numHeads: 5, ...projections(12, 1), inFeatures: zeros([2, 12]) };
      expect(() => adapters.runMultiheadSelfAttention({ backend, ...options })).toThrow("not 5 heads");
    });
  });

  describe("transformer", () => {
    function blockWeights(dModel: number, dFf: number): Record<string, FloatArray> {
      const { qProjWeight, kProjWeight, vProjWeight, oProjWeight } = projections(dModel, 11);
      return {
        "attn.q_proj.weight": qProjWeight,
        "attn.k_proj.weight": kProjWeight,
        "attn.v_proj.weight": vProjWeight,
        "attn.output_proj.weight": oProjWeight,
        "ln1.weight": gain(dModel, 15),
        "ln2.weight": gain(dModel, 16),
        "ffn.w1.weight": matrix(dFf, dModel, 17),
        "ffn.w2.weight": matrix(dModel, dFf, 18),
        "ffn.w3.weight": matrix(dFf, dModel, 19),
      };
    }

    for (const [lead, T, dModel, numHeads, dFf] of [
      [[], 1, 6, 1, 17],
      [[3], 77, 24, 4, 65],
      [[2, 1, 2], 17, 30, 5, 1],
    ] as const) {
      test(`block: [${[...lead, T]}] tokens, ${numHeads} heads, dModel ${dModel}, dFf ${dFf}`, () => {
        const options = { dModel, numHeads, dFf, maxSeqLen: 77, theta: 1e4, weights: blockWeights(dModel, dFf) };
        const inFeatures = randomNormal([...lead, T, dModel], 20);
        const expected = transformerBlock({ numHeads, ropeTheta: 1e4 }, options.weights, inFeatures);
        expectClose(adapters.runTransformerBlock({ backend, ...options, inFeatures }), expected, rounding);
      });
    }

    test("block: names a missing weight and refuses more tokens than maxSeqLen", () => {
      const { "ffn.w3.weight": _, ...weights } = blockWeights(6, 5);
      const options = { backend, dModel: 6, numHeads: 1, dFf: 5, maxSeqLen: 4, theta: 1e4 };
      expect(() => adapters.runTransformerBlock({ ...options, weights, inFeatures: zeros([4, 6]) })).toThrow("ffn.w3");
      const whole = blockWeights(6, 5);
      expect(() => adapters.runTransformerBlock({ ...options, weights: whole, inFeatures: zeros([5, 6]) })).toThrow(
        "5",
      );
    });

    const { config, weights } = goldenModels().base;

    test("language model: any leading dimensions", () => {
      for (const lead of leads) {
        const inIndices = randomInts([...lead, 13], 1, config.vocabSize);
        const actual = adapters.runTransformerLm({ backend, ...config, weights, inIndices });
        expectClose(actual, transformerLm(config, weights, inIndices), { relative: 1e-4, absolute: 1e-5 });
      }
    });

    test("language model: longer than contextLength is an error, as is an id outside the vocabulary", () => {
      const run = (inIndices: NdArray) => () => adapters.runTransformerLm({ backend, ...config, weights, inIndices });
      expect(run(zeros([2, config.contextLength + 1]))).toThrow(/25 tokens .*contextLength 24/);
      expect(run(ints([3], [0, 97, 1]))).toThrow(/token 97 .*97/);
      expect(run(ints([3], [0, 1, -1]))).toThrow("token -1");
    });

    test("language model: names a weight that is missing, misshapen or superfluous", () => {
      const inIndices = ints([2], [0, 1]);
      const run = (changed: Record<string, FloatArray>) => () =>
        adapters.runTransformerLm({ backend, ...config, weights: changed, inIndices });
      const { "lm_head.weight": head, ...rest } = weights;
      expect(run(rest)).toThrow("lm_head.weight is missing");
      expect(run({ ...rest, "lm_head.weight": { ...head, shape: [32, 97] } })).toThrow(
        "lm_head.weight has shape [32, 97]",
      );
      expect(run({ ...weights, "layers.2.ln1.weight": gain(32, 1) })).toThrow("layers.2.ln1.weight is not part");
    });
  });
});
