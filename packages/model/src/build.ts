/**
 * Builds the native library from `kernels/` when it is needed: `build/<backend>-<hash>/libmantou.<so|dylib>`, where the
 * hash covers sources, flags and compiler; it serves every processor of its architecture. The library appears under its
 * name only when it is complete, and one process builds while others wait for it.
 */
import { createHash } from "node:crypto";
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, readdirSync } from "node:fs";
import { renameSync, rmSync, statSync, writeSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, join, resolve } from "node:path";

/** The repository's root: kernels/ and build/ lie there. */
export const root = resolve(import.meta.dir, "../../..");

export const FLAGS = (
  "-std=c++17 -O3 -ffp-contract=fast -fno-math-errno -fno-trapping-math " +
  "-fopenmp -fPIC -fvisibility=hidden -Wall -Wextra"
).split(" ");

/** Files that are compiled once; every other one holds operations and is compiled for each instruction set. */
export const SHARED = ["context.cpp", "dispatch.cpp", "file.cpp", "graph.cpp", "instructions.cpp", "memory.cpp"];

/** The instruction sets that one library serves, with their flags (see kernels/cpu/dispatch.h). */
const AVX2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2";
const TARGETS: Record<string, string> =
  process.arch === "x64"
    ? {
        sse2: "",
        avx2: AVX2,
        avx512: `${AVX2} -mavx512f -mavx512bw -mavx512cd -mavx512dq -mavx512vl -mprefer-vector-width=512`,
      }
    : process.arch === "arm64"
      ? { neon: "" }
      : { generic: "" };

export const EXTENSION = process.platform === "darwin" ? "dylib" : "so";

/** What a build needs and how it failed, in words for the person at the terminal. */
export class BuildError extends Error {
  override name = "BuildError";
}

/** A compiler's command and the first line of its `--version`. */
export interface Compiler {
  command: string;
  version: string;
}

/**
 * The first C++ compiler that answers: $CXX, c++, g++, clang++.
 * @throws BuildError naming what to install when there is none.
 */
export function findCompiler(environment: Record<string, string | undefined> = process.env): Compiler {
  const candidates = environment.CXX ? [environment.CXX] : ["c++", "g++", "clang++"];
  for (const command of candidates) {
    const path = Bun.which(command, { PATH: environment.PATH ?? "" });
    if (!path) continue;
    const answer = Bun.spawnSync([path, "--version"], { stderr: "ignore" });
    if (answer.success) return { command: path, version: answer.stdout.toString().split("\n")[0]!.trim() };
  }
  throw new BuildError(
    `no C++ compiler found (looked for ${candidates.join(", ")}), and the CPU kernels must be compiled once.\n` +
      "Install one: `apt install g++` (Debian, Ubuntu), `dnf install gcc-c++` (Fedora), `apk add g++` (Alpine), " +
      "`brew install gcc` and CXX=g++-15 (macOS); or set CXX to yours.",
  );
}

export interface BuildOptions {
  /** Receives one line when something is compiled. Default: standard error. */
  log?: (line: string) => void;
  /** Compile even if the library is there. */
  force?: boolean;
  /** Where libraries are kept. Default: `build/` in the repository. */
  directory?: string;
  /** Added to the compiler's, such as those of sanitizers. */
  flags?: string[];
  /** Environment in which compilers are looked for. Default: this process's. */
  environment?: Record<string, string | undefined>;
}

/**
 * Path of the CPU library, compiled first if sources, flags or compiler changed.
 * $MANTOU_LIBRARY names a library to use as it is (sanitizer builds).
 * @throws BuildError without a compiler, or with the compiler's messages when it fails.
 */
export function buildCpuLibrary(options: BuildOptions = {}): string {
  const environment = options.environment ?? process.env;
  if (environment.MANTOU_LIBRARY) return resolve(environment.MANTOU_LIBRARY);
  const compiler = findCompiler(environment);
  const sources = join(root, "kernels/cpu");
  const files = readdirSync(sources)
    .filter((name) => /\.(cpp|h)$/.test(name))
    .sort();
  const flags = [...FLAGS, ...(options.flags ?? [])];
  const hash = createHash("sha256").update(JSON.stringify([flags, TARGETS, compiler, process.arch]));
  const headers = ["kernels/mantou.h", "kernels/errors.h"].map((name) => join(root, name));
  for (const path of [...headers, ...files.map((name) => join(sources, name))]) {
    hash.update(basename(path)).update("\0").update(readFileSync(path)).update("\0");
  }
  const directory = join(options.directory ?? join(root, "build"), `cpu-${hash.digest("hex").slice(0, 16)}`);
  const library = join(directory, `libmantou.${EXTENSION}`);
  if (existsSync(library) && !options.force) return library;
  mkdirSync(directory, { recursive: true });
  return withLock(join(directory, "lock"), () => {
    if (existsSync(library) && !options.force) return library;
    const units = files.filter((name) => name.endsWith(".cpp"));
    compile(compiler, flags, units, directory, library, options.log ?? ((line) => console.error(line)));
    return library;
  });
}

