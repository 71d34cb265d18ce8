/** The training loop from inside: gradient accumulation, runs that diverge. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { type Device, type TransformerLM, openDevice } from "@mantou/model";
import type { UserError } from "../../packages/train/src/errors.ts";
import { MACHINE_FIELDS, type StepMetrics, readMetrics } from "../../packages/train/src/metrics.ts";
import type { TrainerEvents } from "../../packages/train/src/trainer.ts";
import type { TokenSource } from "../../packages/train/src/dataset.ts";
import { queueing } from "../support/queueing.ts";
import { patternTokens, smallConfig, trainSmall } from "./support/training.ts";
import { rejection } from "./support/refusal.ts";

/** Data in which a batch, whenever it is read, is noise. */
function noisyAt(call: number): TokenSource {
  const tokens = patternTokens(4000);
  let calls = 0;
  return {
    count: tokens.count,
    gather(starts, length, target) {
      tokens.gather(starts, length, target);
      if (++calls === call) for (let i = 0; i < target.length; i++) target[i] = (i * 89) % 257;
    },
  };
}

describe("gradient accumulation", () => {
  test("gives what the whole batch gives, to rounding", async () => {
    const whole = await trainSmall();
    for (const microBatchSize of [1, 2, 4]) {
      const parts = await trainSmall({ config: smallConfig({ microBatchSize }) });
      parts.history.forEach(({ loss, gradNorm, valLoss }, i) => {
        const expected = whole.history[i];
        expect(Math.abs(loss / expected.loss - 1)).toBeLessThan(1e-4);
        expect(Math.abs(gradNorm / expected.gradNorm - 1)).toBeLessThan(1e-3);
        if (valLoss !== undefined) expect(Math.abs(valLoss / expected.valLoss! - 1)).toBeLessThan(1e-4);
      });
    }
    expect(whole.history.at(-1)!.loss).toBeLessThan(whole.history[0].loss - 0.5);
  });

  test("goes on after a stop to the last bit", async () => {
    const config = smallConfig({ microBatchSize: 2 });
    const reference = await trainSmall({ config });
    const stopAt =
      (at: number) =>
      (_: unknown, stop: AbortController): TrainerEvents => ({
        onStep: ({ step }) => {
          if (step === at) stop.abort();
        },
      });
    const { run, stopped } = await trainSmall({ config, events: stopAt(7) });
    expect(stopped).toBe(true);
    const resumed = await trainSmall({ config, directory: run });
    expect(resumed.weights).toEqual(reference.weights);
    expect(resumed.history.map(({ loss }) => loss)).toEqual(reference.history.map(({ loss }) => loss));
  });
});

describe("Muon", () => {
  test("learns, and goes on after a stop to the last bit", async () => {
    const config = smallConfig({ optimizer: "muon" });
    const reference = await trainSmall({ config });
    expect(reference.history.at(-1)!.loss).toBeLessThan(reference.history[0].loss - 0.5);
    expect(reference.history.at(-1)!.loss).not.toBe((await trainSmall()).history.at(-1)!.loss);
    const events = (_: unknown, stop: AbortController): TrainerEvents => ({
      onStep: ({ step }) => void (step === 9 && stop.abort()),
    });
    const { run } = await trainSmall({ config, events });
    expect((await trainSmall({ config, directory: run })).weights).toEqual(reference.weights);
  });
});

