/**
 * Gradients of the whole model against finite differences of the float64 reference, for every combination of the
 * ablations and every option that changes the function.
 */
import { describe, expect, test } from "bun:test";
import { Decoder, type Device, type ModelConfig, TransformerLM } from "@mantou/model";
import { directionalDerivative } from "../reference/differences.ts";
import { lossOf, transformerLm, weightShapes, weightsInFloat64 } from "../reference/transformer.ts";
import { expectClose } from "../support/close.ts";
import { type FloatArray, randomInts, randomNormal } from "../support/ndarray.ts";
import { gradientsOf, weightsOf } from "../support/parameters.ts";
import { onEveryBackend } from "./backends.ts";

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Weights near those of an initialised model, with gains that are not 1. */
function randomWeights(config: ModelConfig, seed: number): Record<string, FloatArray> {
  return Object.fromEntries(
    Object.entries(weightShapes(config)).map(([name, shape], i) => {
      const array = randomNormal(shape, seed + i, shape.length === 1 ? 0.2 : 1 / Math.sqrt(shape[1]));
      if (shape.length === 1) array.data.forEach((value, j) => (array.data[j] = 1 + value));
      return [name, array];
    }),
  );
}

onEveryBackend((_, device) => {
  describe("gradients against finite differences in float64", () => {
    const [batch, length] = [2, 5];
    const sizes = { vocabSize: 19, contextLength: length, dModel: 12, numLayers: 2, dFf: 7, ropeTheta: 100 };
    const inputs = randomInts([batch * length], 1, sizes.vocabSize).data;
    const targets = randomInts([batch * length], 2, sizes.vocabSize).data;

    for (const norm of ["pre", "post", "none"] as const) {
      for (const position of ["rope", "none"] as const) {
        test(`norm ${norm}, position ${position}: swiglu and silu, tied and not, 1, 2 or as many heads as queries`, () => {
          for (const ffn of ["swiglu", "silu"] as const) {
            for (const tieEmbeddings of [false, true]) {
              for (const [numHeads, numKeyValueHeads] of [
                [3, 3],
                [6, 2],
                [2, 1],
              ]) {
                const config = { ...sizes, norm, position, ffn, tieEmbeddings, numHeads, numKeyValueHeads };
                checkGradients(device, config, inputs, targets, batch);
              }
            }
          }
        });
      }
    }
  });

  test("gradients with normalised queries and keys, and the same logits token by token", () => {
    const sizes = { vocabSize: 19, contextLength: 6, dModel: 24, numLayers: 2, dFf: 7, ropeTheta: 50, qkNorm: true };
    const [inputs, targets] = [3, 4].map((seed) => randomInts([12], seed, sizes.vocabSize).data);
    for (const position of ["rope", "none"] as const) {
      for (const [numHeads, numKeyValueHeads] of [
        [3, 3],
        [6, 2],
        [2, 1],
      ]) {
        const config = { ...sizes, position, numHeads, numKeyValueHeads };
        checkGradients(device, config, inputs, targets, 2);
        using model = new TransformerLM(config, { device, seed: 5 });
        const whole = model.logits({ shape: [1, 6], data: inputs.slice(0, 6) }).data;
        const expected = transformerLm(config, weightsOf(model), { shape: [1, 6], data: inputs.slice(0, 6) });
        expectClose(whole as Float32Array, expected.data, { absolute: 1e-4 }, "logits");
        using decoder = new Decoder(model);
        for (let i = 0; i < 6; i++) {
          const logits = decoder.forward(inputs.slice(i, i + 1));
          expectClose(logits, whole.slice(i * 19, (i + 1) * 19) as Float32Array, { absolute: 1e-5 }, `token ${i}`);
        }
      }
    }
  });

  test("gradients with a soft cap, a z-loss, and both; losses are without the z-loss", () => {
    const sizes = { vocabSize: 19, contextLength: 6, dModel: 12, numLayers: 1, numHeads: 2, dFf: 7, ropeTheta: 50 };
    const [inputs, targets] = [3, 4].map((seed) => randomInts([12], seed, sizes.vocabSize).data);
    for (const tieEmbeddings of [false, true]) {
      for (const [logitSoftCap, zLoss] of [
        [0.7, 0],
        [30, 0.1],
        [0, 0.1],
      ]) {
        checkGradients(device, { ...sizes, tieEmbeddings, logitSoftCap }, inputs, targets, 2, zLoss);
      }
    }
  });

  test("gradients with another ε and scaled rotary frequencies", () => {
    const sizes = { vocabSize: 19, contextLength: 6, dModel: 24, numLayers: 2, numHeads: 2, dFf: 7, ropeTheta: 50 };
    const [inputs, targets] = [3, 4].map((seed) => randomInts([12], seed, sizes.vocabSize).data);
    const llama3 = { ropeFactor: 8, ropeLowFreqFactor: 0.5, ropeHighFreqFactor: 2, ropeOriginalContext: 20 };
    for (const norm of ["pre", "post"] as const) {
      for (const settings of [{ ropeScaling: "llama3", ...llama3 } as const, { ropeScaling: "linear" } as const]) {
        checkGradients(device, { ropeFactor: 3, ...sizes, norm, rmsNormEps: 0.05, ...settings }, inputs, targets, 2);
      }
    }
  });
});

/** All gradients of one configuration: along random directions and along the gradient itself, tensor by tensor. */
function checkGradients(
  device: Device,
  config: ModelConfig,
  inputs: Int32Array,
  targets: Int32Array,
  batch: number,
  zLoss = 0,
): void {
  const weights = randomWeights(config, 10);
  using model = new TransformerLM(config, { device, weights, batchSize: batch, zLoss });
  const precise = weightsInFloat64(weights);
  const loss = () => lossOf(config, precise, inputs, targets, batch, zLoss);
  const reported = lossOf(config, precise, inputs, targets, batch);
  expectClose([model.lossAndGradients(inputs, targets)], [reported], { relative: 1e-5 }, "loss");
  const gradients = gradientsOf(model);
  expect(Object.keys(gradients).sort()).toEqual(Object.keys(weights).sort());
  Object.entries(gradients).forEach(([name, { shape, data }], i) => {
    const size = Math.sqrt(dot(data, data));
    const random = randomNormal(shape, 100 + i).data;
    const directions = [
      data.map((value) => value / size),
      random.map((value) => value / Math.sqrt(dot(random, random))),
    ];
    for (const direction of directions) {
      const slope = directionalDerivative(loss, [precise[name].data], [direction]);
      const what = `${JSON.stringify(config)}: slope along a direction of ${name}`;
      expectClose([dot(data, direction)], [slope], { absolute: 2e-5 * size + 1e-8 }, what);
    }
  });
}
