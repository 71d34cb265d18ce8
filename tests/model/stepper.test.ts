/**
 * Queued training steps against steps that wait, bit for bit: on the CPU, which does everything at once, and on a device
 * that behaves as badly as a GPU may (see queueing.ts); on a GPU where there is one. And losses of many batches likewise.
 */
import { describe, expect, test } from "bun:test";
import { AdamW, type Device, Muon, Stepper, TransformerLM, findNvcc, hasGpu, losses, openDevice } from "@mantou/model";
import { onEveryBackend } from "../conformance/backends.ts";
import { goldenTrajectory } from "../support/golden.ts";
import { randomInts } from "../support/ndarray.ts";
import { queueing } from "../support/queueing.ts";

const golden = goldenTrajectory();
const [, batchSize, length] = golden.inputs.shape;
const [steps, parts, maxNorm] = [7, 3, 1];

/** Part `part` of step `step`; arrays of its own, which the caller may write over. */
function batchOf(step: number, part: number) {
  const tokens = (seed: number) => randomInts([batchSize * length], seed, golden.config.vocabSize).data;
  return { inputs: tokens(100 * step + 2 * part), targets: tokens(100 * step + 2 * part + 1) };
}

const rateOf = (step: number) => 1e-2 / (step + 1);

interface Case {
  precision: "fp32" | "bf16";
  Optimizer: typeof AdamW | typeof Muon;
}

function setUp(device: Device, { precision, Optimizer }: Case) {
  const model = new TransformerLM(golden.config, { device, weights: golden.initial, batchSize, precision });
  const optimizer = new Optimizer(model.parameters(), { betas: [0.9, 0.95], weightDecay: 0.1 });
  return { model, optimizer, [Symbol.dispose]: () => [optimizer, model].forEach((each) => each[Symbol.dispose]()) };
}

type Trained = { results: { loss: number; gradNorm: number }[]; weights: Float32Array; validation: number };

/** Waiting for each step, every operation called by itself. */
function waiting(how: Case, name: "cpu" | "cuda" = "cpu"): Trained {
  using device = openDevice(name, { threads: 1 });
  device.capture = () => undefined;
  using trained = setUp(device, how);
  const { model, optimizer } = trained;
  const results = Array.from({ length: steps }, (_, step) => {
    optimizer.zeroGrad();
    let loss = 0;
    for (let part = 0; part < parts; part++) {
      const { inputs, targets } = batchOf(step, part);
      loss += model.lossAndGradients(inputs, targets, { gradientScale: 1 / parts }) / parts;
    }
    return { loss, gradNorm: optimizer.clipAndStep(rateOf(step), maxNorm) };
  });
  const { inputs, targets } = batchOf(0, 0);
  const validation = model.loss(inputs, targets);
  return { results, weights: model.store.values.toFloat32Array(), validation };
}

/** The same with each step finished when the next one is queued. */
function queued(device: Device, how: Case): Trained {
  using trained = setUp(device, how);
  const { model, optimizer } = trained;
  using stepper = new Stepper(model, optimizer, { parts, maxNorm });
  const results: Trained["results"] = [];
  for (let step = 0; step < steps; step++) {
    stepper.queue((part) => batchOf(step, part), rateOf(step));
    if (step > 0) results.push(stepper.finish());
    expect(stepper.inFlight).toBe(1);
  }
  results.push(stepper.finish());
  const { inputs, targets } = batchOf(0, 0);
  return { results, validation: model.loss(inputs, targets), weights: model.store.values.toFloat32Array() };
}

const cases = (["fp32", "bf16"] as const).flatMap((precision) =>
  [AdamW, Muon].map((Optimizer): [string, Case] => [`${precision} with ${Optimizer.name}`, { precision, Optimizer }]),
);

describe.each(cases)("queued steps in %s", (_, how) => {
  const expected = waiting(how);

  test("on the CPU", () => {
    using device = openDevice("cpu", { threads: 1 });
    expect(queued(device, how)).toEqual(expected);
  });

  test.skipIf(!hasGpu() || !findNvcc())("on a GPU, with captured work", () => {
    using device = openDevice("cuda");
    expect(queued(device, how)).toEqual(waiting(how, "cuda"));
  });

  for (const copies of ["late", "early"] as const) {
    test(`on a device that queues, copying as ${copies} as it may, with captured work`, () => {
      using device = openDevice("cpu", { threads: 1 });
      const counts = queueing(device, copies);
      expect(queued(device, how)).toEqual(expected);
      // A replay for each part, of the last with the update; in the first step that is new, and so is the first part.
      expect(counts).toEqual({ captured: 2, replayed: (steps - 1) * parts + parts - 1 });
    });
  }
});

