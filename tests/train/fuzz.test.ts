/**
 * A fuzzer over the readers of files that may come from anywhere: safetensors, token files with their sidecars, .npy, a
 * Hugging Face config. Whatever the bytes, a reader gives what the file says or refuses it with the error that is meant for
 * it, and never reads outside it. FUZZ_RUNS=100000 makes it look longer.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SafetensorsError, SafetensorsFile, openDevice, safetensorsChunks } from "@mantou/model";
import fc from "fast-check";
import { TokenFile, sidecarPath, writeTokens } from "../../packages/train/src/dataset.ts";
import { UserError } from "../../packages/train/src/errors.ts";
import { fromHuggingFaceConfig } from "../../packages/train/src/llama/config.ts";

const numRuns = Number(process.env.FUZZ_RUNS ?? 400);
const folder = mkdtempSync(join(tmpdir(), "mantou-fuzz-"));
const device = openDevice("cpu", { threads: 1 });
afterAll(() => {
  device[Symbol.dispose]();
  rmSync(folder, { recursive: true });
});

/** Bytes of a sound file with some of them changed, cut out, put in or cut off. */
function damaged(sound: Uint8Array): fc.Arbitrary<Uint8Array> {
  const edit = fc.record({
    // Half of the edits go to the beginning, where headers are.
    at: fc.oneof(fc.nat(Math.min(sound.length, 200)), fc.nat(sound.length)),
    remove: fc.oneof(fc.constant(0), fc.nat(8), fc.nat(sound.length)),
    insert: fc.uint8Array({ maxLength: 8 }),
  });
  return fc.array(edit, { minLength: 1, maxLength: 4 }).map((edits) => {
    let bytes: number[] = Array.from(sound);
    for (const { at, remove, insert } of edits) {
      bytes = [...bytes.slice(0, at), ...insert, ...bytes.slice(at + remove)];
    }
    return Uint8Array.from(bytes);
  });
}

