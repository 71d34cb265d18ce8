/**
 * Whole training steps (forward, backward, clipping, AdamW) in bfloat16 on a GPU, and PyTorch's compiled ones (step_peer.py)
 * on the same card, in turns: median milliseconds, tokens/s and the share of the card's matrix rate (MFU).
 * Usage: bun bench/gpu/step.ts [--shape tinystories|124m|350m …] [--pairs 3] [--python PYTHON] [--peak TFLOPS]
 *        [--device cuda] [--out FILE.json]
 * --peak is the dense bfloat16 rate that MFU is a share of: 989 for an H100 or H200.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { AdamW, type DeviceName, TransformerLM, openDevice } from "@mantou/model";
import { formatTable } from "../../packages/train/src/terminal/format.ts";

const shapes = {
  /** For trying this script. */
  toy: { vocab: 100, ctx: 32, d: 32, layers: 2, heads: 2, ff: 64, batch: 4 },
  /** The CS336 handout's 17M TinyStories shape. */
  tinystories: { vocab: 10_000, ctx: 256, d: 512, layers: 4, heads: 16, ff: 1344, batch: 512 },
  "124m": { vocab: 50_304, ctx: 1024, d: 768, layers: 12, heads: 12, ff: 2048, batch: 64 },
  "350m": { vocab: 50_304, ctx: 1024, d: 1024, layers: 24, heads: 16, ff: 2736, batch: 32 },
};
type Shape = (typeof shapes)["toy"];

const { values } = parseArgs({
  options: {
    shape: { type: "string", multiple: true, default: ["tinystories", "124m", "350m"] },
    pairs: { type: "string", default: "3" },
    steps: { type: "string", default: "20" },
    python: { type: "string", default: "python3" },
    peak: { type: "string", default: "989" },
    device: { type: "string", default: "cuda" },
    out: { type: "string" },
  },
});
const steps = Number(values.steps);
const WARMUP = 5;

const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!;

/** Operations of a step for each token: 6 for each weight that multiplies, and attention's causal half. */
function flopsPerToken({ vocab, ctx, d, layers, ff }: Shape): number {
  const weights = layers * (4 * d * d + 3 * d * ff) + vocab * d;
  return 6 * weights + 6 * layers * ctx * d;
}

/** Milliseconds of a median step of ours. */
function ours(shape: Shape): number {
  using device = openDevice(values.device as DeviceName);
  const config = {
    vocabSize: shape.vocab,
    contextLength: shape.ctx,
    dModel: shape.d,
    numLayers: shape.layers,
    numHeads: shape.heads,
    dFf: shape.ff,
    ropeTheta: 10_000,
  };
  using model = new TransformerLM(config, { device, batchSize: shape.batch, seed: 1, precision: "bf16" });
  using optimizer = new AdamW(model.parameters());
  const size = shape.batch * shape.ctx;
  const times: number[] = [];
  for (let step = 0; step < WARMUP + steps; step++) {
    const tokens = Int32Array.from({ length: size + 1 }, () => Math.floor(Math.random() * shape.vocab));
    device.synchronize();
    const started = performance.now();
    optimizer.zeroGrad();
    model.lossAndGradients(tokens.subarray(0, size), tokens.subarray(1));
    optimizer.clipAndStep(1e-3, 1);
    device.synchronize();
    times.push(performance.now() - started);
  }
  return median(times.slice(WARMUP));
}

function peer(shape: Shape): { ms: number; name: string } {
  const sizes = Object.entries(shape).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const options = ["--steps", values.steps, "--device", values.device === "cuda" ? "cuda" : "cpu"];
  const run = Bun.spawnSync([values.python, join(import.meta.dir, "step_peer.py"), ...sizes, ...options]);
  if (!run.success) throw new Error(run.stderr.toString());
  return JSON.parse(run.stdout.toString()) as { ms: number; name: string };
}

const results = values.shape.map((label) => {
  const shape = shapes[label as keyof typeof shapes];
  if (!shape) throw new Error(`--shape is one of ${Object.keys(shapes).join(", ")}`);
  const [own, theirs]: [number[], number[]] = [[], []];
  let name = "";
  for (let pair = 0; pair < Number(values.pairs); pair++) {
    own.push(ours(shape));
    const result = peer(shape);
    theirs.push(result.ms);
    name = result.name;
  }
  const tokens = shape.batch * shape.ctx;
  const mfu = (ms: number) => (flopsPerToken(shape) * tokens) / (ms * 1e9 * Number(values.peak));
  return { label, shape, ms: median(own), peer: name, peerMs: median(theirs), tokens, mfu: mfu(median(own)) };
});
const rows = results.map(({ label, ms, peer: name, peerMs, tokens, mfu }) => {
  const rate = (milliseconds: number) => Math.round((tokens * 1000) / milliseconds);
  return [
    label,
    ms.toFixed(1),
    rate(ms),
    `${(mfu * 100).toFixed(1)} %`,
    name,
    rate(peerMs),
    `${(peerMs / ms).toFixed(2)} ×`,
  ];
});
const header = ["shape", "ms a step", "tokens/s", "MFU", "peer", "its tokens/s", "our speed to its"];
console.log(formatTable(rows, { header }));
if (values.out) writeFileSync(values.out, `${JSON.stringify(results, null, 1)}\n`);
