/**
 * `bun run tokenizer`: trains byte-level BPE tokenizers, encodes text, decodes ids, and shows what a tokenizer knows.
 * Usage: bun run tokenizer train|encode|decode|info [--help]
 */
import { createReadStream, existsSync, statSync } from "node:fs";
import { dirname, extname } from "node:path";
import { openDevice } from "@mantou/model";
import { PATTERN_NAMES, type StreamingEncoder, type Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer, saveTokenizer, trainFromFiles } from "@mantou/tokenizer/files";
import { z } from "zod";
import { TokenFile, TokenWriter } from "../dataset.ts";
import { UserError } from "../errors.ts";
import { OutputFile } from "../output-file.ts";
import { formatCount, formatTable } from "../terminal/format.ts";
import { ProgressBar } from "../terminal/progress.ts";
import { runCommand, runSubcommand, type Subcommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const usage = "bun run tokenizer";

const tokenizerFlag = z.string().meta({ description: "a trained tokenizer, such as a run's", placeholder: "FILE" });

// ---- train ---------------------------------------------------------------------------------------------------------

const trainOptions = z.strictObject({
  vocabSize: z
    .int()
    .min(256)
    .default(4096)
    .meta({ description: "ids in all: 256 bytes, merges, special tokens; a small text may yield fewer" }),
  specialTokens: z
    .array(z.string().min(1))
    .default(["<|endoftext|>"])
    .meta({ description: "texts that are one token each; repeat the flag for several, --special-tokens= for none" }),
  pattern: z
    .string()
    .default("gpt2")
    .meta({ description: `how text is split first: ${PATTERN_NAMES.join(", ")}, or a regular expression` }),
  out: z.string().min(1).meta({ description: "file to write, such as tokenizer.json", placeholder: "FILE" }),
});

const trainCommand: Command<typeof trainOptions> = {
  usage: `${usage} train`,
  summary: "Trains a tokenizer on text files; an existing --out is replaced",
  options: trainOptions,
  positionals: [{ name: "INPUT", description: "files of UTF-8 text", variadic: true }],
  examples: [`${usage} train books.txt --vocab-size 4096 --out tokenizer.json`],
};

async function train(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(trainCommand, argv);
  const { vocabSize, specialTokens, pattern, out } = options;
  positionals.forEach(checkText);
  checkTarget(out);
  const phases = { count: "counting words", merge: "merging" };
  const bars = new Map<string, ProgressBar>();
  const tokenizer = await interruptible((signal) =>
    trainFromFiles(positionals, {
      vocabSize,
      specialTokens,
      pattern,
      signal,
      onProgress({ phase, done, total = done }) {
        const bar = bars.get(phase) ?? new ProgressBar({ total, label: phases[phase] });
        bars.set(phase, bar);
        bar.update(done, {});
        if (done >= total) bar.finish();
      },
    }),
  );
  for (const bar of bars.values()) bar.finish();
  saveTokenizer(tokenizer, out);
  console.log(`${out}: ${describe(tokenizer)}`);
}

// ---- encode --------------------------------------------------------------------------------------------------------

const encodeOptions = z.strictObject({
  tokenizer: tokenizerFlag,
  out: z.string().optional().meta({
    description: "token file to write, ending in .bin, with a .json beside it; default: ids as text on standard output",
    placeholder: "FILE.bin",
  }),
});

const encodeCommand: Command<typeof encodeOptions> = {
  usage: `${usage} encode`,
  summary: "Turns text into token ids",
  options: encodeOptions,
  positionals: [{ name: "INPUT", description: "UTF-8 text; default: standard input", optional: true }],
  examples: [
    `${usage} encode --tokenizer tokenizer.json books.txt --out books.bin`,
    `echo "Once upon a time" | ${usage} encode --tokenizer tokenizer.json`,
  ],
};

async function encode(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(encodeCommand, argv);
  const { out } = options;
  const [input] = positionals;
  if (input !== undefined) checkText(input);
  if (out !== undefined && extname(out) !== ".bin") {
    throw new UserError(`--out ${out} does not end in .bin`, {
      fix: `use --out ${out}.bin: it is known as tokens by it`,
    });
  }
  if (out !== undefined) checkTarget(out);
  const tokenizer = loadTokenizer(options.tokenizer);
  const encoder = tokenizer.createEncoder();
  if (out === undefined) {
    let separator = "";
    for await (const ids of encodedChunks(encoder, readInput(input))) {
      await print(separator + ids.join(" "));
      separator = " ";
    }
    await print("\n");
    return;
  }
  const bar = new ProgressBar({ total: input === undefined ? 1 : statSync(input).size, label: "encoding" });
  let bytes = 0;
  const sidecar = await interruptible(async (signal) => {
    using writer = new TokenWriter(out, { vocabSize: tokenizer.vocabSize, tokenizerHash: tokenizer.hash });
    const counted = counting(readInput(input), (length) => {
      signal.throwIfAborted();
      bytes += length;
      if (input !== undefined) bar.update(bytes, {});
    });
    for await (const ids of encodedChunks(encoder, counted)) writer.append(ids);
    signal.throwIfAborted();
    return writer.finish();
  });
  bar.finish();
  const perToken = sidecar.count === 0 ? "" : ` (${(bytes / sidecar.count).toFixed(2)} bytes a token)`;
  console.log(
    `${out}: ${formatCount(sidecar.count)} tokens of ${formatCount(bytes)} bytes${perToken}, ${sidecar.dtype}`,
  );
}

async function* encodedChunks(
  encoder: StreamingEncoder,
  chunks: AsyncIterable<Uint8Array>,
): AsyncGenerator<Int32Array> {
  for await (const chunk of chunks) {
    const ids = encoder.push(chunk);
    if (ids.length > 0) yield ids;
  }
  const ids = encoder.finish();
  if (ids.length > 0) yield ids;
}

async function* counting(
  chunks: AsyncIterable<Uint8Array>,
  report: (length: number) => void,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    report(chunk.length);
    yield chunk;
  }
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
  const tokenizer = loadTokenizer(options.tokenizer);
  const isTokens = input !== undefined && [".bin", ".npy"].includes(extname(input));
  const chunks = isTokens ? readTokens(input, tokenizer) : readIds(readInput(input));
  if (out === undefined) {
    for await (const ids of chunks) await print(tokenizer.decodeBytes(ids));
    return;
  }
  await interruptible(async (signal) => {
    using file = new OutputFile(out);
    for await (const ids of chunks) {
      signal.throwIfAborted();
      file.append(tokenizer.decodeBytes(ids));
    }
    file.finish();
  });
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
  const tokenizer = loadTokenizer(options.tokenizer);
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
  console.log(formatTable(rows));
}