/** Compiles every unit, as many side by side as there are processors, links them, and moves the library into place. */
function compile(
  compiler: Compiler,
  allFlags: string[],
  units: string[],
  directory: string,
  library: string,
  log: (line: string) => void,
): void {
  const started = performance.now();
  const scratch = makeScratch(directory);
  try {
    const jobs = units.flatMap((unit) => {
      const job = (target: string, flags: string) => {
        const object = join(scratch, `${basename(unit, ".cpp")}-${target}.o`);
        return { object, flags: [...flags.split(" "), "-c", join(root, "kernels/cpu", unit), "-o", object] };
      };
      if (SHARED.includes(unit)) return [job("shared", "")];
      return Object.entries(TARGETS).map(([name, flags]) => job(name, `-DMANTOU_TARGET=${name} ${flags}`));
    });
    // A shell starts the compilers side by side, since this function must not return before they end.
    const quoted = (words: string[]) =>
      words.filter((word) => word).map((word) => `'${word.replaceAll("'", "'\\''")}'`);
    const queues = Array.from({ length: Math.min(availableParallelism(), jobs.length) }, (_, worker) => {
      const own = jobs.filter((_job, i) => i % availableParallelism() === worker);
      const commands = own.map(({ flags }) => quoted([compiler.command, ...allFlags, ...flags]).join(" "));
      return `{ ${commands.join(" && ")}; } & pids="$pids $!"`;
    });
    const wait = "failed=0; for pid in $pids; do wait $pid || failed=1; done; exit $failed";
    run(["sh", "-c", [...queues, wait].join("\n")], compiler);
    const linked = join(scratch, basename(library));
    run([compiler.command, ...allFlags, "-shared", "-o", linked, ...jobs.map(({ object }) => object)], compiler);
    renameSync(linked, library);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  log(`Compiled the CPU kernels with ${compiler.version} in ${seconds} s (kept in ${directory}).`);
}

function run(command: string[], compiler: Compiler): void {
  const result = Bun.spawnSync(command, { stdout: "pipe", stderr: "pipe" });
  if (result.success) return;
  const messages = result.stderr.toString().trim();
  const hint = /fopenmp|omp\.h/.test(messages) ? "\nThe compiler lacks OpenMP: use g++, or install libomp." : "";
  throw new BuildError(`the CPU kernels did not compile with ${compiler.version}:\n${messages}${hint}`);
}

/**
 * A folder for the objects of this process. Those of processes that were killed go; as their compilers may run on, it is
 * not theirs.
 */
export function makeScratch(directory: string): string {
  const prefix = "objects-";
  for (const name of readdirSync(directory)) {
    if (name.startsWith(prefix)) rmSync(join(directory, name), { recursive: true, force: true, maxRetries: 3 });
  }
  const scratch = join(directory, `${prefix}${process.pid}`);
  mkdirSync(scratch);
  return scratch;
}

/** Runs `work` while holding the lock file; waits for a live holder, takes over from a dead one. */
export function withLock<T>(path: string, work: () => T): T {
  for (;;) {
    try {
      const file = openSync(path, "wx");
      writeSync(file, String(process.pid));
      closeSync(file);
      break;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
      if (holderIsGone(path)) rmSync(path, { force: true });
      else Bun.sleepSync(50);
    }
  }
  try {
    return work();
  } finally {
    rmSync(path, { force: true });
  }
}

/** Longer than any compilation takes: the number in an older lock may have passed to another process since. */
const LOCK_EXPIRES_MS = 15 * 60_000;

function holderIsGone(path: string): boolean {
  try {
    const age = Date.now() - statSync(path).mtimeMs;
    const holder = Number(readFileSync(path, "utf8"));
    // A holder that was killed between creating the file and writing its number leaves it empty.
    if (!holder) return age > 5000;
    process.kill(holder, 0);
    return age > LOCK_EXPIRES_MS;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ESRCH";
  }
}
