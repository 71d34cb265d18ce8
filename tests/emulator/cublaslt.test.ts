/**
 * How cuBLASLt is found, asked and used, with a stand-in for it (fake-cublaslt.cpp): the conformance tests of matrix
 * products run through that. The real library needs a GPU.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildEmulatedLibrary, hasGpu } from "@mantou/model";
import { findCompiler } from "../../packages/model/src/build.ts";

const scratch = mkdtempSync(join(tmpdir(), "mantou-cublaslt-"));
const library = join(scratch, "libcublasLt.so.99");
const report = join(scratch, "report");

/** Runs a script or test with Bun in an environment of its own: C++ does not see what JavaScript changes in this one. */
function bun(words: string[], environment: Record<string, string>) {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, ...words], {
    cwd: join(import.meta.dir, "../.."),
    env: { ...process.env, FAKE_CUBLASLT_REPORT: report, ...environment },
  });
  return { exitCode, output: `${stdout}${stderr}` };
}

const DESCRIBE = `
  import { openDevice } from "@mantou/model";
  using device = openDevice("emulated");
  console.log(device.description);
`;

beforeAll(() => {
  buildEmulatedLibrary();
  const { command } = findCompiler();
  const source = join(import.meta.dir, "fake-cublaslt.cpp");
  const flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"];
  const { exitCode, stderr } = Bun.spawnSync([command, ...flags, source, "-o", library]);
  if (exitCode !== 0) throw new Error(String(stderr));
}, 600_000);

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

test("which library multiplies is told, and can be chosen", () => {
  const describe = (environment: Record<string, string>) => bun(["-e", DESCRIBE], environment);
  expect(describe({}).output).toContain("matrix products by own kernels");
  expect(describe({ MANTOU_CUBLASLT: library }).output).toContain("matrix products by cuBLASLt 99.1.2");
  const own = describe({ MANTOU_CUBLASLT: library, MANTOU_MATMUL: "own" });
  expect(own.output).toContain("matrix products by own kernels");
  const wrong = describe({ MANTOU_MATMUL: "fast" });
  expect(wrong.output).toMatch(/MANTOU_MATMUL is "fast"; use auto, cublaslt, untimed or own/);
  expect(wrong.exitCode).not.toBe(0);
});

