/**
 * Memory of training on more text than fits in it: `--gigabytes` of a text over and over, with a misspelling every three
 * hundred bytes, so that new words keep coming as they do in real text. The text is made as it is read; no file is written.
 * Usage: bun bench/tokenizer/memory.ts --text FILE [--gigabytes 2] [--vocab-size 32768]
 */
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { PretokenStream, trainBpe } from "@mantou/tokenizer";

const { values } = parseArgs({
  options: {
    text: { type: "string" },
    gigabytes: { type: "string", default: "2" },
    "vocab-size": { type: "string", default: "32768" },
  },
});
if (values.text === undefined) throw new Error("--text FILE is needed");
const text = new Uint8Array(readFileSync(values.text));
const total = Number(values.gigabytes) * 1e9;

const CHUNK = 1 << 20;
const chunk = new Uint8Array(CHUNK);
let state = 1;
const random = (n: number): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * n);
};
const isLetter = (byte: number): boolean => byte >= 0x61 && byte <= 0x7a;

const started = performance.now();
const stream = new PretokenStream();
let misspelt = 0;
for (let done = 0; done < total; done += CHUNK) {
  const from = done % (text.length - CHUNK);
  chunk.set(text.subarray(from, from + CHUNK));
  for (let p = random(300); p < CHUNK; p += 200 + random(200)) {
    if (!isLetter(chunk[p])) continue;
    chunk[p] = 0x61 + random(26);
    misspelt++;
  }
  stream.push(chunk);
}
const counts = stream.finish();
const counted = performance.now();
const { merges } = trainBpe(counts, { numMerges: Number(values["vocab-size"]) - 256 });
const seconds = (from: number, to: number): string => ((to - from) / 1000).toFixed(1);
console.log(
  `${values.gigabytes} GB with ${misspelt} misspellings: ${counts.counts.length} distinct pre-tokens, ` +
    `${merges.length} merges; counting ${seconds(started, counted)} s, merging ${seconds(counted, performance.now())} s; ` +
    `peak RSS ${(process.resourceUsage().maxRSS / 1024 / 1024).toFixed(2)} GiB, of which the text takes ` +
    `${(text.length / 2 ** 30).toFixed(2)}`,
);
