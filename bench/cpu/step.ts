/**
 * Whole training steps (forward, backward, clipping, AdamW) on the CPU, side by side with PyTorch in turns on the same
 * machine: median milliseconds of each and the ratio.
 * Usage: bun bench/cpu/step.ts [--preset shakespeare|tinystories] [--pairs 5] [--python PYTHON --peer torch_lm.py]
 *        --peer takes a script with the interface of shared/peers/torch_lm.py; without it only our side runs.
 */
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { AdamW, TransformerLM, openDevice } from "@mantou/model";
import { formatTable } from "../../packages/train/src/terminal/format.ts";

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
    python: { type: "string", default: "python3" },
    peer: { type: "string" },
  },
});
const shape = shapes[values.preset as keyof typeof shapes];
if (!shape) throw new Error(`--preset is one of ${Object.keys(shapes).join(", ")}`);

const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!;

/** Milliseconds of a median step of ours. */
function ours(): number {
  using device = openDevice("cpu");
  const config = {
    vocabSize: shape.vocab,
    contextLength: shape.ctx,
    dModel: shape.d,
    numLayers: shape.layers,
    numHeads: shape.heads,
    dFf: shape.ff,
    ropeTheta: 10_000,
  };
  using model = new TransformerLM(config, { device, batchSize: shape.batch, seed: 1 });
  using optimizer = new AdamW(model.parameters());
  const size = shape.batch * shape.ctx;
  const times: number[] = [];
  for (let step = 0; step < shape.warmup + shape.steps; step++) {
    const tokens = Int32Array.from({ length: size + 1 }, () => Math.floor(Math.random() * shape.vocab));
    const started = performance.now();
    optimizer.zeroGrad();
    model.lossAndGradients(tokens.subarray(0, size), tokens.subarray(1));
    optimizer.clipAndStep(1e-3, 1);
    times.push(performance.now() - started);
  }
  return median(times.slice(shape.warmup));
}

/** The same of the peer, and its name. */
function peer(script: string, compile: boolean): { ms: number; peer: string } {
  const flags = Object.entries(shape).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const run = Bun.spawnSync([values.python, script, ...flags, ...(compile ? ["--compile"] : [])]);
  if (!run.success) throw new Error(run.stderr.toString());
  return JSON.parse(run.stdout.toString()) as { ms: number; peer: string };
}

const results: Record<string, number[]> = {};
const record = (name: string, ms: number) => {
  const times = results[name] ?? [];
  times.push(ms);
  results[name] = times;
};
for (let pair = 0; pair < Number(values.pairs); pair++) {
  record(`Mantou, Bun ${Bun.version}`, ours());
  if (!values.peer) continue;
  for (const compile of [false, true]) {
    const { ms, peer: name } = peer(values.peer, compile);
    record(`${name}${compile ? " compiled" : ""}`, ms);
  }
}

console.log(`${values.preset}: ${JSON.stringify(shape)}, float32`);
console.log(`${cpus()[0]?.model}, ${cpus().length} cores`);
const [first] = Object.values(results);
const rows = Object.entries(results).map(([name, times]) => {
  const ms = median(times);
  const tokens = Math.round((shape.batch * shape.ctx * 1000) / ms);
  return [name, ms.toFixed(1), String(tokens), `${(ms / median(first!)).toFixed(2)} ×`];
});
console.log(formatTable(rows, { header: ["", "ms a step", "tokens/s", "time against ours"] }));
