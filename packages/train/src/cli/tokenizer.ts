/**
 * `bun run tokenizer`: trains byte-level BPE tokenizers, encodes text, decodes ids, counts, and converts formats.
 * Usage: bun run tokenizer train|encode|decode|count|info|convert|count-shard|merge-counts [--help]
 */
import { existsSync } from "node:fs";
import { extname } from "node:path";
import { openDevice } from "@mantou/model";
import { TIES, Tokenizer, type TrainOptions } from "@mantou/tokenizer";
import {
  encodeFile,
  loadTokenizer,
  saveTokenizer,
  TOKENIZER_FORMATS,
  type TokenizerFormat,
  trainFromFiles,
} from "@mantou/tokenizer/files";
import { z } from "zod";
import { TokenFile } from "../dataset.ts";
import { UserError } from "../errors.ts";
import { OutputFile } from "../output-file.ts";
import { formatTable } from "../terminal/format.ts";
import { flagOf } from "../schema.ts";
import { ProgressBar } from "../terminal/progress.ts";
import { readTokenizer } from "../tokenizer-file.ts";
import { print, runCommand, runSubcommand, type Subcommand } from "./command.ts";
import { type Command, parseFlags, parseOptions } from "./options.ts";
import { countShard, countShardCommand, mergeCountFiles, mergeCountsCommand, readCounts } from "./tokenizer-counts.ts";
import { encode, encodeCommand } from "./tokenizer-encode.ts";
import {
  ByteBar,
  checkFile,
  checkTarget,
  checkText,
  counting,
  encodedChunks,
  interruptible,
  isRegular,
  patternFlag,
  readInput,
  specialTokensFlag,
  tokenizerFlag,
  turn,
  usage,
  threadsFor,
  workersFlag,
} from "./tokenizer-input.ts";

// ---- train ---------------------------------------------------------------------------------------------------------

const trainOptions = z.strictObject({
  vocabSize: z
    .int()
    .min(256)
    .default(4096)
    .meta({ description: "ids in all: 256 bytes, merges, special tokens; a small text may yield fewer" }),
  specialTokens: specialTokensFlag,
  pattern: patternFlag,
  minFrequency: z.int().min(1).default(1).meta({ description: "pairs that occur less often are not merged" }),
  ties: z
    .enum(TIES as [string, ...string[]])
    .default("bytes")
    .meta({ description: "which of two equally frequent pairs comes first: the greater bytes, or the lower ids" }),
  workers: workersFlag,
  out: z.string().min(1).meta({ description: "file to write, such as tokenizer.json", placeholder: "FILE" }),
});

const trainCommand: Command<typeof trainOptions> = {
  usage: `${usage} train`,
  summary: "Trains a tokenizer on text files; an existing --out is replaced",
  options: trainOptions,
  positionals: [
    {
      name: "INPUT",
      description: "files of UTF-8 text, or of counts (see count-shard); default: standard input",
      optional: true,
      variadic: true,
    },
  ],
  examples: [
    `${usage} train books.txt --vocab-size 4096 --out tokenizer.json`,
    `zstdcat corpus.zst | ${usage} train --vocab-size 32768 --pattern o200k --out tokenizer.json`,
  ],
};

async function train(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(trainCommand, argv);
  const { vocabSize, specialTokens, pattern, minFrequency, workers, out } = options;
  const ties = options.ties as TrainOptions["ties"];
  const isCounts = positionals.some((path) => extname(path) === ".counts");
  positionals.forEach(isCounts ? checkFile : checkText);
  checkTarget(out);
  let counting: ByteBar | undefined;
  let merging: ProgressBar | undefined;
  const tokenizer = await interruptible(async (signal) => {
    const settings: TrainOptions = {
      vocabSize,
      specialTokens,
      pattern,
      minFrequency,
      ties,
      signal,
      onProgress({ phase, done, total }) {
        if (phase === "count" && total !== undefined) {
          counting ??= new ByteBar("counting words", total);
          counting.update(done);
        } else if (phase === "merge") {
          if (merging === undefined) counting?.finish();
          merging ??= new ProgressBar({ total: total ?? done, label: "merging" });
          merging.update(done, {});
        }
      },
    };
    if (isCounts) return trainFromCounts(positionals, settings, parseFlags(trainCommand, argv).given);
    if (positionals.length === 0) return Tokenizer.train(readInput(undefined), settings);
    const threads = positionals.every(isRegular) ? threadsFor(workers) : 1;
    return trainFromFiles(positionals, { ...settings, workers: threads });
  });
  merging?.finish();
  saveTokenizer(tokenizer, out);
  console.log(`${out}: ${describe(tokenizer)}`);
}