/** Bytes of a number of each dtype. */
const WIDTHS: Record<string, number> = {
  F64: 8,
  I64: 8,
  F32: 4,
  I32: 4,
  F16: 2,
  BF16: 2,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

const place = join(folder, "fuzz.safetensors");

/** What reading a safetensors file comes to: everything in it, or undefined when it was refused. */
function readAll(bytes: Uint8Array): Map<string, number> | undefined {
  try {
    // By its path, as files are: a length that lies must not be believed before the file is looked at.
    writeFileSync(place, bytes);
    using file = new SafetensorsFile(place);
    const sizes = new Map<string, number>();
    for (const [name, { dtype, shape, begin, end }] of file.tensors) {
      expect(begin >= 8 && begin <= end && end <= bytes.length).toBe(true);
      expect(shape.every((size) => Number.isSafeInteger(size) && size >= 0)).toBe(true);
      expect(end - begin).toBe(shape.reduce((a, b) => a * b, 1) * WIDTHS[dtype]);
      try {
        const { data } = file.toFloat32(name);
        expect(data.length).toBe(shape.reduce((a, b) => a * b, 1));
      } catch (error) {
        // Whole numbers and booleans are none of ours to convert.
        if (!(error instanceof SafetensorsError)) throw error;
      }
      sizes.set(name, end - begin);
    }
    for (const value of Object.values(file.metadata)) expect(typeof value).toBe("string");
    return sizes;
  } catch (error) {
    if (error instanceof SafetensorsError) return undefined;
    throw error;
  }
}

describe("safetensors", () => {
  const entries = [3, 0, 8].map((count, i) => ({
    name: `tensor ${i}`,
    dtype: (["F32", "BF16", "F16"] as const)[i],
    shape: [count, 2],
    data: () => Float32Array.from({ length: count * 2 }, (_, j) => j - 2.5),
  }));
  const sound = Buffer.concat([...safetensorsChunks(entries, { format: "mantou" })]);

  test("a sound file with any damage", () => {
    expect(readAll(sound)?.size).toBe(3);
    let [read, refused] = [0, 0];
    fc.assert(
      fc.property(damaged(sound), (bytes) => {
        if (readAll(bytes) === undefined) refused++;
        else read++;
      }),
      { numRuns },
    );
    expect(refused).toBeGreaterThan(numRuns / 4);
    expect(read + refused).toBeGreaterThanOrEqual(numRuns);
  });

  /** A file of these tensors, whatever they say, with so many bytes of data. */
  function fileOf(header: object, size: number, lengthLie = 0): Uint8Array {
    const json = new TextEncoder().encode(JSON.stringify(header));
    const bytes = new Uint8Array(8 + json.length + size);
    new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length + lengthLie), true);
    bytes.set(json, 8);
    return bytes;
  }

  test("a sound header with one lie in it", () => {
    const tensors = fc.array(
      fc.record({
        dtype: fc.constantFrom(...Object.keys(WIDTHS)),
        shape: fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 3 }),
      }),
      { minLength: 1, maxLength: 4 },
    );
    const lies: Record<string, (tensor: { dtype: string; shape: number[]; data_offsets: number[] }) => void> = {
      "a number more": ({ shape }) => shape[0]++,
      "another axis": ({ shape }) => shape.push(2),
      "halves of numbers": ({ shape }) => shape.push(0.5, 2),
      "less than nothing, twice": ({ shape }) => shape.push(-1, -1),
      "a later begin": ({ data_offsets: offsets }) => offsets[0]++,
      "an earlier end": ({ data_offsets: offsets }) => offsets[1]--,
      "offsets the wrong way round": ({ data_offsets: offsets }) => offsets.reverse(),
      "a third offset": ({ data_offsets: offsets }) => offsets.push(0),
      moved: ({ data_offsets: offsets }) => offsets.forEach((_, i) => (offsets[i] += 4)),
      "a wider dtype": (tensor) => (tensor.dtype = WIDTHS[tensor.dtype] === 8 ? "F32" : "F64"),
      "an unknown dtype": (tensor) => (tensor.dtype = "F7"),
    };
    const names = [...Object.keys(lies), "nothing", "a byte more", "a byte less", "a length beyond the file", "huge"];
    fc.assert(
      fc.property(tensors, fc.constantFrom(...names), fc.nat(3), (list, lie, which) => {
        let end = 0;
        const header = list.map(({ dtype, shape }, i) => {
          const begin = end;
          end += shape.reduce((a, b) => a * b, 1) * WIDTHS[dtype];
          const tensor = { dtype, shape: [...shape], data_offsets: [begin, end] };
          return [`t${i}`, tensor] as [string, typeof tensor];
        });
        lies[lie]?.(header[which % header.length][1]);
        const size = end + (lie === "a byte more" ? 1 : lie === "a byte less" ? -1 : 0);
        const lengthLie = lie === "a length beyond the file" ? size + 1 : lie === "huge" ? 2 ** 52 : 0;
        const read = readAll(fileOf(Object.fromEntries(header), size, lengthLie));
        expect([lie, read?.size]).toEqual([lie, lie === "nothing" ? list.length : undefined]);
      }),
      { numRuns },
    );
  });

  test("headers of every kind, some of them sound", () => {
    const size = fc.oneof(fc.nat(4), fc.integer(), fc.double(), fc.constantFrom(2 ** 31, 2 ** 53 - 1, 2 ** 53, 1e300));
    const dtype = fc.oneof(fc.constantFrom("F32", "F64", "BF16", "I64", "BOOL", "F8", "toString"), fc.jsonValue());
    const shape = fc.oneof(fc.array(size, { maxLength: 3 }), fc.jsonValue());
    const offsets = fc.oneof(fc.tuple(fc.nat(16), fc.nat(48)), fc.array(size, { maxLength: 3 }), fc.jsonValue());
    const tensor = fc.oneof(
      { weight: 4, arbitrary: fc.record({ dtype, shape, data_offsets: offsets }) },
      { weight: 1, arbitrary: fc.jsonValue() },
    );
    const name = fc.oneof(fc.constantFrom("a", "b", "__metadata__", "__proto__", "constructor"), fc.string());
    const header = fc.oneof(fc.dictionary(name, tensor, { maxKeys: 4 }), fc.jsonValue());
    fc.assert(
      fc.property(header, fc.nat(64), fc.option(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })), (content, rest, lie) => {
        const json = new TextEncoder().encode(JSON.stringify(content));
        const bytes = new Uint8Array(8 + json.length + rest);
        new DataView(bytes.buffer).setBigUint64(0, lie ?? BigInt(json.length), true);
        bytes.set(json, 8);
        readAll(bytes);
      }),
      { numRuns },
    );
  });
});

