/**
 * Token data sets: arrays of little-endian uint16 or uint32 in a file that is mapped read-only (`.bin` with a JSON
 * sidecar, or `.npy`), or in memory; and batches drawn from them by a counter-based generator, so that sample number n
 * is a function of (seed, n) alone: a resumed run, or one spread over several processes, sees the same data.
 */
import { existsSync, readFileSync, rmSync } from "node:fs";
import { type Device, type MappedFile, NativeError, writeAtomically } from "@mantou/model";
import { z } from "zod";
import { UserError } from "./errors.ts";
import { type Order, startOf } from "./order.ts";
import { OutputFile } from "./output-file.ts";

/** Tokens that can be read in runs. */
export interface TokenSource {
  /** Number of tokens. */
  readonly count: number;
  /** Copies the runs that begin at `starts`, `length` tokens each, to `target` (int32 [starts.length, length]). */
  gather(starts: Float64Array, length: number, target: Int32Array): void;
  /** Begins to fetch the same runs from the disk, without waiting for them. */
  prefetch?(starts: Float64Array, length: number): void;
}

/** Tokens in memory. */
export class ArrayTokens implements TokenSource {
  constructor(readonly tokens: Uint16Array | Uint32Array) {}

  get count(): number {
    return this.tokens.length;
  }

  gather(starts: Float64Array, length: number, target: Int32Array): void {
    starts.forEach((start, i) => {
      if (start < 0 || start + length > this.count) {
        throw new RangeError(`tokens ${start} … ${start + length} lie outside a data set of ${this.count}`);
      }
      target.set(this.tokens.subarray(start, start + length), i * length);
    });
  }
}

/** What the file beside `NAME.bin`, `NAME.bin.json`, says about it. */
const sidecarSchema = z.strictObject({
  format: z.literal("mantou-tokens"),
  version: z.literal(1),
  dtype: z.enum(["uint16", "uint32"]),
  count: z.int().min(0),
  vocabSize: z.int().min(1),
  tokenizerHash: z.string(),
});

export type Sidecar = z.output<typeof sidecarSchema>;

export function sidecarPath(path: string): string {
  return `${path}.json`;
}

/**
 * Writes a token file and its sidecar piece by piece. Both appear whole or not at all, the sidecar last; a writer that is
 * disposed of before `finish` leaves nothing.
 */
export class TokenWriter implements Disposable {
  #file: OutputFile;
  #count = 0;
  #dtype: Sidecar["dtype"];

  constructor(
    readonly path: string,
    readonly about: { vocabSize: number; tokenizerHash: string },
  ) {
    this.#dtype = about.vocabSize <= 0x1_0000 ? "uint16" : "uint32";
    this.#file = new OutputFile(path);
  }

  /** @throws RangeError for an id that is not below vocabSize */
  append(ids: Uint32Array | Int32Array | Uint16Array): void {
    const { vocabSize } = this.about;
    for (const id of ids) {
      if (id < 0 || id >= vocabSize) throw new RangeError(`token ${id} is not in a vocabulary of ${vocabSize}`);
    }
    const Packed = this.#dtype === "uint16" ? Uint16Array : Uint32Array;
    const packed = ids instanceof Packed ? ids : new Packed(ids);
    this.#file.append(new Uint8Array(packed.buffer, packed.byteOffset, packed.byteLength));
    this.#count += ids.length;
  }

  finish(): Sidecar {
    const place = sidecarPath(this.path);
    // An old sidecar must not describe the new tokens.
    this.#file.finish(() => rmSync(place, { force: true }));
    const { vocabSize, tokenizerHash } = this.about;
    const sidecar: Sidecar = {
      format: "mantou-tokens",
      version: 1,
      dtype: this.#dtype,
      count: this.#count,
      vocabSize,
      tokenizerHash,
    };
    writeAtomically(place, [new TextEncoder().encode(`${JSON.stringify(sidecar, null, 2)}\n`)]);
    return sidecar;
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

/**
 * Writes tokens to `path` and its sidecar. Both appear whole or not at all.
 * @param chunks token ids, each below vocabSize
 * @throws RangeError for an id that is not
 */
export function writeTokens(
  path: string,
  chunks: Iterable<Uint32Array | Int32Array>,
  about: { vocabSize: number; tokenizerHash: string },
): Sidecar {
  using writer = new TokenWriter(path, about);
  for (const chunk of chunks) writer.append(chunk);
  return writer.finish();
}

/** @throws UserError when there is no sidecar or it is not one of ours */
export function readSidecar(path: string): Sidecar {
  const place = sidecarPath(path);
  if (!existsSync(place)) {
    throw new UserError(`${path} has no sidecar ${place}`, {
      fix: "make the data set with `bun run tokenizer encode`",
    });
  }
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(place, "utf8"));
  } catch (cause) {
    throw new UserError(`${place} is not valid JSON: ${(cause as Error).message}`, { fix: "encode again", cause });
  }
  const parsed = sidecarSchema.safeParse(content);
  if (!parsed.success) {
    throw new UserError(`${place} does not describe a data set: ${z.prettifyError(parsed.error)}`, {
      fix: "encode again",
    });
  }
  return parsed.data;
}

