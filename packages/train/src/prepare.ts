/**
 * From text to token files: the corpus (the user's, or generated stories), the tokenizer, `train.bin` and `val.bin` in
 * the run's directory. Each piece is kept once it is there, so an interrupted preparation goes on where it stopped.
 */
import { closeSync, existsSync, mkdirSync, openSync, readSync, statSync } from "node:fs";
import { extname, join } from "node:path";
import { type Device, writeAtomically } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { saveTokenizer } from "@mantou/tokenizer/files";
import type { TrainConfig } from "./config.ts";
import { TokenFile, type TokenSource, checkLength, writeTokens } from "./dataset.ts";
import { UserError } from "./errors.ts";
import { isDirectory, openPart, readManifest } from "./shards.ts";
import { generateStories } from "./stories.ts";
import { shellWord } from "./terminal/format.ts";
import { readTokenizer } from "./tokenizer-file.ts";

/** Size of the corpus that is generated where there is no `--data`. */
const STORY_BYTES = 6_000_000;

const CHUNK_BYTES = 1 << 20;

/** Bytes begin … end - 1 of a file. */
export interface TextRange {
  path: string;
  begin: number;
  end: number;
}

export interface Progress {
  /** Called with what is being done and how far it is; `done` = `total` at the end. */
  (label: string, done: number, total: number): void;
}

/** What files of other kinds begin with. */
const SIGNATURES = { "1f8b": "gzip", "28b52ffd": "zstd", "50415231": "Parquet" } as const;

/** @throws UserError when `path`, given as `flag`, is no file, an empty one, or one of another kind than text or tokens */
export function checkFile(flag: string, path: string): void {
  if (!existsSync(path)) throw new UserError(`${flag} ${path} does not exist`, { fix: "give the path of a file" });
  const { size } = statSync(path);
  if (!statSync(path).isFile()) throw new UserError(`${flag} ${path} is not a file`, { fix: "give a text file" });
  if (size === 0) throw new UserError(`${flag} ${path} is empty`, { fix: "give a file with text" });
  if (isTokenFile(path)) return;
  const kind = otherKind(path);
  if (kind === undefined) return;
  throw new UserError(`${flag} ${path} is a ${kind} file, not text`, {
    fix: `make a data set of it: bun run data prepare ${shellWord(path)} --out data/NAME, and then --data data/NAME`,
  });
}

/** What a file is by its first bytes, if not a text. */
export function otherKind(path: string): (typeof SIGNATURES)[keyof typeof SIGNATURES] | undefined {
  const beginning = readRange(path, 0, Math.min(4, statSync(path).size)).toString("hex");
  return Object.entries(SIGNATURES).find(([signature]) => beginning.startsWith(signature))?.[1];
}

type DataConfig = Pick<TrainConfig, "data" | "val" | "heldOut" | "seed" | "tokenizer">;

/** Whether a path is a file of tokens rather than text. */
export function isTokenFile(path: string): boolean {
  return [".bin", ".npy", ".raw", ".u16"].includes(extname(path));
}

/** Whether a path holds tokens: a file, or a directory of many. */
function holdsTokens(path: string): boolean {
  return isTokenFile(path) || isDirectory(path);
}

/**
 * Refuses missing and empty files before anything is written.
 * @throws UserError naming the file
 */
export function checkSources(config: DataConfig): void {
  if (config.data !== undefined && isDirectory(config.data)) {
    checkDirectory(config.data, config);
    return;
  }
  for (const [flag, path] of Object.entries({ "--data": config.data, "--val": config.val })) {
    if (path !== undefined) checkFile(flag, path);
  }
  if (config.data !== undefined && isTokenFile(config.data)) {
    if (config.val === undefined || config.tokenizer.path === undefined) {
      throw new UserError(`--data ${config.data} holds tokens, so there is nothing to hold out or to decode with`, {
        fix: "add --val TOKENS.bin and --tokenizer.path tokenizer.json",
      });
    }
  }
  if (config.val !== undefined && config.data === undefined) {
    throw new UserError("--val needs --data: generated stories have their own held-out part", { fix: "add --data" });
  }
  if (config.val !== undefined && isTokenFile(config.val) !== isTokenFile(config.data!)) {
    const [text, tokens] = isTokenFile(config.val) ? ["--data", "--val"] : ["--val", "--data"];
    throw new UserError(`${tokens} holds tokens and ${text} is a text`, { fix: "give two texts or two token files" });
  }
  const { path } = config.tokenizer;
  if (path === undefined) return;
  if (!existsSync(path)) {
    throw new UserError(`--tokenizer.path ${path} does not exist`, { fix: "give a tokenizer.json" });
  }
  readTokenizer(path);
}

