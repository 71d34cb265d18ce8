/**
 * A device: one loaded backend with its threads and memory. Everything native happens through one.
 */
import { buildCpuLibrary } from "./build.ts";
import { type CallArguments, type Graph, type HostMemory, type MappedFile, type Memory } from "./native.ts";
import { Native, NativeError } from "./native.ts";
import { MemoryAccount, type MemoryKind } from "./memory.ts";
import type { SymbolName } from "./symbols.ts";

export type DeviceName = "cpu" | "cuda" | "auto";

/**
 * What matrix products are computed in: float32, or bfloat16 with float32 sums. Norms' statistics, softmax, losses,
 * gradients of parameters, the weights that the optimizer updates and its moments are float32 either way.
 */
export type Precision = "fp32" | "bf16";

export interface DeviceOptions {
  /** CPU threads; 0 or absent for as many as this process may run on. */
  threads?: number;
  /** Receives the line that says a library was compiled. Default: standard error. */
  log?: (line: string) => void;
}

export class Device implements Disposable {
  #native: Native;
  /** What its memory is in use for. */
  readonly memory = new MemoryAccount();
  /** Whether it only counts memory: operations do nothing, and tensors hold nothing. */
  readonly isPlan: boolean = false;

  constructor(
    readonly name: "cpu" | "cuda",
    /** Why this device: "asked for", or what `auto` found. */
    readonly reason: string,
    native: Native,
  ) {
    this.#native = native;
  }

  /** One line: processor or GPU, threads, instruction set. */
  get description(): string {
    return this.#native.describe();
  }

  /** Whether it works on what was queued while the host goes on. */
  get isAsynchronous(): boolean {
    return this.name !== "cpu";
  }

  /** The precision that this device is best at, and why. */
  get preferredPrecision(): { precision: Precision; reason: string } {
    const { type, reason } = this.#native.preferredType();
    return { precision: type === "bfloat16" ? "bf16" : "fp32", reason };
  }

  /** Runs one operation of the ABI; the context argument is filled in. @throws NativeError */
  run<N extends SymbolName>(name: N, ...args: CallArguments<N>): void {
    this.#native.call(name, ...args);
  }

  /** Asks a *_workspace function for a size in bytes. */
  size<N extends SymbolName>(name: N, ...args: CallArguments<N>): number {
    return this.#native.size(name, ...args);
  }

  /** Zero-filled memory; freed with the device at the latest. @throws NativeError when there is not enough */
  allocate(bytes: number, kind: MemoryKind = "other"): Memory {
    const memory = this.#native.allocate(bytes, () => this.memory.add(kind, -bytes));
    this.memory.add(kind, bytes);
    return memory;
  }

  /** Host memory for asynchronous copies (`mantou_copy_async`). */
  allocateHost(bytes: number): HostMemory {
    return this.#native.allocateHost(bytes);
  }

  /**
   * Captures the operations that `body` runs, for `replay`. They must not allocate, wait or copy synchronously.
   * @returns undefined where the backend does everything at once; `body` was not called then
   */
  capture(body: () => void): Graph | undefined {
    return this.#native.capture(body);
  }

  /** Runs what was captured, on the same memory. */
  replay(graph: Graph): void {
    this.run("mantou_graph_replay", graph);
  }

  /** Maps a file read-only. @throws NativeError naming the path */
  mapFile(path: string): MappedFile {
    return this.#native.mapFile(path);
  }

  /** Waits for everything that was queued. */
  synchronize(): void {
    this.run("mantou_synchronize");
  }

  [Symbol.dispose](): void {
    this.#native[Symbol.dispose]();
  }
}

/**
 * Counts what a program would allocate, for models that may not fit: it runs on this device what the program runs on
 * another, and then reads `memory`. Sizes of workspaces are those of the library that it is made with.
 */
export class PlanningDevice extends Device {
  #native: Native;
  override readonly isPlan = true;

  constructor(name: "cpu" | "cuda", reason: string, native: Native) {
    super(name, reason, native);
    this.#native = native;
  }

  override run(): void {}

  override allocate(bytes: number, kind: MemoryKind = "other"): Memory {
    this.memory.add(kind, bytes);
    return this.#native.imagine(bytes, () => this.memory.add(kind, -bytes));
  }
}

/**
 * A device to plan on; it needs no GPU.
 * @throws BuildError without a compiler
 */
export function openPlanningDevice(name: "cpu" | "cuda", options: Pick<DeviceOptions, "log"> = {}): PlanningDevice {
  return new PlanningDevice(name, "a plan", new Native(buildCpuLibrary(options), { threads: 1 }));
}

/**
 * Opens a device, compiling the CPU kernels first if need be. `auto` takes the best one that works here.
 * @throws BuildError without a compiler; NativeError for a device that this machine or version does not have
 */
export function openDevice(name: DeviceName = "auto", options: DeviceOptions = {}): Device {
  const threads = options.threads ?? 0;
  if (!Number.isInteger(threads) || threads < 0 || threads > 4096) {
    throw new RangeError(`threads must be a whole number from 0 to 4096, not ${threads}`);
  }
  if (name === "cuda") {
    throw new NativeError("device cuda: this version has no CUDA backend yet; use --device cpu", 0);
  }
  if (name !== "cpu" && name !== "auto") {
    throw new RangeError(`unknown device "${String(name)}": use "cpu", "cuda" or "auto"`);
  }
  const native = new Native(buildCpuLibrary({ log: options.log }), { threads });
  return new Device("cpu", name === "cpu" ? "asked for" : "this version has no CUDA backend yet", native);
}
