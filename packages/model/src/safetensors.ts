/**
 * The safetensors format (https://github.com/huggingface/safetensors): a little-endian 64-bit header length, a JSON
 * header { name: { dtype, shape, data_offsets } }, the data. Written tensor by tensor, read tensor by tensor.
 */
import { closeSync, fsyncSync, openSync, readSync, renameSync, rmSync, statSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from "./half.ts";

/** Bytes per element of the dtypes that a file may have, not all of which we read. */
const DTYPES: Record<string, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  F8_E4M3: 1,
  F8_E5M2: 1,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U64: 8,
  U32: 4,
  U16: 2,
  U8: 1,
  BOOL: 1,
};

/** The format's own limit on the header. */
const MAX_HEADER = 100_000_000;

/** Bytes written in one go: writeSync takes less than 2³¹. */
const MOST_WRITTEN = 1 << 30;

/** One tensor to write; `data` is asked for when its turn comes, and rounded to `dtype`. */
export interface TensorEntry {
  name: string;
  dtype: "F32" | "F16" | "BF16";
  shape: readonly number[];
  data: () => Float32Array;
}

/** Where one tensor lies in a file. */
export interface TensorInfo {
  dtype: string;
  shape: number[];
  /** First byte and the byte after the last, from the file's beginning. */
  begin: number;
  end: number;
}

/** A file that is not what it should be. */
export class SafetensorsError extends Error {
  override name = "SafetensorsError";
}

/**
 * The parts of a file, in order. The header is padded so that data starts at a multiple of 64 bytes.
 * @throws RangeError for a name that is given twice or is the format's own, and for data that do not fill their shape
 */
export function* safetensorsChunks(entries: TensorEntry[], metadata: Record<string, string>): Generator<Uint8Array> {
  const header = new Map<string, unknown>([["__metadata__", metadata]]);
  let offset = 0;
  for (const { name, dtype, shape } of entries) {
    if (header.has(name)) throw new RangeError(`there are two tensors ${name}, or it is the format's own name`);
    const bytes = shape.reduce((a, b) => a * b, 1) * DTYPES[dtype]!;
    header.set(name, { dtype, shape, data_offsets: [offset, offset + bytes] });
    offset += bytes;
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(header)));
  const padded = Math.ceil((json.length + 8) / 64) * 64 - 8;
  const head = new Uint8Array(8 + padded).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(padded), true);
  head.set(json, 8);
  yield head;
  for (const { name, dtype, shape, data } of entries) {
    const floats = data();
    if (floats.length !== shape.reduce((a, b) => a * b, 1)) {
      throw new RangeError(`tensor ${name} [${shape.join(", ")}] cannot hold ${floats.length} values`);
    }
    const values = dtype === "F32" ? floats : dtype === "F16" ? toFloat16(floats) : toBfloat16(floats);
    yield new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  }
}

/**
 * Writes chunks to `path` so that it appears whole or not at all: temporary name, sync, rename.
 * @throws the system's error, naming the path; nothing is left behind then
 */