/** A prepared data set brings its own validation part, and a tokenizer, which must be that of a run to start from. */
function checkDirectory(path: string, { val, tokenizer }: DataConfig): void {
  const { tokenizerHash } = readManifest(path);
  if (val !== undefined) {
    throw new UserError(`--val ${val} does not go with --data ${path}, which brings its own`, {
      fix: "leave --val out",
    });
  }
  if (tokenizer.path === undefined || readTokenizer(tokenizer.path).hash === tokenizerHash) return;
  throw new UserError(`--data ${path} was prepared with another tokenizer than ${tokenizer.path}`, {
    fix: `prepare it with --tokenizer ${tokenizer.path}, or leave --tokenizer.path out`,
  });
}

/**
 * Refuses texts that cannot fill a context whatever the tokenizer, for a token is a byte or more.
 * @throws UserError naming the part that is too short
 */
export function checkTextLengths(config: DataConfig & { model: { contextLength: number } }): void {
  if (config.data === undefined || holdsTokens(config.data)) return;
  const { train, val } = splitText(config.data, config);
  const { contextLength } = config.model;
  const [trainBytes, valBytes] = [train.end - train.begin, val.end - val.begin];
  const { size } = statSync(config.data);
  const atMost = Math.min(trainBytes, valBytes) - 1;
  checkLength(`--data ${config.data}`, size, contextLength, { unit: "bytes", atMost });
  const held = config.val === undefined ? `the held-out end of ${config.data}` : `--val ${config.val}`;
  const or = (size: string) => (config.val === undefined ? `a ${size} --held-out, ` : "");
  const part = { unit: "bytes", atMost };
  checkLength(`the training part of ${config.data}`, trainBytes, contextLength, { ...part, or: or("smaller") });
  checkLength(held, valBytes, contextLength, { ...part, or: or("larger") });
}

/** The tokenizer that a run is given: with its prepared data, or by itself; none: one is trained. */
export function givenTokenizer({ data, tokenizer }: DataConfig): string | undefined {
  return data !== undefined && isDirectory(data) ? join(data, "tokenizer.json") : tokenizer.path;
}

/** The tokenizer of a run: loaded, or trained on the training part of its text, and kept as `tokenizer.json`. */
export function prepareTokenizer(directory: string, config: DataConfig, progress: Progress): Tokenizer {
  const path = join(directory, "tokenizer.json");
  if (existsSync(path)) return readTokenizer(path);
  const given = givenTokenizer(config);
  let tokenizer: Tokenizer;
  if (given !== undefined) {
    tokenizer = readTokenizer(given);
  } else {
    const { train } = textRanges(directory, config);
    const { vocabSize, specialTokens } = config.tokenizer;
    const total = train.end - train.begin;
    const chunks = reporting(readChunks(train), total, (done) => progress("training the tokenizer", done, total));
    tokenizer = Tokenizer.train(chunks, { vocabSize, specialTokens });
  }
  saveTokenizer(tokenizer, path);
  return tokenizer;
}

