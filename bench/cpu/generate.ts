/**
 * Generation on the CPU with a key/value cache, one stream, the 17M TinyStories shape: milliseconds a token, against the
 * time that reading the weights from memory takes at least.
 * Usage: bun bench/cpu/generate.ts [--rounds 5] [--save]
 */
import { parseArgs } from "node:util";
import { TransformerLM, generate, openDevice } from "@mantou/model";
import { median } from "./peer.ts";
import { report } from "./report.ts";

const { values } = parseArgs({
  options: { rounds: { type: "string", default: "5" }, save: { type: "boolean", default: false } },
});
const config = { vocabSize: 10_000, contextLength: 256, dModel: 512, numLayers: 4, numHeads: 16, dFf: 1344 };
const TOKENS = 100;

using device = openDevice("cpu");
/** What memory gave before each round: on a virtual machine it may be twice as much from one minute to the next. */
const bandwidths: number[] = [];
const rows = (["fp32", "bf16"] as const).map((precision) => {
  using model = new TransformerLM({ ...config, ropeTheta: 10_000 }, { device, seed: 1, precision });
  // Every weight but the table of embeddings, of which one row is read.
  const weights = (model.store.count - config.vocabSize * config.dModel) * (precision === "bf16" ? 2 : 4);
  const rounds = Array.from({ length: Number(values.rounds) }, (_, seed) => {
    const { bytesRead } = device.peaks();
    bandwidths.push(bytesRead / 1e9);
    const stream = generate(model, [1], { maxTokens: TOKENS, seed });
    stream.next(); // the prompt
    const started = performance.now();
    let count = 0;
    for (const _token of stream) count++;
    const ms = (performance.now() - started) / count;
    const least = (1000 * weights) / bytesRead;
    return { ms, least, ratio: ms / least };
  });
  const of = (name: "ms" | "least" | "ratio") => median(rounds.map((round) => round[name])).toFixed(2);
  return [precision, of("ms"), of("least"), `${of("ratio")} ×`];
});
const [slowest, fastest] = [Math.min(...bandwidths), Math.max(...bandwidths)].map((rate) => rate.toFixed(1));
report(values.save && "generate", {
  title: "Generation with a key/value cache, one stream, 17M",
  notes: [
    `${device.description}; ${slowest} to ${fastest} GB/s read, measured before each round; medians of ${values.rounds} rounds of ${TOKENS} tokens`,
  ],
  header: ["", "ms a token", "reading the weights", "ratio"],
  rows,
});
