/**
 * Data sets of many files: the directory that `bun run data prepare` writes, its manifest, and its shards as one stream of
 * tokens. Files are mapped, so that only what is read takes memory.
 */
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import type { Device } from "@mantou/model";
import { z } from "zod";
import { type DatasetExpectation, TokenFile, type TokenSource } from "./dataset.ts";
import { UserError } from "./errors.ts";

const shardSchema = z.strictObject({
  file: z.string().regex(/^[\w.-]+\.bin$/),
  tokens: z.int().min(0),
  documents: z.int().min(0),
  /** Bytes of text in it. */
  bytes: z.int().min(0),
  /** Of the file. */
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

const partSchema = z.strictObject({
  tokens: z.int().min(0),
  documents: z.int().min(0),
  bytes: z.int().min(0),
  shards: z.array(shardSchema),
});

const manifestSchema = z.strictObject({
  format: z.literal("mantou-dataset"),
  version: z.literal(1),
  /** Of the tokenizer.json beside it. */
  tokenizerHash: z.string(),
  vocabSize: z.int().min(1),
  dtype: z.enum(["uint16", "uint32"]),
  /** The id that ends every document, or null where the tokenizer has none. */
  endOfDocument: z.int().min(0).nullable(),
  train: partSchema,
  val: partSchema,
});

export type DatasetManifest = z.output<typeof manifestSchema>;
export type ShardInfo = z.output<typeof shardSchema>;

export const MANIFEST = "manifest.json";

export function isDirectory(path: string): boolean {
  return existsSync(path) && statSync(path).isDirectory();
}

/** @throws UserError when there is none, or it is not one of ours */
export function readManifest(directory: string): DatasetManifest {
  const path = join(directory, MANIFEST);
  if (!existsSync(path)) {
    throw new UserError(`${directory} is a directory without a ${MANIFEST}`, {
      fix: "give a file, or a directory that `bun run data prepare` has finished",
    });
  }
  try {
    return manifestSchema.parse(JSON.parse(readFileSync(path, "utf8")));
  } catch (cause) {
    const why = cause instanceof z.ZodError ? z.prettifyError(cause) : (cause as Error).message;
    throw new UserError(`${path} does not describe a data set: ${why}`, { fix: "prepare the data again", cause });
  }
}

/** One part of a prepared data set. @throws UserError for missing or damaged shards, or another tokenizer's */
export function openPart(
  device: Device,
  directory: string,
  part: "train" | "val",
  expected: DatasetExpectation,
): ShardedTokens {
  const { shards } = readManifest(directory)[part];
  return new ShardedTokens(shards.map(({ file }) => new TokenFile(device, join(directory, file), expected)));
}

/** Several sources as one: the tokens of each follow those of the one before. */
export class ShardedTokens implements TokenSource, Disposable {
  readonly count: number;
  /** First token of every source, and the number of all. */
  readonly #bounds: number[];

  constructor(readonly sources: (TokenSource & Partial<Disposable>)[]) {
    this.#bounds = [0];
    for (const { count } of sources) this.#bounds.push(this.#bounds.at(-1)! + count);
    this.count = this.#bounds.at(-1)!;
  }

  gather(starts: Float64Array, length: number, target: Int32Array): void {
    for (let i = 0; i < starts.length; i++) {
      for (const { source, start, from, size } of this.#pieces(starts[i], length)) {
        const at = i * length + from;
        source.gather(Float64Array.of(start), size, target.subarray(at, at + size));
      }
    }
  }

  prefetch(starts: Float64Array, length: number): void {
    for (const begin of starts) {
      for (const { source, start, size } of this.#pieces(begin, length)) {
        source.prefetch?.(Float64Array.of(start), size);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const source of this.sources) source[Symbol.dispose]?.();
  }

  /** Where a run lies: usually in one source. */
  *#pieces(
    begin: number,
    length: number,
  ): Generator<{ source: TokenSource; start: number; from: number; size: number }> {
    if (!(begin >= 0 && begin + length <= this.count)) {
      throw new RangeError(`tokens ${begin} … ${begin + length} lie outside a data set of ${this.count}`);
    }
    for (let from = 0, shard = this.#shardOf(begin); from < length; shard++) {
      const start = begin + from - this.#bounds[shard];
      const size = Math.min(length - from, this.#bounds[shard + 1] - this.#bounds[shard] - start);
      if (size > 0) yield { source: this.sources[shard], start, from, size };
      from += size;
    }
  }

  /** The last source that begins at or before a token. */
  #shardOf(token: number): number {
    let [low, high] = [0, this.sources.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.#bounds[middle] <= token) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