describe("divergence", () => {
  /** Spoils a weight after step 12, the first time it is done. */
  const spoil = (): ((model: TransformerLM) => TrainerEvents) => {
    let done = false;
    return (model) => ({
      onStep({ step }) {
        if (step !== 12 || done) return;
        done = true;
        const { value } = model.store.get("layers.1.ffn.w2.weight");
        const data = value.toFloat32Array();
        data[value.columns + 3] = Number.POSITIVE_INFINITY;
        value.upload(data);
      },
    });
  };

  test("stops and names step, batch and parameter; the checkpoint before it is sound", async () => {
    const config = smallConfig();
    const error = await rejection(() => trainSmall({ config, events: spoil() }));
    expect(error.message).toMatch(/^step 13 diverged: the loss is (NaN|Infinity), not a finite number/);
    expect(error.message).toContain("first in the weight layers.1.ffn.w2.weight, row 1, column 3: Infinity (1 of ");
    expect(error.message).toMatch(/its batch: the 9 tokens from each of \d+, \d+, \d+, \d+ …/);
    expect(error.message).toContain("the checkpoint after step 10 is kept");
    expect(error.fix).toContain("--on-divergence skip");
  });

  test("of a gradient that is not finite where the loss is, names that, not the weights it has spoilt", async () => {
    const events = (model: TransformerLM): TrainerEvents => {
      const compute = model.lossAndGradients.bind(model);
      let calls = 0;
      model.lossAndGradients = (...batch) => {
        const loss = compute(...batch);
        const { grad } = model.store.get("layers.0.attn.k_proj.weight");
        if (++calls === 7) grad.upload(grad.toFloat32Array().fill(Number.NaN, 35, 37));
        return loss;
      };
      return {};
    };
    const error = await rejection(() => trainSmall({ events }));
    const where = "gradient of layers.0.attn.k_proj.weight, row 2, column 3: NaN (2 of 256 are not finite)";
    expect(error.message).toStartWith(`step 7 diverged: the gradient is not a finite number, first in the ${where};`);
  });

  test("skip: goes back, passes over the batch, and does so again when resumed", async () => {
    const config = smallConfig({ onDivergence: "skip" });
    const warnings: string[] = [];
    const rollbacks: number[] = [];
    const watch = spoil();
    const events = (model: TransformerLM): TrainerEvents => ({
      ...watch(model),
      onWarning: (message) => warnings.push(message),
      onRollback: (step) => rollbacks.push(step),
    });
    const { run, history, weights } = await trainSmall({ config, events });
    expect(rollbacks).toEqual([10]);
    expect(warnings).toHaveLength(1);
    expect(warnings[0]).toContain("going back to it and skipping the batch of step 13");
    const steps = Array.from({ length: 20 }, (_, i) => i + 1).filter((step) => step !== 13);
    expect(history.map(({ step }) => step)).toEqual(steps);
    expect(readMetrics(run.metrics).map(({ step }) => step)).toEqual(steps);
    expect(JSON.parse(readFileSync(run.skipped, "utf8"))).toEqual([{ checkpoint: 10, first: 13, last: 13 }]);
    expect(weights.every(Number.isFinite)).toBe(true);

    // A new run that is told to skip the same step from the start comes to the same bits.
    const again = await trainSmall({ config });
    await Bun.write(again.run.skipped, readFileSync(run.skipped));
    for (const path of [again.run.checkpoints, again.run.metrics]) await Bun.$`rm -r ${path}`.quiet();
    expect((await trainSmall({ config, directory: again.run })).weights).toEqual(weights);
  });

  test("a spike beyond the threshold counts, a smaller one does not", async () => {
    const error = await rejection(() => trainSmall({ config: smallConfig({ lossSpike: 0.5 }), data: noisyAt(15) }));
    expect(error.message).toMatch(/^step 15 diverged: the loss is \d+\.\d+, the mean of the steps before it \d+\.\d+;/);
    const calm = await trainSmall({ config: smallConfig({ lossSpike: 50 }), data: noisyAt(15) });
    expect(calm.history).toHaveLength(20);
    const skipping = smallConfig({ lossSpike: 0.5, onDivergence: "skip" });
    const skipped = await trainSmall({ config: skipping, data: noisyAt(15) });
    expect(skipped.history.map(({ step }) => step)).not.toContain(15);
    expect(skipped.step).toBe(20);
  });

  test("a run that diverges whatever is skipped gives up", async () => {
    const events = (model: TransformerLM): TrainerEvents => ({
      onStep({ step }) {
        if (step >= 2) model.store.get("ln_final.weight").value.upload(new Float32Array(16).fill(Number.NaN));
      },
    });
    const error = await rejection(() =>
      trainSmall({ config: smallConfig({ onDivergence: "skip", checkpointInterval: 0 }), events }),
    );
    expect(error.message).toContain("first in the weight ln_final.weight, element 0: NaN (16 of 16");
  });
});

