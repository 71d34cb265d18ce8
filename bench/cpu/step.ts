/**
 * Whole training steps (forward, backward, clipping, AdamW) on the CPU, in float32 and bfloat16, side by side with
 * PyTorch in turns on the same machine: median milliseconds of each and the ratio.
 * Usage: bun bench/cpu/step.ts [--preset shakespeare|tinystories] [--pairs 5] [--precision fp32,bf16] [--python PYTHON]
 *        [--modes "float32 compiled,bfloat16 compiled"] [--profile] [--save]
 *        --python takes one that has PyTorch; without it only our side runs. --profile says where our time goes; --save
 *        keeps the table in bench/results/. Every measurement is told on standard error as it is made.
 */
import { availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { AdamW, Profile, TransformerLM, openDevice } from "@mantou/model";
import { profileTable } from "../../packages/train/src/terminal/profile.ts";
import { Peer, median } from "./peer.ts";
import { report } from "./report.ts";

const shapes = {
  /** nanoGPT's small CPU configuration. The first steps are those in which JavaScript is still being compiled. */
  shakespeare: { vocab: 65, ctx: 64, d: 128, layers: 4, heads: 4, ff: 344, batch: 12, steps: 200, warmup: 50 },
  /** The CS336 handout's 17M TinyStories shape. */
  tinystories: { vocab: 10_000, ctx: 256, d: 512, layers: 4, heads: 16, ff: 1344, batch: 8, steps: 5, warmup: 2 },
};

const { values } = parseArgs({
  options: {
    preset: { type: "string", default: "shakespeare" },
    pairs: { type: "string", default: "5" },
    precision: { type: "string", default: "fp32,bf16" },
    python: { type: "string" },
    modes: { type: "string", default: "float32,float32 compiled,bfloat16,bfloat16 compiled" },
    profile: { type: "boolean", default: false },
    save: { type: "boolean", default: false },
  },
});
const shape = shapes[values.preset as keyof typeof shapes];
if (!shape) throw new Error(`--preset is one of ${Object.keys(shapes).join(", ")}`);
using device = openDevice("cpu");

/** Milliseconds of a median step of ours. */
function ours(precision: "fp32" | "bf16"): number {
  const config = {
    vocabSize: shape.vocab,
    contextLength: shape.ctx,
    dModel: shape.d,
    numLayers: shape.layers,
    numHeads: shape.heads,
    dFf: shape.ff,
    ropeTheta: 10_000,
  };
  using model = new TransformerLM(config, { device, batchSize: shape.batch, seed: 1, precision });
  using optimizer = new AdamW(model.parameters());
  const size = shape.batch * shape.ctx;
  const times: number[] = [];
  const batches = Array.from({ length: shape.warmup + shape.steps }, () =>
    Int32Array.from({ length: size + 1 }, () => Math.floor(Math.random() * shape.vocab)),
  );
  for (const [step, tokens] of batches.entries()) {
    if (values.profile && step === shape.warmup) device.profile = new Profile();
    const started = performance.now();
    optimizer.zeroGrad();
    model.lossAndGradients(tokens.subarray(0, size), tokens.subarray(1));
    optimizer.clipAndStep(1e-3, 1);
    times.push(performance.now() - started);
  }
  const { profile } = device;
  profile?.stop();
  device.profile = null;
  if (profile) {
    report(values.save && `profile-${values.preset}-${precision}`, {
      title: `Where a step's time goes, ${values.preset}, ${precision}`,
      notes: [device.description],
      header: [],
      rows: [],
      text: profileTable(profile, device.peaks(), shape.steps),
    });
  }
  return median(times.slice(shape.warmup));
}

const results: Record<string, number[]> = {};
const record = (name: string, ms: number) => {
  (results[name] ??= []).push(ms);
  console.error(`${name}: ${ms.toFixed(1)} ms`);
};
const question = JSON.stringify({ ...shape, threads: availableParallelism() });
await using peer = values.python
  ? await Peer.start([values.python, join(import.meta.dir, "step_peer.py"), question])
  : null;
const modes = peer ? values.modes.split(",") : [];
for (const mode of modes) {
  console.error(`${String(peer!.greeting)} ${mode}: compiling`);
  await peer!.ask(mode);
}
for (let pair = 0; pair < Number(values.pairs); pair++) {
  for (const precision of values.precision.split(",") as ("fp32" | "bf16")[]) {
    record(`Mantou ${precision}`, ours(precision));
  }
  for (const mode of modes) record(`${String(peer!.greeting)} ${mode}`, Number(await peer!.ask(mode)));
}

const best = (theirs: boolean, pattern: RegExp) =>
  Math.min(
    ...Object.entries(results).flatMap(([name, ms]) =>
      name.startsWith("PyTorch") === theirs && pattern.test(name) ? median(ms) : [],
    ),
  );
const rows = Object.entries(results).map(([name, times]) => {
  const ms = median(times);
  const tokens = Math.round((shape.batch * shape.ctx * 1000) / ms);
  return [name, ms.toFixed(1), String(tokens), times.map((time) => time.toFixed(1)).join(" ")];
});
const ratio = (label: string, ours: RegExp, theirs: RegExp) => {
  const value = best(true, theirs) / best(false, ours);
  return Number.isFinite(value) && value > 0 ? [`${label}: ${value.toFixed(2)} ×`] : [];
};
report(values.save && !values.profile && `step-${values.preset}`, {
  title: `A training step, ${values.preset}`,
  notes: [
    Object.entries(shape)
      .map(([name, value]) => `${name} ${value}`)
      .join(", "),
    `${device.description}; ${cpus()[0]?.model}, ${cpus().length} CPUs; medians of ${values.pairs} turns`,
    ...ratio("best against best", /./, /./),
    ...ratio("float32 against float32", /fp32/, /float32/),
  ],
  header: ["", "ms a step", "tokens/s", "runs"],
  rows,
});