/** Counts say themselves how their text was split: flags may say the same, but nothing else. */
function trainFromCounts(paths: string[], settings: TrainOptions, given: Record<string, unknown>): Tokenizer {
  const { counts, about } = readCounts(paths);
  for (const field of ["pattern", "specialTokens"] as const) {
    const [asked, counted] = [settings[field], about[field]].map((value) => JSON.stringify(value));
    if (!(field in given) || asked === counted) continue;
    throw new UserError(`${flagOf(field)} is ${asked}, but the words were counted with ${counted}`, {
      fix: "leave the flag out, or give it to count-shard",
    });
  }
  return Tokenizer.trainFromCounts(counts, { ...settings, ...about });
}

// ---- decode --------------------------------------------------------------------------------------------------------

const decodeOptions = z.strictObject({
  tokenizer: tokenizerFlag,
  out: z.string().optional().meta({ description: "file to write; default: standard output", placeholder: "FILE" }),
});

const decodeCommand: Command<typeof decodeOptions> = {
  usage: `${usage} decode`,
  summary: "Turns token ids back into the bytes they stand for, exactly",
  options: decodeOptions,
  positionals: [
    {
      name: "INPUT",
      description: "a token file (.bin or .npy), or text with ids between white space; default: standard input",
      optional: true,
    },
  ],
  examples: [
    `${usage} decode --tokenizer tokenizer.json books.bin --out books.txt`,
    `echo 79 110 262 | ${usage} decode --tokenizer tokenizer.json`,
  ],
};

async function decode(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(decodeCommand, argv);
  const { out } = options;
  const [input] = positionals;
  if (input !== undefined) checkFile(input);
  if (out !== undefined) checkTarget(out);
  const tokenizer = readTokenizer(options.tokenizer);
  const isTokens = input !== undefined && [".bin", ".npy"].includes(extname(input));
  const chunks = decodedChunks(tokenizer, isTokens ? readTokens(input, tokenizer) : readIds(readInput(input)));
  if (out === undefined) {
    for await (const bytes of chunks) await print(bytes);
    return;
  }
  await interruptible(async (signal) => {
    using file = new OutputFile(out);
    for await (const bytes of chunks) {
      signal.throwIfAborted();
      file.append(bytes);
    }
    file.finish();
  });
}

async function* decodedChunks(
  tokenizer: Tokenizer,
  chunks: AsyncIterable<Iterable<number>>,
): AsyncGenerator<Uint8Array> {
  let continues = false;
  for await (const ids of chunks) {
    yield tokenizer.decodeBytes(ids, { continues });
    continues = true;
  }
}

/** The ids of a token file, which must be of this tokenizer if it says of which. */
async function* readTokens(path: string, tokenizer: Tokenizer): AsyncGenerator<Iterable<number>> {
  using device = openDevice("cpu", { threads: 1 });
  using file = new TokenFile(device, path, { vocabSize: tokenizer.vocabSize, tokenizerHash: tokenizer.hash });
  const size = 1 << 16;
  for (let start = 0; start < file.count; start += size) {
    const ids = new Int32Array(new ArrayBuffer(Math.min(size, file.count - start) * 4));
    file.gather(Float64Array.of(start), ids.length, ids);
    yield ids;
    await turn();
  }
}