// ---- shared --------------------------------------------------------------------------------------------------------

function describe(tokenizer: Tokenizer): string {
  const { vocabSize, merges, specialTokens, hash } = tokenizer;
  const specials = specialTokens.size === 0 ? "no special tokens" : [...specialTokens.keys()].join(" ");
  return `${vocabSize} ids (256 bytes, ${merges.length} merges, ${specials}), hash ${hash}`;
}

/** Refuses an input that cannot be read before anything is written. */
function checkFile(path: string): void {
  if (!existsSync(path)) throw new UserError(`${path} does not exist`, { fix: "check the path" });
  if (statSync(path).isDirectory()) throw new UserError(`${path} is a directory`, { fix: "give a file" });
}

function checkText(path: string): void {
  checkFile(path);
  const status = statSync(path);
  if (status.isFile() && status.size === 0) throw new UserError(`${path} is empty`, { fix: "give a file with text" });
}

/** Refuses an output that would fail after all the work. */
function checkTarget(path: string): void {
  if (existsSync(path) && statSync(path).isDirectory()) {
    throw new UserError(`--out ${path} is a directory`, { fix: `give a file in it: --out ${path}/NAME` });
  }
  if (!existsSync(dirname(path))) {
    throw new UserError(`--out ${path}: there is no directory ${dirname(path)}`, { fix: "make it first" });
  }
}

/** The bytes of a file, or of standard input. */
function readInput(path: string | undefined): AsyncIterable<Uint8Array> {
  return path === undefined ? Bun.stdin.stream() : createReadStream(path, { highWaterMark: 1 << 20 });
}

/** Writes to standard output as fast as its reader reads. */
async function print(chunk: string | Uint8Array): Promise<void> {
  if (!process.stdout.write(chunk)) await new Promise<void>((resolve) => process.stdout.once("drain", resolve));
}

/** Work that Ctrl-C or SIGTERM ends in an orderly way: what it was writing is removed. */
async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController();
  const onSignal = () => stop.abort(new UserError("interrupted; nothing was written", { exitCode: 1 }));
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  try {
    return await work(stop.signal);
  } finally {
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

/** Lets signals be heard. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

const subcommands: Record<string, Subcommand> = {
  train: { command: trainCommand, run: train },
  encode: { command: encodeCommand, run: encode },
  decode: { command: decodeCommand, run: decode },
  info: { command: infoCommand, run: info },
};

await runCommand((argv) => runSubcommand(usage, "Trains tokenizers and applies them to text", subcommands, argv));
