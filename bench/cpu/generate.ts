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
const { bytesRead } = device.peaks();
const rows = (["fp32", "bf16"] as const).map((precision) => {
  using model = new TransformerLM({ ...config, ropeTheta: 10_000 }, { device, seed: 1, precision });
  const times = Array.from({ length: Number(values.rounds) }, (_, seed) => {
    const stream = generate(model, [1], { maxTokens: TOKENS, seed });
    stream.next(); // the prompt
    const started = performance.now();
    let count = 0;
    for (const _token of stream) count++;
    return (performance.now() - started) / count;
  });
  // Every weight but the table of embeddings, of which one row is read.
  const weights = (model.store.count - config.vocabSize * config.dModel) * (precision === "bf16" ? 2 : 4);
  const [ms, least] = [median(times), (1000 * weights) / bytesRead];
  return [precision, ms.toFixed(2), least.toFixed(2), `${(ms / least).toFixed(2)} ×`];
});
report(values.save && "generate", {
  title: "Generation with a key/value cache, one stream, 17M",
  notes: [
    `${device.description}; ${(bytesRead / 1e9).toFixed(1)} GB/s read; median of ${values.rounds} rounds of ${TOKENS}`,
  ],
  header: ["", "ms a token", "reading the weights", "ratio"],
  rows,
});
