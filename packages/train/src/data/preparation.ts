/**
 * `bun run data prepare`: from files of documents to shards of tokens with a manifest. Pieces are worked on by several
 * threads; each leaves its shards and a record, so that a preparation that was stopped goes on with the pieces that are
 * missing. The manifest comes last: a directory that has one is complete.
 */
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { writeAtomically } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { saveTokenizer } from "@mantou/tokenizer/files";
import { UserError } from "../errors.ts";
import { documentMarks } from "../prompt.ts";
import { type DatasetManifest, MANIFEST, type ShardInfo } from "../shards.ts";
import { DirectoryLock } from "../lock.ts";
import { removeTemporaries } from "../temporaries.ts";
import { readTokenizer } from "../tokenizer-file.ts";
import { END_OF_TEXT, type Piece, documentsOf } from "./documents.ts";
import { cutIntoPieces, listFiles } from "./pieces.ts";
import { abandon, claim, readRecord, workDirectory } from "./records.ts";
import type { WorkReply, WorkRequest } from "./worker.ts";

export interface PrepareOptions {
  sources: string[];
  out: string;
  /** A trained tokenizer; otherwise one is trained. */
  tokenizer?: string;
  vocabSize: number;
  specialTokens: string[];
  /** Most bytes of text that the tokenizer is trained on, the same share of every file. */
  tokenizerBytes: number;
  /** Field of JSON objects and Parquet rows that holds the text. */
  field: string;
  /** Part of the documents for validation. */
  heldOut: number;
  threads: number;
  /** Smallest size of a piece of a file of text; tests set it. */
  pieceBytes?: number;
  signal?: AbortSignal;
  onProgress?: (label: string, done: number, total: number) => void;
}

/**
 * @returns the manifest, and how many pieces an earlier run had done
 * @throws UserError for sources that cannot be read and directories that hold something else
 */
export async function prepareDataset(options: PrepareOptions): Promise<{ manifest: DatasetManifest; resumed: number }> {
  const { out, field, heldOut } = options;
  if (existsSync(join(out, MANIFEST))) {
    throw new UserError(`${out} holds a finished data set`, { fix: "train on it with --data, or take another --out" });
  }
  if (options.tokenizer !== undefined && !existsSync(options.tokenizer)) {
    throw new UserError(`--tokenizer ${options.tokenizer} does not exist`, { fix: "give a tokenizer.json" });
  }
  const pieces = await cutIntoPieces(listFiles(options.sources), options.pieceBytes);
  const { vocabSize, specialTokens, tokenizerBytes } = options;
  const given = options.tokenizer === undefined ? undefined : readTokenizer(options.tokenizer);
  const isNew = !existsSync(join(out, "tokenizer.json"));
  using _lock = new DirectoryLock(out, "wait until it has ended, or take another --out");
  claim(out, { pieces, field, heldOut, tokenizer: given?.hash ?? { vocabSize, specialTokens, tokenizerBytes } });
  for (const directory of [out, workDirectory(out)]) removeTemporaries(directory);
  try {
    return await prepareClaimed(pieces, given, options);
  } catch (error) {
    const isDone = (["train", "val"] as const).every((part) => pieces.some((_, i) => readRecord(out, i)?.[part]));
    // Sources that are no good leave no trace, so that the next try may differ; work that was done is kept.
    if (isNew && !isDone && error instanceof UserError && !options.signal?.aborted) abandon(out, pieces.length);
    throw error;
  }
}

async function prepareClaimed(
  pieces: Piece[],
  given: Tokenizer | undefined,
  options: PrepareOptions,
): Promise<{ manifest: DatasetManifest; resumed: number }> {
  const { out } = options;
  const tokenizer = await prepareTokenizer(pieces, given, options);
  const resumed = await encodeAll(pieces, options);
  options.signal?.throwIfAborted();

  const part = (name: "train" | "val") => {
    const found = pieces.map((_, index) => readRecord(out, index)?.[name]);
    const shards = found.filter((shard): shard is ShardInfo => shard !== undefined);
    const sum = (key: "tokens" | "documents" | "bytes") => shards.reduce((total, shard) => total + shard[key], 0);
    return { tokens: sum("tokens"), documents: sum("documents"), bytes: sum("bytes"), shards };
  };
  const manifest: DatasetManifest = {
    format: "mantou-dataset",
    version: 1,
    tokenizerHash: tokenizer.hash,
    vocabSize: tokenizer.vocabSize,
    dtype: tokenizer.vocabSize <= 0x1_0000 ? "uint16" : "uint32",
    endOfDocument: documentMarks(tokenizer)?.end.id ?? null,
    train: part("train"),
    val: part("val"),
  };
  checkParts(manifest);
  writeAtomically(join(out, MANIFEST), [new TextEncoder().encode(`${JSON.stringify(manifest, null, 2)}\n`)]);
  rmSync(workDirectory(out), { recursive: true });
  return { manifest, resumed };
}