/** What a data set must fit to. */
export interface DatasetExpectation {
  /** Ids must be below it. */
  vocabSize: number;
  /** Hash of the tokenizer that must have made it; undefined: any. */
  tokenizerHash?: string;
}

/** A data set in a file. */
export class TokenFile implements TokenSource, Disposable {
  #file: MappedFile;
  #layout: { offset: number; width: number; vocabSize: number };
  readonly count: number;

  /**
   * Opens `NAME.bin` with its sidecar, `NAME.npy` (one axis of uint16 or uint32), or any other file of raw tokens, which
   * are uint16, or uint32 where the vocabulary needs it.
   * @throws UserError for a file that is damaged, made by another tokenizer or for a larger vocabulary
   */
  constructor(
    device: Device,
    readonly path: string,
    expected: DatasetExpectation,
  ) {
    if (!existsSync(path)) throw new UserError(`there is no data set ${path}`, { fix: "check the path" });
    const isBare = path.endsWith(".npy") || !existsSync(sidecarPath(path));
    const sidecar = isBare ? undefined : readSidecar(path);
    if (sidecar) checkSidecar(path, sidecar, expected);
    this.#file = device.mapFile(path);
    try {
      const { vocabSize } = expected;
      const bytes = this.#file.bytes;
      if (sidecar) {
        const width = sidecar.dtype === "uint16" ? 2 : 4;
        this.#layout = { offset: 0, width, vocabSize };
        this.count = sidecar.count;
        if (bytes !== this.count * width) {
          throw new UserError(`${path} has ${bytes} bytes, its sidecar says ${this.count * width}`, {
            fix: "the file was cut off or changed: encode again",
          });
        }
      } else {
        const isNpy = path.endsWith(".npy");
        const { offset, width, count } = isNpy ? readNpyHeader(this.#file, path) : rawLayout(path, bytes, vocabSize);
        this.#layout = { offset, width, vocabSize };
        this.count = count;
      }
    } catch (error) {
      this.#file[Symbol.dispose]();
      throw error;
    }
  }

  gather(starts: Float64Array, length: number, target: Int32Array): void {
    try {
      this.#file.gather(this.#layout, starts, length, target);
    } catch (cause) {
      if (!(cause instanceof NativeError && cause.message.includes("is not below vocab_size"))) throw cause;
      const fix = "give the tokens of this tokenizer: bun run tokenizer encode makes them of a text";
      throw new UserError(cause.message.replace(/^mantou_\w+: /, ""), { fix, exitCode: 1, cause });
    }
  }

  prefetch(starts: Float64Array, length: number): void {
    this.#file.prefetch(this.#layout, starts, length);
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }
}

function rawLayout(path: string, bytes: number, vocabSize: number): { offset: number; width: number; count: number } {
  const width = vocabSize <= 0x1_0000 ? 2 : 4;
  if (bytes % width !== 0) {
    throw new UserError(`${path} has ${bytes} bytes, which are no whole number of uint${8 * width} tokens`, {
      fix: "give a whole file of raw tokens, one with its sidecar, or a .npy",
    });
  }
  return { offset: 0, width, count: bytes / width };
}

function checkSidecar(path: string, sidecar: Sidecar, expected: DatasetExpectation): void {
  if (expected.tokenizerHash !== undefined && sidecar.tokenizerHash !== expected.tokenizerHash) {
    const hashes = `${sidecar.tokenizerHash}, not ${expected.tokenizerHash}`;
    throw new UserError(`${path} was made by another tokenizer (${hashes})`, {
      fix: "encode the text with this run's tokenizer, or train with the tokenizer that made it (--tokenizer.path)",
    });
  }
  if (sidecar.vocabSize > expected.vocabSize) {
    throw new UserError(`${path} has ids up to ${sidecar.vocabSize - 1}, the model knows ${expected.vocabSize}`, {
      fix: `use --model.vocabSize ${sidecar.vocabSize}`,
    });
  }
}

/** The format's specification: numpy.lib.format, versions 1.0 to 3.0. */
function readNpyHeader(file: MappedFile, path: string): { offset: number; width: number; count: number } {
  const refuse = (what: string) =>
    new UserError(`${path} ${what}`, { fix: "save a one-dimensional uint16 or uint32 array with numpy.save" });
  const bytes = file.bytes;
  const magic = bytes >= 12 ? file.read(0, 12) : new Uint8Array(12);
  if (String.fromCharCode(...magic.subarray(1, 6)) !== "NUMPY" || magic[0] !== 0x93) throw refuse("is no .npy file");
  const view = new DataView(magic.buffer, magic.byteOffset);
  const long = magic[6]! > 1;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const offset = (long ? 12 : 10) + length;
  if (offset > bytes) throw refuse("is cut off in its header");
  const header = new TextDecoder().decode(file.read(long ? 12 : 10, length));
  const dtype = /'descr':\s*'[<|]u([24])'/.exec(header);
  const shape = /'shape':\s*\((\d+),\)/.exec(header);
  if (!dtype || !shape) throw refuse(`holds something else: ${header.trim()}`);
  const [width, count] = [Number(dtype[1]), Number(shape[1])];
  if (offset + width * count !== bytes) throw refuse(`has ${bytes} bytes, its header says ${offset + width * count}`);
  return { offset, width, count };
}

export interface Batch {
  /** int32 [batchSize, contextLength]. */
  inputs: Int32Array;
  /** The same, one token later. */
  targets: Int32Array;
}

/**
 * Refuses data that are too short for a single run.
 * @param what the data, at the beginning of a sentence
 * @param count tokens, or bytes of text, of which there are at least as many
 * @param options or: another way out than more text and a smaller context
 * @throws UserError
 */
export function checkLength(
  what: string,
  count: number,
  contextLength: number,
  { unit = "tokens", atMost = count - 1, or = "" } = {},
): void {
  if (count > contextLength) return;
  const has = `${count} ${count === 1 ? unit.replace(/s$/, "") : unit}`;
  throw new UserError(`${what} has ${has}, too few for a context of ${contextLength} tokens and the one after`, {
    fix: `give more text, ${or}or a smaller --model.context-length${atMost > 0 ? ` (${atMost} at most)` : ""}`,
  });
}

/** Reads runs of contextLength + 1 tokens and splits them into inputs and targets. */
export class BatchReader {
  #runs: Int32Array;
  readonly #batch: Batch;

