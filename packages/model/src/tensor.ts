/**
 * A tensor: row-major numbers in device memory. Views share their memory with the tensor they came from.
 */
import type { Device } from "./device.ts";
import { fromBfloat16, toBfloat16 } from "./half.ts";
import type { MemoryKind } from "./memory.ts";
import type { Memory, Slice } from "./native.ts";

export type DType = "float32" | "bfloat16" | "int32";

/** The types of activations and weights. */
export type FloatType = Exclude<DType, "int32">;

/** The arrays that cross the library's border: row-major, `data.length` = product of `shape`. */
export interface NdArray {
  shape: number[];
  data: Float32Array | Int32Array | Uint8Array;
}

/** How the ABI numbers the types of activations and weights (enum mantou_dtype). */
export const MANTOU_DTYPES: Record<FloatType, number> = { float32: 0, bfloat16: 1 };

/** Bytes of one element. */
export const ELEMENT_BYTES: Record<DType, number> = { float32: 4, bfloat16: 2, int32: 4 };

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
    if (byteOffset + this.bytes > memory.bytes) {
      throw new RangeError(`a tensor [${shape.join(", ")}] at byte ${byteOffset} exceeds ${memory.bytes} bytes`);
    }
  }

  /** Zeros in memory of its own. @throws NativeError when there is not enough memory */
  static zeros(device: Device, shape: readonly number[], dtype: DType = "float32", kind?: MemoryKind): Tensor {
    const memory = device.allocate(Math.max(elementCount(shape), 1) * ELEMENT_BYTES[dtype], kind);
    return new Tensor(device, memory, 0, shape, dtype);
  }

  /** A copy of host data; of floats as `dtype`. */
  static from(
    device: Device,
    shape: readonly number[],
    data: Float32Array | Int32Array,
    dtype: FloatType = "float32",
  ): Tensor {
    const tensor = Tensor.zeros(device, shape, data instanceof Int32Array ? "int32" : dtype);
    tensor.upload(data);
    return tensor;
  }

  get bytes(): number {
    return this.count * ELEMENT_BYTES[this.dtype];
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
    return new Tensor(
      this.device,
      this.memory,
      this.byteOffset + offset * ELEMENT_BYTES[this.dtype],
      shape,
      this.dtype,
    );
  }

  /** Rows first … first + count - 1 of a [rows, columns] tensor. */
  slice(first: number, count: number): Tensor {
    return this.view([count, this.columns], first * this.columns);
  }

  /** Copies host data into the tensor; floats are rounded to its dtype. */
  upload(data: Float32Array | Int32Array): void {
    this.#checkHost(data);
    const bytes = this.dtype === "bfloat16" ? toBfloat16(data as Float32Array) : data;
    this.device.run("mantou_copy", this, bytes, this.bytes);
  }

  /** Copies the tensor into host memory, floats as float32, after everything queued before. */
  download(data: Float32Array | Int32Array): void {
    this.#checkHost(data);
    if (this.dtype !== "bfloat16") {
      this.device.run("mantou_copy", data, this, this.bytes);
      return;
    }
    const bits = new Uint16Array(new ArrayBuffer(this.bytes));
    this.device.run("mantou_copy", bits, this, this.bytes);
    data.set(fromBfloat16(bits));
  }

  toFloat32Array(): Float32Array {
    const data = new Float32Array(new ArrayBuffer(this.count * 4));
    this.download(data);
    return data;
  }

  /** Copies another tensor's elements; as an operation, without waiting. */
  copyFrom(source: Tensor): void {
    if (source.count !== this.count || source.dtype !== this.dtype) {
      throw new RangeError(`cannot copy [${source.shape.join(", ")}] into [${this.shape.join(", ")}]`);
    }
    this.device.run("mantou_copy_async", this, source, this.bytes, 0);
  }

  zero(): void {
    this.device.run("mantou_fill", this, 0, this.bytes);
  }

  /** Frees the memory, which views share. */
  [Symbol.dispose](): void {
    this.memory[Symbol.dispose]();
  }

  #checkHost(data: Float32Array | Int32Array): void {
    const isInt32 = this.dtype === "int32";
    // Bytes of any other array would be copied as they are, and more of them than it has.
    if (data.length !== this.count || !(data instanceof (isInt32 ? Int32Array : Float32Array))) {
      const kinds = { Float32Array: "float32", Int32Array: "int32" } as Record<string, string>;
      const name = (data as object).constructor.name;
      throw new RangeError(
        `host data ${kinds[name] ?? name} of ${data.length} elements does not match a ${this.dtype} tensor ` +
          `[${this.shape.join(", ")}]`,
      );
    }
  }
}
