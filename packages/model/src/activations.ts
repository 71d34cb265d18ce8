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

  /** A buffer of its own, of activations unless another type is given. */
  keep(shape: number[], dtype: DType = this.type): Tensor {
    const tensor = Tensor.zeros(this.device, shape, dtype, "activations");
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

  /** Memory that operations use while they run; made when it is first asked for. */
  get workspace(): Tensor {
    if (!this.#workspace) {
      this.#workspace = Tensor.zeros(this.device, [Math.ceil(this.#workspaceBytes / 4)], "float32", "workspace");
      this.#tensors.push(this.#workspace);
    }
    return this.#workspace;
  }

  [Symbol.dispose](): void {
    for (const tensor of this.#tensors) tensor[Symbol.dispose]();
  }
}

/**
 * Activations of one of several equal layers that do not keep theirs at the same time: what each of them asks to keep,
 * in the same order, is one and the same buffer.
 */
export class SharedActivations extends Activations {
  #next = 0;

  /** @param pool the buffers, the same array for all the layers */
  constructor(
    readonly parent: Activations,
    readonly pool: Tensor[],
  ) {
    super(parent.device, parent.batchSize, parent.contextLength, parent.type);
  }

  override keep(shape: number[], dtype: DType = this.type): Tensor {
    const index = this.#next++;
    const tensor = this.pool[index] ?? this.parent.keep(shape, dtype);
    this.pool[index] = tensor;
    if (tensor.shape.join() !== shape.join() || tensor.dtype !== dtype) {
      throw new Error(`layers that share activations differ: [${tensor.shape.join(", ")}], [${shape.join(", ")}]`);
    }
    return tensor;
  }

  override scratch(name: string, shape: number[]): Tensor {
    return this.parent.scratch(name, shape);
  }

  override reserve(bytes: number): void {
    this.parent.reserve(bytes);
  }

  override get workspace(): Tensor {
    return this.parent.workspace;
  }
}