describe("token files", () => {
  const path = join(folder, "tokens.bin");
  const about = { vocabSize: 100, tokenizerHash: "0123456789abcdef" };
  writeTokens(path, [Int32Array.from({ length: 50 }, (_, i) => i)], about);
  const sidecar = new Uint8Array(readFileSync(sidecarPath(path)));

  /** Opens a file and reads it to its end, or is refused. */
  function read(place: string): boolean {
    try {
      using file = new TokenFile(device, place, about);
      const tokens = new Int32Array(new ArrayBuffer(4));
      for (let at = 0; at < Math.min(file.count, 64); at++) {
        try {
          file.gather(Float64Array.of(at), 1, tokens);
          expect(tokens[0] >= 0 && tokens[0] < 100).toBe(true);
        } catch (error) {
          // An id that the vocabulary does not have.
          expect((error as Error).message).toMatch(/token|vocab/);
        }
      }
      expect(() => file.gather(Float64Array.of(file.count), 1, tokens)).toThrow();
      return true;
    } catch (error) {
      if (error instanceof UserError) return false;
      throw error;
    }
  }

  test("a sidecar with any damage, and any JSON in its place", () => {
    expect(read(path)).toBe(true);
    const fields = fc.record(
      {
        format: fc.constantFrom("mantou-tokens", "other"),
        version: fc.constantFrom<unknown>(1, 2, "1"),
        dtype: fc.constantFrom<unknown>("uint16", "uint32", "int64", null),
        count: fc.oneof<fc.Arbitrary<unknown>[]>(
          fc.constantFrom(50, 25, 100, 2 ** 53 - 1),
          fc.double(),
          fc.jsonValue(),
        ),
        vocabSize: fc.oneof<fc.Arbitrary<unknown>[]>(fc.constantFrom(100, 101, 0), fc.jsonValue()),
        tokenizerHash: fc.constantFrom<unknown>(about.tokenizerHash, "", 7),
      },
      { requiredKeys: [] },
    );
    const text = fc.oneof(fc.jsonValue(), fields).map((content) => new TextEncoder().encode(JSON.stringify(content)));
    fc.assert(
      fc.property(fc.oneof(damaged(sidecar), text), (bytes) => {
        writeFileSync(sidecarPath(path), bytes);
        read(path);
      }),
      { numRuns },
    );
  });

  test("tokens of another length than their sidecar says are refused", () => {
    writeFileSync(sidecarPath(path), sidecar);
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 210 }), (bytes) => {
        writeFileSync(path, bytes);
        expect(read(path)).toBe(bytes.length === 100);
      }),
      { numRuns: numRuns / 4, examples: [[new Uint8Array(100)], [new Uint8Array(99)], [new Uint8Array(0)]] },
    );
  });

  test(".npy with any damage", () => {
    const header = "{'descr': '<u2', 'fortran_order': False, 'shape': (50,), }".padEnd(117);
    const sound = Buffer.concat([
      Uint8Array.of(0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, 118, 0),
      Buffer.from(`${header}\n`),
      new Uint8Array(100),
    ]);
    const place = join(folder, "tokens.npy");
    writeFileSync(place, sound);
    expect(read(place)).toBe(true);
    fc.assert(
      fc.property(damaged(sound), (bytes) => {
        writeFileSync(place, bytes);
        read(place);
      }),
      { numRuns },
    );
  });
});

test("a Hugging Face config of any content", () => {
  const value = fc.oneof(fc.jsonValue({ maxDepth: 2 }), fc.nat(128), fc.constantFrom(0, -1, 1e300, "silu", true));
  const names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
  const more = ["num_key_value_heads", "head_dim", "rope_scaling", "rope_parameters", "rope_theta", "rms_norm_eps"];
  const sound = { model_type: "llama", ...Object.fromEntries(names.map((name) => [name, 8])) };
  fc.assert(
    fc.property(fc.dictionary(fc.constantFrom(...names, ...more), value, { maxKeys: 4 }), (changes) => {
      try {
        const { vocabSize, dModel, numHeads } = fromHuggingFaceConfig({ ...sound, ...changes }, "config.json");
        expect(vocabSize >= 1 && dModel % numHeads === 0).toBe(true);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
      }
    }),
    { numRuns },
  );
});
