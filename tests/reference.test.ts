/**
 * The naive float64 reference against PyTorch's goldens: two independent implementations that agree prove each other,
 * and both then judge the packages.
 *
 * Goldens are float64 results rounded to float32, so outputs agree to about 1e-7 and only finite differences need
 * more room.
 */
import { describe, expect, test } from "bun:test";
import { directionalDerivative, numericalGradient } from "./reference/differences.ts";
import * as ops from "./reference/ops.ts";
import { AdamWReference, clipGradients, cosineSchedule } from "./reference/optimizer.ts";
import { lossOf, transformerBlock, transformerLm, weightShapes, weightsInFloat64 } from "./reference/transformer.ts";
import { expectClose } from "./support/close.ts";
import {
  goldenModels,
  goldenOperation,
  goldenTrajectory,
  type OperationCases,
  type SelfAttentionOptions,
  type SelfAttentionWithRopeOptions,
} from "./support/golden.ts";
import { type NdArray, randomInts, randomNormal } from "./support/ndarray.ts";

const rounding = { relative: 2e-7, absolute: 2e-7 };
const differences = { relative: 1e-5, absolute: 2e-7 };

/** The operations that have an output array and gradients. */
type Differentiable = Exclude<keyof OperationCases, "crossEntropy" | "gradientClipping" | "adamw" | "lrCosineSchedule">;

function selfAttention(o: SelfAttentionOptions, rope?: { theta: number; tokenPositions?: ops.Numeric }) {
  const weights = { q: o.qProjWeight, k: o.kProjWeight, v: o.vProjWeight, output: o.oProjWeight };
  return ops.multiHeadSelfAttention(weights, o.inFeatures, { numHeads: o.numHeads, rope });
}

const reference: { [Name in Differentiable]: (options: OperationCases[Name]["options"]) => ops.Array64 } = {
  linear: (o) => ops.linear(o.weights, o.inFeatures),
  embedding: (o) => ops.embedding(o.weights, o.tokenIds),
  rmsnorm: (o) => ops.rmsnorm(o.weights, o.inFeatures, o.eps),
  silu: (o) => ops.silu(o.inFeatures),
  swiglu: (o) => ops.swiglu(o.w1, o.w2, o.w3, o.inFeatures),
  softmax: (o) => ops.softmax(o.inFeatures, o.dim),
  scaledDotProductAttention: (o) => ops.scaledDotProductAttention(o.Q, o.K, o.V, o.mask),
  rope: (o) => ops.rope(o.theta, o.inQueryOrKey, o.tokenPositions),
  multiheadSelfAttention: (o) => selfAttention(o),
  multiheadSelfAttentionWithRope: (o: SelfAttentionWithRopeOptions) => selfAttention(o, o),
  transformerBlock: (o) => transformerBlock({ numHeads: o.numHeads, ropeTheta: o.theta }, o.weights, o.inFeatures),
};

for (const operation of Object.keys(reference) as Differentiable[]) {
  describe(operation, () => {
    // One operation's own types are lost in this loop over all of them; the table above has checked them.
    const run = reference[operation] as (options: unknown) => ops.Array64;
    for (const [name, golden] of Object.entries(goldenOperation(operation))) {
      test(name, () => {
        expectClose(run(golden.options), golden.output, rounding, "output");

        // Σ output · gradOutput, moved along its own gradient: one number that every element of the gradient enters.
        for (const [option, gradient] of Object.entries(golden.gradients)) {
          const isNamed = option === "weights" && !("data" in gradient);
          const gradients = (isNamed ? gradient : { [option]: gradient }) as Record<string, NdArray>;
          const inputs = isNamed ? (golden.options as { weights: Record<string, NdArray> }).weights : golden.options;
          for (const [key, expected] of Object.entries(gradients)) {
            const moved = ops.toFloat64((inputs as Record<string, NdArray>)[key]);
            const options = isNamed
              ? { ...golden.options, weights: { ...inputs, [key]: moved } }
              : { ...golden.options, [key]: moved };
            const objective = () => dot(run(options).data, golden.gradOutput.data);
            const indices = sample(moved.data.length, 6);
            const found = numericalGradient(objective, moved.data, indices);
            expectClose(
              found,
              [...indices].map((i) => expected.data[i]),
              differences,
              `gradient of ${key}`,
            );
            const direction = expected.data.map((g) => g / Math.max(1, norm(expected.data)));
            const slope = directionalDerivative(objective, [moved.data], [direction]);
            expectClose([slope], [dot(expected.data, direction)], differences, `slope along the gradient of ${key}`);
          }
        }
      });
    }
  });
}

