/**
 * `bun run gpu:check [--python PYTHON] [--minutes 8]`: everything that can be said of the CUDA kernels on this machine. With
 * a GPU: builds, prints device, driver and clocks, runs the wrappers of PTX, captures, the conformance suite on the hardware
 * (with PyTorch's 20-step trajectory), every operation against float64 and its time beside PyTorch's, whole training steps
 * beside PyTorch's, and with what time is left CUDA's sanitizers. A stage that fails or takes too long does not keep the
 * others from running; one JSON file and one Markdown table in bench/results say what came of each. Exits with 1 if any
 * failed, or if there is a GPU that cannot be used. With --minutes 25 no stage has less time for the others that came before.
 * Without a GPU: compiles the kernels where there is nvcc, runs them on the emulator, says so and exits 0.
 */
import { appendFileSync, closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { buildCpuLibrary, buildCudaLibrary, findNvcc, hasGpu, openDevice } from "@mantou/model";

const { values } = parseArgs({
  options: { python: { type: "string", default: "python3" }, minutes: { type: "string", default: "8" } },
});
const minutes = Number(values.minutes);
if (!(minutes > 0)) throw new Error(`--minutes is ${values.minutes}; it must be a positive number`);
const root = join(import.meta.dir, "../..");
const parts = join(root, "build/gpu-check");
const bun = process.execPath;
const nvcc = findNvcc();

const started = performance.now();
/** For the whole check; on a GPU, which may be lent, it has an end. */
let seconds = Infinity;
const left = () => seconds - (performance.now() - started) / 1000;

let failures = 0;
const environment: Record<string, string | undefined> = { ...process.env };

/** What a command that is not to be seen prints; nothing where there is no such program or it fails. */
function ask(...command: string[]): string {
  if (!Bun.which(command[0]!)) return "";
  const { success, stdout } = Bun.spawnSync(command, { stderr: "ignore" });
  return success ? stdout.toString().trim() : "";
}

/** Runs a stage, and keeps what came of it and what it said; the terminal has that at its end. */
function stage(title: string, most: number, command: string[], more: Record<string, string> = {}): void {
  const log = join(parts, `${title.replaceAll(/[^A-Za-z0-9]/g, "-")}.log`);
  console.log(`\n== ${title} (${log})`);
  const limit = Math.min(most, left());
  const begun = performance.now();
  let outcome = "no time was left";
  if (!Bun.which(command[0]!)) outcome = `failed: there is no ${command[0]}`;
  else if (limit > 1) {
    const file = openSync(log, "a"); // so that both streams write to its end
    const { exitCode, exitedDueToTimeout } = Bun.spawnSync(command, {
      cwd: root,
      env: { ...environment, ...more },
      stdout: file,
      stderr: file,
      timeout: Math.ceil(limit * 1000), // Bun wants an integer
      killSignal: "SIGKILL",
    });
    closeSync(file);
    console.log(readFileSync(log, "utf8").trimEnd());
    outcome = exitCode === 0 ? "passed" : exitedDueToTimeout ? `took more than ${limit.toFixed(0)} s` : "failed";
  }
  if (outcome !== "passed") {
    failures++;
    console.log(`${title}: ${outcome}`);
  }
  const took = ((performance.now() - begun) / 1000).toFixed(1);
  appendFileSync(join(parts, "stages.tsv"), `${title}\t${outcome}\t${took}\n`);
}

/** Why no GPU can be used here; null where one can. */
function obstacle(): string | null {
  if (!hasGpu()) return "no NVIDIA GPU here";
  try {
    using device = openDevice("cuda");
    console.log(device.description);
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

rmSync(parts, { recursive: true, force: true });
mkdirSync(parts, { recursive: true });
const why = obstacle();
if (why !== null) {
  if (hasGpu()) {
    console.log(`there is a GPU, but it cannot be used: ${why}`);
    process.exit(1);
  }
  if (nvcc) stage(`registers and spills, ${nvcc.version}`, 900, [bun, "bench/gpu/resources.ts"]);
  else console.log("no nvcc found: the CUDA kernels were not compiled for a GPU");
  stage("the kernels on the emulator", 900, [bun, "tests/emulated.ts", "plain", "race"]);
  console.log(`\n${why}: nothing ran on a GPU, and no figure is given`);
  process.exit(failures > 0 ? 1 : 0);
}

seconds = minutes * 60;

// Its packages may hold cuBLASLt, which is looked for beside what is on the PATH.
const prefix = ask(values.python, "-c", "import sys; print(sys.prefix)");
if (prefix) environment.PATH = `${prefix}/bin:${environment.PATH}`;
if (!ask(values.python, "-c", "import importlib.util; print(importlib.util.find_spec('torch') or '')")) {
  console.log(`${values.python} has no PyTorch: single operations will not run; --python names another`);
}

const library = buildCudaLibrary();
const query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,clocks.mem";
const device = ask("nvidia-smi", `--query-gpu=${query}`, "--format=csv");
writeFileSync(join(parts, "device.csv"), `${device}\n`);
console.log(device || "no nvidia-smi here: driver and clocks are not known");
stage("registers and spills", 60, [bun, "bench/gpu/resources.ts"]);

const [wrappers, captures] = ["wrappers", "captures"].map((name) => join(dirname(library), name)) as [string, string];
const architectures = ["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a"];
const flags = ["-std=c++17", "-O3", ...architectures, "-cudart", "static"];
stage("the wrappers of PTX: build", 60, [nvcc!.command, ...flags, "kernels/tests/wrappers.cu", "-o", wrappers]);
stage("the wrappers of PTX", 20, [wrappers]);
stage("captures: build", 60, [nvcc!.command, ...flags, "kernels/tests/captures.cu", "-o", captures]);
stage("captures", 20, [captures]);

buildCpuLibrary(); // tests compare with it, and should not have to wait for it
const suite = [bun, "test", "--timeout", "60000"];
const onGpu = ["tests/conformance", "tests/model/stepper.test.ts"];
stage("conformance on the GPU", 150, [...suite, ...onGpu], { MANTOU_BACKENDS: "cuda" });
const own = { MANTOU_BACKENDS: "cuda", MANTOU_MATMUL: "own" };
stage("products by our own kernels", 60, [...suite, "tests/conformance/kernels/matmul.test.ts"], own);
const [cli, runs] = ["packages/train/src/cli", join(parts, "runs")];
const train = ["--device", "cuda", "--steps", "50", "--name", "check", "--runs-dir", runs];
stage("a run from the command line", 60, [bun, `${cli}/train.ts`, ...train]);
const generate = ["--device", "cuda", "--run", join(runs, "check"), "--prompt", "Once upon a time"];
stage("text from that run", 30, [bun, `${cli}/generate.ts`, ...generate]);

const kernels = [values.python, "bench/gpu/kernels.py", library];
// These two end their own processes in time, which a stage could not.
const within = (seconds: number) => String(Math.floor(Math.max(1, Math.min(seconds, left() - 10))));
const kernelOptions = ["--out", join(parts, "kernels.json"), "--seconds", within(150)];
stage("every operation against float64, and beside PyTorch", 160, [...kernels, ...kernelOptions]);
const stepOptions = ["--python", values.python, "--out", join(parts, "steps.json"), "--seconds", within(270)];
stage("training steps beside PyTorch's", 280, [bun, "bench/gpu/step.ts", ...stepOptions]);

const computeSanitizer = Bun.which("compute-sanitizer") ?? Bun.which(join(dirname(nvcc!.command), "compute-sanitizer"));
if (computeSanitizer) {
  for (const tool of ["memcheck", "racecheck"]) {
    const sanitizer = [computeSanitizer, "--tool", tool, "--error-exitcode", "1"];
    stage(`${tool}: the wrappers`, 30, [...sanitizer, wrappers]);
    // One process, which the sanitizer follows by itself.
    const one = ["--small", "--no-bench", "--worker", join(parts, `${tool}.json`)];
    stage(`${tool}: every operation on small shapes`, 120, [...sanitizer, ...kernels, ...one]);
  }
} else console.log("\ncompute-sanitizer is not installed: not run");

const report = [values.python, "bench/gpu/report.py", parts, "bench/results"];
const output = { cwd: root, stdout: "inherit", stderr: "inherit" } as const;
const written = Bun.which(values.python) !== null && Bun.spawnSync(report, output).success;
if (!written) console.log(`the results are in ${parts}: ${report.join(" ")} failed`);
const took = ((performance.now() - started) / 60_000).toFixed(1);
console.log(`${failures === 0 ? "everything passed" : `${failures} stages failed`}, ${took} minutes`);
process.exit(failures > 0 || !written ? 1 : 0);