describe("on a device that works while the host goes on", () => {
  /** What training on it gives must be what training on the CPU gives. */
  const onQueue = async <T>(copies: "late" | "early", act: (on: Device) => Promise<T>): Promise<T> => {
    using on = openDevice("cpu", { threads: 1 });
    queueing(on, copies);
    return await act(on);
  };
  /** Metrics but for those of the machine. */
  const sameOnAnyMachine = (history: StepMetrics[]) =>
    history.map((metrics) => Object.fromEntries(Object.entries(metrics).filter(([key]) => !isOfTheMachine(key))));
  const isOfTheMachine = (key: string) => (MACHINE_FIELDS as readonly string[]).includes(key);

  for (const copies of ["late", "early"] as const) {
    test(`the same metrics and weights, copying as ${copies} as it may`, async () => {
      const config = smallConfig({ microBatchSize: 4, sampleInterval: 4, checkpointInterval: 6 });
      const expected = await trainSmall({ config });
      const { weights, history, run } = await onQueue(copies, (on) => trainSmall({ config, on }));
      expect(weights).toEqual(expected.weights);
      expect(sameOnAnyMachine(history)).toEqual(sameOnAnyMachine(expected.history));
      expect(readFileSync(run.samples, "utf8")).toBe(readFileSync(expected.run.samples, "utf8"));
    });
  }

  test("goes on after a stop to the last bit", async () => {
    const config = smallConfig();
    const reference = await trainSmall({ config });
    const events = (_: unknown, stop: AbortController): TrainerEvents => ({
      onStep: ({ step }) => {
        if (step === 7) stop.abort();
      },
    });
    const { run, step } = await onQueue("late", (on) => trainSmall({ config, events, on }));
    // The step after the seventh was underway when the seventh was told of.
    expect(step).toBe(8);
    const { weights } = await onQueue("early", (on) => trainSmall({ config, directory: run, on }));
    expect(weights).toEqual(reference.weights);
  });

  test("a step that diverges is told of as on the CPU, though the next one is underway, and skipped to the same bits", async () => {
    const config = smallConfig({ lossSpike: 0.5 });
    const expected = await rejection(() => trainSmall({ config, data: noisyAt(14) }));
    const error = await onQueue("late", (on) => rejection(() => trainSmall({ config, data: noisyAt(14), on })));
    expect(expected.message).toMatch(/^step 14 diverged/);
    expect(error.message.replaceAll(/in \S+$/g, "")).toBe(expected.message.replaceAll(/in \S+$/g, ""));
    const skipping = smallConfig({ lossSpike: 0.5, onDivergence: "skip" });
    const skipped = await trainSmall({ config: skipping, data: noisyAt(14) });
    const again = await onQueue("early", (on) => trainSmall({ config: skipping, data: noisyAt(14), on }));
    expect(again.weights).toEqual(skipped.weights);
    expect(sameOnAnyMachine(again.history)).toEqual(sameOnAnyMachine(skipped.history));
  });

  const batchOf = ({ message }: UserError) => /its batch: [^(]*/.exec(message)?.[0];

  for (const [which, open] of Object.entries({
    "a CPU that queues": () => {
      const on = openDevice("cpu", { threads: 1 });
      queueing(on, "late");
      return on;
    },
    "the emulated GPU": () => openDevice("emulated"),
  })) {
    test(`numbers that are not finite are traced to batch and parameter: ${which}`, async () => {
      // The weights get out of hand by themselves, so that the same happens again when steps are repeated.
      const settings = { lr: 3e4, weightDecay: 1, warmupSteps: 0, schedule: "constant" };
      const config = smallConfig(settings);
      const expected = await rejection(() => trainSmall({ config }));
      using on = open();
      const warnings: string[] = [];
      const events = (): TrainerEvents => ({ onWarning: (message) => warnings.push(message) });
      const error = await rejection(() => trainSmall({ config, on, events }));
      const what =
        /^step 4 diverged: the (loss|gradient) is (NaN,|not).*, first in the gradient of \S+, .*: NaN \(\d+ of/;
      for (const message of [expected.message, error.message]) expect(message).toMatch(what);
      expect(batchOf(error)).toBe(batchOf(expected));
      expect(warnings).toEqual(["step 4 diverged: doing steps 1 to 4 again to find out where"]);
    });
  }
});