describe("losses of many batches", () => {
  const sizes = [batchSize, batchSize, batchSize, batchSize, 1, 1, 1];
  const options = { length: length - 1 };
  /** Every batch in the same arrays, and what came out with `of`. */
  function lossesOn(device: Device, of: (model: TransformerLM, batches: Generator<Batch>) => number[]): number[] {
    const shared = batchOf(0, 0);
    const batches = function* () {
      for (const [i, sequences] of sizes.entries()) {
        const { inputs, targets } = batchOf(i, 0);
        shared.inputs.set(inputs);
        shared.targets.set(targets);
        const end = sequences * options.length;
        yield { inputs: shared.inputs.subarray(0, end), targets: shared.targets.subarray(0, end) };
      }
    };
    using model = new TransformerLM(golden.config, { device, weights: golden.initial, batchSize });
    return of(model, batches());
  }
  type Batch = { inputs: Int32Array; targets: Int32Array };
  const waited = (device: Device) =>
    lossesOn(device, (model, batches) =>
      Array.from(batches, ({ inputs, targets }) => model.loss(inputs, targets, options)),
    );
  const queuedOn = (device: Device) =>
    lossesOn(device, (model, batches) => {
      const { run } = device;
      let waits = 0;
      device.run = ((...args: Parameters<Device["run"]>) => {
        if (args[0] === "mantou_copy") waits++;
        run.apply(device, args);
      }) as Device["run"];
      const found = [...losses(model, batches, options)];
      device.run = run;
      if (device.isAsynchronous) expect(waits).toBe(0);
      expect(found.map(({ count }) => count)).toEqual(sizes.map((sequences) => sequences * options.length));
      return found.map(({ loss }) => loss);
    });
  using cpu = openDevice("cpu", { threads: 1 });
  const expected = waited(cpu);

  onEveryBackend((_, device) => {
    test("are the same, batch for batch", () => expect(queuedOn(device)).toEqual(waited(device)));
  });

  for (const copies of ["late", "early"] as const) {
    test(`on a device that queues, copying as ${copies} as it may`, () => {
      using device = openDevice("cpu", { threads: 1 });
      const counts = queueing(device, copies);
      expect(queuedOn(device)).toEqual(expected);
      expect(counts).toEqual({ captured: 2, replayed: 3 + 2 });
    });
  }

  test("a batch that does not fit is refused, and what was queued comes to its end", () => {
    using device = openDevice("cpu", { threads: 1 });
    queueing(device, "late");
    using model = new TransformerLM(golden.config, { device, weights: golden.initial, batchSize });
    const { inputs, targets } = batchOf(0, 0);
    const batches = [
      { inputs, targets },
      { inputs, targets: targets.subarray(1) },
    ];
    expect(() => [...losses(model, batches)]).toThrow("targets");
    expect(model.loss(inputs, targets)).toBeGreaterThan(0);
  });
});

test("refuses a third step in flight, tokens outside the vocabulary and batches of another size", () => {
  using device = openDevice("cpu", { threads: 1 });
  using trained = setUp(device, { precision: "fp32", Optimizer: AdamW });
  using stepper = new Stepper(trained.model, trained.optimizer, { parts: 1, maxNorm });
  expect(() => stepper.finish()).toThrow("no step is queued");
  const make = (changes: object) => () =>
    new Stepper(trained.model, trained.optimizer, { parts: 1, maxNorm, ...changes });
  for (const count of [0, 1.5, Number.NaN]) expect(make({ parts: count })).toThrow(`at least 1, not ${count}`);
  expect(make({ maxNorm: Number.NaN })).toThrow("maxNorm must be a number");
  using other = setUp(device, { precision: "fp32", Optimizer: AdamW });
  expect(() => new Stepper(trained.model, other.optimizer, { parts: 1, maxNorm })).toThrow("this model's parameters");
  const { inputs, targets } = batchOf(0, 0);
  expect(() => stepper.queue(() => ({ inputs: inputs.subarray(1), targets }), 1)).toThrow("tokens are not");
  for (const each of [Uint8Array.from(inputs), [...inputs]]) {
    const others = each as unknown as Int32Array;
    expect(() => stepper.queue(() => ({ inputs: others, targets }), 1)).toThrow(
      "takes a Float32Array or an Int32Array",
    );
  }
  const wrong = targets.slice().fill(golden.config.vocabSize, 5, 6);
  expect(() => stepper.queue(() => ({ inputs, targets: wrong }), 1)).toThrow("at position 5");
  expect(() => stepper.queue(() => ({ inputs, targets }), Number.NaN)).toThrow("lr must be");
  for (let i = 0; i < 2; i++) stepper.queue(() => ({ inputs, targets }), 1e-3);
  expect(() => stepper.queue(() => ({ inputs, targets }), 1e-3)).toThrow("finish one first");
});