export function writeAtomically(path: string, chunks: Iterable<Uint8Array>): void {
  const temporary = `${path}.tmp-${process.pid}`;
  try {
    const file = openSync(temporary, "w");
    try {
      for (const chunk of chunks) {
        for (let done = 0; done < chunk.length;) done += writeSync(file, chunk.subarray(done, done + MOST_WRITTEN));
      }
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    // A failing write does not say where.
    if (error instanceof Error && !error.message.includes(path)) error.message = `${path}: ${error.message}`;
    throw error;
  }
  const directory = openSync(dirname(path), "r");
  fsyncSync(directory);
  closeSync(directory);
}

/** Reads bytes first … first + count - 1 of a source. */
type Reader = (first: number, count: number) => Uint8Array<ArrayBuffer>;

export class SafetensorsFile implements Disposable {
  readonly metadata: Record<string, string>;
  readonly tensors: Map<string, TensorInfo>;
  #read: Reader;
  #close: () => void;

  /** @param source a path, or the whole file's bytes. @throws SafetensorsError for anything that is not well-formed */
  constructor(source: string | Uint8Array) {
    let size: number;
    if (typeof source === "string") {
      size = statSync(source).size;
      const file = openSync(source, "r");
      this.#close = () => closeSync(file);
      this.#read = (first, count) => {
        const target = new Uint8Array(count);
        for (let done = 0; done < count;) {
          const got = readSync(file, target, done, count - done, first + done);
          if (got === 0) throw new SafetensorsError(`${source} ended at byte ${first + done}`);
          done += got;
        }
        return target;
      };
    } else {
      size = source.length;
      this.#close = () => {};
      // A copy of our own, since a Buffer's slice would be a view of its pool.
      this.#read = (first, count) => new Uint8Array(source.subarray(first, first + count));
    }
    const label = typeof source === "string" ? source : "these bytes";
    try {
      ({ metadata: this.metadata, tensors: this.tensors } = readHeader(this.#read, size, label));
    } catch (error) {
      this.#close();
      throw error;
    }
  }

  /** A tensor's numbers. @throws SafetensorsError if it is missing or not float32 */
  float32(name: string): { shape: number[]; data: Float32Array } {
    const info = this.#info(name);
    if (info.dtype !== "F32") throw new SafetensorsError(`tensor ${name} is ${info.dtype}, not F32`);
    return { shape: info.shape, data: new Float32Array(this.#bytes(info)) };
  }

  /** A tensor's numbers in float32, whatever kind of float they are. @throws SafetensorsError for any other dtype */
  toFloat32(name: string): { shape: number[]; data: Float32Array } {
    const info = this.#info(name);
    const { dtype, shape } = info;
    if (dtype === "F32") return this.float32(name);
    if (dtype === "BF16") return { shape, data: fromBfloat16(new Uint16Array(this.#bytes(info))) };
    if (dtype === "F16") return { shape, data: fromFloat16(new Uint16Array(this.#bytes(info))) };
    if (dtype === "F64") return { shape, data: Float32Array.from(new Float64Array(this.#bytes(info))) };
    throw new SafetensorsError(`tensor ${name} is ${dtype}, not F32, BF16, F16 or F64`);
  }

  #info(name: string): TensorInfo {
    const info = this.tensors.get(name);
    if (!info) throw new SafetensorsError(`there is no tensor ${name}`);
    return info;
  }

  /** A tensor's bytes, in a buffer of their own. */
  #bytes({ begin, end }: TensorInfo): ArrayBuffer {
    return this.#read(begin, end - begin).buffer;
  }

  [Symbol.dispose](): void {
    this.#close();
  }
}

function readHeader(read: Reader, size: number, label: string) {
  const wrong = (what: string) => new SafetensorsError(`${label} is not a whole safetensors file: ${what}`);
  if (size < 8) throw wrong(`${size} bytes are too few`);
  const length = Number(new DataView(read(0, 8).buffer).getBigUint64(0, true));
  if (length > MAX_HEADER || 8 + length > size) throw wrong(`a header of ${length} bytes in a file of ${size}`);
  let header: Record<string, unknown>;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(read(8, length))) as Record<string, unknown>;
  } catch (error) {
    throw wrong(`its header is not JSON (${(error as Error).message})`);
  }
  if (typeof header !== "object" || header === null || Array.isArray(header)) throw wrong("its header is no object");
  const tensors = new Map<string, TensorInfo>();
  let expected = 0;
  const entries = Object.entries(header).filter(([name]) => name !== "__metadata__");
  const parsed = entries.map(([name, entry]) => ({ name, ...parseEntry(name, entry, wrong) }));
  for (const { name, dtype, shape, begin, end } of parsed.sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== expected) throw wrong(`tensor ${name} starts at ${begin}, not at ${expected}`);
    expected = end;
    tensors.set(name, { dtype, shape, begin: 8 + length + begin, end: 8 + length + end });
  }
  if (8 + length + expected !== size) throw wrong(`${size} bytes, where its header promises ${8 + length + expected}`);
  const metadata = (header.__metadata__ ?? {}) as Record<string, string>;
  if (
    typeof metadata !== "object" ||
    Array.isArray(metadata) ||
    Object.values(metadata).some((value) => typeof value !== "string")
  ) {
    throw wrong("its metadata are not texts");
  }
  return { metadata, tensors };
}

function parseEntry(name: string, entry: unknown, wrong: (what: string) => Error) {
  const { dtype, shape, data_offsets: offsets } = (entry ?? {}) as Record<string, unknown>;
  const isSize = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
  const width = typeof dtype === "string" && Object.hasOwn(DTYPES, dtype) ? DTYPES[dtype] : undefined;
  if (width === undefined)
    throw wrong(`tensor ${name} has dtype ${typeof dtype === "string" ? dtype : JSON.stringify(dtype)}`);
  if (!Array.isArray(shape) || !shape.every(isSize)) throw wrong(`tensor ${name} has no valid shape`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw wrong(`tensor ${name} has no valid data_offsets`);
  }
  const [begin, end] = offsets as [number, number];
  const bytes = (shape as number[]).reduce((a, b) => a * b, 1) * width;
  if (end - begin !== bytes) throw wrong(`tensor ${name} has ${end - begin} bytes, its shape needs ${bytes}`);
  return { dtype: dtype as string, shape: shape as number[], begin, end };
}
