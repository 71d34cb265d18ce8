/**
 * The GGUF format, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): a header of typed key-value
 * pairs, one record per tensor, and the tensors' data at multiples of 32 bytes. Little-endian. Written, not read.
 */

export type GgufValue =
  | { type: "uint32" | "float32"; value: number }
  | { type: "bool"; value: boolean }
  | { type: "string"; value: string }
  | { type: "strings"; value: string[] }
  | { type: "int32s" | "float32s"; value: number[] };

export interface GgufTensor {
  name: string;
  /** Number of ggml's type. */
  type: number;
  /** Row-major, as everywhere here; the file has them the other way round. */
  shape: readonly number[];
  bytes: number;
  /** Asked for when its turn comes. */
  data: () => Uint8Array;
}

/** gguf_metadata_value_type. */
const TYPES = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 };

const ALIGNMENT = 32;

/** The parts of a file, in order. */
export function* ggufChunks(metadata: Record<string, GgufValue>, tensors: GgufTensor[]): Generator<Uint8Array> {
  const writer = new Writer();
  writer.bytes(new TextEncoder().encode("GGUF"));
  writer.uint32(3);
  writer.uint64(tensors.length);
  writer.uint64(Object.keys(metadata).length);
  for (const [key, entry] of Object.entries(metadata)) {
    writer.string(key);
    writeValue(writer, entry);
  }
  let offset = 0;
  for (const { name, type, shape, bytes } of tensors) {
    writer.string(name);
    writer.uint32(shape.length);
    for (const size of shape.toReversed()) writer.uint64(size);
    writer.uint32(type);
    writer.uint64(offset);
    offset += padded(bytes);
  }
  writer.bytes(new Uint8Array(padded(writer.length) - writer.length));
  yield writer.result();
  for (const { name, bytes, data } of tensors) {
    const content = data();
    if (content.length !== bytes) throw new Error(`tensor ${name} has ${content.length} bytes, not ${bytes}`);
    yield content;
    if (padded(bytes) > bytes) yield new Uint8Array(padded(bytes) - bytes);
  }
}

function padded(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}

function writeValue(writer: Writer, { type, value }: GgufValue): void {
  switch (type) {
    case "uint32":
      writer.uint32(TYPES.uint32);
      writer.uint32(value);
      break;
    case "float32":
      writer.uint32(TYPES.float32);
      writer.float32(value);
      break;
    case "bool":
      writer.uint32(TYPES.bool);
      writer.bytes(Uint8Array.of(Number(value)));
      break;
    case "string":
      writer.uint32(TYPES.string);
      writer.string(value);
      break;
    case "strings":
      writeArray(writer, TYPES.string, value, (each) => writer.string(each));
      break;
    case "int32s":
      writeArray(writer, TYPES.int32, value, (each) => writer.uint32(each >>> 0));
      break;
    case "float32s":
      writeArray(writer, TYPES.float32, value, (each) => writer.float32(each));
      break;
  }
}

function writeArray<T>(writer: Writer, type: number, values: readonly T[], write: (value: T) => void): void {
  writer.uint32(TYPES.array);
  writer.uint32(type);
  writer.uint64(values.length);
  for (const value of values) write(value);
}

/** Bytes that grow. */
class Writer {
  #bytes = new Uint8Array(1 << 16);
  length = 0;

  result(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }

  bytes(values: Uint8Array): void {
    this.#reserve(values.length);
    this.#bytes.set(values, this.length);
    this.length += values.length;
  }

  uint32(value: number): void {
    this.#reserve(4).setUint32(this.length, value, true);
    this.length += 4;
  }

  uint64(value: number): void {
    this.#reserve(8).setBigUint64(this.length, BigInt(value), true);
    this.length += 8;
  }

  float32(value: number): void {
    this.#reserve(4).setFloat32(this.length, value, true);
    this.length += 4;
  }

  string(text: string): void {
    const encoded = new TextEncoder().encode(text);
    this.uint64(encoded.length);
    this.bytes(encoded);
  }

  #reserve(count: number): DataView {
    if (this.length + count > this.#bytes.length) {
      const larger = new Uint8Array(Math.max(2 * this.#bytes.length, this.length + count));
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    return new DataView(this.#bytes.buffer);
  }
}
