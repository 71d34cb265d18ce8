/**
 * The whole model: logits, loss and every gradient against PyTorch's goldens for each of their configurations, however
 * its memory is arranged; and its initial weights. See gradients.test.ts for all other configurations.
 */
import { describe, expect, test } from "bun:test";
import { AdamW, type ModelConfig, Profile, TransformerLM, openDevice } from "@mantou/model";
import { difference, expectClose } from "../support/close.ts";
import { type GoldenModel, goldenModels } from "../support/golden.ts";
import { type FloatArray, randomInts } from "../support/ndarray.ts";
import { gradientsOf, weightsOf } from "../support/parameters.ts";
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

/** "4.1e-7 (layers.0.ffn.w1.weight)": the largest relative error in norm, and whose it is. */
function worst(actual: Record<string, FloatArray>, expected: Record<string, FloatArray>): string {
  const errors = Object.entries(expected).map(([name, { data }]) => ({
    name,
    error: difference(actual[name].data, data, allowed).relativeInNorm,
  }));
  const { name, error } = errors.reduce((a, b) => (b.error > a.error ? b : a));
  return `${error.toExponential(1)} (${name})`;
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
          return { losses: losses.flat(), count: model.store.count, logits: model.logits(inputs).data };
        });
        // Rows of whole vectors are read in another way, and added up in another order.
        const [alone, padded] = [results[0]!, results[1]!];
        const [relative, absolute] = precision === "fp32" ? [1e-4, 1e-4] : [2e-2, 5e-2];
        expectClose(padded.losses, alone.losses, { relative }, "losses and norms");
        expectClose(padded.logits, alone.logits, { relative, absolute }, "logits");
        expect(padded.count).toBe(alone.count);
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

  // The CPU rotates on load at any length.
  describe.skipIf(backend === "cpu")(
    "where queries and keys begin to be rotated beforehand, the CPU's gradients",
    () => {
      const sizes = {
        vocabSize: 19,
        dModel: 16,
        numLayers: 1,
        numHeads: 1,
        dFf: 8,
        contextLength: 513,
        ropeTheta: 1e4,
      };
      const [inputs, targets] = [5, 6].map((seed) => randomInts([513], seed, 19).data);
      for (const precision of ["fp32", "bf16"] as const) {
        for (const [length, rotations, qkNorm] of [
          [512, 0, false],
          [513, 1, false],
          [513, 1, true],
        ] as const) {
          test(`${length} tokens, ${precision}${qkNorm ? ", normalised heads" : ""}`, () => {
            using cpu = openDevice("cpu", { threads: 1 });
            const results = [cpu, device].map((on) => {
              using model = new TransformerLM({ ...sizes, qkNorm }, { device: on, seed: 7, batchSize: 1, precision });
              on.profile = new Profile();
              const loss = model.lossAndGradients(inputs!.slice(0, length), targets!.slice(0, length), { length });
              const { rows } = on.profile.result({ float32Flops: 1, bfloat16Flops: 1, bytesRead: 1 });
              on.profile = null;
              const calls = rows.filter(({ name }) => name.startsWith("rope")).map((row) => row.calls);
              return { loss, gradients: gradientsOf(model), calls };
            });
            const [expected, actual] = results as [(typeof results)[0], (typeof results)[0]];
            expect(actual.calls).toEqual(rotations ? [rotations] : []);
            expect(expected.calls).toEqual([]);
            expectClose([actual.loss], [expected.loss], tolerances[precision].loss, "loss");
            for (const [name, { data }] of Object.entries(actual.gradients))
              expectClose(data, expected.gradients[name]!.data, tolerances[precision].tensor, `gradient of ${name}`);
          });
        }
      }
    },
  );

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
    const initial = (options: { seed?: number }, changed: Partial<ModelConfig> = {}) => {
      using model = new TransformerLM({ ...config, ...changed }, { device, ...options });
      return weightsOf(model);
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
        for (const [name, { shape, data }] of Object.entries(initial({ seed: 7 }, { tieEmbeddings }))) {
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
      const [first, again, other] = [initial({ seed: 1 }), initial({ seed: 1 }), initial({ seed: 2 })];
      expect(again).toEqual(first);
      expect(initial({})).toEqual(initial({ seed: 0 }));
      for (const [name, { shape, data }] of Object.entries(first)) {
        if (shape.length > 1) expect(other[name].data).not.toEqual(data);
      }
      // No two matrices of one shape are alike.
      expect(first["layers.0.attn.q_proj.weight"].data).not.toEqual(first["layers.1.attn.q_proj.weight"].data);
    });
  });
});
