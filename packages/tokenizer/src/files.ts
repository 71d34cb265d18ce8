/**
 * @mantou/tokenizer/files: the parts that need a file system (Bun, Node, Deno). Files are read in chunks of fixed size and
 * never held whole; they are written under a temporary name, synced and renamed, so a reader never sees half a file.
 */
import { TokenizerError } from "./errors.ts";
import {
  closeSync,
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
import { parseGpt2, toGpt2 } from "./gpt2-format.ts";
import { parseHuggingFace, toHuggingFace } from "./huggingface-format.ts";
import { parseJson } from "./json.ts";
import { parseTiktoken, toTiktoken } from "./tiktoken-format.ts";
import { Tokenizer } from "./tokenizer.ts";
import { type TrainOptions, TrainingRun } from "./training.ts";

const CHUNK = 1 << 20;

/** File formats: ours, Hugging Face's tokenizer.json, tiktoken's ranks, and a directory with GPT-2's two files. */
export type TokenizerFormat = "mantou" | "huggingface" | "tiktoken" | "gpt2";

export const TOKENIZER_FORMATS: readonly TokenizerFormat[] = ["mantou", "huggingface", "tiktoken", "gpt2"];

/** What a file does not say: tiktoken's and GPT-2's have no pattern, and tiktoken's no special tokens. */
export interface LoadOptions {
  pattern?: string;
  /** Text and id of each; for GPT-2's files, which have the ids, the texts alone count. */
  specialTokens?: Readonly<Record<string, number>>;
}

/**
 * Reads a tokenizer in any of the formats: a `.tiktoken` file, a directory with GPT-2's `vocab.json` and `merges.txt`, a
 * `tokenizer.json` of Hugging Face, or (everything else) our own JSON.
 *
 * @throws naming the file, if it cannot be read or is damaged.
 */
export function loadTokenizer(path: string, { pattern, specialTokens = {} }: LoadOptions = {}): Tokenizer {
  return withPath(path, () => {
    if (statSync(path).isDirectory()) {
      const [vocabPath, mergesPath] = [join(path, "vocab.json"), join(path, "merges.txt")];
      return loadGpt2(vocabPath, mergesPath, { pattern, specialTokens: Object.keys(specialTokens) });
    }
    const text = readText(path);
    if (path.endsWith(".tiktoken")) return new Tokenizer({ ...parseTiktoken(text, specialTokens), pattern });
    const json = parseJson(text);
    const isHuggingFace = typeof json === "object" && json !== null && "model" in json && !("format" in json);
    return isHuggingFace ? new Tokenizer(parseHuggingFace(text)) : Tokenizer.fromJSON(json);
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

/** Writes a text under a temporary name, syncs and renames. */
function writeText(path: string, content: string): void {
  const temporary = `${path}.${process.pid}.tmp`;
  withPath(path, () => {
    const text = new TextEncoder().encode(content);
    try {
      const file = openSync(temporary, "w");
      try {
        for (let written = 0; written < text.length;) written += writeSync(file, text, written);
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
 * @param options special tokens (those of the vocabulary that text may contain) and the pattern; default none and "gpt2".
 */
export function loadGpt2(
  vocabPath: string,
  mergesPath: string,
  options: { specialTokens?: readonly string[]; pattern?: string } = {},
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
  const files = openAll(paths);
  try {
    const run = new TrainingRun(options, totalSize(files));
    for (const file of files) {
      for (const chunk of chunksOf(file)) {
        run.push(chunk);
        await turn();
      }
      run.endText();
    }
    return new Tokenizer(await run.finishAsync());
  } finally {
    closeAll(files);
  }
}

/** The same, without letting anything else run. */
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

export interface EncodeFileOptions {
  /** Called after each chunk: bytes read, bytes in all, ids so far. */
  onProgress?: (progress: { done: number; total: number; tokens: number }) => void;
  signal?: AbortSignal;
}

/**
 * Encodes a file of UTF-8 text as one text and hands the ids out in order, some hundred thousand at a time.
 *
 * @returns bytes read and ids handed out.
 * @throws naming the file, if it cannot be read; the signal's reason when it is aborted.
 */
export async function encodeFile(
  tokenizer: Tokenizer,
  path: string,
  onIds: (ids: Int32Array) => void | Promise<void>,
  { onProgress, signal }: EncodeFileOptions = {},
): Promise<{ bytes: number; tokens: number }> {
  const files = openAll(path);
  try {
    const total = totalSize(files);
    const encoder = tokenizer.createEncoder();
    let bytes = 0;
    let tokens = 0;
    const hand = async (ids: Int32Array): Promise<void> => {
      tokens += ids.length;
      if (ids.length > 0) await onIds(ids);
      onProgress?.({ done: bytes, total, tokens });
    };
    for (const chunk of chunksOf(files[0])) {
      signal?.throwIfAborted();
      bytes += chunk.length;
      await hand(encoder.push(chunk));
      await turn();
    }
    await hand(encoder.finish());
    return { bytes, tokens };
  } finally {
    closeAll(files);
  }
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

/** Lets timers and signal handlers run. */
function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

function readText(path: string): string {
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(readFileSync(path));
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
