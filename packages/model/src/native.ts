/**
 * The native library: opens it, calls it, owns every address. No other module sees a pointer: they hold `Memory` (an
 * allocation) and pass `{ memory, byteOffset }`, or typed arrays, which are handed over for the length of one call and
 * never as an address (their bytes may move between calls).
 */
import { type Pointer, dlopen, toArrayBuffer } from "bun:ffi";
import { type Kind, type SymbolName, symbols } from "./symbols.ts";

const ABI_VERSION = 7;

/** Turns of libgomp's waiting loop, 20–50 ns each. */
const SPIN_COUNT = "1000";

/** MANTOU_OUT_OF_MEMORY */
export const OUT_OF_MEMORY = 2;
/** MANTOU_UNSUPPORTED */
const UNSUPPORTED = 3;
/** MANTOU_DEVICE_ERROR */
const DEVICE_ERROR = 5;

/** A native call failed; the message is the library's own. */
export class NativeError extends Error {
  override name = "NativeError";
  constructor(
    message: string,
    /** MANTOU_INVALID_ARGUMENT … MANTOU_DEVICE_ERROR. */
    readonly status: number,
  ) {
    super(message);
  }
}

/** A place in native memory. A `Tensor` is one. */
export interface Slice {
  readonly memory: Memory;
  readonly byteOffset: number;
}

export type HostArray = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array | Uint16Array;

type ArgumentOf<K extends Kind> = K extends "pointer" ? Slice | HostArray | MappedFile | Graph | null : number;
type WithoutContext<K extends readonly Kind[]> = K extends readonly ["context", ...infer Rest] ? Rest : K;
type ArgumentsOf<K> = K extends readonly [infer First extends Kind, ...infer Rest]
  ? [ArgumentOf<First>, ...ArgumentsOf<Rest>]
  : [];

/** What a caller passes to `name`: the context is filled in. */
export type CallArguments<N extends SymbolName> = ArgumentsOf<WithoutContext<(typeof symbols)[N]["parameters"]>>;

const ffiType = { context: "ptr", pointer: "ptr", i32: "i32", i64: "i64_fast", f32: "f32" } as const;
const ffiResult = { status: "i32", i32: "i32", size: "i64_fast", text: "cstring" } as const;

type RawFunction = (...args: unknown[]) => unknown;

// Set by the classes below: how this module, and it alone, reads their addresses.
let addressOf: (value: Memory | MappedFile) => number;
let fileAddress: (value: MappedFile) => number;
let graphAddress: (value: Graph) => number;

/** One loaded library with one context (a device, its streams and threads). */
export class Native implements Disposable {
  #functions: Record<SymbolName, RawFunction>;
  #context: number = 0;
  #owned = new Set<Disposable>();
  /** Memory that what is being captured will use again. */
  #capturing: Set<Memory> | undefined;
  /** Whether a call has failed on the device: that error has been told. */
  #deviceFailed = false;

  /**
   * @param path absolute path of the library
   * @param options ordinal of the device (GPU); threads, 0 for as many as the process may run on. Null for a library
   *   without a device, which only `size`, `imagine` and `imagineHost` can be asked of
   * @throws NativeError when the library cannot be loaded or speaks another version of the ABI
   */
  constructor(path: string, options: { device?: number; threads?: number } | null = {}) {
    const declarations = Object.fromEntries(
      Object.entries(symbols).map(([name, { result, parameters }]) => [
        name,
        { args: parameters.map((kind) => ffiType[kind]), returns: ffiResult[result] },
      ]),
    );
    limitSpinning();
    let library: { symbols: Record<string, unknown>; close(): void };
    try {
      library = dlopen(path, declarations as never);
    } catch (error) {
      throw new NativeError(`cannot load ${path}: ${(error as Error).message}`, 0);
    }
    this.#functions = library.symbols as Record<SymbolName, RawFunction>;
    const version = this.#functions.mantou_abi_version();
    if (version !== ABI_VERSION) {
      library.close();
      throw new NativeError(`${path} has ABI version ${version}, this program needs ${ABI_VERSION}: rebuild it`, 0);
    }
    if (options === null) return;
    const handle = new BigUint64Array(new ArrayBuffer(8));
    this.#check(this.#functions.mantou_context_create(options.device ?? 0, options.threads ?? 0, handle));
    this.#context = Number(handle[0]);
  }

  /** Calls a function that returns a status. @throws NativeError */
  call<N extends SymbolName>(name: N, ...args: CallArguments<N>): void {
    const status = this.#invoke(name, args);
    // What a driver says names no sizes.
    const sizes = () => args.map((value) => (typeof value === "number" ? value : "…")).join(", ");
    this.#check(status, status === DEVICE_ERROR ? `, called as ${name}(${sizes()})` : "");
  }

