/** Training beside PyTorch: 20 steps in either precision, the same bits again, memory, and batches that cannot be. */
import { expect, test } from "bun:test";
import { AdamW, type Device, type NdArray, type Precision, TransformerLM, openDevice } from "@mantou/model";
import { runGetLrCosineSchedule } from "../adapters.ts";
import { expectClose } from "../support/close.ts";
import { goldenTrajectory } from "../support/golden.ts";
import { onEveryBackend } from "./backends.ts";
import { sameBits } from "./workbench.ts";

onEveryBackend((backend, device) => {
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
    const weights = [...model.parameters().values()].map(({ name, value }) => [name, value.toFloat32Array()] as const);
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
