/**
 * The whole model: logits, loss and every gradient against PyTorch's goldens for each of their configurations, and
 * against finite differences of the float64 reference for every combination of the ablations; then 20 steps of training
 * beside PyTorch.
 */
import { describe, expect, test } from "bun:test";
import {
  AdamW,
  Decoder,
  type Device,
  type ModelConfig,
  type NdArray,
  type Precision,
  TransformerLM,
  openDevice,
} from "@mantou/model";
import { runGetLrCosineSchedule } from "../adapters.ts";
import { directionalDerivative } from "../reference/differences.ts";
import { lossOf, transformerLm, weightShapes, weightsInFloat64 } from "../reference/transformer.ts";
import { difference, expectClose } from "../support/close.ts";
import { type GoldenModel, goldenModels, goldenTrajectory } from "../support/golden.ts";
import { type FloatArray, randomInts, randomNormal } from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";
import { sameBits } from "./workbench.ts";

/**
 * How far each precision may be from PyTorch's float64: losses as a fraction of their value, logits and the gradient of
 * the whole model as a fraction of their norm, each parameter's gradient (some have two dozen elements) of its own.
 */
const tolerances = {
  fp32: { loss: { relative: 1e-6 }, whole: { norm: 1e-4 }, tensor: { norm: 1e-4 } },
  bf16: { loss: { relative: 3e-3 }, whole: { norm: 2e-2 }, tensor: { norm: 4e-2 } },
};
const allowed = tolerances.fp32.tensor;

function gradientsOf(model: TransformerLM): Record<string, FloatArray> {
  const gradients: Record<string, FloatArray> = {};
  for (const { name, shape, grad } of model.parameters().values()) {
    gradients[name] = { shape: [...shape], data: grad.toFloat32Array() };
  }
  return gradients;
}