  /** Calls a function that returns a size in bytes. */
  size<N extends SymbolName>(name: N, ...args: CallArguments<N>): number {
    return Number(this.#invoke(name, args));
  }

  /**
   * Zero-filled device memory, freed with the context at the latest.
   * @param onFree called once, when it is freed
   * @throws NativeError when there is not enough
   */
  allocate(bytes: number, onFree: () => void = () => {}): Memory {
    if (!Number.isSafeInteger(bytes) || bytes < 0) throw new RangeError(`cannot allocate ${bytes} bytes`);
    const place = new BigUint64Array(new ArrayBuffer(8));
    this.#check(this.#functions.mantou_malloc(this.#live("mantou_malloc"), bytes, place));
    const address = Number(place[0]);
    const memory: Memory = new Memory(this, address, bytes, () => {
      this.#owned.delete(memory);
      this.#checkFreed(this.#functions.mantou_free(this.#context, address));
      onFree();
    });
    this.#owned.add(memory);
    return memory;
  }

  /** Host memory that copies fast and asynchronously, freed with the context at the latest. */
  allocateHost(bytes: number): HostMemory {
    if (!Number.isSafeInteger(bytes) || bytes <= 0) throw new RangeError(`cannot allocate ${bytes} bytes`);
    const place = new BigUint64Array(new ArrayBuffer(8));
    this.#check(this.#functions.mantou_malloc_host(this.#live("mantou_malloc_host"), bytes, place));
    const address = Number(place[0]);
    const memory: HostMemory = new HostMemory(this, address, bytes, () => {
      this.#owned.delete(memory);
      this.#checkFreed(this.#functions.mantou_free_host(this.#context, address));
    });
    this.#owned.add(memory);
    return memory;
  }

  /**
   * Captures what `body` queues on the compute stream, instead of doing it.
   * @returns undefined where the backend has no way to; `body` was not called then
   */
  capture(body: () => void): Graph | undefined {
    const context = this.#live("mantou_capture_begin");
    const status = this.#functions.mantou_capture_begin(context);
    if (status === UNSUPPORTED) return undefined;
    this.#check(status);
    const place = new BigUint64Array(new ArrayBuffer(8));
    const memories = new Set<Memory>();
    this.#capturing = memories;
    let ended: unknown;
    let isWhole = false;
    try {
      body();
      isWhole = true;
    } finally {
      this.#capturing = undefined;
      ended = this.#functions.mantou_capture_end(context, place);
      if (!isWhole && ended === 0) this.#functions.mantou_graph_destroy(context, Number(place[0]));
    }
    this.#check(ended);
    const address = Number(place[0]);
    const graph: Graph = new Graph(address, memories, () => {
      this.#owned.delete(graph);
      this.#checkFreed(this.#functions.mantou_graph_destroy(this.#context, address));
    });
    this.#owned.add(graph);
    return graph;
  }

  /** A stand-in of that size for planning, with nothing behind it: no call takes it. */
  imagine(bytes: number, onFree: () => void): Memory {
    return new Memory(this, 0, bytes, onFree);
  }

  /** The same of host memory. */
  imagineHost(bytes: number): HostMemory {
    return new HostMemory(this, 0, bytes, () => {});
  }

  /** Maps a file read-only. @throws NativeError naming the path */
  mapFile(path: string): MappedFile {
    if (path.includes("\0")) throw new NativeError(`a path cannot contain a NUL character: ${path}`, 1);
    this.#live("mantou_file_map");
    const handle = new BigUint64Array(new ArrayBuffer(8));
    this.#check(this.#functions.mantou_file_map(new TextEncoder().encode(`${path}\0`), handle));
    const address = Number(handle[0]);
    const file: MappedFile = new MappedFile(this, address, () => {
      this.#owned.delete(file);
      this.#check(this.#functions.mantou_file_unmap(address));
    });
    this.#owned.add(file);
    return file;
  }

  /** One line on the device: model, threads, instruction set. */
  describe(): string {
    const text = new Uint8Array(new ArrayBuffer(256));
    const context = this.#live("mantou_context_describe");
    this.#check(this.#functions.mantou_context_describe(context, text, text.length));
    return new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
  }

  /** What type weights and activations should have on this device, and why. */
  preferredType(): { type: "float32" | "bfloat16"; reason: string } {
    const [dtype, text] = [new Int32Array(new ArrayBuffer(4)), new Uint8Array(new ArrayBuffer(256))];
    const context = this.#live("mantou_context_preferred_dtype");
    this.#check(this.#functions.mantou_context_preferred_dtype(context, dtype, text, text.length));
    const reason = new TextDecoder().decode(text.subarray(0, text.indexOf(0)));
    return { type: dtype[0] === 1 ? "bfloat16" : "float32", reason };
  }

  [Symbol.dispose](): void {
    if (this.#context === 0) return;
    for (const resource of this.#owned) resource[Symbol.dispose]();
    this.#functions.mantou_context_destroy(this.#context);
    // The library stays loaded: its threads may still be inside it, and another device may share it.
    this.#context = 0;
  }

  #live(name: string): number {
    if (this.#context === 0) throw new NativeError(`${name}: the device is closed`, 0);
    return this.#context;
  }

  /** Turns arguments into what the FFI takes, refusing what it would silently coerce (undefined, NaN, overflow). */
  #invoke(name: SymbolName, args: readonly unknown[]): unknown {
    const parameters: readonly Kind[] = symbols[name].parameters;
    const raw: unknown[] = [];
    if (parameters[0] === "context") raw.push(this.#live(name));
    if (raw.length + args.length !== parameters.length) {
      throw new TypeError(`${name} takes ${parameters.length} arguments, not ${raw.length + args.length}`);
    }
    for (const value of args) raw.push(convert(name, raw.length, parameters[raw.length]!, value));
    if (this.#capturing) {
      for (const value of args as (Slice | null)[]) if (value?.memory) this.#capturing.add(value.memory);
    }
    return this.#functions[name](...raw);
  }

  #check(status: unknown, more = ""): void {
    if (status === 0) return;
    this.#deviceFailed ||= status === DEVICE_ERROR;
    throw new NativeError(`${String(this.#functions.mantou_last_error())}${more}`, Number(status));
  }

  /** A GPU on which a kernel has failed frees nothing either; saying so would hide the error that came first. */
  #checkFreed(status: unknown): void {
    if (status !== DEVICE_ERROR || !this.#deviceFailed) this.#check(status);
  }
}

/**
 * GNU OpenMP's idle threads spin for some 15 ms before they sleep, which makes everything slow as soon as another program
 * wants a core. They shall spin about as long as waking one takes; who has set a policy of his own keeps it. libgomp
 * reads the environment when it is loaded, and the environment that counts is C's, which `process.env` does not reach.
 */
function limitSpinning(): void {
  const { OMP_WAIT_POLICY, GOMP_SPINCOUNT } = process.env;
  if (process.platform !== "linux" || OMP_WAIT_POLICY !== undefined || GOMP_SPINCOUNT !== undefined) return;
  const text = (value: string) => new TextEncoder().encode(`${value}\0`);
  try {
    const libc = dlopen("libc.so.6", { setenv: { args: ["ptr", "ptr", "i32"], returns: "i32" } });
    libc.symbols.setenv(text("GOMP_SPINCOUNT"), text(SPIN_COUNT), 0);
    libc.close();
  } catch {
    // Another C library: OpenMP keeps its own ways.
  }
}

function convert(name: string, index: number, kind: Kind, value: unknown): unknown {
  if (kind === "pointer") {
    if (value === null) return null;
    if (ArrayBuffer.isView(value)) {
      // An empty array has no address; functions with a count of 0 do not look at it.
      return value.byteLength > 0 ? value : null;
    }
    if (value instanceof MappedFile) return fileAddress(value);
    if (value instanceof Graph) return graphAddress(value);
    const slice = value as Slice | undefined;
    if (slice?.memory instanceof Memory) {
      const offset = slice.byteOffset;
      if (!Number.isSafeInteger(offset) || offset < 0 || offset > slice.memory.bytes) {
        throw new RangeError(
          `${name}: byte offset ${offset} lies outside an allocation of ${slice.memory.bytes} bytes`,
        );
      }
      return addressOf(slice.memory) + offset;
    }
  } else if (typeof value === "number") {
    if (kind === "f32" ? !Number.isNaN(value) : Number.isSafeInteger(value)) {
      if (kind !== "i32" || (value | 0) === value) return value;
    }
  }
  throw new TypeError(`${name}: argument ${index} (${kind}) cannot be ${String(value)}`);
}

/** An allocation in device memory, freed by `using` or dispose. */
export class Memory implements Disposable {
  #address: number;
  #free: (() => void) | undefined;

  static {
    addressOf = (value) => {
      const memory = value as Memory;
      if (!memory.#free) throw new NativeError("native memory was used after it was freed", 0);
      if (memory.#address === 0) throw new NativeError("memory that was only planned was used", 0);
      return memory.#address;
    };
  }

  /** Made by `Native.allocate` and `imagine` alone. */
  constructor(
    readonly native: Native,
    address: number,
    readonly bytes: number,
    free: () => void,
  ) {
    this.#address = address;
    this.#free = free;
  }

  [Symbol.dispose](): void {
    const free = this.#free;
    this.#free = undefined;
    free?.();
  }
}

/**
 * Host memory at a fixed address, for asynchronous copies: what is copied from it must not be written, and what is copied
 * into it not be read, before the copy is done.
 */
export class HostMemory extends Memory {
  #bytes: Uint8Array | undefined;

  /** Made by `Native.allocateHost` and `imagineHost` alone. */
  constructor(native: Native, address: number, bytes: number, free: () => void) {
    super(native, address, bytes, free);
    this.#bytes = new Uint8Array(address === 0 ? new ArrayBuffer(0) : toArrayBuffer(address as Pointer, 0, bytes));
  }

  write(data: Float32Array | Int32Array, byteOffset = 0): void {
    if (!(data instanceof Float32Array || data instanceof Int32Array)) {
      throw new TypeError(`host memory takes a Float32Array or an Int32Array, not ${String(data)}`);
    }
    this.#live().set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), byteOffset);
  }

  float32(byteOffset: number): number {
    const bytes = this.#live();
    return new DataView(bytes.buffer, bytes.byteOffset).getFloat32(byteOffset, true);
  }

  #live(): Uint8Array {
    if (!this.#bytes) throw new NativeError("native memory was used after it was freed", 0);
    return this.#bytes;
  }

  override [Symbol.dispose](): void {
    this.#bytes = undefined;
    super[Symbol.dispose]();
  }
}

/** Captured work, freed by `using` or dispose. */
export class Graph implements Disposable {
  #address: number;
  #memories: Iterable<Memory>;
  #free: (() => void) | undefined;

  static {
    graphAddress = (graph) => {
      if (!graph.#free) throw new NativeError("a graph was used after it was freed", 0);
      for (const memory of graph.#memories) addressOf(memory); // what has been freed throws
      return graph.#address;
    };
  }

  /**
   * Made by `Native.capture` alone.
   * @param memories what the work was captured with
   */
  constructor(address: number, memories: Iterable<Memory>, free: () => void) {
    this.#address = address;
    this.#memories = memories;
    this.#free = free;
  }

  [Symbol.dispose](): void {
    const free = this.#free;
    this.#free = undefined;
    free?.();
  }
}

/** A file mapped read-only. Its length may change while it is mapped: every read asks the file system again. */
export class MappedFile implements Disposable {
  #address: number;
  #unmap: (() => void) | undefined;

  static {
    fileAddress = (file) => {
      if (!file.#unmap) throw new NativeError("a mapped file was used after it was closed", 0);
      return file.#address;
    };
  }

  /** Made by `Native.mapFile` alone. */
  constructor(
    readonly native: Native,
    address: number,
    unmap: () => void,
  ) {
    this.#address = address;
    this.#unmap = unmap;
  }

  /** The file's present size in bytes. */
  get bytes(): number {
    const size = new BigInt64Array(new ArrayBuffer(8));
    this.native.call("mantou_file_size", this, size);
    return Number(size[0]);
  }

  /** Bytes offset … offset + length - 1. @throws NativeError past the end */
  read(offset: number, length: number): Uint8Array {
    const target = new Uint8Array(new ArrayBuffer(length));
    this.native.call("mantou_file_read", this, offset, length, target);
    return target;
  }

  /**
   * Copies `starts.length` runs of `length` tokens into `tokens` (int32 [starts.length, length]).
   * @param layout where the array of tokens begins, and 2 or 4 bytes per token (unsigned, little-endian)
   * @throws NativeError for a run past the end or a token >= vocabSize
   */
  gather(
    layout: { offset: number; width: number; vocabSize: number },
    starts: Float64Array,
    length: number,
    tokens: Int32Array,
  ): void {
    if (!(starts instanceof Float64Array && tokens instanceof Int32Array)) {
      throw new TypeError("gather takes starts in a Float64Array and gives tokens in an Int32Array");
    }
    if (tokens.length < starts.length * length) {
      throw new RangeError(`${starts.length} runs of ${length} tokens do not fit into ${tokens.length}`);
    }
    const { offset, width, vocabSize } = layout;
    this.native.call("mantou_file_gather", this, offset, width, starts.length, length, starts, vocabSize, tokens);
  }

  /** Begins to read the same runs from the disk, without waiting. @throws NativeError for a run past the end */
  prefetch(layout: { offset: number; width: number }, starts: Float64Array, length: number): void {
    if (!(starts instanceof Float64Array)) throw new TypeError("prefetch takes starts in a Float64Array");
    const { offset, width } = layout;
    this.native.call("mantou_file_prefetch", this, offset, width, starts.length, length, starts);
  }

  [Symbol.dispose](): void {
    const unmap = this.#unmap;
    this.#unmap = undefined;
    unmap?.();
  }
}
