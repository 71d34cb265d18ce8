/**
 * A device: one loaded backend with its threads and memory. Everything native happens through one.
 */
import { readdirSync } from "node:fs";
import { BuildError, buildCpuLibrary } from "./build.ts";
import { type Emulation, buildCudaLibrary, buildEmulatedLibrary, findNvcc } from "./build-cuda.ts";
import { type CallArguments, type Graph, type HostMemory, type MappedFile, type Memory } from "./native.ts";
import { Native, NativeError } from "./native.ts";
import { MemoryAccount, type MemoryKind } from "./memory.ts";
import type { Call, Profile } from "./profile.ts";
import type { SymbolName } from "./symbols.ts";

/** `emulated` runs the CUDA kernels on the CPU, slowly and with every check: for tests. */
export type DeviceName = "cpu" | "cuda" | "emulated" | "auto";

/**
 * What matrix products are computed in: float32, or bfloat16 with float32 sums. Norms' statistics, softmax, losses,
 * gradients of parameters, the weights that the optimizer updates and its moments are float32 either way.
 */
export type Precision = "fp32" | "bf16";

export interface DeviceOptions {
  /** CPU threads; 0 or absent for as many as this process may run on. */
  threads?: number;
  /** How `emulated` is checked. Default: plain. */
  emulation?: Emulation;
  /** Receives the line that says a library was compiled. Default: standard error. */
  log?: (line: string) => void;
}

/** Operations and bytes a second at most. A multiply-add is two operations. */
export interface Peaks {
  float32Flops: number;
  /** In the best way to multiply bfloat16 matrices that the device has. */
  bfloat16Flops: number;
  bytesRead: number;
}

export class Device implements Disposable {
  #native: Native;
  /** What is being captured, and what was. */
  #capturing: Call[] | undefined;
  #captured = new WeakMap<Graph, Call[]>();
  /** What its memory is in use for. */
  readonly memory = new MemoryAccount();
  /** Whether it only counts memory: operations do nothing, and tensors hold nothing. */
  readonly isPlan: boolean = false;
  /** Receives every operation while it is set. Times mean something where operations end with their calls: the CPU. */
  profile: Profile | null = null;

