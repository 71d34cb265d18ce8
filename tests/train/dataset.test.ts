/** Token files and batches: formats, refusals, files beyond 4 GiB, files that change under us, and where batches come from. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, existsSync, ftruncateSync, mkdtempSync, openSync, readdirSync } from "node:fs";
import { readFileSync, rmSync, statSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NativeError, openDevice } from "@mantou/model";
import fc from "fast-check";
import { ArrayTokens, BatchReader, TokenFile, type TokenSource } from "../../packages/train/src/dataset.ts";
import { TokenWriter, readSidecar, sidecarPath, writeTokens } from "../../packages/train/src/dataset.ts";
import { refusal } from "./support/refusal.ts";

const base = mkdtempSync(join(tmpdir(), "mantou-dataset-"));
const device = openDevice("cpu", { threads: 1 });
afterAll(() => {
  device[Symbol.dispose]();
  rmSync(base, { recursive: true });
});

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(base, "test-"));
});

const about = { vocabSize: 1000, tokenizerHash: "0123456789abcdef" };

/** `count` tokens from `start`. */
function read(source: TokenSource, start: number, count: number): number[] {
  const target = new Int32Array(count);
  source.gather(Float64Array.of(start), count, target);
  return [...target];
}

function open(path: string, expected = { ...about }): TokenFile {
  return new TokenFile(device, path, expected);
}

describe("writing and reading .bin", () => {
  test("ids come back, however they were cut into chunks; the width follows the vocabulary", () => {
    const property = fc.property(
      fc.array(fc.array(fc.nat(99_999), { maxLength: 40 }), { maxLength: 6 }),
      fc.boolean(),
      (chunks, wide) => {
        const vocabSize = wide ? 100_000 : 0x1_0000;
        const ids = chunks.map((chunk) => chunk.map((id) => id % vocabSize));
        const path = join(folder, "ids.bin");
        const sidecar = writeTokens(
          path,
          ids.map((chunk) => Int32Array.from(chunk)),
          { ...about, vocabSize },
        );
        expect(sidecar).toEqual(readSidecar(path));
        expect(sidecar.dtype).toBe(wide ? "uint32" : "uint16");
        using file = open(path, { ...about, vocabSize });
        expect(file.count).toBe(ids.flat().length);
        expect(read(file, 0, file.count)).toEqual(ids.flat());
      },
    );
    fc.assert(property, { numRuns: 50 });
    expect(readdirSync(folder).sort()).toEqual(["ids.bin", "ids.bin.json"]);
  });

  test("the file is little-endian and nothing but ids", () => {
    const path = join(folder, "ids.bin");
    writeTokens(path, [Uint32Array.of(1, 258)], about);
    expect([...readFileSync(path)]).toEqual([1, 0, 2, 1]);
  });

  test("an id outside the vocabulary leaves no file, and the old one as it was", () => {
    const path = join(folder, "ids.bin");
    writeTokens(path, [Int32Array.of(1, 2, 3)], about);
    for (const id of [1000, -1, 2 ** 31 - 1]) {
      expect(() => writeTokens(path, [Int32Array.of(5), Int32Array.of(6, id)], about)).toThrow(
        new RangeError(`token ${id} is not in a vocabulary of 1000`),
      );
    }
    using file = open(path);
    expect(read(file, 0, file.count)).toEqual([1, 2, 3]);
    expect(readdirSync(folder).sort()).toEqual(["ids.bin", "ids.bin.json"]);
  });

  test("a writer that is given up leaves nothing", () => {
    {
      using writer = new TokenWriter(join(folder, "ids.bin"), about);
      writer.append(Int32Array.of(1));
      expect(readdirSync(folder)).toHaveLength(1);
    }
    expect(readdirSync(folder)).toEqual([]);
    expect(() => new TokenWriter(join(folder, "no", "ids.bin"), about)).toThrow(join(folder, "no", "ids.bin"));
  });
});