/** @throws UserError when there is nothing to train on, or nothing to validate with */
function checkParts({ train, val }: DatasetManifest): void {
  if (train.tokens > 0 && val.tokens > 0) return;
  const count = train.documents + val.documents;
  const documents = `the sources have ${count === 0 ? "no" : count} ${count === 1 ? "document" : "documents"}`;
  const divided = `in a text they are divided by ${END_OF_TEXT}`;
  if (count === 0) throw new UserError(documents, { fix: "give files with text in them" });
  if (val.tokens > 0) {
    throw new UserError(`${documents}, which went into the validation part`, {
      fix: `give more documents, or a smaller --held-out; ${divided}`,
    });
  }
  throw new UserError(`${documents}, none of which went into the validation part`, {
    fix: `give more documents, or a larger --held-out; ${divided}`,
  });
}

async function prepareTokenizer(
  pieces: Piece[],
  given: Tokenizer | undefined,
  options: PrepareOptions,
): Promise<Tokenizer> {
  const path = join(options.out, "tokenizer.json");
  if (existsSync(path)) return readTokenizer(path);
  let tokenizer = given;
  if (tokenizer === undefined) {
    const { vocabSize, specialTokens, tokenizerBytes, signal, onProgress } = options;
    const total = pieces.reduce((sum, { size }) => sum + size, 0);
    const label = "training the tokenizer";
    const limit = Math.min(tokenizerBytes, total);
    onProgress?.(label, 0, limit);
    const texts = sampleTexts(pieces, total, options, (done) => onProgress?.(label, Math.min(done, limit), limit));
    tokenizer = await Tokenizer.train(texts, { vocabSize, specialTokens, signal });
    onProgress?.(label, limit, limit);
  }
  saveTokenizer(tokenizer, path);
  return tokenizer;
}

/** The beginning of every file, in proportion to its size, up to `tokenizerBytes` in all. */
async function* sampleTexts(
  pieces: Piece[],
  total: number,
  { field, specialTokens, tokenizerBytes, signal }: PrepareOptions,
  report: (done: number) => void,
): AsyncGenerator<string> {
  const boundary = specialTokens.includes(END_OF_TEXT) ? END_OF_TEXT : "\n";
  let done = 0;
  const files = Map.groupBy(pieces, ({ path }) => path);
  for (const parts of files.values()) {
    const share = (tokenizerBytes / total) * parts.reduce((sum, { size }) => sum + size, 0);
    let used = 0;
    for (const piece of parts) {
      for await (const document of documentsOf(piece, { field })) {
        signal?.throwIfAborted();
        yield document + boundary;
        used += Buffer.byteLength(document);
        report(done + used);
        if (used >= share) break;
      }
      if (used >= share) break;
    }
    done += used;
  }
}

/** Has all pieces encoded that have no record yet, a thread each; returns how many had one. */
async function encodeAll(pieces: Piece[], options: PrepareOptions): Promise<number> {
  const { out: directory, field, heldOut, signal, onProgress } = options;
  const queue = pieces.map((_, index) => index).filter((index) => readRecord(directory, index) === undefined);
  const resumed = pieces.length - queue.length;
  const done = pieces.map(({ size }, index) => (queue.includes(index) ? 0 : size));
  const total = Math.max(1, Math.round(pieces.reduce((sum, { size }) => sum + size, 0)));
  const report = () => onProgress?.("encoding", Math.min(total, Math.round(done.reduce((a, b) => a + b, 0))), total);
  report();
  const workers: Worker[] = [];
  const work = () =>
    new Promise<void>((resolve, reject) => {
      const worker = new Worker(new URL("./worker.ts", import.meta.url));
      workers.push(worker);
      signal?.addEventListener("abort", () => reject(signal.reason as Error));
      const next = () => {
        const index = queue.shift();
        if (index === undefined) return resolve();
        worker.postMessage({ directory, index, piece: pieces[index], field, heldOut } satisfies WorkRequest);
      };
      worker.onmessage = ({ data: reply }: MessageEvent<WorkReply>) => {
        if (reply.kind === "failed") {
          const { message, fix, code } = reply;
          const isOurs = fix !== undefined;
          reject(isOurs ? new UserError(message, { fix, exitCode: 1 }) : Object.assign(new Error(message), { code }));
          return;
        }
        done[reply.index] = reply.kind === "done" ? pieces[reply.index].size : reply.bytes;
        report();
        if (reply.kind === "done") next();
      };
      worker.onerror = ({ message }) => reject(new Error(`a worker failed: ${message}`));
      next();
    });
  try {
    await Promise.all(Array.from({ length: Math.min(options.threads, queue.length) }, work));
  } finally {
    for (const worker of workers) worker.terminate();
    removeTemporaries(directory);
  }
  return resumed;
}
