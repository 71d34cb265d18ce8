/**
 * A race by the clock: nanoGPT's small CPU configuration on tinyshakespeare, by characters, until the validation loss is
 * 1.88, beside PyTorch with the same model, initialisation, schedule and batch size. Each side's clock stops while it
 * validates and, for PyTorch, while it compiles. Our runs in float32 and bfloat16 go on to 1,000 steps on the same
 * batches, and their loss curves are compared.
 * Usage: bun bench/cpu/race.ts --data tinyshakespeare.txt [--python PYTHON] [--mode "float32 compiled"] [--runs 5] [--save]
 */
import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { AdamW, Random, TransformerLM, openDevice } from "@mantou/model";
import { Peer, median } from "./peer.ts";
import { report } from "./report.ts";

const { values } = parseArgs({
  options: {
    data: { type: "string" },
    python: { type: "string" },
    mode: { type: "string", default: "float32 compiled" },
    runs: { type: "string", default: "5" },
    save: { type: "boolean", default: false },
  },
});
if (!values.data) throw new Error("--data names the text of tinyshakespeare");

const shape = { vocab: 65, ctx: 64, d: 128, layers: 4, heads: 4, ff: 344, batch: 12, steps: 0, warmup: 0 };
const race = { target: 1.88, steps: 2000, warmup: 100, lr: 1e-3, evalInterval: 50, evalBatches: 40 };
const CURVE_STEPS = 1000;

const text = readFileSync(values.data);
const alphabet = [...new Set(text)].sort((a, b) => a - b);
if (alphabet.length !== shape.vocab) throw new Error(`${values.data} has ${alphabet.length} characters, not 65`);
const ids = Int32Array.from(text, (byte) => alphabet.indexOf(byte));
const [train, held] = [ids.subarray(0, Math.floor(0.9 * ids.length)), ids.subarray(Math.floor(0.9 * ids.length))];
using device = openDevice("cpu");

function batch(from: Int32Array, random: Random): [inputs: Int32Array, targets: Int32Array] {
  const [inputs, targets] = [new Int32Array(shape.batch * shape.ctx), new Int32Array(shape.batch * shape.ctx)];
  for (let row = 0; row < shape.batch; row++) {
    const start = Math.floor(random.next() * (from.length - shape.ctx));
    inputs.set(from.subarray(start, start + shape.ctx), row * shape.ctx);
    targets.set(from.subarray(start + 1, start + shape.ctx + 1), row * shape.ctx);
  }
  return [inputs, targets];
}

/** Seconds until the target, the step of it, and the losses of CURVE_STEPS steps. */
function ours(precision: "fp32" | "bf16", seed: number): { seconds: number; step: number; losses: number[] } {
  const config = { vocabSize: 65, contextLength: 64, dModel: 128, numLayers: 4, numHeads: 4, dFf: 344 };
  using model = new TransformerLM({ ...config, ropeTheta: 10_000 }, { device, batchSize: 12, seed, precision });
  using optimizer = new AdamW(model.parameters(), { betas: [0.9, 0.99], weightDecay: 0.1 });
  const [random, fixed] = [new Random(seed), new Random(0)];
  const validation = Array.from({ length: race.evalBatches }, () => batch(held, fixed));
  const losses: number[] = [];
  let [ms, seconds, reached] = [0, NaN, 0];
  for (let step = 1; step <= race.steps && (Number.isNaN(seconds) || step <= CURVE_STEPS); step++) {
    const started = performance.now();
    const [inputs, targets] = batch(train, random);
    optimizer.zeroGrad();
    losses.push(model.lossAndGradients(inputs, targets));
    optimizer.clipAndStep(rate(step), 1);
    ms += performance.now() - started;
    if (step % race.evalInterval > 0 || !Number.isNaN(seconds)) continue;
    const loss = validation.reduce((sum, [x, y]) => sum + model.loss(x, y), 0) / race.evalBatches;
    if (loss <= race.target) [seconds, reached] = [ms / 1000, step];
  }
  return { seconds, step: reached, losses: losses.slice(0, CURVE_STEPS) };
}

/** Warmup, then a cosine to a tenth at the last step. */
function rate(step: number): number {
  if (step <= race.warmup) return (race.lr * step) / race.warmup;
  const done = (step - race.warmup) / (race.steps - race.warmup);
  return race.lr * (0.1 + 0.45 * (1 + Math.cos(Math.PI * done)));
}

/** The largest relative difference of the means over 50 steps. */
function difference(a: number[], b: number[]): number {
  const means = (losses: number[]) =>
    Array.from({ length: CURVE_STEPS / 50 }, (_, i) => losses.slice(50 * i, 50 * i + 50).reduce((x, y) => x + y) / 50);
  const [first, second] = [means(a), means(b)];
  return Math.max(...first.map((mean, i) => Math.abs(second[i]! / mean - 1)));
}

const question = JSON.stringify({ ...shape, threads: availableParallelism() });
await using peer = values.python
  ? await Peer.start([values.python, join(import.meta.dir, "step_peer.py"), question])
  : null;
const times: Record<string, { seconds: number; step: number }[]> = {};
const record = (name: string, result: { seconds: number; step: number }) => {
  (times[name] ??= []).push(result);
  console.error(`${name}: ${result.seconds.toFixed(1)} s, step ${result.step}`);
};
const differences: number[] = [];
for (let run = 1; run <= Number(values.runs); run++) {
  const [full, half] = [ours("fp32", run), ours("bf16", run)];
  record("Mantou fp32", full);
  record("Mantou bf16", half);
  differences.push(difference(full.losses, half.losses));
  if (!peer) continue;
  const asked = { ...race, mode: values.mode, data: values.data, seed: run };
  record(`${String(peer.greeting)} ${values.mode}`, (await peer.ask(asked)) as { seconds: number; step: number });
}

const secondsOf = (name: string) => median(times[name]!.map(({ seconds }) => seconds));
const slowest = Math.max(...Object.keys(times).map(secondsOf));
const percent = differences.map((value) => (100 * value).toFixed(2)).join(", ");
report(values.save && "race", {
  title: "Seconds to a validation loss of 1.88, tinyshakespeare, nanoGPT's small CPU configuration",
  notes: [
    `${device.description}; ${JSON.stringify(race)}; medians of ${values.runs} runs`,
    `bf16 against fp32 over ${CURVE_STEPS} steps on the same batches, largest difference of a mean over 50 steps: ${percent} %`,
  ],
  header: ["", "seconds", "ratio", "runs (step)"],
  rows: Object.entries(times).map(([name, runs]) => [
    name,
    secondsOf(name).toFixed(1),
    `${(slowest / secondsOf(name)).toFixed(2)} ×`,
    runs.map(({ seconds, step }) => `${seconds.toFixed(1)} (${step})`).join(" "),
  ]),
});