/** All gradients against `scale` times PyTorch's. */
function expectGradients(model: TransformerLM, golden: GoldenModel, scale = 1): void {
  const { whole, tensor } = tolerances[model.precision];
  const gradients = gradientsOf(model);
  expect(Object.keys(gradients).sort()).toEqual(Object.keys(golden.gradients).sort());
  const [actual, expected]: number[][] = [[], []];
  for (const [key, { data }] of Object.entries(gradients)) {
    const own = golden.gradients[key]!.data.map((value) => scale * value);
    expectClose(data, own, tensor, `gradient of ${key}`);
    for (const value of data) actual.push(value);
    for (const value of own) expected.push(value);
  }
  expectClose(actual, expected, whole, "gradient of the whole model");
}

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** "4.1e-7 (layers.0.ffn.w1.weight)": the largest relative error in norm, and whose it is. */
function worst(actual: Record<string, FloatArray>, expected: Record<string, FloatArray>): string {
  const errors = Object.entries(expected).map(([name, { data }]) => ({
    name,
    error: difference(actual[name].data, data, allowed).relativeInNorm,
  }));
  const { name, error } = errors.reduce((a, b) => (b.error > a.error ? b : a));
  return `${error.toExponential(1)} (${name})`;
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

onEveryBackend((backend, device) => {
  describe.each(["fp32", "bf16"] as const)("PyTorch's models in %s", (precision) => {
    const { whole: allowed, loss: allowedLoss } = tolerances[precision];
    const onModel = (golden: GoldenModel, test: (model: TransformerLM, length: number) => void) => {
      const [batchSize, length] = golden.inputs.shape;
      const { config, weights, zLoss } = golden;
      using model = new TransformerLM(config, { device, weights, batchSize, precision, zLoss });
      test(model, length);
    };

    for (const [name, golden] of Object.entries(goldenModels())) {
      const { inputs, targets } = golden;

      test(`${name}: logits, loss and every gradient`, () => {
        onModel(golden, (model, length) => {
          const logits = model.logits(inputs);
          const found = expectClose(logits, golden.logits, allowed, "logits");
          expectClose([model.loss(inputs.data, targets.data, { length })], [golden.loss], allowedLoss, "loss");
          const loss = model.lossAndGradients(inputs.data, targets.data, { length });
          expectClose([loss], [golden.loss], allowedLoss, "loss beside the gradients");
          const gradients = gradientsOf(model);
          console.log(
            `  ${name}: relative error of the logits ${found.relativeInNorm.toExponential(1)}, ` +
              `of gradients at most ${worst(gradients, golden.gradients)}`,
          );
          expectGradients(model, golden);
        });
      });

      test(`${name}: gradients add up over calls, times their scale`, () => {
        onModel(golden, (model, length) => {
          model.lossAndGradients(inputs.data, targets.data, { length });
          model.lossAndGradients(inputs.data, targets.data, { length, gradientScale: 0.5 });
          model.loss(inputs.data, targets.data, { length });
          expectGradients(model, golden, 1.5);
        });
      });

      test(`${name}: with interiors of blocks computed again, the same bits in less memory`, () => {
        const [batchSize, length] = inputs.shape;
        const results = (["keep", "recompute"] as const).map((activations) => {
          const before = device.memory.of("activations");
          using model = new TransformerLM(golden.config, {
            device,
            weights: golden.weights,
            batchSize,
            precision,
            activations,
            zLoss: golden.zLoss,
          });
          // Twice, with an evaluation in between, so that what lies in the shared buffers is another's.
          const losses = [0, 1, 2].map((i) => {
            if (i === 1) return model.loss(targets.data, inputs.data, { length });
            return model.lossAndGradients(inputs.data, targets.data, { length });
          });
          const bytes = device.memory.of("activations") - before;
          return { losses, gradients: gradientsOf(model), bytes };
        });
        const [kept, again] = results as [(typeof results)[0], (typeof results)[0]];
        expect(again.losses).toEqual(kept.losses);
        for (const [key, { data }] of Object.entries(kept.gradients)) sameBits(again.gradients[key].data, data, key);
        if (golden.config.numLayers > 1) expect(again.bytes).toBeLessThan(kept.bytes);
      });

      test(`${name}: with rows of the output projection past the vocabulary, the same`, () => {
        const [batchSize, length] = inputs.shape;
        const results = [1, 128].map((vocabularyMultiple) => {
          const options = { device, weights: golden.weights, batchSize, precision, vocabularyMultiple };
          using model = new TransformerLM(golden.config, options);
          using optimizer = new AdamW(model.parameters());
          const losses = Array.from({ length: 3 }, () => {
            optimizer.zeroGrad();
            const loss = model.lossAndGradients(inputs.data, targets.data, { length });
            return [loss, optimizer.clipAndStep(1e-2, 1)];
          });
          const values = [...model.parameters().values()].map(({ value }) => value.toFloat32Array());
          return { losses, values, count: model.store.count, logits: model.logits(inputs) };
        });
        if (backend === "cpu") {
          expect(results[1]).toEqual(results[0]!);
          return;
        }
        // A GPU reads rows of whole vectors in another way, and adds up in another order.
        const [losses, padded] = results.map((result) => result.losses.flat());
        expectClose(padded!, losses!, { relative: precision === "fp32" ? 1e-4 : 2e-2 }, "losses and norms");
        expect(results[1]!.count).toBe(results[0]!.count);
      });

      test(`${name}: in a model planned for larger batches and after one, the same`, () => {
        const [batch, length] = inputs.shape;
        const config = { ...golden.config, contextLength: golden.config.contextLength + 5 };
        const { weights, zLoss } = golden;
        using model = new TransformerLM(config, { device, weights, batchSize: batch + 2, precision, zLoss });
        const rows = (batch + 2) * config.contextLength;
        const [other, next] = [1, 2].map((seed) => randomInts([rows], seed, config.vocabSize).data);
        model.lossAndGradients(other, next);
        model.store.gradients.zero();
        const loss = model.lossAndGradients(inputs.data, targets.data, { length });
        expectClose([loss], [golden.loss], allowedLoss, "loss");
        expectGradients(model, golden);
      });
    }
  });

  test.skipIf(backend === "emulated")(
    "a vocabulary so large that logits come in chunks: a batch is the mean of its sequences",
    () => {
      const [batch, length] = [5, 20];
      const config = { ...goldenModels().base.config, vocabSize: 70_001, dModel: 8, numHeads: 2 };
      using model = new TransformerLM(config, { device, seed: 1, batchSize: batch });
      const [inputs, targets] = [1, 2].map((seed) => randomInts([batch, length], seed, config.vocabSize));
      const loss = model.lossAndGradients(inputs.data, targets.data, { length });
      const gradients = gradientsOf(model);
      const logits = model.logits(inputs).data;
      model.store.gradients.zero();
      let mean = 0;
      for (let b = 0; b < batch; b++) {
        const [x, y] = [inputs, targets].map(({ data }) => data.slice(b * length, (b + 1) * length));
        mean += model.lossAndGradients(x, y, { length, gradientScale: 1 / batch }) / batch;
        const own = model.logits({ shape: [1, length], data: x }).data;
        expectClose(logits.subarray(b * own.length, (b + 1) * own.length), own, allowed, `logits of sequence ${b}`);
      }
      expectClose([loss], [mean], { relative: 1e-6 }, "loss");
      for (const [name, gradient] of Object.entries(gradientsOf(model))) {
        expectClose(gradient, gradients[name], allowed, `gradient of ${name}`);
      }
    },
  );

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
        const weights = Object.fromEntries(
          [...model.parameters().values()].map(({ name, shape, value }) => [
            name,
            { shape: [...shape], data: value.toFloat32Array() },
          ]),
        );
        const expected = transformerLm(config, weights, { shape: [1, 6], data: inputs.slice(0, 6) });
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

  describe("training", () => {
    const golden = goldenTrajectory();
    const [steps, batchSize, length] = golden.inputs.shape;
    const { betas, eps, weightDecay, maxL2Norm, ...schedule } = golden.settings;
    const at = (array: NdArray, step: number) =>
      array.data.slice(step * batchSize * length, (step + 1) * batchSize * length) as Int32Array;

    /** The golden run; `update` clips, steps and returns the norm. */
    function train(on: Device, precision: Precision, update: (optimizer: AdamW, lr: number) => number) {
      const model = new TransformerLM(golden.config, { device: on, weights: golden.initial, batchSize, precision });
      const optimizer = new AdamW(model.parameters(), { betas, eps, weightDecay });
      const [losses, norms]: number[][] = [[], []];
      for (let step = 0; step < steps; step++) {
        const lr = runGetLrCosineSchedule({ it: step + 1, ...schedule });
        optimizer.zeroGrad();
        losses.push(model.lossAndGradients(at(golden.inputs, step), at(golden.targets, step)));
        norms.push(update(optimizer, lr));
      }
      const last = steps - 1;
      const lossAfter = model.loss(at(golden.inputs, last), at(golden.targets, last));
      const weights = [...model.parameters().values()].map(
        ({ name, value }) => [name, value.toFloat32Array()] as const,
      );
      optimizer[Symbol.dispose]();
      model[Symbol.dispose]();
      return { losses, norms, lossAfter, weights: Object.fromEntries(weights) };
    }

    const clipThenStep = (optimizer: AdamW, lr: number) => {
      const norm = optimizer.clipGradients(maxL2Norm);
      optimizer.step(lr);
      return norm;
    };

    const clipAndStep = (optimizer: AdamW, lr: number) => optimizer.clipAndStep(lr, maxL2Norm);
    // Each test of a trajectory takes the first run of its kind.
    const runs = new Map<string, ReturnType<typeof train>>();
    const firstRun = (precision: Precision, update: typeof clipThenStep) => {
      const key = `${precision} ${update.name}`;
      if (!runs.has(key)) runs.set(key, train(device, precision, update));
      return runs.get(key)!;
    };

    for (const [name, update] of Object.entries({
      "clipping, then a step": clipThenStep,
      "both in one pass": clipAndStep,
    })) {
      test(`20 steps follow PyTorch's: ${name}`, () => {
        const { losses, norms, lossAfter, weights } = firstRun("fp32", update);
        const found = expectClose(losses, golden.losses, { absolute: 1e-4 }, "losses");
        console.log(`  ${name}: losses of ${steps} steps differ by at most ${found.maximum.toExponential(1)}`);
        expectClose(norms, golden.norms, { relative: 1e-4 }, "gradient norms");
        expectClose([lossAfter], [golden.lossAfter], { absolute: 1e-4 }, "loss after the last step");
        for (const [key, { data }] of Object.entries(golden.final)) {
          expectClose(weights[key], data, { norm: 1e-4 }, key);
        }
      });
    }

    test("in bf16 20 steps stay within 1 % of PyTorch's losses in float32", () => {
      const { losses, lossAfter } = firstRun("bf16", clipAndStep);
      expectClose([...losses, lossAfter], [...golden.losses, golden.lossAfter], { relative: 0.01 }, "losses");
      const errors = losses.map((loss, step) => Math.abs(loss / golden.losses[step]! - 1));
      console.log(`  bf16: losses of ${steps} steps differ by at most ${(100 * Math.max(...errors)).toFixed(3)} %`);
    });

    test.each(["fp32", "bf16"] as const)(
      "two runs, and runs on other numbers of threads, give the same bits: %s",
      (precision) => {
        const update = precision === "fp32" ? clipThenStep : clipAndStep;
        const first = firstRun(precision, update);
        using one = openDevice(backend, { threads: 1 });
        // Other backends know no number of threads.
        for (const on of backend === "cpu" ? [device, one] : [one]) {
          const again = train(on, precision, update);
          expect(again.losses).toEqual(first.losses);
          for (const [key, values] of Object.entries(again.weights)) sameBits(values, first.weights[key], key);
        }
      },
    );

    test("a step allocates no device memory after the first", () => {
      using own = openDevice(backend);
      let allocations = 0;
      const allocate = own.allocate.bind(own);
      own.allocate = (bytes) => {
        allocations++;
        return allocate(bytes);
      };
      for (const norm of ["pre", "post", "none"] as const) {
        using model = new TransformerLM({ ...golden.config, norm }, { device: own, seed: 1, batchSize });
        using optimizer = new AdamW(model.parameters());
        const step = (options: { length?: number } = {}) => {
          const tokens = at(golden.inputs, 0).slice(0, batchSize * (options.length ?? length));
          optimizer.zeroGrad();
          model.lossAndGradients(tokens, tokens, options);
          optimizer.clipGradients(1);
          optimizer.step(1e-3);
          model.loss(tokens, tokens, options);
        };
        step();
        expect(allocations).toBeGreaterThan(0);
        allocations = 0;
        step();
        step({ length: 7 });
        expect(allocations).toBe(0);
      }
    });

    test("an impossible batch is refused and changes nothing", () => {
      using model = new TransformerLM(golden.config, { device, seed: 1, batchSize: 2 });
      const tokens = (count: number, last = 0) =>
        Int32Array.from({ length: count }, (_, i) => (i === count - 1 ? last : 0));
      const run = (inputs: Int32Array, targets: Int32Array, ofLength?: number) => () =>
        model.lossAndGradients(inputs, targets, { length: ofLength });
      expect(run(tokens(72), tokens(72))).toThrow("3 sequences are more than the model's batchSize 2");
      expect(run(tokens(25), tokens(25))).toThrow("25 tokens are not sequences of 24");
      expect(run(tokens(50), tokens(50), 25)).toThrow("contextLength is 24");
      expect(run(tokens(0), tokens(0))).toThrow("0 tokens");
      expect(run(tokens(24), tokens(23))).toThrow("24 inputs but 23 targets");
      expect(run(tokens(24, 97), tokens(24))).toThrow("token 97 at position 23");
      expect(run(tokens(24), tokens(24, -1))).toThrow("token -1 at position 23");
      expect(run(tokens(24), tokens(24), 1.5)).toThrow("sequences of 1.5");
      expect(model.store.gradients.toFloat32Array().every((value) => value === 0)).toBe(true);
    });
  });

  describe("initialisation", () => {
    const config = {
      vocabSize: 307,
      contextLength: 8,
      dModel: 96,
      numLayers: 2,
      numHeads: 4,
      dFf: 211,
      ropeTheta: 1e4,
    };
    const weightsOf = (options: { seed?: number }, changed: Partial<ModelConfig> = {}) => {
      using model = new TransformerLM({ ...config, ...changed }, { device, ...options });
      return Object.fromEntries(
        [...model.parameters().values()].map(({ name, shape, value }) => [
          name,
          { shape, data: value.toFloat32Array() },
        ]),
      );
    };

    /** σ of a matrix of the handout's initialisation, §3.4.1. */
    function sigmaOf(name: string, [dOut, dIn]: readonly number[], tied: boolean): number {
      return name === "token_embeddings.weight" && !tied ? 1 : Math.sqrt(2 / (dOut + dIn));
    }

    for (const tieEmbeddings of [false, true]) {
      test(`truncated normal of the handout's variance, gains 1${tieEmbeddings ? ", tied" : ""}`, () => {
        // Variance of a standard normal truncated at ±3: 1 − 2 · 3 φ(3) / (2 Φ(3) − 1).
        const density = Math.exp(-4.5) / Math.sqrt(2 * Math.PI);
        const variance = 1 - (6 * density) / 0.9973002039367398;
        for (const [name, { shape, data }] of Object.entries(weightsOf({ seed: 7 }, { tieEmbeddings }))) {
          if (shape.length === 1) {
            expect(data.every((value) => value === 1)).toBe(true);
            continue;
          }
          const sigma = sigmaOf(name, shape, tieEmbeddings);
          const scaled = Float64Array.from(data, (value) => value / sigma);
          const mean = scaled.reduce((sum, value) => sum + value, 0) / scaled.length;
          const spread = scaled.reduce((sum, value) => sum + (value - mean) ** 2, 0) / scaled.length;
          // Five standard errors of each.
          expect(Math.abs(mean)).toBeLessThan(5 / Math.sqrt(scaled.length));
          expect(Math.abs(spread - variance)).toBeLessThan(5 * Math.sqrt(2 / scaled.length));
          expect(scaled.every((value) => Math.abs(value) <= 3 + 1e-6)).toBe(true);
          expect(scaled.some((value) => Math.abs(value) > 2.5)).toBe(true);
          const within = scaled.filter((value) => Math.abs(value) < 1).length / scaled.length;
          expect(Math.abs(within - 0.6845)).toBeLessThan(5 * Math.sqrt(0.25 / scaled.length));
        }
      });
    }

    test("deterministic in the seed, different for different seeds, 0 by default", () => {
      const [first, again, other] = [weightsOf({ seed: 1 }), weightsOf({ seed: 1 }), weightsOf({ seed: 2 })];
      expect(again).toEqual(first);
      expect(weightsOf({})).toEqual(weightsOf({ seed: 0 }));
      for (const [name, { shape, data }] of Object.entries(first)) {
        if (shape.length > 1) expect(other[name].data).not.toEqual(data);
      }
      // No two matrices of one shape are alike.
      expect(first["layers.0.attn.q_proj.weight"].data).not.toEqual(first["layers.1.attn.q_proj.weight"].data);
    });
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