describe("what a .bin must be", () => {
  const path = () => join(folder, "ids.bin");
  const sidecar = (change: object) => {
    const content = JSON.parse(readFileSync(sidecarPath(path()), "utf8")) as object;
    writeFileSync(sidecarPath(path()), JSON.stringify({ ...content, ...change }));
  };
  beforeEach(() => void writeTokens(path(), [Int32Array.of(1, 2, 3)], about));

  test("made by the tokenizer that is asked for", () => {
    const other = { ...about, tokenizerHash: "fedcba9876543210" };
    const error = refusal(() => open(path(), other));
    expect(error.message).toContain("was made by another tokenizer (0123456789abcdef, not fedcba9876543210)");
    expect(error.fix).toContain("--tokenizer.path");
    const { tokenizerHash: _, ...any } = about;
    using file = new TokenFile(device, path(), any);
    expect(file.count).toBe(3);
  });

  test("of no larger a vocabulary than the model's", () => {
    const error = refusal(() => open(path(), { ...about, vocabSize: 999 }));
    expect(error.message).toContain("has ids up to 999, the model knows 999");
    expect(error.fix).toContain("--model.vocabSize 1000");
  });

  test("there, with a sidecar that says what it is", () => {
    rmSync(path());
    expect(refusal(() => open(path())).message).toContain(`there is no data set ${path()}`);
    writeTokens(path(), [Int32Array.of(1)], about);
    rmSync(sidecarPath(path()));
    expect(refusal(() => readSidecar(path())).message).toContain("has no sidecar");
    writeFileSync(sidecarPath(path()), '{"format":');
    expect(refusal(() => open(path())).message).toContain("is not valid JSON");
    for (const change of [{ dtype: "int8" }, { count: -1 }, { version: 2 }, { format: "x" }, { extra: 1 }]) {
      writeTokens(path(), [Int32Array.of(1)], about);
      sidecar(change);
      expect(refusal(() => open(path())).message).toContain(Object.keys(change)[0]);
    }
  });

  test("as long as the sidecar says", () => {
    truncateSync(path(), 4);
    expect(refusal(() => open(path())).message).toContain("has 4 bytes, its sidecar says 6");
    truncateSync(path(), 8);
    expect(refusal(() => open(path())).message).toContain("has 8 bytes, its sidecar says 6");
  });

  test("without ids that the model does not know", () => {
    writeFileSync(path(), new Uint8Array(Uint16Array.of(1, 5000, 3).buffer));
    using file = open(path());
    expect(read(file, 2, 1)).toEqual([3]);
    expect(() => read(file, 0, 3)).toThrow(/token 5000 at position 1 of '.*ids\.bin' is not below vocab_size, 1000/);
  });

  test("no shorter than when it was opened: an error, and the process lives", () => {
    const count = 100_000;
    writeTokens(path(), [new Int32Array(count).fill(7)], about);
    using file = open(path());
    expect(read(file, count - 2, 2)).toEqual([7, 7]);
    for (const length of [count, 4096, 10, 0]) {
      truncateSync(path(), length);
      for (const start of [0, count - 2]) {
        expect(() => read(file, start, 2)).toThrow(NativeError);
        expect(() => read(file, start, 2)).toThrow(/has shrunk from 200000 to \d+ bytes/);
      }
    }
  });

  test("read within its bounds", () => {
    using file = open(path());
    for (const [start, length] of [
      [2, 2],
      [3, 1],
      [-1, 1],
      [0.5, 1],
      [Number.NaN, 1],
      [2 ** 53, 1],
      [0, 4],
    ]) {
      expect(() => read(file, start, length)).toThrow();
    }
    const tokens = new ArrayTokens(Uint16Array.of(1, 2, 3));
    for (const [start, length] of [
      [2, 2],
      [3, 1],
      [-1, 1],
      [0, 4],
    ])
      expect(() => read(tokens, start, length)).toThrow();
    expect(read(tokens, 1, 2)).toEqual([2, 3]);
  });
});

