/**
 * Whole training steps (forward, backward, clipping, AdamW) in bfloat16 on a GPU, queued and replayed as the trainer does it,
 * and PyTorch's compiled ones (step_peer.py) on the same card: milliseconds, tokens/s and the share of the card's matrix
 * rate (MFU).
 * Usage: bun bench/gpu/step.ts [--shape tinystories|124m|350m …] [--steps 20] [--series 3] [--python PYTHON] [--peak TFLOPS]
 *        [--device cuda] [--seconds S] [--out FILE.json]
 * --peak is the dense bfloat16 rate that MFU is a share of: 989 for an H100 or H200. A peer that is still at work after
 * --seconds since the start is stopped, so that none outlives this script.
 * The file is written after every shape; one that fails (too little memory, say) leaves its reason and the others go on.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { AdamW, type DeviceName, Stepper, TransformerLM, openDevice } from "@mantou/model";
import { toUserError } from "../../packages/train/src/cli/known-errors.ts";
import { formatTable } from "../../packages/train/src/terminal/format.ts";

const shapes = {
  /** For trying this script. */
  toy: { vocab: 100, ctx: 32, d: 32, layers: 2, heads: 2, ff: 64, batch: 4 },
  /** The CS336 handout's 17M TinyStories shape. */
  tinystories: { vocab: 10_000, ctx: 256, d: 512, layers: 4, heads: 16, ff: 1344, batch: 512 },
  "124m": { vocab: 50_304, ctx: 1024, d: 768, layers: 12, heads: 12, ff: 2048, batch: 64 },
  "350m": { vocab: 50_304, ctx: 1024, d: 1024, layers: 24, heads: 16, ff: 2752, batch: 32 },
};
type Shape = (typeof shapes)["toy"];

const { values } = parseArgs({
  options: {
    shape: { type: "string", multiple: true, default: ["tinystories", "124m", "350m"] },
    steps: { type: "string", default: "20" },
    series: { type: "string", default: "3" },
    python: { type: "string", default: "python3" },
    peak: { type: "string", default: "989" },
    device: { type: "string", default: "cuda" },
    seconds: { type: "string", default: "3600" },
    out: { type: "string" },
  },
});
const [steps, series] = [Number(values.steps), Number(values.series)];
const WARMUP = 5;
const started = performance.now();
const left = () => Math.ceil(Number(values.seconds) * 1000 - (performance.now() - started));

const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!;

/** Operations of a step for each token: 6 for each weight that multiplies, and attention's causal half. */
function flopsPerToken({ vocab, ctx, d, layers, ff }: Shape): number {
  const weights = layers * (4 * d * d + 3 * d * ff) + vocab * d;
  return 6 * weights + 6 * layers * ctx * d;
}

/** Milliseconds of a step in each series. */
function ours(shape: Shape): number[] {
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
  using stepper = new Stepper(model, optimizer, { parts: 1, maxNorm: 1 });
  const size = shape.batch * shape.ctx;
  const batches = Array.from({ length: 4 }, () => {
    const tokens = Int32Array.from({ length: size + 1 }, () => Math.floor(Math.random() * shape.vocab));
    return { inputs: tokens.subarray(0, size), targets: tokens.subarray(1) };
  });
  const run = (many: number) => {
    const started = performance.now();
    for (let step = 0; step < many; step++) {
      stepper.queue(() => batches[step % batches.length]!, 1e-3);
      if (step > 0) stepper.finish();
    }
    stepper.finish();
    return (performance.now() - started) / many;
  };
  run(WARMUP);
  return Array.from({ length: series }, () => run(steps));
}

function peer(shape: Shape): { ms: number; name: string } {
  const sizes = Object.entries(shape).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const options = ["--steps", values.steps, "--series", values.series];
  options.push("--device", values.device === "cuda" ? "cuda" : "cpu");
  if (left() < 1000) throw new Error("the peer: no time was left");
  const run = Bun.spawnSync([values.python, join(import.meta.dir, "step_peer.py"), ...sizes, ...options], {
    timeout: left(),
  });
  if (run.exitedDueToTimeout) throw new Error(`the peer was not done ${values.seconds} s after the start`);
  if (!run.success) throw new Error(`the peer: ${run.stderr.toString().trim().split("\n").at(-1)}`);
  return JSON.parse(run.stdout.toString().trim().split("\n").at(-1)!) as { ms: number; name: string };
}

interface Result {
  shape: string;
  sizes: Shape;
  tokens: number;
  ms?: number;
  tokensPerSecond?: number;
  mfu?: number;
  peer?: string;
  peerMs?: number;
  peerTokensPerSecond?: number;
  /** What went wrong. */
  failed: string[];
}

const results: Result[] = [];
for (const label of values.shape) {
  const sizes = shapes[label as keyof typeof shapes];
  if (!sizes) throw new Error(`--shape is one of ${Object.keys(shapes).join(", ")}`);
  const tokens = sizes.batch * sizes.ctx;
  const result: Result = { shape: label, sizes, tokens, failed: [] };
  results.push(result);
  const rate = (ms: number) => Math.round((tokens * 1000) / ms);
  const attempt = (work: () => void) => {
    try {
      work();
    } catch (thrown) {
      const { message } = toUserError(thrown) as Error;
      result.failed.push(message);
      console.error(`${label}: ${message}`);
    }
    if (values.out) writeFileSync(values.out, `${JSON.stringify(results, null, 1)}\n`);
  };
  attempt(() => {
    const ms = median(ours(sizes));
    const mfu = (flopsPerToken(sizes) * tokens) / (ms * 1e9 * Number(values.peak));
    Object.assign(result, { ms, tokensPerSecond: rate(ms), mfu });
  });
  attempt(() => {
    const { ms, name } = peer(sizes);
    Object.assign(result, { peer: name, peerMs: ms, peerTokensPerSecond: rate(ms) });
  });
}
const rows = results.map(({ shape, ms, tokensPerSecond, mfu, peer: name, peerMs, peerTokensPerSecond }) => [
  shape,
  ms?.toFixed(1) ?? "failed",
  tokensPerSecond ?? "",
  mfu === undefined ? "" : `${(mfu * 100).toFixed(1)} %`,
  name ?? "failed",
  peerTokensPerSecond ?? "",
  ms && peerMs ? `${(peerMs / ms).toFixed(2)} ×` : "",
]);
const header = ["shape", "ms a step", "tokens/s", "MFU", "peer", "its tokens/s", "our speed to its"];
console.log(formatTable(rows, { header }));
process.exit(results.some(({ failed }) => failed.length > 0) ? 1 : 0);