/** The training and validation tokens of a run, opened. */
export function prepareData(
  directory: string,
  config: DataConfig,
  tokenizer: Tokenizer,
  device: Device,
  progress: Progress,
): { train: TokenSource; val: TokenSource } {
  const about = { vocabSize: tokenizer.vocabSize, tokenizerHash: tokenizer.hash };
  if (config.data !== undefined && isDirectory(config.data)) {
    const open = (part: "train" | "val") => openPart(device, config.data!, part, about);
    return { train: open("train"), val: open("val") };
  }
  if (config.data !== undefined && isTokenFile(config.data)) {
    return { train: new TokenFile(device, config.data, about), val: new TokenFile(device, config.val!, about) };
  }
  const open = (part: "train" | "val") => {
    const path = join(directory, "data", `${part}.bin`);
    if (!existsSync(path) || !existsSync(`${path}.json`)) {
      const range = textRanges(directory, config)[part];
      const total = range.end - range.begin;
      const label = part === "train" ? "encoding the text" : "encoding the validation text";
      const chunks = reporting(readChunks(range), total, (done) => progress(label, done, total));
      writeTokens(path, tokenizer.encodeChunks(chunks), about);
    }
    return new TokenFile(device, path, about);
  };
  return { train: open("train"), val: open("val") };
}

/** Encodes a whole text file to `target`, which it returns. */
export function encodeText(path: string, target: string, tokenizer: Tokenizer): string {
  const range = { path, begin: 0, end: statSync(path).size };
  const about = { vocabSize: tokenizer.vocabSize, tokenizerHash: tokenizer.hash };
  writeTokens(target, tokenizer.encodeChunks(readChunks(range)), about);
  return target;
}

/** Where the training and the validation text lie; generates the stories first where there is no `--data`. */
function textRanges(directory: string, config: DataConfig): { train: TextRange; val: TextRange } {
  mkdirSync(join(directory, "data"), { recursive: true });
  let path = config.data;
  if (path === undefined) {
    path = join(directory, "data", "stories.txt");
    if (!existsSync(path)) writeAtomically(path, storyChunks(config.seed));
  }
  return splitText(path, config);
}

/** The training and the validation part of the text in `path`: the held-out tail, unless there is a text of its own. */
function splitText(path: string, config: DataConfig): { train: TextRange; val: TextRange } {
  const { size } = statSync(path);
  if (config.val !== undefined) {
    const val = { path: config.val, begin: 0, end: statSync(config.val).size };
    return { train: { path, begin: 0, end: size }, val };
  }
  const cut = findCut(path, Math.floor(size * (1 - config.heldOut)), size, config.tokenizer.specialTokens);
  return { train: { path, begin: 0, end: cut }, val: { path, begin: cut, end: size } };
}

function* storyChunks(seed: number): Generator<Uint8Array> {
  const encoder = new TextEncoder();
  for (const story of generateStories({ seed, bytes: STORY_BYTES })) yield encoder.encode(`${story}<|endoftext|>`);
}

/** Where to divide a text: after the first document's end past `near`, else after a line's, else between characters. */
function findCut(path: string, near: number, size: number, documentEnds: string[]): number {
  const window = readRange(path, near, Math.min(size, near + (CHUNK_BYTES >> 2)));
  for (const mark of [...documentEnds, "\n"]) {
    const at = window.indexOf(mark);
    if (at >= 0 && near + at + Buffer.byteLength(mark) < size) return near + at + Buffer.byteLength(mark);
  }
  let cut = 0;
  while (cut < window.length - 1 && (window[cut]! & 0xc0) === 0x80) cut++;
  return near + cut;
}

function readRange(path: string, begin: number, end: number): Buffer {
  const buffer = Buffer.alloc(end - begin);
  const file = openSync(path, "r");
  try {
    for (let done = 0; done < buffer.length;) {
      const got = readSync(file, buffer, done, buffer.length - done, begin + done);
      if (got === 0)
        throw new UserError(`${path} became shorter while it was read`, {
          fix: "repeat the command when nothing writes to it any more",
          exitCode: 1,
        });
      done += got;
    }
  } finally {
    closeSync(file);
  }
  return buffer;
}

/** A text in pieces. */
function* readChunks({ path, begin, end }: TextRange): Generator<Uint8Array> {
  for (let at = begin; at < end; at += CHUNK_BYTES) yield readRange(path, at, Math.min(end, at + CHUNK_BYTES));
}

/** Passes chunks on and reports how many bytes went through. */
function* reporting(
  chunks: Iterable<Uint8Array>,
  total: number,
  report: (done: number) => void,
): Generator<Uint8Array> {
  let done = 0;
  report(0);
  for (const chunk of chunks) {
    yield chunk;
    done += chunk.length;
    report(Math.min(done, total));
  }
}