describe(".npy", () => {
  /** A file as numpy.save writes it. */
  function npy(options: { version?: [number, number]; header?: string; data?: Uint8Array }): string {
    const { version = [1, 0], data = new Uint8Array(Uint16Array.of(5, 6, 7).buffer) } = options;
    const header = options.header ?? "{'descr': '<u2', 'fortran_order': False, 'shape': (3,), }";
    const prefix = version[0] === 1 ? 10 : 12;
    const padded = `${header.padEnd(Math.ceil((prefix + header.length + 1) / 64) * 64 - prefix - 1)}\n`;
    const start = new DataView(new ArrayBuffer(prefix));
    [0x93, ...Buffer.from("NUMPY"), ...version].forEach((byte, i) => start.setUint8(i, byte));
    if (version[0] === 1) start.setUint16(8, padded.length, true);
    else start.setUint32(8, padded.length, true);
    const path = join(folder, "array.npy");
    writeFileSync(path, Buffer.concat([new Uint8Array(start.buffer), Buffer.from(padded), data]));
    return path;
  }
  const header = (descr: string, shape: string) => `{'descr': '${descr}', 'fortran_order': False, 'shape': ${shape}, }`;

  test("versions 1.0, 2.0 and 3.0, uint16 and uint32", () => {
    for (const version of [
      [1, 0],
      [2, 0],
      [3, 0],
    ] as [number, number][]) {
      using short = open(npy({ version }));
      expect(short.count).toBe(3);
      expect(read(short, 0, 3)).toEqual([5, 6, 7]);
      const data = new Uint8Array(Uint32Array.of(8, 999).buffer);
      using long = open(npy({ version, header: header("<u4", "(2,)"), data }));
      expect(read(long, 0, 2)).toEqual([8, 999]);
    }
  });

  test("a header of more than 64 KiB", () => {
    using file = open(npy({ version: [2, 0], header: header("<u2", "(3,)") + " ".repeat(70_000) }));
    expect(read(file, 1, 2)).toEqual([6, 7]);
  });

  test("an id that is too large is an error, not another id", () => {
    using file = open(npy({ header: header("<u4", "(1,)"), data: new Uint8Array(Uint32Array.of(2 ** 32 - 1).buffer) }));
    expect(() => read(file, 0, 1)).toThrow("token 4294967295 at position 0");
  });

  test("anything else is refused with the reason", () => {
    const refused = (options: Parameters<typeof npy>[0]) => {
      const error = refusal(() => open(npy(options)));
      expect(error.message).toContain(join(folder, "array.npy"));
      expect(error.fix).toContain("one-dimensional uint16 or uint32");
      return error.message;
    };
    for (const descr of ["<f4", "<f8", "<i4", "<i8", "|u1", ">u2", "<u8"]) {
      expect(refused({ header: header(descr, "(3,)") })).toContain(`'descr': '${descr}'`);
    }
    for (const shape of ["(3, 1)", "(1, 3)", "()"]) expect(refused({ header: header("<u2", shape) })).toContain(shape);
    expect(refused({ data: new Uint8Array(5) })).toMatch(/has \d+ bytes, its header says \d+/);
    expect(refused({ data: new Uint8Array(8) })).toMatch(/has \d+ bytes, its header says \d+/);
    expect(refused({ header: header("<u2", "(99999999999999999999,)") })).toContain("its header says");
    expect(refused({ header: "" })).toContain("holds something else");
  });

  test("a file that is cut off anywhere, or is no .npy", () => {
    const whole = readFileSync(npy({}));
    for (let length = 0; length < whole.length; length++) {
      const path = join(folder, "array.npy");
      writeFileSync(path, whole.subarray(0, length));
      expect(refusal(() => open(path)).message).toContain(path);
    }
    writeFileSync(join(folder, "array.npy"), "a text about NUMPY");
    expect(refusal(() => open(join(folder, "array.npy"))).message).toContain("is no .npy file");
  });
});

