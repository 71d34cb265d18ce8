/**
 * Whole training steps (forward, backward, clipping, AdamW) on the CPU, in float32 and bfloat16, side by side with
 * PyTorch in turns on the same machine: median milliseconds of each and the ratio.
 * Usage: bun bench/cpu/step.ts [--preset shakespeare|tinystories] [--pairs 5] [--precision fp32,bf16] [--python PYTHON]
 *        [--modes "float32 compiled,bfloat16 compiled"] [--profile]
 *        --python takes one that has PyTorch; without it only our side runs. --profile says where our time goes.
 */
import { availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { AdamW, Profile, TransformerLM, openDevice } from "@mantou/model";
import { formatTable } from "../../packages/train/src/terminal/format.ts";
import { profileTable } from "../../packages/train/src/terminal/profile.ts";
import { Peer, median } from "./peer.ts";

const shapes = {
  /** nanoGPT's small CPU configuration. */
  shakespeare: { vocab: 65, ctx: 64, d: 128, layers: 4, heads: 4, ff: 344, batch: 12, steps: 60, warmup: 10 },
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
  for (let step = 0; step < shape.warmup + shape.steps; step++) {
    const tokens = Int32Array.from({ length: size + 1 }, () => Math.floor(Math.random() * shape.vocab));
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
  if (profile) console.log(`\n${precision}\n${profileTable(profile, device.peaks(), shape.steps)}`);
  return median(times.slice(shape.warmup));
}

const results: Record<string, number[]> = {};
const record = (name: string, ms: number) => void (results[name] ??= []).push(ms);
const question = JSON.stringify({ ...shape, threads: availableParallelism() });
await using peer = values.python
  ? await Peer.start([values.python, join(import.meta.dir, "step_peer.py"), question])
  : null;
const modes = peer ? values.modes.split(",") : [];
for (const mode of modes) await peer!.ask(mode); // compiles
for (let pair = 0; pair < Number(values.pairs); pair++) {
  for (const precision of values.precision.split(",") as ("fp32" | "bf16")[]) {
    record(`Mantou ${precision}`, ours(precision));
  }
  for (const mode of modes) record(`${String(peer!.greeting)} ${mode}`, Number(await peer!.ask(mode)));
}

console.log(`\n${values.preset}: ${JSON.stringify(shape)}`);
console.log(`${device.description}; ${cpus()[0]?.model}, ${cpus().length} CPUs; Bun ${Bun.version}`);
const best = (theirs: boolean) =>
  Math.min(
    ...Object.entries(results).flatMap(([name, ms]) => (name.startsWith("PyTorch") === theirs ? median(ms) : [])),
  );
const rows = Object.entries(results).map(([name, times]) => {
  const ms = median(times);
  const tokens = Math.round((shape.batch * shape.ctx * 1000) / ms);
  return [name, ms.toFixed(1), String(tokens), times.map((time) => time.toFixed(1)).join(" ")];
});
console.log(formatTable(rows, { header: ["", "ms a step", "tokens/s", "runs"] }));
if (peer) console.log(`best against best: ${(best(true) / best(false)).toFixed(2)} ×`);
