/** What stands between TypeScript and the native library: every wrong argument is an error before the call. */
import { afterAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NativeError, Tensor, openDevice, operations } from "@mantou/model";
import { findCompiler } from "../../packages/model/src/build.ts";
import { Native } from "../../packages/model/src/native.ts";
import { symbols } from "../../packages/model/src/symbols.ts";
import { onEveryBackend } from "../conformance/backends.ts";

const folder = mkdtempSync(join(tmpdir(), "mantou-native-"));
afterAll(() => rmSync(folder, { recursive: true }));

onEveryBackend((backend, device) => {
  describe("arguments", () => {
    /** A call whose arguments TypeScript would not let through. */
    const call = (name: string, ...args: unknown[]) => {
      return () => (device.run as (name: string, ...args: unknown[]) => void)(name, ...args);
    };

    test("whole numbers: no undefined, NaN, fraction, text, bigint or overflow", () => {
      using tensor = Tensor.zeros(device, [4]);
      for (const count of [undefined, null, Number.NaN, Infinity, 1.5, "4", 4n, 2 ** 53, true, {}]) {
        expect(call("mantou_add", 0, count, tensor, tensor, tensor)).toThrow(
          /^mantou_add: argument 2 \(i64\) cannot be/,
        );
      }
      for (const dtype of [undefined, Number.NaN, 0.5, 2 ** 31, -(2 ** 31) - 1, 2 ** 32]) {
        expect(call("mantou_add", dtype, 4, tensor, tensor, tensor)).toThrow(
          /^mantou_add: argument 1 \(i32\) cannot be/,
        );
      }
    });

    test("numbers: no undefined, NaN or text", () => {
      using tensor = Tensor.zeros(device, [4]);
      for (const scale of [undefined, Number.NaN, "1", null]) {
        expect(call("mantou_sum", 4, tensor, scale, 0, tensor)).toThrow("mantou_sum: argument 3 (f32) cannot be");
      }
    });

    test("memory: no numbers, plain arrays or look-alikes, no place outside an allocation", () => {
      using tensor = Tensor.zeros(device, [4]);
      const { memory } = tensor;
      for (const value of [undefined, 0, 4096, 4096n, [1, 2], "text", {}, { memory: {}, byteOffset: 0 }, memory]) {
        expect(call("mantou_add", 0, 4, tensor, value, tensor)).toThrow("mantou_add: argument 4 (pointer) cannot be");
      }
      for (const byteOffset of [-4, 17, 2 ** 53, 0.5, Number.NaN, undefined]) {
        expect(call("mantou_add", 0, 4, tensor, { memory, byteOffset }, tensor)).toThrow(
          `byte offset ${byteOffset} lies outside an allocation of 16 bytes`,
        );
      }
    });

    test("too few and too many", () => {
      using tensor = Tensor.zeros(device, [4]);
      expect(call("mantou_add", 0, 4, tensor, tensor)).toThrow("mantou_add takes 6 arguments, not 5");
      expect(call("mantou_add", 0, 4, tensor, tensor, tensor, 0)).toThrow("mantou_add takes 6 arguments, not 7");
    });

    test("arrays whose memory is gone are null, which the library refuses", () => {
      using tensor = Tensor.zeros(device, [4]);
      const host = new Float32Array(new ArrayBuffer(16));
      structuredClone(host.buffer, { transfer: [host.buffer] });
      expect(() => device.run("mantou_copy", tensor, host, 16)).toThrow(/mantou_copy.*null/);
    });

    test("a failure carries the library's words and status", () => {
      using tensor = Tensor.zeros(device, [4]);
      try {
        device.run("mantou_fill", tensor, 999, 4);
        expect.unreachable();
      } catch (error) {
        expect(error).toBeInstanceOf(NativeError);
        expect((error as NativeError).status).toBe(1);
        expect((error as NativeError).message).toMatch(/mantou_fill.*999/);
      }
    });
  });

  describe("memory", () => {
    test("is zero, and small typed arrays survive the trip through it", () => {
      for (const count of [1, 17, 999, 1001]) {
        const host = new Float32Array(count).map((_, i) => i + 0.5);
        using tensor = Tensor.zeros(device, [count]);
        expect(tensor.toFloat32Array()).toEqual(new Float32Array(count));
        // Bun moves the bytes of small arrays, and does so after many calls.
        for (let round = 0; round < 3_000; round++) {
          tensor.upload(host);
          if (round % 500 === 0) expect(tensor.toFloat32Array()).toEqual(host);
        }
      }
    });

    test("is not used after it was freed, twice freed is freed", () => {
      const tensor = Tensor.zeros(device, [4]);
      const view = tensor.view([2], 1);
      tensor[Symbol.dispose]();
      tensor[Symbol.dispose]();
      for (const gone of [tensor, view]) {
        expect(() => gone.toFloat32Array()).toThrow("native memory was used after it was freed");
        expect(() => gone.zero()).toThrow("after it was freed");
      }
    });

    test("refuses sizes that are none and sizes that cannot be", () => {
      for (const bytes of [-1, 0.5, Number.NaN, Infinity, 2 ** 53]) {
        expect(() => device.allocate(bytes)).toThrow(`cannot allocate ${bytes} bytes`);
      }
      expect(() => device.allocate(2 ** 50)).toThrow(/1125899906842624/);
      expect(() => Tensor.zeros(device, [-1])).toThrow("[-1] is not a shape");
      expect(() => Tensor.zeros(device, [2, 0.5])).toThrow("[2, 0.5] is not a shape");
      using empty = Tensor.zeros(device, [0, 3]);
      expect(empty.toFloat32Array().length).toBe(0);
    });

    test("views and copies stay within their tensor", () => {
      using tensor = Tensor.from(device, [2, 3], Float32Array.of(1, 2, 3, 4, 5, 6));
      expect(tensor.slice(1, 1).toFloat32Array()).toEqual(Float32Array.of(4, 5, 6));
      expect(tensor.view([2], 3).toFloat32Array()).toEqual(Float32Array.of(4, 5));
      expect(() => tensor.view([7])).toThrow("view [7] at 0 exceeds a tensor [2, 3]");
      expect(() => tensor.view([1], -1)).toThrow("at -1");
      expect(() => tensor.view([1], 0.5)).toThrow("0.5");
      expect(() => tensor.slice(1, 2)).toThrow("exceeds");
      expect(() => tensor.upload(new Float32Array(5))).toThrow("float32 of 5 elements does not match");
      expect(() => tensor.upload(new Int32Array(6))).toThrow("int32 of 6 elements does not match");
      expect(() => tensor.download(new Float32Array(7))).toThrow("7 elements");
      for (const wrong of [new Uint8Array(6), new Float64Array(6), new Uint16Array(6), [1, 2, 3, 4, 5, 6]]) {
        const host = wrong as unknown as Float32Array;
        expect(() => tensor.upload(host)).toThrow(`host data ${wrong.constructor.name} of 6 elements`);
        expect(() => tensor.download(host)).toThrow(`host data ${wrong.constructor.name} of 6 elements`);
        expect(() => Tensor.from(device, [6], host)).toThrow("does not match a float32 tensor [6]");
      }
      expect(() => tensor.copyFrom(tensor.view([5]))).toThrow("cannot copy [5] into [2, 3]");
    });

    test("operations refuse shapes that do not fit, naming them", () => {
      using tensor = Tensor.zeros(device, [6, 6]);
      const [a, b, c] = [tensor.view([2, 3]), tensor.view([3, 2]), tensor.view([2, 2])];
      const ids = Tensor.zeros(device, [2], "int32");
      expect(() => operations.matmul(c, a, a)).toThrow(
        "matmul: shapes do not match: a float32 [2, 3], b float32 [2, 3]",
      );
      expect(() => operations.matmul(a, a, b)).toThrow("c float32 [2, 3]");
      expect(() => operations.add(a, b, b)).toThrow("add: shapes");
      expect(() => operations.siluForward(a, b)).toThrow("silu: shapes");
      expect(() => operations.siluBackward(a, b, a)).toThrow("silu backward: shapes");
      expect(() => operations.swigluForward(c, a)).toThrow("swiglu: shapes");
      expect(() => operations.swigluBackward(a, a, a)).toThrow("swiglu backward: shapes");
      expect(() => operations.embeddingForward(a, b, ids)).toThrow("embedding: shapes");
      expect(() => operations.embeddingForward(c, b, c.view([2]))).toThrow("tokens float32 [2]");
      expect(() => operations.embeddingBackward(a, c, ids, tensor)).toThrow("embedding backward: shapes");
      expect(() => operations.softmax(a, a, 2, 2, 2)).toThrow("softmax: shapes");
      expect(() => operations.crossEntropy(c.view([2]), a, c.view([2]), 0)).toThrow("cross-entropy: shapes");
      expect(() => operations.gradientNorm(a, tensor, 1, tensor)).toThrow("gradient norm: shapes");
      const [gain, rstd] = [tensor.view([3]), tensor.view([2])];
      const norm = (outputs: object, inputs: object) => () =>
        operations.rmsnormForward(
          { output: a, sum: null, rstd, ...outputs },
          { input: a, residual: null, gain, eps: 1e-5, ...inputs },
        );
      expect(norm({ output: b }, {})).toThrow("rmsnorm: shapes");
      expect(norm({ sum: b }, {})).toThrow("rmsnorm: shapes");
      expect(norm({ rstd: gain }, {})).toThrow("rmsnorm: shapes");
      expect(norm({}, { gain: rstd })).toThrow("rmsnorm: shapes");
      expect(norm({}, { residual: c })).toThrow("rmsnorm: shapes");
      const shape = { batch: 1, length: 2, heads: 1, kvHeads: 1, headDim: 2, rope: null };
      const [qkv, output, lse] = [tensor.view([2, 6]), tensor.view([2, 2]), tensor.view([2])];
      const attend = (changes: object) => () => operations.attentionForward(output, lse, qkv, { ...shape, ...changes });
      expect(attend({})).not.toThrow();
      expect(attend({ heads: 2 })).toThrow("attention: shapes");
      expect(attend({ length: 1 })).toThrow("attention: shapes");
      expect(attend({ positions: tensor.view([2]) })).toThrow("attention: shapes");
      expect(attend({ rope: tensor.view([1, 1, 2]) })).toThrow("positions beyond the table");
      const table = tensor.view([4, 1, 2]);
      for (const wrong of [4, 2 ** 31 - 1, -1, -(2 ** 31)]) {
        using positions = Tensor.from(device, [2], Int32Array.of(3, wrong));
        const text = `position ${wrong} in row 1 is not in a table of 4`;
        expect(attend({ rope: table, positions })).toThrow(`attention: ${text}`);
        expect(() => operations.rotatePacked(qkv, { ...shape, rope: table, positions })).toThrow(`rotation: ${text}`);
        expect(() => operations.rope(c, c, table, positions, 2)).toThrow(`rope: ${text}`);
      }
      const nothing = tensor.view([0], 36);
      expect(() => operations.sum(nothing, tensor)).toThrow("sum: shapes");
      expect(() => operations.scale(tensor, nothing)).toThrow("scale: shapes");
      using workspace = Tensor.zeros(device, [2], "bfloat16");
      using norm2 = Tensor.zeros(device, [2]);
      expect(() => operations.gradientNorm(norm2, tensor, 1, workspace)).toThrow("bytes of workspace, got 4");
      ids[Symbol.dispose]();
    });
  });

  describe("a closed device", () => {
    test("runs nothing, and its memory and files are gone", () => {
      const path = join(folder, "tokens.bin");
      writeFileSync(path, Uint8Array.of(1, 0, 2, 0));
      const own = openDevice(backend);
      const [tensor, memory, file] = [Tensor.zeros(own, [4]), own.allocate(8), own.mapFile(path)];
      own[Symbol.dispose]();
      own[Symbol.dispose]();
      expect(() => own.synchronize()).toThrow("mantou_synchronize: the device is closed");
      expect(() => own.allocate(4)).toThrow("the device is closed");
      expect(() => own.run("mantou_fill", tensor, 0, 16)).toThrow("the device is closed");
      expect(() => tensor.toFloat32Array()).toThrow("the device is closed");
      expect(() => file.bytes).toThrow("after it was closed");
      expect(() => own.description).toThrow("the device is closed");
      expect(() => own.mapFile(path)).toThrow("the device is closed");
      for (const resource of [tensor, memory, file]) resource[Symbol.dispose]();
      // Memory of a closed device is of no use to another either.
      expect(() => device.run("mantou_fill", { memory, byteOffset: 0 }, 0, 8)).toThrow("after it was freed");
    });
  });

  describe("a mapped file", () => {
    test("reads, gathers and refuses what lies past its end", () => {
      const path = join(folder, "read.bin");
      writeFileSync(path, new Uint8Array(Uint16Array.of(9, 1, 2, 3, 4, 5).buffer));
      using file = device.mapFile(path);
      expect(file.bytes).toBe(12);
      expect(file.read(2, 3)).toEqual(Uint8Array.of(1, 0, 2));
      const tokens = new Int32Array(4);
      const layout = { offset: 2, width: 2, vocabSize: 6 };
      file.gather(layout, Float64Array.of(0, 3), 2, tokens);
      expect(tokens).toEqual(Int32Array.of(1, 2, 4, 5));
      expect(() => file.gather(layout, Float64Array.of(4), 2, tokens)).toThrow("mantou_file_gather");
      expect(() => file.gather({ ...layout, vocabSize: 5 }, Float64Array.of(0, 3), 2, tokens)).toThrow("5");
      expect(() => file.gather(layout, Float64Array.of(0, 1, 2), 2, tokens)).toThrow("do not fit into 4");
      expect(() => file.gather(layout, Float64Array.of(0.5), 2, tokens)).toThrow("mantou_file_gather");
      expect(() => file.gather(layout, Float64Array.of(-1), 2, tokens)).toThrow("mantou_file_gather");
      expect(() => file.gather({ ...layout, width: 3 }, Float64Array.of(0), 2, tokens)).toThrow("3");
      const bytes = new Uint8Array(4) as unknown as Int32Array;
      const halves = new Float32Array(2) as unknown as Float64Array;
      expect(() => file.gather(layout, Float64Array.of(0, 3), 2, bytes)).toThrow("tokens in an Int32Array");
      expect(() => file.gather(layout, halves, 2, tokens)).toThrow("starts in a Float64Array");
      expect(() => file.prefetch(layout, halves, 2)).toThrow("starts in a Float64Array");
      expect(() => file.read(10, 3)).toThrow("mantou_file_read");
      expect(() => file.read(-1, 1)).toThrow("mantou_file_read");
      file[Symbol.dispose]();
      expect(() => file.read(0, 1)).toThrow("after it was closed");
    });

    test("that shrinks is an error and not a crash", () => {
      const path = join(folder, "shrinks.bin");
      writeFileSync(path, new Uint8Array(100_000).fill(1));
      using file = device.mapFile(path);
      truncateSync(path, 10);
      expect(file.bytes).toBe(10);
      for (const offset of [0, 50_000]) expect(() => file.read(offset, 10)).toThrow(`${path}' has shrunk`);
    });

    test("read-only is enough; missing, a directory and a NUL in the name are errors that name the path", () => {
      const path = join(folder, "read-only.bin");
      writeFileSync(path, Uint8Array.of(7));
      chmodSync(path, 0o444);
      using file = device.mapFile(path);
      expect(file.read(0, 1)).toEqual(Uint8Array.of(7));
      for (const wrong of [join(folder, "missing.bin"), folder, "a\0b"]) {
        expect(() => device.mapFile(wrong)).toThrow(wrong);
      }
    });
  });
});