  constructor(
    readonly name: Exclude<DeviceName, "auto">,
    /** Why this device: "asked for", or what `auto` found. */
    readonly reason: string,
    native: Native,
  ) {
    this.#native = native;
    this.memory.add("workspace", native.size("mantou_context_bytes"));
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

  /** Measures what the device can do at most; takes half a second. @throws NativeError where it cannot be measured */
  peaks(): Peaks {
    const bytes = 128 << 20;
    using memory = this.allocate(bytes);
    this.run("mantou_fill", { memory, byteOffset: 0 }, 0, bytes); // untouched pages would all be one
    const peaks = new Float64Array(new ArrayBuffer(24));
    this.run("mantou_measure_peaks", bytes, { memory, byteOffset: 0 }, peaks);
    return { float32Flops: peaks[0]!, bfloat16Flops: peaks[1]!, bytesRead: peaks[2]! };
  }

  /** Runs one operation of the ABI; the context argument is filled in. @throws NativeError */
  run<N extends SymbolName>(name: N, ...args: CallArguments<N>): void {
    this.#capturing?.push({ name, args });
    if (!this.profile || this.#capturing) {
      this.#native.call(name, ...args);
      return;
    }
    const started = performance.now();
    this.#native.call(name, ...args);
    this.profile.record({ name, args }, performance.now() - started);
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
   * @returns undefined where the backend has no way to; `body` was not called then
   */
  capture(body: () => void): Graph | undefined {
    const calls: Call[] = [];
    this.#capturing = calls;
    try {
      const graph = this.#native.capture(body);
      if (graph) this.#captured.set(graph, calls);
      return graph;
    } finally {
      this.#capturing = undefined;
    }
  }

  /** Runs what was captured, on the same memory. */
  replay(graph: Graph): void {
    const times = this.profile?.recordReplay(this.#captured.get(graph)!) ?? null;
    this.#native.call("mantou_graph_replay", graph, times);
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
 * another, and then reads `memory`, or `profile` for what there would be to compute. Sizes of workspaces are those of the
 * library that it is made with.
 */
export class PlanningDevice extends Device {
  #native: Native;
  override readonly isPlan = true;

  constructor(name: "cpu" | "cuda", reason: string, native: Native) {
    super(name, reason, native);
    this.#native = native;
  }

  override run<N extends SymbolName>(name: N, ...args: CallArguments<N>): void {
    this.profile?.record({ name, args }, 0);
  }

  override capture(): undefined {}

  override allocate(bytes: number, kind: MemoryKind = "other"): Memory {
    this.memory.add(kind, bytes);
    return this.#native.imagine(bytes, () => this.memory.add(kind, -bytes));
  }

  override allocateHost(bytes: number): HostMemory {
    return this.#native.imagineHost(bytes);
  }
}

/**
 * A device to plan on; it needs no GPU and no nvcc: compiled for the emulator, the CUDA kernels ask for the same workspaces.
 * @throws BuildError without a compiler
 */
export function openPlanningDevice(name: "cpu" | "cuda", options: Pick<DeviceOptions, "log"> = {}): PlanningDevice {
  // Where a run will need nvcc's library, that one is built.
  const buildGpuLibrary = () =>
    hasGpu() && findNvcc() ? buildCudaLibrary(options) : buildEmulatedLibrary("plain", options);
  const library = name === "cpu" ? buildCpuLibrary(options) : buildGpuLibrary();
  return new PlanningDevice(name, "a plan", new Native(library, null));
}

/**
 * Opens a device, compiling its kernels first if need be. `auto` takes the best one that works here, and its reason says
 * why no better one does.
 * @throws BuildError without a compiler; NativeError for a device that this machine does not have
 */
export function openDevice(name: DeviceName = "auto", options: DeviceOptions = {}): Device {
  const { threads = 0, emulation = "plain", log } = options;
  if (!Number.isInteger(threads) || threads < 0 || threads > 4096) {
    throw new RangeError(`threads must be a whole number from 0 to 4096, not ${threads}`);
  }
  switch (name) {
    case "cpu":
      return new Device("cpu", "asked for", new Native(buildCpuLibrary({ log }), { threads }));
    case "cuda":
      return openCuda("asked for", log);
    case "emulated":
      return new Device("emulated", "asked for", new Native(buildEmulatedLibrary(emulation, { log }), { threads }));
    case "auto": {
      let reason = NO_GPU;
      try {
        if (hasGpu()) return openCuda("a GPU was found", log);
      } catch (error) {
        if (!(error instanceof NativeError || error instanceof BuildError)) throw error;
        reason = error.message;
      }
      return new Device("cpu", reason, new Native(buildCpuLibrary({ log }), { threads }));
    }
    default:
      throw new RangeError(`unknown device "${String(name)}": use "cpu", "cuda" or "auto"`);
  }
}

const NO_GPU = "no NVIDIA GPU found (nothing like /dev/nvidia0 or /dev/dxg)";

function openCuda(reason: string, log: DeviceOptions["log"]): Device {
  // Asked before anything is compiled for a GPU that is not there.
  if (!hasGpu()) throw new NativeError(`device cuda: ${NO_GPU}; use --device cpu`, 0);
  return new Device("cuda", reason, new Native(buildCudaLibrary({ log })));
}

/** Whether the driver has put a GPU among the machine's devices: Linux, WSL 2, Jetson. */
export function hasGpu(directory = "/dev"): boolean {
  try {
    return readdirSync(directory).some((name) => /^(nvidia\d+|dxg|nvhost-gpu)$/.test(name));
  } catch {
    return false;
  }
}
