/** The optimizer over a model's parameters: ranges of weight decay, clipping, what it refuses; and the schedule. */
import { describe, expect, test } from "bun:test";
import { AdamW, type AdamWOptions, type Device, ParameterStore } from "@mantou/model";
import { cosineLearningRate } from "@mantou/train";
import { onEveryBackend } from "../conformance/backends.ts";
import { AdamWReference, clipGradients, cosineSchedule } from "../reference/optimizer.ts";
import { expectClose } from "../support/close.ts";
import { randomNormal } from "../support/ndarray.ts";

/** Three groups whose sizes leave padding between them, two parameters in the second. */
const groups = [
  [{ name: "embedding", shape: [7, 11] }],
  [
    { name: "gain", shape: [13] },
    { name: "q", shape: [3, 5] },
  ],
  [{ name: "head", shape: [65] }],
];

/** Values and gradients from a seed, on the device and as float64 for the reference. */
function setUp(device: Device, options: AdamWOptions = {}) {
  const store = new ParameterStore(device, groups);
  const reference = [...store.byName.values()].map(({ shape, value, grad }, i) => {
    const [initial, gradient] = [randomNormal([...shape], i), randomNormal([...shape], 50 + i)];
    value.upload(initial.data);
    grad.upload(gradient.data);
    return { value: Float64Array.from(initial.data), grad: gradient.data as ArrayLike<number> };
  });
  const optimizer = new AdamW(store.byName, options);
  return {
    store,
    optimizer,
    reference,
    values: () => [...store.byName.values()].map(({ value }) => value.toFloat32Array()),
    gradients: () => [...store.byName.values()].map(({ grad }) => grad.toFloat32Array()),
    [Symbol.dispose]: () => {
      optimizer[Symbol.dispose]();
      store[Symbol.dispose]();
    },
  };
}

