/** The safetensors format: what is written is read back by us and by an independent parser; anything else is refused. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SafetensorsError, SafetensorsFile, type TensorEntry, fromBfloat16, fromFloat16 } from "@mantou/model";
import { safetensorsChunks, toBfloat16, toFloat16, writeAtomically } from "@mantou/model";
import { goldenModels } from "../support/golden.ts";
import { type FloatArray, generator, randomNormal } from "../support/ndarray.ts";

const folder = mkdtempSync(join(tmpdir(), "mantou-safetensors-"));
afterAll(() => rmSync(folder, { recursive: true }));

const arrays: Record<string, FloatArray> = {
  "layers.0.weight": randomNormal([3, 5], 1),
  scalar: randomNormal([], 2),
  empty: { shape: [0, 4], data: new Float32Array(0) },
  'a name with "quotes", Ünïcödé and \n': randomNormal([17], 3),
  __proto__x: randomNormal([2, 1, 3], 4),
};
const metadata = { format: "mantou", note: 'ä\n"' };

function entriesOf(given: Record<string, FloatArray>): TensorEntry[] {
  return Object.entries(given).map(([name, { shape, data }]) => ({ name, dtype: "F32", shape, data: () => data }));
}

function bytesOf(given: Record<string, FloatArray>): Uint8Array {
  return concatenated([...safetensorsChunks(entriesOf(given), metadata)]);
}

function concatenated(chunks: Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return bytes;
}

/** A file with the header as given and `size` bytes of data. */
function fileOf(header: string | object, size = 0): Uint8Array<ArrayBuffer> {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + size);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

function expectArrays(file: SafetensorsFile): void {
  expect([...file.tensors.keys()].sort()).toEqual(Object.keys(arrays).sort());
  for (const [name, array] of Object.entries(arrays)) expect(file.float32(name)).toEqual(array);
  expect(file.metadata).toEqual(metadata);
}

describe("round trip", () => {
  test("through bytes, wherever they lie in memory", () => {
    const bytes = bytesOf(arrays);
    using file = new SafetensorsFile(bytes);
    expectArrays(file);
    for (const offset of [1, 2, 7]) {
      const moved = Buffer.alloc(bytes.length + offset);
      moved.set(bytes, offset);
      using view = new SafetensorsFile(moved.subarray(offset));
      expectArrays(view);
    }
  });

  test("through a file", () => {
    const path = join(folder, "round-trip.safetensors");
    writeAtomically(path, safetensorsChunks(entriesOf(arrays), metadata));
    using file = new SafetensorsFile(path);
    expectArrays(file);
    // What a caller does with an array leaves the next reader alone.
    file.float32("scalar").data.fill(7);
    expectArrays(file);
  });

  test("an independent reading of the header finds the same, its data aligned to 64 bytes", () => {
    const bytes = bytesOf(arrays);
    const length = Number(new DataView(bytes.buffer).getBigUint64(0, true));
    expect((8 + length) % 64).toBe(0);
    const { __metadata__, ...tensors } = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    expect(__metadata__).toEqual(metadata);
    let end = 0;
    for (const [name, { shape, data }] of Object.entries(arrays)) {
      const { dtype, shape: storedShape, data_offsets: offsets } = tensors[name];
      expect([dtype, storedShape, offsets]).toEqual(["F32", shape, [end, end + 4 * data.length]]);
      const { buffer } = bytes.slice(8 + length + offsets[0], 8 + length + offsets[1]);
      expect(Array.from(new Float32Array(buffer))).toEqual(Array.from(data));
      end = offsets[1];
    }
    expect(8 + length + end).toBe(bytes.length);
  });

  test("files of another writer: PyTorch's goldens", () => {
    using file = new SafetensorsFile(join(import.meta.dir, "../golden/models.safetensors"));
    const { weights } = goldenModels().base;
    for (const [name, array] of Object.entries(weights)) expect(file.float32(`base/weights/${name}`)).toEqual(array);
    expect(() => file.float32("base/inputs")).toThrow("tensor base/inputs is I32, not F32");
    expect(() => file.float32("nothing")).toThrow("there is no tensor nothing");
  });

  test("16-bit floats are written rounded and read back as float32", () => {
    const values = Float32Array.of(1, -0.1, 65504, 1e-8, 3.14159265);
    const entries = (["F32", "F16", "BF16"] as const).map((dtype) => {
      return { name: dtype, dtype, shape: [5], data: () => values };
    });
    const bytes = concatenated([...safetensorsChunks(entries, {})]);
    using file = new SafetensorsFile(bytes);
    expect([...file.tensors.values()].map(({ begin, end }) => end - begin)).toEqual([20, 10, 10]);
    expect(file.toFloat32("F32").data).toEqual(values);
    expect(file.toFloat32("F16").data).toEqual(fromFloat16(toFloat16(values)));
    expect(file.toFloat32("BF16").data).toEqual(fromBfloat16(toBfloat16(values)));
    expect(() => file.float32("F16")).toThrow("tensor F16 is F16, not F32");
    const wide = fileOf({ a: { dtype: "F64", shape: [1], data_offsets: [0, 8] } }, 8);
    new DataView(wide.buffer).setFloat64(wide.length - 8, 0.1, true);
    expect(new SafetensorsFile(wide).toFloat32("a").data[0]).toBe(Math.fround(0.1));
    const whole = fileOf({ a: { dtype: "I32", shape: [1], data_offsets: [0, 4] } }, 4);
    expect(() => new SafetensorsFile(whole).toFloat32("a")).toThrow("tensor a is I32, not F32, BF16, F16 or F64");
  });

  test("tensors of kinds that we do not read are no reason to refuse a file", () => {
    for (const [dtype, bytes] of Object.entries({ U16: 2, U32: 4, U64: 8, F8_E4M3: 1, F8_E5M2: 1, I8: 1, BOOL: 1 })) {
      const b = { dtype: "F32", shape: [1], data_offsets: [3 * bytes, 3 * bytes + 4] };
      using file = new SafetensorsFile(
        fileOf({ a: { dtype, shape: [3], data_offsets: [0, 3 * bytes] }, b }, 3 * bytes + 4),
      );
      expect(file.toFloat32("b").data).toEqual(Float32Array.of(0));
      expect(() => file.toFloat32("a")).toThrow(`tensor a is ${dtype}, not F32`);
    }
  });

  test("a name that every object has is one like others; twice the same and data of another size are not written", () => {
    const entry = (name: string, count = 1) => {
      return { name, dtype: "F32" as const, shape: [1], data: () => new Float32Array(count) };
    };
    using file = new SafetensorsFile(concatenated([...safetensorsChunks([entry("__proto__")], {})]));
    expect(file.float32("__proto__").data).toEqual(Float32Array.of(0));
    expect(() => [...safetensorsChunks([entry("a"), entry("a")], {})]).toThrow("there are two tensors a");
    expect(() => [...safetensorsChunks([entry("__metadata__")], {})]).toThrow("the format's own name");
    expect(() => [...safetensorsChunks([entry("a", 2)], {})]).toThrow("tensor a [1] cannot hold 2 values");
  });

  test.skipIf(process.platform !== "linux")("a tensor of 2 GiB is written whole", () => {
    const path = join(folder, "large.safetensors");
    // Nothing needs the room: the bytes go to a device, and only the sync after the last of them fails.
    symlinkSync("/dev/null", `${path}.tmp-${process.pid}`);
    expect(() => writeAtomically(path, [new Uint8Array(2 ** 31)])).toThrow("fsync");
  });

  test("no tensors, no metadata", () => {
    using file = new SafetensorsFile(fileOf({}));
    expect([file.tensors.size, file.metadata]).toEqual([0, {}]);
  });
});