describe("crossEntropy", () => {
  for (const [name, { options, output, gradients }] of Object.entries(goldenOperation("crossEntropy"))) {
    test(name, () => {
      expectClose([ops.crossEntropy(options.inputs, options.targets)], [output], { relative: 1e-12 }, "loss");
      const inputs = ops.toFloat64(options.inputs);
      const indices = sample(inputs.data.length, 40);
      const found = numericalGradient(() => ops.crossEntropy(inputs, options.targets), inputs.data, indices);
      // The loss of huge logits is itself in the thousands, and its differences lose digits accordingly.
      const absolute = 1e-9 * Math.max(1, output);
      expectClose(
        found,
        [...indices].map((i) => gradients.inputs.data[i]),
        { relative: 1e-5, absolute },
        "gradient",
      );
    });
  }
});

describe("optimizer", () => {
  for (const [name, { options, norm: expected, output }] of Object.entries(goldenOperation("gradientClipping"))) {
    test(`gradient clipping: ${name}`, () => {
      const clipped = clipGradients(
        options.gradients.map(({ data }) => data),
        options.maxL2Norm,
      );
      expectClose([clipped.norm], [expected], { relative: 1e-12 }, "norm");
      output.forEach((gradient, i) =>
        expectClose(clipped.gradients[i], gradient.data, { relative: 1e-7 }, `gradient ${i}`),
      );
    });
  }

  for (const [name, { settings, parameters }] of Object.entries(goldenOperation("adamw"))) {
    test(`AdamW: ${name}`, () => {
      const mine = parameters.map(({ value }) => ({
        value: Float64Array.from(value.data),
        grad: null as Float32Array | null,
      }));
      const optimizer = new AdamWReference(mine, settings);
      for (let step = 0; step < parameters[0].grads.length; step++) {
        parameters.forEach(({ grads }, p) => (mine[p].grad = grads[step]?.data ?? null));
        optimizer.step();
        parameters.forEach(({ values }, p) =>
          expectClose(mine[p].value, values[step].data, rounding, `parameter ${p} after step ${step}`),
        );
      }
    });
  }

  for (const [name, { options, rates }] of Object.entries(goldenOperation("lrCosineSchedule"))) {
    test(`cosine schedule: ${name}`, () => {
      const { maxLearningRate, minLearningRate, warmupIters, cosineCycleIters } = options;
      const mine = rates.map((_, it) =>
        cosineSchedule(it, maxLearningRate, minLearningRate, warmupIters, cosineCycleIters),
      );
      expectClose(mine, rates, { absolute: 1e-15 }, "learning rate");
    });
  }
});

describe("models", () => {
  for (const [name, golden] of Object.entries(goldenModels())) {
    const { config, inputs, targets } = golden;
    const batch = inputs.shape[0];

    test(`${name}: parameters, logits and loss`, () => {
      const shapes = Object.fromEntries(Object.entries(golden.weights).map(([key, { shape }]) => [key, shape]));
      expect(weightShapes(config)).toEqual(shapes);
      expectClose(transformerLm(config, golden.weights, inputs), golden.logits, rounding, "logits");
      const loss = lossOf(config, golden.weights, inputs.data, targets.data, batch);
      expectClose([loss], [golden.loss], { relative: 1e-12 }, "loss");
    });

    test(`${name}: gradients`, () => {
      const weights = weightsInFloat64(golden.weights);
      const loss = () => lossOf(config, weights, inputs.data, targets.data, batch, golden.zLoss);
      const names = Object.keys(weights);
      for (const key of names) {
        const expected = golden.gradients[key].data;
        const direction = expected.map((g) => g / norm(expected));
        const slope = directionalDerivative(loss, [weights[key].data], [direction]);
        expectClose([slope], [norm(expected)], { relative: 1e-6 }, `slope along the gradient of ${key}`);
      }
      // All weights at once, along directions that no gradient chose.
      for (const seed of [1, 2, 3]) {
        const directions = names.map((key, i) => randomNormal(weights[key].shape, 100 * seed + i, 0.01).data);
        const slope = directionalDerivative(
          loss,
          names.map((key) => weights[key].data),
          directions,
        );
        const expected = names.reduce((sum, key, i) => sum + dot(golden.gradients[key].data, directions[i]), 0);
        expectClose([slope], [expected], { relative: 1e-5, absolute: 1e-7 }, `slope along random direction ${seed}`);
      }
    });
  }
});