onEveryBackend((_backend, device) => {
  describe("AdamW", () => {
    for (const [name, decays] of Object.entries({
      all: undefined,
      none: () => false,
      "matrices only": ({ shape }: { shape: readonly number[] }) => shape.length > 1,
      "one in the middle": (parameter: { name: string }) => parameter.name === "q",
    })) {
      test(`weight decay of ${name}, with new gradients every step`, () => {
        const options = { betas: [0.8, 0.9] as [number, number], eps: 1e-5, weightDecay: 0.3 };
        using mine = setUp(device, { ...options, decays });
        const parameters = [...mine.store.byName.values()];
        const theirs = parameters.map((parameter, i) => {
          const weightDecay = !decays || decays(parameter) ? options.weightDecay : 0;
          return new AdamWReference([mine.reference[i]], { ...options, weightDecay });
        });
        for (let step = 0; step < 5; step++) {
          parameters.forEach(({ shape, grad }, i) => {
            const { data } = randomNormal([...shape], 100 * step + i);
            grad.upload(data);
            mine.reference[i].grad = data;
          });
          const lr = 0.1 / (step + 1);
          mine.optimizer.step(lr);
          theirs.forEach((optimizer) => optimizer.step(lr));
        }
        mine.values().forEach((values, i) => expectClose(values, mine.reference[i].value, { absolute: 2e-6 }, `${i}`));
        expect(mine.optimizer.stepCount).toBe(5);
      });
    }

    test("the defaults are PyTorch's", () => {
      using mine = setUp(device);
      const { betas, eps, weightDecay } = mine.optimizer;
      expect({ betas, eps, weightDecay }).toEqual({ betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0.01 });
    });

    test("padding between the groups stays zero", () => {
      using mine = setUp(device, { weightDecay: 0.5 });
      mine.optimizer.clipGradients(0.1);
      mine.optimizer.step(0.1);
      for (const buffer of [mine.store.values, mine.optimizer.firstMoments, mine.optimizer.secondMoments]) {
        const flat = buffer.toFloat32Array();
        for (const { offset, value } of mine.store.byName.values()) flat.fill(0, offset, offset + value.count);
        expect(flat.every((element) => element === 0)).toBe(true);
      }
      expect(mine.store.count).toBe(77 + 13 + 15 + 65);
      expect(mine.store.values.count).toBeGreaterThan(mine.store.count);
    });

    test("a zero gradient decays the weights and moves nothing else; zeroGrad clears", () => {
      using mine = setUp(device, { weightDecay: 0.5 });
      const before = mine.values();
      mine.optimizer.zeroGrad();
      expect(mine.gradients().every((values) => values.every((value) => value === 0))).toBe(true);
      mine.optimizer.step(0.1);
      mine.values().forEach((values, i) =>
        expectClose(
          values,
          before[i].map((value) => value * 0.95),
          { relative: 1e-6 },
        ),
      );
    });

    test("names an option outside its range", () => {
      using store = new ParameterStore(device, groups);
      const make = (options: AdamWOptions) => () => new AdamW(store.byName, options);
      expect(make({ betas: [1, 0.9] })).toThrow("betas must lie in [0, 1), not 1");
      expect(make({ betas: [0.9, -0.1] })).toThrow("not -0.1");
      expect(make({ betas: [Number.NaN, 0.9] })).toThrow("betas");
      expect(make({ eps: -1 })).toThrow("eps must be a finite number ≥ 0, not -1");
      expect(make({ eps: Infinity })).toThrow("eps must be a finite number ≥ 0, not Infinity");
      expect(make({ betas: [0.9] as unknown as [number, number] })).toThrow("betas must be two numbers, not [0.9]");
      expect(make({ betas: [0.9, 0.99999999] })).toThrow("betas must lie in [0, 1), not 0.99999999");
      expect(make({ weightDecay: -0.1 })).toThrow("weightDecay must be a finite number ≥ 0, not -0.1");
      expect(() => new AdamW(new Map())).toThrow("at least one parameter");
      using mine = setUp(device);
      const mixed = new Map([...store.byName, ["other", mine.store.get("head")]]);
      expect(() => new AdamW(mixed)).toThrow("parameters of one model");
      const some = new Map([...store.byName].slice(1));
      expect(() => new AdamW(some)).toThrow(`AdamW takes all ${some.size + 1} parameters of a model, not ${some.size}`);
      expect(() => mine.optimizer.clipAndStep(1e-3, Number.NaN)).toThrow("maxNorm must be a number");
      for (const lr of [Number.NaN, Infinity])
        expect(() => mine.optimizer.step(lr)).toThrow("lr must be a finite number");
      expect(mine.optimizer.stepCount).toBe(0);
      for (const limit of [0, -1, Number.NaN]) {
        expect(() => mine.optimizer.clipGradients(limit)).toThrow(`maxNorm must be positive, not ${limit}`);
      }
    });
  });

  describe("gradient clipping", () => {
    test("scales to the limit above it, leaves gradients alone below it, returns the norm before", () => {
      for (const limit of [0.5, 1e6]) {
        using mine = setUp(device);
        const before = mine.gradients();
        const expected = clipGradients(before, limit);
        expectClose([mine.optimizer.clipGradients(limit)], [expected.norm], { relative: 1e-6 }, "norm");
        mine.gradients().forEach((gradient, i) => expectClose(gradient, expected.gradients[i], { relative: 1e-5 }));
        if (limit === 1e6) expect(mine.gradients()).toEqual(before);
      }
    });

    test("clipAndStep moves the weights as clipping and a step do, and keeps the gradients", () => {
      using two = setUp(device);
      using one = setUp(device);
      const gradients = one.gradients();
      for (const limit of [0.5, 1e6]) {
        const norm = two.optimizer.clipGradients(limit);
        two.optimizer.step(0.1);
        expect(one.optimizer.clipAndStep(0.1, limit)).toBe(norm);
        // What was clipped stays clipped in one and not in the other.
        [...two.store.byName.values()].forEach(({ grad }, i) => grad.upload(gradients[i]));
      }
      one.values().forEach((values, i) => expectClose(values, two.values()[i], { absolute: 1e-6 }));
      expect(one.gradients()).toEqual(gradients);
    });
  });
});

describe("cosine schedule", () => {
  test("follows the reference, the ends of its parts included", () => {
    for (const [maximum, minimum, warmup, cycle] of [
      [1, 0.1, 7, 21],
      [3e-4, 0, 0, 9],
      [1, 1, 3, 5],
      [2, 1, 5, 5],
      [2, 1, 0, 0],
      [1e-3, 1e-4, 1, 2],
    ]) {
      const schedule = {
        maxLearningRate: maximum,
        minLearningRate: minimum,
        warmupIters: warmup,
        cosineCycleIters: cycle,
      };
      const steps = Array.from({ length: cycle + 5 }, (_, it) => it);
      const expected = steps.map((it) => cosineSchedule(it, maximum, minimum, warmup, cycle));
      expectClose(
        steps.map((it) => cosineLearningRate(it, schedule)),
        expected,
        { absolute: 1e-15 },
        `${cycle}`,
      );
      expect(cosineLearningRate(warmup, schedule)).toBe(maximum);
      expect(cosineLearningRate(cycle + 1, schedule)).toBe(minimum);
      expect(cosineLearningRate(1e9, schedule)).toBe(minimum);
    }
  });
});
