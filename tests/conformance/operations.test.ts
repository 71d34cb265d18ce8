/**
 * The adapters of single operations against the naive float64 reference, on shapes that fit no vector, tile or page.
 * Inputs are float32, so the reference sees the very same numbers.
 */
import { describe, expect, test } from "bun:test";
import { functional } from "@mantou/model";
import * as adapters from "../adapters.ts";
import * as ops from "../reference/ops.ts";
import { expectClose } from "../support/close.ts";
import { copyOf, floats, ints, randomInts, randomNormal, zeros } from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";
import { gain, leads, matrix, projections, rounding } from "./inputs.ts";

onEveryBackend((backend, device) => {
  describe("linear", () => {
    for (const [dOut, dIn] of [
      [1, 1],
      [1, 3],
      [17, 1],
      [3, 65],
      [113, 203],
    ]) {
      test(`[${dOut}, ${dIn}]`, () => {
        for (const lead of [...leads, [113]]) {
          const options = { weights: matrix(dOut, dIn, 1), inFeatures: randomNormal([...lead, dIn], 2) };
          expectClose(adapters.runLinear({ backend, ...options }), ops.linear(options.weights, options.inFeatures));
        }
      });
    }

    test("rejects features of another width", () => {
      const options = { backend, weights: matrix(3, 5, 1), inFeatures: randomNormal([2, 4], 2) };
      expect(() => adapters.runLinear(options)).toThrow(/\[2, 4\].*\[3, 5\]/);
    });

    test("rejects an array whose data do not fill its shape", () => {
      const inFeatures = { shape: [2, 5], data: new Float32Array(9) };
      expect(() => adapters.runLinear({ backend, weights: matrix(3, 5, 1), inFeatures })).toThrow(
        "[2, 5] must hold 10 values, not 9",
      );
    });
  });

  describe("embedding", () => {
    test("any leading dimensions, any width", () => {
      for (const d of [1, 17, 65]) {
        const weights = randomNormal([113, d], 1);
        for (const lead of leads) {
          const tokenIds = randomInts(lead, 2, 113);
          const expected = ops.embedding(weights, tokenIds);
          expectClose(adapters.runEmbedding({ backend, weights, tokenIds }), expected, { absolute: 0 });
        }
      }
    });

    test("names an id that is not in the vocabulary", () => {
      const weights = randomNormal([5, 3], 1);
      for (const id of [5, -1, 2 ** 31 - 1, -(2 ** 31)]) {
        const tokenIds = ints([2, 2], [0, 4, id, 1]);
        expect(() => adapters.runEmbedding({ backend, weights, tokenIds })).toThrow(String(id));
      }
    });
  });

  test("ids, targets and positions that are not whole are refused", () => {
    for (const wrong of [1.5, Number.NaN, 2 ** 32]) {
      const data = Float32Array.of(1, wrong);
      const text = `${wrong} at position 1 is not a whole number`;
      const [rows, ids] = [randomNormal([2, 4], 1), { shape: [2], data }];
      expect(() => functional.embedding(device, rows, ids)).toThrow(`token id ${text}`);
      expect(() => functional.crossEntropy(device, rows, ids)).toThrow(`target ${text}`);
      const options = { theta: 1e4, maxSeqLen: 8, tokenPositions: ids };
      expect(() => functional.rope(device, rows, options)).toThrow(`token position ${text}`);
    }
  });

  describe("rmsnorm", () => {
    test("any leading dimensions, any width", () => {
      for (const d of [1, 3, 17, 65, 203]) {
        for (const lead of [...leads, [113]]) {
          const options = { dModel: d, eps: 1e-5, weights: gain(d, 1), inFeatures: randomNormal([...lead, d], 2, 3) };
          const expected = ops.rmsnorm(options.weights, options.inFeatures, options.eps);
          expectClose(adapters.runRmsnorm({ backend, ...options }), expected, rounding);
        }
      }
    });

    test("values of 1e4, tiny values and zeros", () => {
      for (const scale of [1e4, 1e-4, 0]) {
        const options = { dModel: 33, eps: 1e-5, weights: gain(33, 1), inFeatures: randomNormal([3, 33], 2, scale) };
        const expected = ops.rmsnorm(options.weights, options.inFeatures, options.eps);
        expectClose(adapters.runRmsnorm({ backend, ...options }), expected, rounding);
      }
    });
  });

  describe("silu and swiglu", () => {
    test("silu of any shape and of extremes", () => {
      for (const lead of leads) {
        const inFeatures = randomNormal([...lead, 65], 1, 4);
        expectClose(adapters.runSilu({ backend, inFeatures }), ops.silu(inFeatures), rounding);
      }
      const extremes = floats([6], [-3e38, -1e4, -104, 104, 1e4, 3e38]);
      expectClose(adapters.runSilu({ backend, inFeatures: extremes }), ops.silu(extremes), {
        relative: 1e-6,
        absolute: 1e-37,
      });
    });

    test("swiglu of any shape", () => {
      for (const [d, dFf] of [
        [1, 1],
        [3, 17],
        [65, 113],
      ]) {
        const [w1, w2, w3] = [matrix(dFf, d, 1), matrix(d, dFf, 2), matrix(dFf, d, 3)];
        for (const lead of leads) {
          const inFeatures = randomNormal([...lead, d], 4);
          const expected = ops.swiglu(w1, w2, w3, inFeatures);
          expectClose(adapters.runSwiglu({ backend, w1, w2, w3, inFeatures }), expected, rounding);
        }
      }
    });

    test("swiglu rejects gates of another size", () => {
      const options = { w1: matrix(5, 3, 1), w2: matrix(3, 5, 2), w3: matrix(6, 3, 3), inFeatures: zeros([2, 3]) };
      expect(() => adapters.runSwiglu({ backend, ...options })).toThrow(/w1 .*5,3.* w3 .*6,3/);
    });
  });

  describe("softmax", () => {
    test("every axis of odd shapes, from both ends", () => {
      for (const shape of [[1], [203], [3, 17], [113, 203], [2, 3, 65], [2, 1, 3, 5]]) {
        const inFeatures = randomNormal(shape, 1, 3);
        for (let axis = 0; axis < shape.length; axis++) {
          const expected = ops.softmax(inFeatures, axis);
          for (const dim of [axis, axis - shape.length]) {
            expectClose(adapters.runSoftmax({ backend, inFeatures, dim }), expected, rounding);
          }
        }
      }
    });

    test("logits of ±1e4 and equal logits", () => {
      const inFeatures = floats([3, 3], [1e4, 1e4 - 1, -1e4, -1e4, -1e4, -1e4, 3e38, -3e38, 0]);
      const expected = ops.softmax(inFeatures);
      expectClose(adapters.runSoftmax({ backend, inFeatures, dim: -1 }), expected, rounding);
    });

    test("names an axis that does not exist", () => {
      for (const dim of [2, -3, 0.5]) {
        expect(() => adapters.runSoftmax({ backend, inFeatures: zeros([2, 3]), dim })).toThrow(`dim ${dim}`);
      }
    });
  });

  describe("cross-entropy", () => {
    test("odd shapes and wide vocabularies", () => {
      for (const [n, vocabSize] of [
        [1, 1],
        [3, 17],
        [65, 113],
        [5, 4099],
      ]) {
        const options = { inputs: randomNormal([n, vocabSize], 1, 2), targets: randomInts([n], 2, vocabSize) };
        const expected = ops.crossEntropy(options.inputs, options.targets);
        const actual = adapters.runCrossEntropy({ backend, ...options });
        expectClose([actual], [expected], { relative: 1e-6, absolute: 1e-6 });
      }
    });

    test("logits of ±1e4 stay finite", () => {
      const inputs = floats([3, 3], [1e4, -1e4, 0, 1e4, -1e4, 0, -1e4, -1e4, -1e4]);
      const targets = ints([3], [0, 1, 2]);
      const expected = ops.crossEntropy(inputs, targets);
      expectClose([adapters.runCrossEntropy({ backend, inputs, targets })], [expected], { relative: 1e-6 });
    });

    test("refuses targets that are not one for each row", () => {
      for (const n of [1, 3]) {
        const options = { inputs: zeros([2, 7]), targets: zeros([n]) };
        expect(() => adapters.runCrossEntropy({ backend, ...options })).toThrow(`${n} targets`);
      }
    });

    test("names a target that is not in the vocabulary", () => {
      for (const target of [7, -1, 2 ** 31 - 1]) {
        const options = { inputs: zeros([2, 7]), targets: ints([2], [0, target]) };
        expect(() => adapters.runCrossEntropy({ backend, ...options })).toThrow(String(target));
      }
    });
  });

  test("inputs are left as they are", () => {
    const inFeatures = randomNormal([3, 4, 12], 1);
    const weights = projections(12, 2);
    const before = copyOf(inFeatures);
    adapters.runMultiheadSelfAttention({ backend, dModel: 12, numHeads: 2, ...weights, inFeatures });
    adapters.runSoftmax({ backend, inFeatures, dim: 1 });
    adapters.runSilu({ backend, inFeatures });
    adapters.runRmsnorm({ backend, dModel: 12, eps: 1e-5, weights: gain(12, 3), inFeatures });
    expect(inFeatures).toEqual(before);
    expect(weights).toEqual(projections(12, 2));
  });
});