/** Ids written as decimal numbers, however the text is cut into chunks. */
async function* readIds(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Iterable<number>> {
  const decoder = new TextDecoder();
  let rest = "";
  const parse = (words: string) =>
    words.split(/\s+/).flatMap((word) => {
      if (word === "") return [];
      if (/^\d+$/.test(word)) return [Number(word)];
      throw new UserError(`${JSON.stringify(word.slice(0, 40))} is no token id`, {
        fix: "give whole numbers with white space between them",
      });
    });
  for await (const chunk of chunks) {
    const text = rest + decoder.decode(chunk, { stream: true });
    const end = text.length - /\S*$/.exec(text.slice(-64))![0].length;
    rest = text.slice(end);
    yield parse(text.slice(0, end));
  }
  yield parse(rest + decoder.decode());
}

// ---- count ---------------------------------------------------------------------------------------------------------

const countOptions = z.strictObject({ tokenizer: tokenizerFlag, workers: workersFlag });

const countCommand: Command<typeof countOptions> = {
  usage: `${usage} count`,
  summary: "Counts the tokens of texts, without keeping them",
  options: countOptions,
  positionals: [{ name: "INPUT", description: "UTF-8 texts; default: standard input", optional: true, variadic: true }],
  examples: [
    `${usage} count --tokenizer tokenizer.json *.md`,
    `cat prompt.txt | ${usage} count --tokenizer tokenizer.json`,
  ],
};

async function count(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(countCommand, argv);
  positionals.forEach(checkFile);
  const tokenizer = readTokenizer(options.tokenizer);
  if (positionals.length === 0) {
    let tokens = 0;
    for await (const ids of encodedChunks(tokenizer.createEncoder(), readInput(undefined))) tokens += ids.length;
    await print(`${tokens}\n`);
    return;
  }
  const rows = [["file", "tokens", "bytes", "bytes/token"]];
  const row = (name: string, tokens: number, bytes: number): void => {
    rows.push([name, String(tokens), String(bytes), tokens === 0 ? "" : (bytes / tokens).toFixed(2)]);
  };
  let [allTokens, allBytes] = [0, 0];
  for (const path of positionals) {
    const { tokens, bytes } = await interruptible((signal) =>
      encodeFile(tokenizer, path, () => undefined, {
        workers: isRegular(path) ? threadsFor(options.workers) : 1,
        signal,
      }),
    );
    row(path, tokens, bytes);
    allTokens += tokens;
    allBytes += bytes;
  }
  if (positionals.length > 1) row("all", allTokens, allBytes);
  await print(`${formatTable(rows)}\n`);
}

// ---- convert -------------------------------------------------------------------------------------------------------

const convertOptions = z.strictObject({
  out: z.string().min(1).meta({ description: "file to write; for gpt2 a directory", placeholder: "PATH" }),
  to: z
    .enum(TOKENIZER_FORMATS as [string, ...string[]])
    .meta({ description: "ours, Hugging Face's tokenizer.json, tiktoken's ranks, GPT-2's vocab.json and merges.txt" }),
  pattern: z
    .string()
    .optional()
    .meta({ description: "of an input that does not say it: tiktoken's ranks, GPT-2's directory; default gpt2" }),
  specialTokens: z
    .array(z.string().regex(/^[^]+=\d+$/))
    .optional()
    .meta({
      description: "of an input that does not say them; repeat the flag for several",
      placeholder: "TEXT=ID",
      expects: 'TEXT=ID, such as "<|endoftext|>=100257"',
    }),
});

const convertCommand: Command<typeof convertOptions> = {
  usage: `${usage} convert`,
  summary: "Writes a tokenizer in another format",
  options: convertOptions,
  positionals: [{ name: "INPUT", description: "a tokenizer in any of the formats, known by its content" }],
  examples: [
    `${usage} convert runs/tiny/tokenizer.json --to huggingface --out tokenizer.json`,
    `${usage} convert cl100k_base.tiktoken --pattern cl100k --special-tokens "<|endoftext|>=100257" --to mantou --out cl100k.json`,
  ],
};

function convert(argv: string[]): void {
  const { options, positionals } = parseOptions(convertCommand, argv);
  const { out, pattern } = options;
  const [input] = positionals;
  const to = options.to as TokenizerFormat;
  if (!existsSync(input)) throw new UserError(`${input} does not exist`, { fix: "check the path" });
  if (to !== "gpt2") checkTarget(out);
  const specialTokens = Object.fromEntries(
    (options.specialTokens ?? []).map((entry) => {
      const at = entry.lastIndexOf("=");
      return [entry.slice(0, at), Number(entry.slice(at + 1))];
    }),
  );
  const tokenizer = loadTokenizer(input, { pattern, specialTokens });
  saveTokenizer(tokenizer, out, to);
  console.log(`${out}: ${describe(tokenizer)}`);
}

// ---- info ----------------------------------------------------------------------------------------------------------

const infoOptions = z.strictObject({ tokenizer: tokenizerFlag });

const infoCommand: Command<typeof infoOptions> = {
  usage: `${usage} info`,
  summary: "Shows what a tokenizer knows, and how well it compresses a text",
  options: infoOptions,
  positionals: [{ name: "INPUT", description: "a text to encode, to measure bytes per token", optional: true }],
  examples: [`${usage} info --tokenizer runs/tiny/tokenizer.json books.txt`],
};

async function info(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(infoCommand, argv);
  const [input] = positionals;
  if (input !== undefined) checkText(input);
  const tokenizer = readTokenizer(options.tokenizer);
  const specials = [...tokenizer.specialTokens].map(([text, id]) => `${JSON.stringify(text)} = ${id}`);
  const specialIds = new Set(tokenizer.specialTokens.values());
  const longest = [...tokenizer.vocab]
    .filter(([id]) => !specialIds.has(id))
    .sort(([, a], [, b]) => b.length - a.length)
    .slice(0, 10)
    .map(([, bytes]) => JSON.stringify(new TextDecoder().decode(bytes)));
  const rows = [
    ["vocabulary", `${tokenizer.vocabSize} ids, ${tokenizer.merges.length} merges`],
    ["special tokens", specials.join(", ") || "none"],
    ["pattern", tokenizer.pattern],
    ["hash", tokenizer.hash],
    ["longest tokens", longest.join(" ")],
  ];
  if (input !== undefined) {
    let [bytes, tokens] = [0, 0];
    const chunks = counting(readInput(input), (length) => (bytes += length));
    for await (const ids of encodedChunks(tokenizer.createEncoder(), chunks)) tokens += ids.length;
    rows.push(["bytes per token", `${(bytes / tokens).toFixed(3)} (${bytes} bytes, ${tokens} tokens of ${input})`]);
  }
  await print(`${formatTable(rows)}\n`);
}

// ---- shared --------------------------------------------------------------------------------------------------------

function describe(tokenizer: Tokenizer): string {
  const { vocabSize, merges, specialTokens, hash } = tokenizer;
  const specials = specialTokens.size === 0 ? "no special tokens" : [...specialTokens.keys()].join(" ");
  return `${vocabSize} ids (256 bytes, ${merges.length} merges, ${specials}), hash ${hash}`;
}

const subcommands: Record<string, Subcommand> = {
  train: { command: trainCommand, run: train },
  encode: { command: encodeCommand, run: encode },
  decode: { command: decodeCommand, run: decode },
  count: { command: countCommand, run: count },
  info: { command: infoCommand, run: info },
  convert: { command: convertCommand, run: convert },
  "count-shard": { command: countShardCommand, run: countShard },
  "merge-counts": { command: mergeCountsCommand, run: mergeCountFiles },
};

await runCommand((argv) => runSubcommand(usage, "Trains tokenizers and applies them to text", subcommands, argv));
