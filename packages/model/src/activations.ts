/**
 * The plan of a training step's memory: every layer asks for its buffers once, when it is built; a step allocates
 * nothing. Kept buffers hold what the backward pass reads; scratch buffers of one name are shared by all layers.
 */
import type { Device } from "./device.ts";
import { type DType, type FloatType, Tensor } from "./tensor.ts";

export class Activations implements Disposable {
  #scratch = new Map<string, Tensor>();
  #tensors: Tensor[] = [];
  #workspace: Tensor | undefined;
  #workspaceBytes = 0;

  constructor(
    readonly device: Device,
    /** Sequences per step. */
    readonly batchSize: number,
    /** Most tokens per sequence. */
    readonly contextLength: number,
    /** What activations are computed and kept in. */
    readonly type: FloatType = "float32",
  ) {}

  /** Most rows (tokens) of a step. */
  get rows(): number {
    return this.batchSize * this.contextLength;
  }

  /** Bytes planned so far. */
  get bytes(): number {
    return this.#tensors.reduce((sum, tensor) => sum + tensor.memory.bytes, 0);
  }

  /** A buffer of its own, of activations unless another type is given. */
  keep(shape: number[], dtype: DType = this.type): Tensor {
    const tensor = Tensor.zeros(this.device, shape, dtype);
    this.#tensors.push(tensor);
    return tensor;
  }

  /** The buffer of that name, shared by all who ask for it. */
  scratch(name: string, shape: number[]): Tensor {
    const known = this.#scratch.get(name);
    if (known) return known.view(shape);
    const tensor = this.keep(shape);
    this.#scratch.set(name, tensor);
    return tensor;
  }

  /** Sees to it that `workspace` will have at least `bytes` bytes. */
  reserve(bytes: number): void {
    if (this.#workspace) throw new Error("the workspace is in use already");
    this.#workspaceBytes = Math.max(this.#workspaceBytes, bytes);
  }

  /** Memory that operations use while they run; made at the first step. */
  get workspace(): Tensor {
    this.#workspace ??= this.keep([Math.ceil(this.#workspaceBytes / 4)], "float32");
    return this.#workspace;
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#tensors) tensor[Symbol.dispose]();
  }
}