describe("a file of 6 GB", () => {
  /** Sparse: it takes next to no space. */
  function sparse(path: string, bytes: number, pieces: [number, Uint8Array][]): void {
    const file = openSync(path, "w");
    ftruncateSync(file, bytes);
    for (const [at, data] of pieces) writeSync(file, data, 0, data.length, at);
    closeSync(file);
  }
  const u16 = (...ids: number[]) => new Uint8Array(Uint16Array.from(ids).buffer);
  const u32 = (...ids: number[]) => new Uint8Array(Uint32Array.from(ids).buffer);

  test("is read to its last token, past 2³¹ and 2³² tokens and bytes", () => {
    const path = join(folder, "huge.bin");
    for (const [dtype, width, pack] of [
      ["uint16", 2, u16],
      ["uint32", 4, u32],
    ] as const) {
      const bytes = 6_000_000_000;
      const count = bytes / width;
      // Marks where 32-bit arithmetic on tokens or bytes would go wrong, and at the end.
      const marks = [0, 2 ** 30, 2 ** 31, 2 ** 32].map((offset) => offset / width).concat(2 ** 31, 2 ** 32, count - 3);
      const within = [...new Set(marks)].filter((start) => start + 3 <= count);
      sparse(
        path,
        bytes,
        within.map((start, i) => [start * width, pack(i + 1, i + 101, i + 201)]),
      );
      writeFileSync(sidecarPath(path), JSON.stringify({ format: "mantou-tokens", version: 1, dtype, count, ...about }));
      expect(statSync(path).blocks * 512).toBeLessThan(1_000_000);
      using file = open(path);
      expect(file.count).toBe(count);
      within.forEach((start, i) => expect(read(file, start, 3)).toEqual([i + 1, i + 101, i + 201]));
      expect(() => read(file, count - 2, 3)).toThrow(NativeError);
      const reader = new BatchReader(file, 4, 2);
      const last = reader.read(Float64Array.of(count - 3));
      const n = within.length - 1;
      expect([...last.inputs, ...last.targets]).toEqual([n + 1, n + 101, n + 101, n + 201]);
      rmSync(path);
    }
    expect(existsSync(path)).toBe(false);
  });

  test("as .npy", () => {
    const path = join(folder, "huge.npy");
    const count = 3_000_000_000;
    const header = `{'descr': '<u2', 'fortran_order': False, 'shape': (${count},), }`.padEnd(117);
    const head = Buffer.concat([
      Uint8Array.of(0x93, ...Buffer.from("NUMPY"), 1, 0, 118, 0),
      Buffer.from(`${header}\n`),
    ]);
    sparse(path, head.length + 2 * count, [
      [0, head],
      [head.length + 2 * (count - 2), u16(11, 12)],
    ]);
    using file = open(path);
    expect(read(file, count - 3, 3)).toEqual([0, 11, 12]);
    rmSync(path);
  });
});

