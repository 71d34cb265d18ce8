/**
 * Documents out of files: text (divided by `<|endoftext|>`), JSON lines, Parquet, each but the last also as .gz or .zst. A
 * file is read in pieces of fixed size, or a row group at a time, and is never held whole.
 */
import { closeSync, createReadStream, openSync, readSync } from "node:fs";
import { createGunzip, createZstdDecompress } from "node:zlib";
import { parquetMetadataAsync, parquetReadObjects, parquetSchema } from "hyparquet";
import { compressors } from "hyparquet-compressors";
import { UserError } from "../errors.ts";

export const END_OF_TEXT = "<|endoftext|>";

/**
 * A text without ends of documents is cut into parts of about so many characters, at the ends of lines: small ones where
 * the text is small, so that some can be held out.
 */
const [SMALLEST_PART, LARGEST_PART, PARTS] = [1 << 12, 1 << 20, 64];

const READ = 1 << 20;
const WINDOW = 4 << 20;

/** After so much text its garbage is collected: left to itself the engine lets some 200 MB a thread gather. */
const COLLECT_AFTER = 8 << 20;

export type Format = "text" | "jsonl" | "parquet";
export type Compression = "none" | "gzip" | "zstd";

/** What a file's name says of it; undefined for names that say nothing. */
export function formatOf(path: string): { format: Format; compression: Compression } | undefined {
  const match = /^(.*?)(\.gz|\.zst)?$/s.exec(path.toLowerCase())!;
  const compression = match[2] === ".gz" ? "gzip" : match[2] === ".zst" ? "zstd" : "none";
  const extension = /\.([a-z0-9]+)$/.exec(match[1])?.[1];
  if (extension === "parquet") return compression === "none" ? { format: "parquet", compression } : undefined;
  if (extension === "jsonl" || extension === "ndjson" || extension === "json") return { format: "jsonl", compression };
  if (extension === "txt" || extension === "text" || extension === "md") return { format: "text", compression };
  return undefined;
}

/** A part of a file that is worked on by itself: bytes, or rows of a Parquet file; a compressed file is one piece. */
export interface Piece {
  path: string;
  format: Format;
  compression: Compression;
  begin: number;
  /** Behind the last byte or row. */
  end: number;
  /** Bytes of the file that it takes up, for the progress. */
  size: number;
}

/** Where the text of a document is found in a JSON object or a row. */
export interface ReadOptions {
  field: string;
  /** Told of the bytes of the file read so far. */
  onProgress?: (bytes: number) => void;
}

/** The documents of a piece, in order. @throws UserError naming the file, and line or row */
export async function* documentsOf(piece: Piece, options: ReadOptions): AsyncGenerator<string> {
  if (piece.format === "parquet") yield* parquetDocuments(piece, options);
  else if (piece.format === "jsonl") yield* jsonDocuments(piece, options);
  else yield* textDocuments(piece, options);
}

/** Told of the characters that went by, it collects garbage now and then. */
function garbageCollector(): (characters: number) => void {
  let uncollected = 0;
  return (characters) => {
    uncollected += characters;
    if (uncollected < COLLECT_AFTER) return;
    Bun.gc(true);
    uncollected = 0;
  };
}

/**
 * The text of a piece in chunks that are never cut within a character.
 * @param onProgress told of the bytes of the file read so far
 */
async function* chunksOf(piece: Piece, onProgress?: (bytes: number) => void): AsyncGenerator<string> {
  const { path, compression, begin, end } = piece;
  const file = createReadStream(path, { start: begin, end: end - 1, highWaterMark: READ });
  let read = 0;
  file.on("data", (chunk) => {
    read += chunk.length;
    onProgress?.(read);
  });
  const decompress = compression === "gzip" ? createGunzip() : compression === "zstd" ? createZstdDecompress() : null;
  if (decompress !== null) file.on("error", (error) => decompress.destroy(error));
  const stream = decompress === null ? file : file.pipe(decompress);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  try {
    const collect = garbageCollector();
    for await (const chunk of stream) {
      const text = decoder.decode(chunk as Uint8Array, { stream: true });
      yield text;
      collect(text.length);
    }
  } catch (cause) {
    if (decompress === null) throw cause;
    throw notWhole(path, compression, (cause as Error).message, cause);
  }
  yield decoder.decode();
}

export function notWhole(path: string, compression: Compression, why: string, cause?: unknown): UserError {
  const fix = "fetch or compress it again";
  return new UserError(`${path} is no whole ${compression} file: ${why}`, { fix, exitCode: 1, cause });
}

async function* textDocuments(piece: Piece, options: ReadOptions): AsyncGenerator<string> {
  const length = await partLength(piece);
  let rest = "";
  for await (const chunk of chunksOf(piece, options.onProgress)) {
    rest += chunk;
    const parts = rest.split(END_OF_TEXT);
    rest = parts.pop()!;
    for (const part of parts) yield part;
    while (rest.length > 2 * length) {
      const line = rest.indexOf("\n", length) + 1;
      // Without a line's end anywhere it is cut between characters, of which a surrogate pair is one.
      const cut = line > 0 ? line : length + (isLowSurrogate(rest.charCodeAt(length)) ? 1 : 0);
      yield rest.slice(0, cut);
      rest = rest.slice(cut);
    }
  }
  if (rest !== "") yield rest;
}

