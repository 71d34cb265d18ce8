/**
 * @mantou/tokenizer/files: the parts that need a file system (Bun, Node, Deno). Files are read in chunks of fixed size and
 * never held whole; they are written under a temporary name, synced and renamed, so a reader never sees half a file.
 */
import { TokenizerError } from "./errors.ts";
import {
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { type CountsAbout, countsFromFile, countsToFile } from "./counts-format.ts";
import { canCut, lastCut } from "./cuts.ts";
import {
  cloneTokenizer,
  countPart,
  encodePart,
  type FilePart,
  ID_ARRAYS,
  type Ids,
  type IdType,
} from "./file-parts.ts";
import { parseGpt2, toGpt2 } from "./gpt2-format.ts";
import { fromHuggingFace, toHuggingFace } from "./huggingface-format.ts";
import { parseJson } from "./json.ts";
import { resolvePattern } from "./patterns.ts";
import { type CounterTables, type CountOptions, type PretokenCounts, PretokenStream } from "./pretokens.ts";
import { SentencePieceTokenizer } from "./sentencepiece.ts";
import { parseTiktoken, toTiktoken } from "./tiktoken-format.ts";
import { Tokenizer } from "./tokenizer.ts";
import { type TrainOptions, TrainingRun } from "./training.ts";
import type { TokenizerOptions } from "./vocabulary.ts";
import { WorkerPool } from "./worker-pool.ts";

export { checkSameSplit, type CountsAbout, countsFromFile, countsToFile } from "./counts-format.ts";

/** Bytes that one thread reads at a time: little enough to be in the processor's cache when it is worked on. */
const CHUNK = 1 << 18;
/** Bytes of a part, about: little enough that no thread waits for another. */
const PART = 1 << 19;

/** File formats: ours, Hugging Face's tokenizer.json, tiktoken's ranks, and a directory with GPT-2's two files. */
export type TokenizerFormat = "mantou" | "huggingface" | "tiktoken" | "gpt2";

export const TOKENIZER_FORMATS: readonly TokenizerFormat[] = ["mantou", "huggingface", "tiktoken", "gpt2"];

/** What a file does not say: tiktoken's and GPT-2's have no pattern and no normalization, tiktoken's no special tokens. */
export interface LoadOptions {
  pattern?: string;
  normalization?: "NFC" | null;
  /** Text and id of each; for GPT-2's files, which have the ids, the texts alone count. */
  specialTokens?: Readonly<Record<string, number>>;
}

/**
 * Reads a tokenizer in any of the formats, known by its content: tiktoken's ranks, a directory with GPT-2's `vocab.json`
 * and `merges.txt`, a `tokenizer.json` of Hugging Face, or (everything else) our own JSON.
 *
 * @throws naming the file, if it cannot be read or is damaged.
 */
export function loadTokenizer(
  path: string,
  { pattern, normalization, specialTokens = {} }: LoadOptions = {},
): Tokenizer {
  return withPath(path, () => {
    if (statSync(path).isDirectory()) {
      const [vocabPath, mergesPath] = [join(path, "vocab.json"), join(path, "merges.txt")];
      return loadGpt2(vocabPath, mergesPath, { pattern, normalization, specialTokens: Object.keys(specialTokens) });
    }
    const text = readText(path);
    // Base64 has no braces; Llama 3's file is called tokenizer.model.
    if (path.endsWith(".tiktoken") || /^[A-Za-z0-9+/]+=* \d+\r?\n/.test(text)) {
      return new Tokenizer({ ...parseTiktoken(text, specialTokens), pattern, normalization });
    }
    const json = parseJson(text);
    const isHuggingFace = typeof json === "object" && json !== null && "model" in json && !("format" in json);
    return isHuggingFace ? fromHuggingFace(text) : Tokenizer.fromJSON(json);
  });
}

/**
 * Writes a tokenizer, in our JSON format unless told otherwise; an existing file is replaced in one step. For "gpt2" the
 * path is a directory, which is made where it is missing.
 *
 * @throws naming the file, if it cannot be written, or if the format cannot hold the tokenizer; nothing is left behind.
 */
export function saveTokenizer(tokenizer: Tokenizer, path: string, format: TokenizerFormat = "mantou"): void {
  if (format === "gpt2") {
    const { vocabJson, mergesTxt } = toGpt2(tokenizer);
    withPath(path, () => mkdirSync(path, { recursive: true }));
    writeText(join(path, "vocab.json"), vocabJson);
    writeText(join(path, "merges.txt"), mergesTxt);
    return;
  }
  const write = { mantou: () => `${JSON.stringify(tokenizer)}\n`, huggingface: toHuggingFace, tiktoken: toTiktoken };
  if (!(format in write)) {
    throw new TokenizerError(`unknown format ${JSON.stringify(format)}: use ${TOKENIZER_FORMATS.join(", ")}`);
  }
  writeText(path, write[format](tokenizer));
}

function writeText(path: string, content: string): void {
  writeFile(path, [new TextEncoder().encode(content)]);
}

/** Writes under a temporary name, syncs and renames. */
function writeFile(path: string, parts: Uint8Array[]): void {
  const temporary = `${path}.${process.pid}.tmp`;
  withPath(path, () => {
    // renaming would replace a device or a pipe: by root, even /dev/null
    if (existsSync(path) && !statSync(path).isFile()) throw new TokenizerError("it is no regular file");
    const file = openSync(temporary, "w");
    try {
      try {
        for (const part of parts) {
          for (let written = 0; written < part.length;) written += writeSync(file, part, written);
        }
        fsyncSync(file);
      } finally {
        closeSync(file);
      }
      renameSync(temporary, path);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw error;
    }
  });
}

/**
 * Reads GPT-2's `vocab.json` and `merges.txt`.
 *
 * @param options special tokens (those of the vocabulary that text may contain), the pattern and the normalization; default
 * none, "gpt2" and none.
 */
export function loadGpt2(
  vocabPath: string,
  mergesPath: string,
  options: Pick<TokenizerOptions, "specialTokens" | "pattern" | "normalization"> = {},
): Tokenizer {
  const vocabText = withPath(vocabPath, () => readText(vocabPath));
  const mergesText = withPath(mergesPath, () => readText(mergesPath));
  return withPath(vocabPath, () => new Tokenizer({ ...parseGpt2(vocabText, mergesText), ...options }));
}

/**
 * Learns a vocabulary from files of UTF-8 text; no token goes from one file into the next. Other work runs in between.
 *
 * @throws naming the file that cannot be read, before anything is read; the signal's reason when it is aborted.
 */
export async function trainFromFiles(paths: string | readonly string[], options: TrainOptions): Promise<Tokenizer> {
  const run = new TrainingRun(options); // complains before anything is read
  const { onProgress } = options;
  const counts = await countFiles(paths, {
    ...options,
    onProgress: onProgress && ((done, total) => onProgress({ phase: "count", done, total })),
  });
  return new Tokenizer(await run.finishAsync(counts));
}

export interface CountFilesOptions extends CountOptions {
  /** Threads that count, this one among them; default 1. */
  workers?: number;
  /** Called now and then with bytes read and bytes in all. */
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

/**
 * Counts the pre-tokens of files; no piece goes from one file into the next.
 *
 * @throws naming the file that cannot be read; the signal's reason when it is aborted.
 */
export async function countFiles(
  paths: string | readonly string[],
  { workers = 1, onProgress, signal, specialTokens = [], pattern = "gpt2" }: CountFilesOptions = {},
): Promise<PretokenCounts> {
  checkWorkers(workers);
  const files = openAll(paths);
  try {
    const total = totalSize(files);
    const stream = new PretokenStream({ specialTokens, pattern });
    let done = 0;
    if (workers > 1 && canCut(resolvePattern(pattern), specialTokens)) {
      using pool = new WorkerPool(workers - 1, { kind: "count", specialTokens, pattern });
      const report = (_: unknown, { start, end }: FilePart): void => onProgress?.((done += end - start), total);
      await pool.run(partsOf(files), (part) => countPart(stream, part), report, signal);
      for (const tables of await pool.finish()) stream.counter.addTables(tables as CounterTables);
      return stream.finish();
    }
    for (const file of files) {
      for (const chunk of chunksOf(file)) {
        signal?.throwIfAborted();
        stream.push(chunk);
        onProgress?.((done += chunk.length), total);
        await turn();
      }
      stream.endText();
    }
    return stream.finish();
  } finally {
    closeAll(files);
  }
}

/** Writes counts to a file (see counts-format.ts), whole or not at all. */
export function saveCounts(counts: PretokenCounts, about: CountsAbout, path: string): void {
  writeFile(path, countsToFile(counts, about));
}

/** @throws naming the file, if it cannot be read or is damaged. */
export function loadCounts(path: string): { counts: PretokenCounts; about: CountsAbout } {
  return withPath(path, () => countsFromFile(readFileSync(path)));
}

/** As `trainFromFiles`, on one thread and without letting anything else run. */
export function trainFromFilesSync(paths: string | readonly string[], options: TrainOptions): Tokenizer {
  const files = openAll(paths);
  try {
    const run = new TrainingRun(options, totalSize(files));
    for (const file of files) {
      for (const chunk of chunksOf(file)) run.push(chunk);
      run.endText();
    }
    return new Tokenizer(run.finish());
  } finally {
    closeAll(files);
  }
}

export interface EncodeFileOptions<Type extends IdType = "int32"> {
  /** Arrays that the ids come in, "int32" or, of at most 65,536 ids, "uint16"; default "int32". */
  ids?: Type;
  /**
   * Threads that encode, this one among them; default 1. Ids are handed out in order all the same. Where a text cannot be
   * cut (custom patterns, SentencePiece's tokenizers) it is one thread all the same.
   */
  workers?: number;
  /** Called after each chunk: bytes read, bytes in all, ids so far. */
  onProgress?: (progress: { done: number; total: number; tokens: number }) => void;
  signal?: AbortSignal;
}

/**
 * Encodes a file of UTF-8 text as one text and hands the ids out in order, some ten or hundred thousand at a time.
 *
 * @returns bytes read and ids handed out.
 * @throws naming the file, if it cannot be read; if the vocabulary is too large for 16 bits that were asked for; the
 * signal's reason when it is aborted.
 */
export async function encodeFile<Type extends IdType = "int32">(
  tokenizer: Tokenizer,
  path: string,
  onIds: (ids: Ids<Type>) => void | Promise<void>,
  { ids: type = "int32" as Type, workers = 1, onProgress, signal }: EncodeFileOptions<Type> = {},
): Promise<{ bytes: number; tokens: number }> {
  checkWorkers(workers);
  if (!Object.hasOwn(ID_ARRAYS, type)) throw new TokenizerError(`ids is ${String(type)}: it is "int32" or "uint16"`);
  if (type === "uint16" && tokenizer.vocabSize > 65536) {
    throw new TokenizerError(`${tokenizer.vocabSize} ids do not fit in a Uint16Array: leave out ids: "uint16"`);
  }
  const files = openAll(path);
  try {
    const total = totalSize(files);
    let bytes = 0;
    let tokens = 0;
    const hand = async (ids: Ids<IdType>): Promise<void> => {
      tokens += ids.length;
      if (ids.length > 0) await onIds(ids as Ids<Type>);
      onProgress?.({ done: bytes, total, tokens });
    };
    if (workers > 1 && canEncodeApart(tokenizer)) {
      const { tables } = tokenizer;
      using pool = new WorkerPool(workers - 1, { kind: "encode", tables, type });
      const encoder = cloneTokenizer(tables).createEncoder();
      const take = (ids: Ids<IdType>, { start, end }: FilePart): Promise<void> => {
        bytes += end - start;
        return hand(ids);
      };
      await pool.run(partsOf(files), (part) => encodePart(encoder, part, type), take, signal);
      return { bytes, tokens };
    }
    const encoder = tokenizer.createEncoder();
    for (const chunk of chunksOf(files[0])) {
      signal?.throwIfAborted();
      bytes += chunk.length;
      await hand(encoder.push<Ids<IdType>>(chunk, ID_ARRAYS[type]));
      await turn();
    }
    await hand(encoder.finish<Ids<IdType>>(ID_ARRAYS[type]));
    return { bytes, tokens };
  } finally {
    closeAll(files);
  }
}

/** Whether parts of a text have the ids of the whole; SentencePiece's put a blank in front of each. */
function canEncodeApart(tokenizer: Tokenizer): boolean {
  if (tokenizer instanceof SentencePieceTokenizer) return false;
  return canCut(resolvePattern(tokenizer.pattern), tokenizer.specialTokens.keys());
}

interface OpenFile {
  path: string;
  descriptor: number;
}

/** Opens all files, or none. */
function openAll(paths: string | readonly string[]): OpenFile[] {
  const list = typeof paths === "string" ? [paths] : paths;
  if (list.length === 0) throw new TokenizerError("no files given");
  const files: OpenFile[] = [];
  try {
    for (const path of list) {
      withPath(path, () => {
        files.push({ path, descriptor: openSync(path, "r") });
        if (fstatSync(files[files.length - 1].descriptor).isDirectory()) throw new TokenizerError("it is a directory");
      });
    }
  } catch (error) {
    closeAll(files);
    throw error;
  }
  return files;
}

function closeAll(files: OpenFile[]): void {
  for (const { descriptor } of files) closeSync(descriptor);
}

function totalSize(files: OpenFile[]): number {
  return files.reduce((sum, { descriptor }) => sum + fstatSync(descriptor).size, 0);
}

/** The file's bytes in chunks; each is valid until the next is asked for. */
function* chunksOf({ path, descriptor }: OpenFile): Generator<Uint8Array, void, undefined> {
  const buffer = new Uint8Array(CHUNK);
  for (;;) {
    const length = withPath(path, () => readSync(descriptor, buffer, 0, CHUNK, null));
    if (length === 0) return;
    yield buffer.subarray(0, length);
  }
}

/** The files in parts, cut where it changes nothing; longer where there is no such place. */
function* partsOf(files: OpenFile[]): Generator<FilePart, void, undefined> {
  const window = new Uint8Array(1 << 16);
  for (const { path, descriptor } of files) {
    const { size } = fstatSync(descriptor);
    let start = 0;
    // looks for a cut near the end of each part; where there is none, the part goes on
    for (let end = PART; end < size; end += PART) {
      const from = end - window.length;
      const length = withPath(path, () => readSync(descriptor, window, 0, window.length, from));
      const cut = lastCut(window.subarray(0, length), length);
      if (cut < 0) continue;
      yield { path, start, end: from + cut };
      start = from + cut;
    }
    if (start < size) yield { path, start, end: size };
  }
}

function checkWorkers(workers: number): void {
  if (!Number.isInteger(workers) || workers < 1 || workers > 256) {
    throw new TokenizerError(`workers is ${workers}: it must be a whole number from 1 to 256`);
  }
}

/** Lets timers and signal handlers run. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Without a byte order mark, which some editors put in front and no format knows. */
function readText(path: string): string {
  return new TextDecoder().decode(readFileSync(path));
}

/** Puts the path in front of an error's message, unless it is there already. */
function withPath<T>(path: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    const { message } = error as Error;
    throw message.includes(path) ? error : new TokenizerError(`${path}: ${message}`, { cause: error });
  }
}