describe("trajectory", () => {
  const golden = goldenTrajectory();
  const [steps, batch, T] = golden.inputs.shape;
  const at = (array: NdArray, step: number) => array.data.subarray(step * batch * T, (step + 1) * batch * T);

  test("losses of the first and the last weights", () => {
    const first = lossOf(golden.config, golden.initial, at(golden.inputs, 0), at(golden.targets, 0), batch);
    expectClose([golden.losses[0], golden.float64.losses[0]], [first, first], { relative: 1e-6 }, "first loss");
    const last = steps - 1;
    const after = lossOf(golden.config, golden.final, at(golden.inputs, last), at(golden.targets, last), batch);
    expectClose([golden.lossAfter], [after], { relative: 1e-6 }, "loss after the last step");
    expect(after).toBeLessThan(first);
  });

  test("learning rates follow the schedule", () => {
    const { maxLearningRate, minLearningRate, warmupIters, cosineCycleIters } = golden.settings;
    const rates = golden.learningRates.map((_, step) =>
      cosineSchedule(step + 1, maxLearningRate, minLearningRate, warmupIters, cosineCycleIters),
    );
    expectClose(golden.learningRates, rates, { absolute: 1e-15 }, "learning rate");
    expect(rates.length).toBe(steps);
  });

  test("clips some steps and leaves others alone, and float32 stays near float64", () => {
    const clipped = golden.norms.filter((value) => value > golden.settings.maxL2Norm).length;
    expect(clipped).toBeGreaterThan(0);
    expect(clipped).toBeLessThan(steps);
    expectClose(golden.losses, golden.float64.losses, { absolute: 1e-5 }, "losses");
    expectClose(golden.norms, golden.float64.norms, { absolute: 1e-4 }, "norms");
  });

  test("target is the input shifted by one", () => {
    for (let row = 0; row < steps * batch; row++) {
      const inputs = golden.inputs.data.subarray(row * T, (row + 1) * T);
      const targets = golden.targets.data.subarray(row * T, (row + 1) * T);
      expect(targets.subarray(0, -1)).toEqual(inputs.subarray(1));
    }
  });
});

describe("the oracle rejects what it cannot compute", () => {
  test("token id outside the vocabulary", () => {
    const ids = { shape: [1], data: [3] };
    expect(() => ops.embedding(randomNormal([3, 2], 1), ids)).toThrow("token id 3 is outside 0..2");
  });

  test("more tokens than the context", () => {
    const { base } = goldenModels();
    const tokens = randomInts([1, 25], 1, 97);
    expect(() => transformerLm(base.config, base.weights, tokens)).toThrow("25 tokens exceed the context length 24");
  });

  test("shapes that do not fit", () => {
    expect(() => ops.linear(randomNormal([2, 3], 1), randomNormal([4], 2))).toThrow("last dimension of 3");
    expect(() => ops.rope(1e4, randomNormal([3, 4], 1), randomInts([2], 1, 4))).toThrow("does not broadcast");
    expect(() => ops.softmax(randomNormal([3], 1), 1)).toThrow("dim 1");
  });
});

function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function norm(a: ArrayLike<number>): number {
  return Math.sqrt(dot(a, a));
}

/** Up to `count` distinct indices below `length`, the same ones every time. */
function sample(length: number, count: number): Set<number> {
  return length <= count
    ? new Set(Array.from({ length }, (_, i) => i))
    : new Set(randomInts([count], length, length).data);
}