describe("batches", () => {
  const counting = (count: number) => new ArrayTokens(Uint32Array.from({ length: count }, (_, i) => i));

  test("targets are the inputs one later, of any source", () => {
    const ids = Int32Array.from({ length: 50 }, (_, i) => (i * 37) % 1000);
    writeTokens(join(folder, "ids.bin"), [ids], about);
    using file = open(join(folder, "ids.bin"));
    const readers = [file, new ArrayTokens(Uint16Array.from(ids)), new ArrayTokens(Uint32Array.from(ids))].map(
      (source) => new BatchReader(source, 3, 7),
    );
    for (let step = 0; step < 20; step++) {
      const [first, ...others] = readers.map((reader) => {
        const { inputs, targets } = reader.at("random", 5, step);
        return { inputs: [...inputs], targets: [...targets] };
      });
      for (const other of others) expect(other).toEqual(first);
      expect(first.inputs).toHaveLength(21);
      for (let row = 0; row < 3; row++) {
        const [x, y] = [first.inputs, first.targets].map((each) => each.slice(7 * row, 7 * row + 7));
        const start = ids.indexOf(x[0]);
        expect(x).toEqual([...ids.subarray(start, start + 7)]);
        expect(y).toEqual([...ids.subarray(start + 1, start + 8)]);
      }
    }
  });

  test("every start is possible and equally likely, the first and the last too", () => {
    const [starts, draws] = [17, 34_000];
    const reader = new BatchReader(counting(starts + 4), 20, 4);
    const seen = new Float64Array(starts);
    for (let step = 0; step < draws / 20; step++) {
      const { inputs } = reader.at("random", 11, step);
      for (let i = 0; i < 20; i++) seen[inputs[4 * i]]++;
    }
    const mean = draws / starts;
    const chiSquare = seen.reduce((sum, count) => sum + (count - mean) ** 2 / mean, 0);
    // 16 degrees of freedom: mean 16, standard deviation √32.
    expect(chiSquare).toBeLessThan(16 + 4 * Math.sqrt(32));
    expect(chiSquare).toBeGreaterThan(1);
  });

  test("are a function of seed and sample number: one batch of 8 is two of 4, steps and seeds differ", () => {
    const batch = (batchSize: number, seed: number, step: number) => [
      ...new BatchReader(counting(100_000), batchSize, 1).at("random", seed, step).inputs,
    ];
    expect(batch(8, 1, 5)).toEqual(batch(8, 1, 5));
    expect(batch(8, 1, 5)).toEqual([...batch(4, 1, 10), ...batch(4, 1, 11)]);
    expect(batch(8, 1, 5)).not.toEqual(batch(8, 2, 5));
    expect(batch(8, 1, 5)).not.toEqual(batch(8, 1, 6));
  });

  test("a sweep covers evenly, without overlap, the same every time, and all where it may", () => {
    const property = fc.property(
      fc.integer({ min: 1, max: 8 }),
      fc.integer({ min: 1, max: 5 }),
      fc.nat(200),
      fc.integer({ min: 1, max: 12 }),
      (contextLength, batchSize, more, batches) => {
        const count = contextLength + 1 + more;
        const reader = new BatchReader(counting(count), batchSize, contextLength);
        const sweep = (limit: number) => {
          const tokens: number[] = [];
          for (const { inputs, targets } of reader.sweep(limit)) {
            expect([...targets]).toEqual([...inputs].map((token) => token + 1));
            tokens.push(...inputs);
          }
          return tokens;
        };
        const all = Math.floor((count - 1) / contextLength);
        const tokens = sweep(batches);
        expect(tokens).toEqual(sweep(batches));
        expect(tokens).toHaveLength(Math.min(all, batches * batchSize) * contextLength);
        expect(new Set(tokens).size).toBe(tokens.length);
        const starts = tokens.filter((_, i) => i % contextLength === 0);
        const gaps = starts.slice(1).map((start, i) => (start - starts[i]) / contextLength);
        if (gaps.length > 0) expect(Math.max(...gaps) - Math.min(...gaps)).toBeLessThanOrEqual(1);
        expect(sweep(Number.POSITIVE_INFINITY)).toEqual(Array.from({ length: all * contextLength }, (_, i) => i));
      },
    );
    fc.assert(property, { numRuns: 100 });
  });

  test("of data that are too short are refused, the shortest possible ones are not", () => {
    const error = refusal(() => new BatchReader(counting(8), 1, 8));
    expect(error.message).toContain("has 8 tokens, too few for a context of 8");
    expect(error.fix).toContain("--model.context-length (7 at most)");
    refusal(() => new BatchReader(counting(0), 1, 1));
    const reader = new BatchReader(counting(9), 2, 8);
    expect([...reader.at("random", 1, 1).targets]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
  });
});
