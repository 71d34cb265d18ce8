/**
 * A tensor: row-major numbers in device memory. Views share their memory with the tensor they came from.
 */
import type { Device } from "./device.ts";
import type { Memory, Slice } from "./native.ts";

export type DType = "float32" | "int32";

/** The arrays that cross the library's border: row-major, `data.length` = product of `shape`. */
export interface NdArray {
  shape: number[];
  data: Float32Array | Int32Array | Uint8Array;
}

/** How the ABI numbers the types of activations and weights (enum mantou_dtype). */
export const MANTOU_FLOAT32 = 0;

const BYTES = 4; // of either dtype

export function elementCount(shape: readonly number[]): number {
  let count = 1;
  for (const size of shape) {
    if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`[${shape.join(", ")}] is not a shape`);
    count *= size;
  }
  return count;
}

export class Tensor implements Slice, Disposable {
  readonly shape: readonly number[];
  readonly count: number;

  private constructor(
    readonly device: Device,
    readonly memory: Memory,
    readonly byteOffset: number,
    shape: readonly number[],
    readonly dtype: DType,
  ) {
    this.shape = shape;
    this.count = elementCount(shape);
    if (byteOffset + this.count * BYTES > memory.bytes) {
      throw new RangeError(`a tensor [${shape.join(", ")}] at byte ${byteOffset} exceeds ${memory.bytes} bytes`);
    }
  }

  /** Zeros in memory of its own. @throws NativeError when there is not enough memory */
  static zeros(device: Device, shape: readonly number[], dtype: DType = "float32"): Tensor {
    const memory = device.allocate(Math.max(elementCount(shape) * BYTES, BYTES));
    return new Tensor(device, memory, 0, shape, dtype);
  }

  /** A copy of host data. */
  static from(device: Device, shape: readonly number[], data: Float32Array | Int32Array): Tensor {
    const tensor = Tensor.zeros(device, shape, data instanceof Int32Array ? "int32" : "float32");
    tensor.upload(data);
    return tensor;
  }

  /** Length of the last axis. */
  get columns(): number {
    return this.shape.at(-1) ?? 1;
  }

  /** Product of all axes but the last. */
  get rows(): number {
    return this.columns === 0 ? 0 : this.count / this.columns;
  }

  /** `shape` starting at element `offset` of this tensor. */
  view(shape: readonly number[], offset = 0): Tensor {
    if (!Number.isSafeInteger(offset) || offset < 0 || offset + elementCount(shape) > this.count) {
      throw new RangeError(`view [${shape.join(", ")}] at ${offset} exceeds a tensor [${this.shape.join(", ")}]`);
    }
    return new Tensor(this.device, this.memory, this.byteOffset + offset * BYTES, shape, this.dtype);
  }

  /** Rows first … first + count - 1 of a [rows, columns] tensor. */
  slice(first: number, count: number): Tensor {
    return this.view([count, this.columns], first * this.columns);
  }

  /** Copies host data into the tensor. */
  upload(data: Float32Array | Int32Array): void {
    this.#checkHost(data);
    this.device.run("mantou_copy", this, data, this.count * BYTES);
  }

  /** Copies the tensor into host memory, after everything queued before. */
  download(data: Float32Array | Int32Array): void {
    this.#checkHost(data);
    this.device.run("mantou_copy", data, this, this.count * BYTES);
  }

  toFloat32Array(): Float32Array {
    const data = new Float32Array(new ArrayBuffer(this.count * BYTES));
    this.download(data);
    return data;
  }

  /** Copies another tensor's elements. */
  copyFrom(source: Tensor): void {
    if (source.count !== this.count || source.dtype !== this.dtype) {
      throw new RangeError(`cannot copy [${source.shape.join(", ")}] into [${this.shape.join(", ")}]`);
    }
    this.device.run("mantou_copy", this, source, this.count * BYTES);
  }

  zero(): void {
    this.device.run("mantou_fill", this, 0, this.count * BYTES);
  }

  /** Frees the memory, which views share. */
  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
  }

  #checkHost(data: Float32Array | Int32Array): void {
    const dtype = data instanceof Int32Array ? "int32" : "float32";
    if (data.length !== this.count || dtype !== this.dtype) {
      throw new RangeError(
        `host data ${dtype} of ${data.length} elements does not match a ${this.dtype} tensor ` +
          `[${this.shape.join(", ")}]`,
      );
    }
  }
}