/** Reads what it needs to know: up to the first end of a document, of a text that is not so large as to not matter. */
async function partLength(piece: Piece): Promise<number> {
  const enough = LARGEST_PART * PARTS;
  if (piece.compression === "none" && piece.end - piece.begin >= enough) return LARGEST_PART;
  let length = 0;
  let before = "";
  for await (const chunk of chunksOf(piece)) {
    length += chunk.length;
    if (length >= enough || (before + chunk).includes(END_OF_TEXT)) return LARGEST_PART;
    before = chunk.slice(1 - END_OF_TEXT.length);
  }
  return Math.max(SMALLEST_PART, Math.ceil(length / PARTS));
}

/**
 * The place behind the first mark at or after `from`: of the first of `marks` that is found within a few megabytes, then
 * of those in the next ones; −1 where there is none before `end`.
 */
export function findInFile(path: string, from: number, end: number, marks: string[]): number {
  const overlap = Math.max(...marks.map((mark) => Buffer.byteLength(mark))) - 1;
  const window = Buffer.alloc(Math.min(WINDOW, end - from));
  const file = openSync(path, "r");
  try {
    for (let at = from; at < end; at += WINDOW - overlap) {
      const text = window.subarray(0, readSync(file, window, 0, Math.min(WINDOW, end - at), at));
      for (const mark of marks) {
        const found = text.indexOf(mark);
        if (found >= 0) return at + found + Buffer.byteLength(mark);
      }
    }
    return -1;
  } finally {
    closeSync(file);
  }
}

function isLowSurrogate(code: number): boolean {
  return code >= 0xdc00 && code < 0xe000;
}

async function* jsonDocuments(piece: Piece, options: ReadOptions): AsyncGenerator<string> {
  let rest = "";
  let line = 0;
  const where = () => `line ${line}${piece.begin > 0 ? ` after byte ${piece.begin}` : ""} of ${piece.path}`;
  const parse = (text: string): string[] => {
    line++;
    if (text.trim() === "") return [];
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (cause) {
      throw new UserError(`${where()} is not valid JSON: ${(cause as Error).message}`, {
        fix: "give JSON lines: one object a line",
        exitCode: 1,
        cause,
      });
    }
    return [textOf(value, options.field, where())];
  };
  for await (const chunk of chunksOf(piece, options.onProgress)) {
    rest += chunk;
    const lines = rest.split("\n");
    rest = lines.pop()!;
    for (const each of lines) yield* parse(each);
  }
  yield* parse(rest);
}

async function* parquetDocuments(piece: Piece, options: ReadOptions): AsyncGenerator<string> {
  const { path, begin, end, size } = piece;
  const { file, metadata } = await openParquet(path);
  const names = parquetSchema(metadata).children.map(({ element }) => element.name);
  if (!names.includes(options.field)) throw noField(options.field, names, path);
  const collect = garbageCollector();
  let row = 0;
  for (const { num_rows: rows } of metadata.row_groups) {
    const [first, last] = [Math.max(begin, row), Math.min(end, row + Number(rows))];
    row += Number(rows);
    if (first >= last) continue;
    const objects = await readRows(path, { file, metadata, columns: [options.field], rowStart: first, rowEnd: last });
    for (const [i, object] of objects.entries()) {
      const text = textOf(object, options.field, `row ${first + i} of ${path}`);
      yield text;
      collect(text.length);
    }
    options.onProgress?.(((last - begin) / (end - begin)) * size);
  }
}

async function readRows(path: string, options: Parameters<typeof parquetReadObjects>[0]): Promise<unknown[]> {
  try {
    return await parquetReadObjects({ ...options, compressors });
  } catch (cause) {
    throw damaged(path, cause);
  }
}

function damaged(path: string, cause: unknown): UserError {
  const why = cause instanceof Error ? cause.message : String(cause);
  return new UserError(`${path} is no whole Parquet file: ${why}`, {
    fix: "fetch or write it again",
    exitCode: 1,
    cause,
  });
}

/** @throws UserError for a file that is no Parquet file */
export async function openParquet(path: string) {
  const blob = Bun.file(path);
  const file = {
    byteLength: blob.size,
    slice: (start: number, end?: number) => blob.slice(start, end ?? blob.size).arrayBuffer(),
  };
  try {
    return { file, metadata: await parquetMetadataAsync(file) };
  } catch (cause) {
    throw damaged(path, cause);
  }
}

function textOf(value: unknown, field: string, where: string): string {
  const isObject = typeof value === "object" && value !== null;
  const text = isObject && Object.hasOwn(value, field) ? (value as Record<string, unknown>)[field] : undefined;
  if (typeof text === "string") return text;
  if (text === undefined) throw noField(field, isObject ? Object.keys(value) : [], where);
  throw new UserError(`${where}: "${field}" is no text but ${String(text).slice(0, 40)}`, {
    fix: "name another field with --field",
    exitCode: 1,
  });
}

function noField(field: string, names: string[], where: string): UserError {
  return new UserError(`${where} has no field "${field}"${names.length > 0 ? `, but ${names.join(", ")}` : ""}`, {
    fix: "name the field that holds the text: --field NAME",
    exitCode: 1,
  });
}
