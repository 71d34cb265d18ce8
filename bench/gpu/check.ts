/**
 * `bun run gpu:check [--python PYTHON]`: everything that can be said of the CUDA kernels on this machine. With a GPU: builds,
 * prints device, driver and clocks, runs the wrappers of PTX, the conformance suite on the hardware (with PyTorch's
 * 20-step trajectory), CUDA's sanitizers, and the benchmarks beside PyTorch, whose results it writes to bench/results.
 * Without one: compiles the kernels where there is nvcc, runs them on the emulator, says so and exits 0.
 */
import { mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { buildCudaLibrary, findNvcc, hasGpu } from "@mantou/model";

const { values } = parseArgs({ options: { python: { type: "string", default: "python3" } } });
const root = join(import.meta.dir, "../..");
const bun = process.execPath;
const nvcc = findNvcc();

/** Runs a command with its output on the terminal; ends everything where it fails. */
function step(title: string, command: string[], environment: Record<string, string> = {}): void {
  console.log(`\n== ${title}`);
  const env = { ...process.env, ...environment };
  const { exitCode } = Bun.spawnSync(command, { cwd: root, env, stdout: "inherit", stderr: "inherit" });
  if (exitCode === 0) return;
  console.log(`gpu:check failed at: ${title}`);
  process.exit(1);
}

if (nvcc) step(`registers and spills, ${nvcc.version}`, [bun, "bench/gpu/resources.ts"]);
else console.log("no nvcc found: the CUDA kernels were not compiled for a GPU");

if (!nvcc || !hasGpu()) {
  step("the kernels on the emulator", [bun, "tests/emulated.ts", "plain", "race"]);
  console.log(`\n${nvcc ? "no NVIDIA GPU here" : "no nvcc here"}: nothing ran on a GPU, and no figure is given`);
  process.exit(0);
}

const library = buildCudaLibrary();
const query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem";
step("device", ["nvidia-smi", `--query-gpu=${query}`, "--format=csv"]);
const wrappers = join(dirname(library), "wrappers");
const flags = ["-std=c++17", "-O3", "-gencode=arch=compute_80,code=[sm_80,compute_80]", "-cudart", "static"];
step("the wrappers of PTX: build", [nvcc.command, ...flags, "kernels/tests/wrappers.cu", "-o", wrappers]);
step("the wrappers of PTX", [wrappers]);
const suite = [bun, "test", "--timeout", "120000", "tests/conformance"];
step("conformance on the GPU", suite, { MANTOU_BACKENDS: "cuda" });
const kernels = [values.python, "bench/gpu/kernels.py", library];
if (Bun.which("compute-sanitizer")) {
  for (const tool of ["memcheck", "racecheck"]) {
    const sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", "--target-processes", "all"];
    step(`${tool}: the wrappers`, [...sanitizer, wrappers]);
    step(`${tool}: every operation on small shapes`, [...sanitizer, ...kernels, "--small", "--no-bench"]);
  }
} else console.log("\ncompute-sanitizer is not installed: not run");
mkdirSync(join(root, "bench/results"), { recursive: true });
step("every operation against float64, and beside PyTorch", [...kernels, "--results", "bench/results"]);
const steps = `bench/results/steps-${new Date().toISOString().slice(0, 10)}.json`;
step("training steps beside PyTorch's", [bun, "bench/gpu/step.ts", "--python", values.python, "--out", steps]);