test("a library that is none, or not there, is a NativeError naming it", () => {
  const path = join(folder, "not-a-library.so");
  writeFileSync(path, "text");
  for (const wrong of [path, join(folder, "nowhere.so")]) {
    expect(() => new Native(wrong)).toThrow(NativeError);
    expect(() => new Native(wrong)).toThrow(`cannot load ${wrong}`);
  }
});

test("openDevice names what it does not know", () => {
  expect(() => openDevice("tpu" as never)).toThrow('unknown device "tpu"');
  for (const threads of [-1, 0.5, Number.NaN, 1e6])
    expect(() => openDevice("cpu", { threads })).toThrow(String(threads));
  using device = openDevice("cpu", { threads: 2 });
  expect(device.description).toContain("2 threads");
  expect([device.name, device.reason]).toEqual(["cpu", "asked for"]);
});

/** A library without a device, in which all calls succeed but those that are given parameters and bodies of their own. */
function standIn(name: string, bodies: Record<string, string>): string {
  const functions = Object.entries(symbols).map(([symbol, { result }]) => {
    const type = { status: "int", i32: "int", size: "long long", text: "const char*" }[result];
    return `${type} ${symbol}${bodies[symbol] ?? "() { return 0; }"}`;
  });
  const [source, library] = [join(folder, `${name}.c`), join(folder, `${name}.so`)];
  writeFileSync(source, functions.join("\n"));
  const { success, stderr } = Bun.spawnSync([
    findCompiler().command,
    "-x",
    "c",
    "-shared",
    "-fPIC",
    source,
    "-o",
    library,
  ]);
  if (!success) throw new Error(String(stderr));
  return library;
}

test("where a kernel has failed, and freeing fails too, the error is the kernel's", () => {
  const library = standIn("failed", {
    mantou_abi_version: "() { return 7; }",
    mantou_backend: '() { return "cuda"; }',
    mantou_last_error: '() { return "an illegal memory access"; }',
    mantou_context_create: "(int device, int threads, long long* context) { *context = 1; return 0; }",
    mantou_synchronize: "() { return 5; }",
    mantou_free: "() { return 5; }",
  });
  const native = new Native(library);
  const use = () => {
    using _memory = native.allocate(8);
    native.call("mantou_synchronize");
  };
  // First seen when memory is freed, it is an error there.
  expect(() => native.allocate(8)[Symbol.dispose]()).toThrow("an illegal memory access");
  expect(use).toThrow("an illegal memory access, called as mantou_synchronize()");
});