test("a library that is asked for and not there is an error that says where it was sought", () => {
  for (const mode of ["cublaslt", "auto"]) {
    const environment = { MANTOU_MATMUL: mode, MANTOU_CUBLASLT: join(scratch, "none.so") };
    const { exitCode, output } = bun(["-e", DESCRIBE], environment);
    expect(exitCode).not.toBe(0);
    expect(output).toMatch(
      /cuBLASLt was asked for and not found \(tried .*none\.so \(.*cannot open shared object file/,
    );
  }
  // The emulated library itself can be loaded, and is another.
  const environment = { MANTOU_CUBLASLT: buildEmulatedLibrary() };
  expect(bun(["-e", DESCRIBE], environment).output).toMatch(/tried .*libmantou\.so \(it lacks functions\)/);
});

// With a GPU the loader may find the real one, which comes first.
test.skipIf(hasGpu())(
  "one that pip or conda has installed is found, in a virtual environment or beside Python on the PATH",
  () => {
    const packages = (prefix: string) => join(scratch, prefix, "lib/python3.12/site-packages/nvidia");
    cpSync(library, join(packages("venv"), "cu13/lib/libcublasLt.so.13"));
    cpSync(library, join(packages("conda"), "cublas/lib/libcublasLt.so.12"));
    mkdirSync(join(scratch, "conda/bin"));
    const path = `${process.env.PATH}:${join(scratch, "conda/bin")}`;
    cpSync(library, join(scratch, "forge/lib/libcublasLt.so.12"));
    const places = { VIRTUAL_ENV: join(scratch, "venv"), PATH: path, CONDA_PREFIX: join(scratch, "forge") };
    for (const [name, value] of Object.entries(places)) {
      const { output } = bun(["-e", DESCRIBE], { MANTOU_MATMUL: "cublaslt", [name]: value });
      expect(output).toContain("matrix products by cuBLASLt 99.1.2");
    }
  },
);

test("products in every orientation, with strides, added to or not, by the algorithm that works", () => {
  // Shapes on both sides, among them one that the stand-in has no algorithm for; larger ones would ask it nothing new.
  const pattern = "matmul .* (· \\[(17, 3|3, 65|113, 17|65, 203|113, 203)\\]|row strides|without terms)";
  const { exitCode, output } = bun(
    ["test", "--timeout", "60000", "tests/conformance/kernels/matmul.test.ts", "-t", pattern],
    {
      MANTOU_BACKENDS: "emulated",
      MANTOU_EMULATION: "plain",
      MANTOU_MATMUL: "cublaslt",
      MANTOU_CUBLASLT: library,
    },
  );
  expect(output).not.toContain("(fail)");
  expect(output).toMatch(/\n\s*[1-9]\d* pass\n/);
  expect(exitCode).toBe(0);
}, 300_000);

test("a step that was captured, and its replays; a shape first seen in a capture is not timed", () => {
  const steps = bun(
    ["test", "--timeout", "60000", "tests/conformance/capture.test.ts", "-t", "base (training steps, keep|tokens)"],
    { MANTOU_BACKENDS: "emulated", MANTOU_EMULATION: "plain", MANTOU_MATMUL: "cublaslt", MANTOU_CUBLASLT: library },
  );
  expect(steps.output).not.toContain("(fail)");
  expect(steps.output).toMatch(/\n\s*2 pass\n/);
  const script = `
    import { Tensor, openDevice, operations } from "@mantou/model";
    using device = openDevice("emulated");
    using a = Tensor.zeros(device, [8, 8]);
    using c = Tensor.zeros(device, [8, 8]);
    device.capture(() => operations.matmul(c, a, a));
  `;
  // The first of the proposals is the one that fails.
  const { output } = bun(["-e", script], { MANTOU_CUBLASLT: library });
  expect(output).toContain("mantou_matmul: cuBLASLt, [8, 8] x [8, 8]: the stand-in failed");
}, 300_000);

test("where none of the proposals works, our own kernels multiply", () => {
  const script = `
    import { Tensor, openDevice, operations } from "@mantou/model";
    using device = openDevice("emulated");
    using a = Tensor.from(device, [1, 2], Float32Array.of(2, 3));
    using b = Tensor.from(device, [2, 5], Float32Array.of(1, 2, 3, 4, 5, 10, 20, 30, 40, 50));
    using c = Tensor.zeros(device, [1, 5]);
    for (let time = 0; time < 2; time++) operations.matmul(c, a, b);
    console.log(device.description, ...c.toFloat32Array());
  `;
  const { output } = bun(["-e", script], { MANTOU_CUBLASLT: library });
  expect(output).toContain("cuBLASLt 99.1.2 32 64 96 128 160");
});

test("untimed takes the first proposal, and says so when it fails", () => {
  const script = `
    import { Tensor, openDevice, operations } from "@mantou/model";
    using device = openDevice("emulated");
    using a = Tensor.zeros(device, [8, 8]);
    using c = Tensor.zeros(device, [8, 8]);
    operations.matmul(c, a, a);
  `;
  const { output } = bun(["-e", script], { MANTOU_MATMUL: "untimed", MANTOU_CUBLASLT: library });
  expect(output).toContain("mantou_matmul: cuBLASLt, [8, 8] x [8, 8]: the stand-in failed");
  const timed = bun(["-e", script], { MANTOU_CUBLASLT: library });
  expect(timed.output).not.toContain("error");
  // Nothing that it made outlives the context.
  const last = readFileSync(report, "utf8").trim().split("\n").at(-1);
  expect(last).toMatch(/^[1-9]\d* products, 0 left$/);
});
