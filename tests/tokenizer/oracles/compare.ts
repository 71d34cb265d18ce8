/**
 * Proves that ids are those of tiktoken and of Hugging Face's tokenizers, through files that this package writes, and that
 * `ties: "huggingface"` learns their trainer's merges. Prints a table and fails at the first difference.
 *
 * Usage: bun tests/tokenizer/oracles/compare.ts --python PYTHON --text FILE … [--megabytes 20]
 *          [--gpt2 DIRECTORY] [--ranks cl100k=FILE.tiktoken] [--ranks o200k=FILE.tiktoken]
 *        [--only REGEXP, of the table's first column: with 20 MB one line takes up to two minutes]
 *        --gpt2 and --ranks add the published vocabularies; without them each pattern has one that is trained here.
 */
import { closeSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { PATTERN_NAMES, Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer, saveTokenizer } from "@mantou/tokenizer/files";
import { parseHuggingFace } from "@mantou/tokenizer/formats";
import { resolvePattern } from "../../../packages/tokenizer/src/patterns.ts";
import { mixedText } from "./texts.ts";

const { values } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    text: { type: "string", multiple: true, default: [] },
    megabytes: { type: "string", default: "20" },
    gpt2: { type: "string" },
    ranks: { type: "string", multiple: true, default: [] },
    only: { type: "string", default: "" },
  },
});

const directory = mkdtempSync(join(tmpdir(), "mantou-oracles-"));
process.on("exit", () => rmSync(directory, { recursive: true, force: true }));

/** The beginning of a file, in whole characters. */
function beginningOf(path: string, bytes: number): string {
  const buffer = new Uint8Array(bytes);
  const file = openSync(path, "r");
  const length = readSync(file, buffer, 0, bytes, 0);
  closeSync(file);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(buffer.subarray(0, length), { stream: true });
}

function peer(...args: string[]): { version: string; seconds: number } {
  const { stdout, stderr, success } = Bun.spawnSync([values.python, join(import.meta.dir, "peers.py"), ...args]);
  if (!success) throw new Error(`peers.py ${args.join(" ")}: ${stderr.toString()}`);
  return JSON.parse(stdout.toString()) as { version: string; seconds: number };
}

function check(name: string, tokenizer: Tokenizer, ids: Int32Array, path: string, version: string): void {
  const theirs = new Uint32Array(readFileSync(path).buffer);
  const length = Math.max(ids.length, theirs.length);
  for (let i = 0; i < length; i++) {
    if (ids[i] === theirs[i]) continue;
    const show = (list: ArrayLike<number>) =>
      JSON.stringify(
        Array.from(list)
          .slice(Math.max(0, i - 3), i + 5)
          .map((id) => tokenizer.decode([id])),
      );
    throw new Error(`${name}: token ${i} differs from ${version}: ours ${show(ids)}, theirs ${show(theirs)}`);
  }
  console.log(`${name.padEnd(34)} ${version.padEnd(22)} ${size.toFixed(1)} MB, ${ids.length} ids: identical`);
}

const only = new RegExp(values.only);
const share = Math.ceil((Number(values.megabytes) * 1e6) / Math.max(1, values.text.length));
const text = values.text.map((path) => beginningOf(path, share)).join("\n") + mixedText(4e6);
const size = Buffer.byteLength(text) / 1e6;
const corpus = join(directory, "corpus.txt");
writeFileSync(corpus, text);

const tokenizers = new Map<string, Tokenizer>();
for (const pattern of PATTERN_NAMES) {
  const name = `${pattern}, 8192 trained`;
  if (only.test(name)) tokenizers.set(name, Tokenizer.train(text, { vocabSize: 8192, pattern }));
}
const nfc = "qwen2 and NFC, 8192 trained";
if (only.test(nfc)) {
  const { vocab, merges } = Tokenizer.train(text, { vocabSize: 8192, pattern: "qwen2" });
  tokenizers.set(nfc, new Tokenizer({ vocab, merges, pattern: "qwen2", normalization: "NFC" }));
}
if (values.gpt2 !== undefined)
  tokenizers.set("gpt2, published", loadTokenizer(values.gpt2, { specialTokens: { "<|endoftext|>": 50256 } }));
for (const entry of values.ranks) {
  const [pattern, path] = entry.split("=");
  tokenizers.set(`${pattern}, published`, loadTokenizer(path, { pattern }));
}

const out = join(directory, "ids");
for (const [name, tokenizer] of tokenizers) {
  if (!only.test(name)) continue;
  const ids = tokenizer.encodeOrdinary(text);
  const ranks = join(directory, "ranks.tiktoken");
  saveTokenizer(tokenizer, ranks, "tiktoken");
  const pattern = ["gpt2", "cl100k", "o200k"].includes(tokenizer.pattern)
    ? tokenizer.pattern
    : resolvePattern(tokenizer.pattern).source;
  // tiktoken normalizes nothing
  if (tokenizer.normalization === null) {
    check(name, tokenizer, ids, out, `tiktoken ${peer("tiktoken", corpus, ranks, pattern, out).version}`);
  }
  const json = join(directory, "tokenizer.json");
  saveTokenizer(tokenizer, json, "huggingface");
  // Hugging Face has no way to take special tokens as text
  check(name, tokenizer, tokenizer.encode(text), out, `tokenizers ${peer("huggingface", corpus, json, out).version}`);
}

if (only.test("training")) {
  const trained = join(directory, "trained.json");
  const { version } = peer("train", corpus, "8192", trained);
  const theirs = parseHuggingFace(readFileSync(trained, "utf8"));
  const ours = Tokenizer.train(text, { vocabSize: theirs.vocab.size, ties: "huggingface" });
  const key = ([left, right]: readonly [Uint8Array, Uint8Array]) => `${left.join()} ${right.join()}`;
  const [mine, others] = [ours.merges.map(key), theirs.merges.map(key)];
  const different = others.findIndex((merge, i) => merge !== mine[i]);
  if (different >= 0 || mine.length !== others.length) throw new Error(`training: merge ${different} differs`);
  console.log(`training, ties: "huggingface"         tokenizers ${version}: ${others.length} merges: identical`);
}