describe("refuses", () => {
  const tensor = (changes: object) => ({ a: { dtype: "F32", shape: [2], data_offsets: [0, 8], ...changes } });
  const cases: Record<string, [Uint8Array, string]> = {
    "no bytes": [new Uint8Array(0), "0 bytes are too few"],
    "half a length": [new Uint8Array(7), "7 bytes are too few"],
    "a header longer than the file": [fileOf({}).slice(0, 9), "a header of 2 bytes in a file of 9"],
    "a header longer than any": [new Uint8Array(16).fill(255), "a header of"],
    "a header that is not JSON": [fileOf("{"), "its header is not JSON"],
    "a header that is not UTF-8": [fileOf("{}").map((byte) => (byte === 0x7d ? 0xff : byte)), "not JSON"],
    "a header that is a list": [fileOf("[]"), "its header is no object"],
    "a header that is null": [fileOf("null"), "its header is no object"],
    "an entry that is null": [fileOf({ a: null }), "tensor a has dtype undefined"],
    "an unknown dtype": [fileOf(tensor({ dtype: "F31" }), 8), "tensor a has dtype F31"],
    "a dtype that every object has": [fileOf(tensor({ dtype: "constructor" }), 8), "has dtype constructor"],
    "a dtype that has no text": [fileOf(tensor({ dtype: { toString: [] } }), 8), 'has dtype {"toString":[]}'],
    "no shape": [fileOf(tensor({ shape: 2 }), 8), "tensor a has no valid shape"],
    "a negative length": [fileOf(tensor({ shape: [-2] }), 8), "no valid shape"],
    "a fractional length": [fileOf(tensor({ shape: [0.5] }), 8), "no valid shape"],
    "a length beyond 2⁵³": [fileOf('{"a":{"dtype":"F32","shape":[1e300],"data_offsets":[0,8]}}', 8), "no valid shape"],
    "no offsets": [fileOf(tensor({ data_offsets: [0] }), 8), "no valid data_offsets"],
    "offsets that are no numbers": [fileOf(tensor({ data_offsets: ["0", "8"] }), 8), "no valid data_offsets"],
    "negative offsets": [fileOf(tensor({ data_offsets: [-8, 0] }), 8), "no valid data_offsets"],
    "a shape of another size": [fileOf(tensor({ shape: [3] }), 8), "tensor a has 8 bytes, its shape needs 12"],
    "offsets in the wrong order": [fileOf(tensor({ data_offsets: [8, 0] }), 8), "tensor a has -8 bytes"],
    "shapes whose product overflows": [fileOf(tensor({ shape: [2 ** 40, 2 ** 40] }), 8), "tensor a has 8 bytes"],
    "data that are cut off": [fileOf(tensor({}), 7), "where its header promises"],
    "data that nobody owns": [fileOf(tensor({}), 9), "where its header promises"],
    "a gap": [fileOf(tensor({ data_offsets: [4, 12] }), 12), "tensor a starts at 4, not at 0"],
    "tensors that overlap": [
      fileOf({ ...tensor({}), b: { dtype: "F32", shape: [2], data_offsets: [4, 12] } }, 12),
      "tensor b starts at 4, not at 8",
    ],
    "metadata that are no texts": [fileOf({ __metadata__: { a: 1 } }), "its metadata are not texts"],
    "metadata that are a list": [fileOf({ __metadata__: ["a"] }), "its metadata are not texts"],
    "metadata that are a text": [fileOf({ __metadata__: "a" }), "its metadata are not texts"],
  };
  for (const [name, [bytes, message]] of Object.entries(cases)) {
    test(name, () => {
      expectRefusal(() => new SafetensorsFile(bytes), message);
      const path = join(folder, "refused.safetensors");
      writeFileSync(path, bytes);
      expectRefusal(() => new SafetensorsFile(path), message);
      expectRefusal(() => new SafetensorsFile(path), path);
    });
  }

  test("every truncation of a file", () => {
    const bytes = bytesOf(arrays);
    for (let length = 0; length < bytes.length; length++) {
      expectRefusal(() => new SafetensorsFile(bytes.subarray(0, length)), "not a whole safetensors file");
    }
  });

  test("a file that shrinks between opening and reading", () => {
    const path = join(folder, "shrinking.safetensors");
    const bytes = bytesOf(arrays);
    writeFileSync(path, bytes);
    using file = new SafetensorsFile(path);
    writeFileSync(path, bytes.subarray(0, bytes.length - 100));
    expectRefusal(() => file.float32("__proto__x"), "ended at byte");
  });

  test("5,000 damaged files never do worse than SafetensorsError", () => {
    const whole = bytesOf({ a: arrays.scalar, b: arrays["layers.0.weight"], empty: arrays.empty });
    const random = generator(1);
    const below = (limit: number) => Math.floor(random() * limit);
    const symbols = new TextEncoder().encode('{}[]:,"0123456789-.eE\\tfn');
    let refused = 0;
    for (let round = 0; round < 5_000; round++) {
      let bytes: Uint8Array = whole.slice();
      for (let change = below(4); change >= 0; change--) {
        const at = below(round % 2 === 0 ? Math.min(bytes.length, 300) : bytes.length);
        const kind = below(4);
        if (kind === 0) bytes[at] = below(256);
        else if (kind === 1) bytes[at] = symbols[below(symbols.length)];
        else if (kind === 2) bytes = concatenated([bytes.subarray(0, at), bytes.subarray(at + 1 + below(8))]);
        else bytes = concatenated([bytes.subarray(0, at), bytes.subarray(below(at + 1), at), bytes.subarray(at)]);
        if (bytes.length === 0) bytes = whole.slice();
      }
      try {
        using file = new SafetensorsFile(bytes);
        for (const [name, { dtype }] of file.tensors) if (dtype === "F32") file.float32(name);
      } catch (error) {
        if (!(error instanceof SafetensorsError)) throw error;
        refused++;
      }
    }
    expect(refused).toBeGreaterThan(3_000);
  });
});

describe("writing", () => {
  test("a failure leaves the file that was there, and nothing else", () => {
    const path = join(folder, "kept.safetensors");
    writeAtomically(path, [Uint8Array.of(1, 2, 3)]);
    const failing = function* () {
      yield Uint8Array.of(9);
      throw new Error("the disk is on fire");
    };
    expect(() => writeAtomically(path, failing())).toThrow("the disk is on fire");
    expect([...readFileSync(path)]).toEqual([1, 2, 3]);
    expect(readdirSync(folder).filter((name) => name.includes("kept"))).toEqual(["kept.safetensors"]);
    writeAtomically(path, [Uint8Array.of(4), new Uint8Array(0), Uint8Array.of(5)]);
    expect([...readFileSync(path)]).toEqual([4, 5]);
  });
});

function expectRefusal(body: () => unknown, message: string): void {
  let caught: unknown;
  try {
    body();
  } catch (error) {
    caught = error;
  }
  expect(caught).toBeInstanceOf(SafetensorsError);
  expect((caught as Error).message).toContain(message);
}