  constructor(
    readonly source: TokenSource,
    readonly batchSize: number,
    readonly contextLength: number,
  ) {
    checkLength("the data", source.count, contextLength);
    this.#runs = new Int32Array(new ArrayBuffer(batchSize * (contextLength + 1) * 4));
    const size = batchSize * contextLength;
    this.#batch = { inputs: new Int32Array(size), targets: new Int32Array(size) };
  }

  /** The batch whose runs begin at `starts`, at most batchSize of them. The arrays are used again by the next call. */
  read(starts: Float64Array): Batch {
    const { contextLength: length } = this;
    this.source.gather(starts, length + 1, this.#runs);
    const { inputs, targets } = this.#batch;
    for (let i = 0; i < starts.length; i++) {
      const run = this.#runs.subarray(i * (length + 1), (i + 1) * (length + 1));
      inputs.set(run.subarray(0, length), i * length);
      targets.set(run.subarray(1), i * length);
    }
    const size = starts.length * length;
    return { inputs: inputs.subarray(0, size), targets: targets.subarray(0, size) };
  }

  /** Batch `step` of an order under `seed`: samples step · batchSize …. */
  at(order: Order, seed: number, step: number): Batch {
    return this.read(this.#starts(order, seed, step));
  }

  /** Begins to fetch a batch from the disk, so that reading it will not have to wait. */
  prefetch(order: Order, seed: number, step: number): void {
    this.source.prefetch?.(this.#starts(order, seed, step), this.contextLength + 1);
  }

  /** The places of `count` batches, for a message: the first few of them. */
  describe(order: Order, seed: number, step: number, count: number): string {
    const starts = Array.from({ length: count }, (_, i) => [...this.#starts(order, seed, step + i)]).flat();
    const shown = starts.slice(0, 4).join(", ");
    return `the ${this.contextLength + 1} tokens from each of ${shown}${starts.length > 4 ? " …" : ""}`;
  }

  #starts(order: Order, seed: number, step: number): Float64Array {
    const { source, batchSize, contextLength } = this;
    return Float64Array.from({ length: batchSize }, (_, i) =>
      startOf(order, seed, step * batchSize + i, source.count, contextLength),
    );
  }

  /** At most `batches` batches that cover the data evenly and without overlap, the same every time. */
  *sweep(batches: number): Generator<Batch> {
    const windows = Math.floor((this.source.count - 1) / this.contextLength);
    const count = Math.min(windows, batches * this.batchSize);
    for (let first = 0; first < count; first += this.batchSize) {
      const size = Math.min(this.batchSize, count - first);
      const starts = Float64Array.from(
        { length: size },
        (_, i) => Math.floor(((first + i) * windows) / count) * this.contextLength,
      );
      yield this.read(starts);
    }
  }
}
