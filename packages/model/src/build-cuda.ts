/**
 * Builds `kernels/cuda` when it is needed: with nvcc for GPUs, or with a C++ compiler and `kernels/emulator` in the GPU's
 * place. Libraries are kept like the CPU's: `build/<backend>-<hash>/libmantou.<so|dylib>`.
 */
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { availableParallelism, totalmem } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { BuildError, type BuildOptions, EXTENSION, findCompiler, makeScratch, root, withLock } from "./build.ts";

/** How the emulated library is checked (see kernels/emulator/README.md). */
export type Emulation = "plain" | "asan" | "race";

export interface Recipe {
  /** Of the directory, and in messages. */
  name: string;
  /** The file's name. */
  output: string;
  /** Command and version. */
  compiler: { command: string; version: string };
  /** Every source with what its compilation is told. */
  units: { source: string; flags: string[] }[];
  linkFlags: string[];
}

export const KERNELS = join(root, "kernels");
/** What the compilers said, beside the library: nvcc's registers, shared memory and spills. */
export const MESSAGES = "messages.txt";
const LIBRARY = `libmantou.${EXTENSION}`;

/** Compilers side by side: each may take a gigabyte. */
const JOBS = Math.max(1, Math.min(availableParallelism(), Math.floor(totalmem() / 2 ** 31)));

const HOST_WARNINGS = "-Wall,-Wextra";

/** A100 and what came after it by its code, H100 and H200 with instructions of their own. */
const ARCHITECTURES = ["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a"];

/** A warning is no error here: other releases of nvcc and of its host compiler have others (resources.ts looks at them). */
const NVCC_FLAGS = [
  ..."-std=c++17 -O3 -cudart static -Xptxas -v".split(" "),
  ...ARCHITECTURES,
  `-Xcompiler=-fPIC,-fvisibility=hidden,${HOST_WARNINGS}`,
];

const EMULATOR_FLAGS =
  "-std=c++17 -g1 -fPIC -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off -Wall -Wextra -Wconversion " +
  "-Wno-unknown-pragmas -Werror";

/** For kernels, for the engine, for the linker. */
const EMULATIONS: Record<Emulation, { kernels: string; engine: string; link: string }> = {
  plain: { kernels: "-O2", engine: "-O2", link: "" },
  asan: {
    kernels: "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all",
    engine: "-O1 -fsanitize=address,undefined -fno-sanitize-recover=all",
    link: "-fsanitize=address,undefined",
  },
  // The instrumentation of the thread sanitizer without its run-time library: the engine answers the calls.
  race: { kernels: "-O1 -fsanitize=thread", engine: "-O2 -DMANTOU_RACE_CHECKER", link: "" },
};

/** nvcc by $NVCC, $CUDA_HOME, the path, or where the toolkit puts itself. */
export function findNvcc(environment: Record<string, string | undefined> = process.env): Recipe["compiler"] | null {
  const { NVCC, CUDA_HOME, PATH = "" } = environment;
  const candidates = [NVCC, CUDA_HOME && join(CUDA_HOME, "bin/nvcc"), "nvcc", "/usr/local/cuda/bin/nvcc"];
  for (const candidate of candidates) {
    const command = candidate && Bun.which(candidate, { PATH });
    if (!command) continue;
    const answer = Bun.spawnSync([command, "--version"], { stderr: "ignore" });
    const version = /release .*/.exec(answer.stdout.toString())?.[0];
    if (answer.success && version) return { command, version: `nvcc ${version}` };
  }
  return null;
}

/**
 * Path of the CUDA library, compiled first if sources, flags or compiler changed. No GPU is needed for that.
 * @throws BuildError without nvcc, or with its messages when it fails
 */
export function buildCudaLibrary(options: BuildOptions = {}): string {
  const compiler = findNvcc(options.environment);
  if (!compiler) {
    throw new BuildError(
      "no nvcc found (looked at $NVCC, $CUDA_HOME/bin, the PATH and /usr/local/cuda/bin), and the CUDA kernels must " +
        "be compiled once. Install the CUDA toolkit, 12.8 or newer, or set NVCC to yours.",
    );
  }
  const units = cudaSources().map((source) => ({ source, flags: NVCC_FLAGS }));
  return build(
    { name: "cuda", output: LIBRARY, compiler, units, linkFlags: ["-cudart", "static", "-shared"] },
    options,
  );
}

/**
 * Path of the library that runs the CUDA kernels on the CPU.
 * @throws BuildError without a C++ compiler, or with its messages when it fails
 */
export function buildEmulatedLibrary(emulation: Emulation = "plain", options: BuildOptions = {}): string {
  // The mutation test brings its own.
  const { MANTOU_EMULATED_LIBRARY: given } = options.environment ?? process.env;
  if (given) return resolve(given);
  return build(emulatedLibrary(emulation, options), options);
}

/** How that library is compiled. */
export function emulatedLibrary(emulation: Emulation, options: BuildOptions = {}): Recipe {
  const name = emulation === "plain" ? "emulated" : `emulated-${emulation}`;
  return emulated({ name, output: LIBRARY, sources: cudaSources(), link: ["-shared"] }, emulation, options);
}

/** The same for a program in `kernels/tests`. */
export function buildEmulatedProgram(name: string, emulation: Emulation = "plain", options: BuildOptions = {}): string {
  return build(emulatedProgram(name, emulation, options), options);
}

/** How that program is compiled. */
export function emulatedProgram(name: string, emulation: Emulation, options: BuildOptions = {}): Recipe {
  const sources = [join(KERNELS, "tests", `${name}.cu`)];
  return emulated({ name: `${name}-${emulation}`, output: name, sources, link: [] }, emulation, options);
}

function emulated(
  { name, output, sources, link }: { name: string; output: string; sources: string[]; link: string[] },
  emulation: Emulation,
  options: BuildOptions,
): Recipe {
  const flags = EMULATIONS[emulation];
  const words = (text: string) => text.split(" ").filter((word) => word);
  const units = sources.map((source) => ({
    source,
    flags: [...words(`${EMULATOR_FLAGS} ${flags.kernels}`), "-x", "c++"],
  }));
  for (const name of readdirSync(join(KERNELS, "emulator")).sort()) {
    if (!name.endsWith(".cpp")) continue;
    units.push({ source: join(KERNELS, "emulator", name), flags: words(`${EMULATOR_FLAGS} ${flags.engine}`) });
  }
  return {
    name,
    output,
    compiler: findCompiler(options.environment),
    units,
    linkFlags: [...link, ...words(flags.link)],
  };
}

/** The sources of kernels/cuda, and of kernels/cpu what every backend does on the host. */
function cudaSources(): string[] {
  const own = readdirSync(join(KERNELS, "cuda")).filter((name) => name.endsWith(".cu"));
  return [...own.sort().map((name) => join(KERNELS, "cuda", name)), join(KERNELS, "cpu/file.cpp")];
}

/** Path of what the recipe makes, compiled first if sources, flags or compiler changed. @throws BuildError */
export function build(recipe: Recipe, options: BuildOptions = {}): string {
  const { compiler, units, linkFlags, name, output } = recipe;
  const hash = createHash("sha256").update(JSON.stringify([compiler, units.map(({ flags }) => flags), linkFlags]));
  for (const path of inputs(units.map(({ source }) => source))) {
    hash.update(basename(path)).update("\0").update(readFileSync(path)).update("\0");
  }
  const directory = join(options.directory ?? join(root, "build"), `${name}-${hash.digest("hex").slice(0, 16)}`);
  const library = join(directory, output);
  if (existsSync(library) && !options.force) return library;
  mkdirSync(directory, { recursive: true });
  return withLock(join(directory, "lock"), () => {
    if (existsSync(library) && !options.force) return library;
    const started = performance.now();
    const scratch = makeScratch(directory);
    try {
      const objects = units.map(({ source }) => join(scratch, `${basename(source)}.o`));
      const commands = units.map(({ source, flags }, i) => {
        return [compiler.command, ...flags, "-c", source, "-o", objects[i]!];
      });
      const messages = runSideBySide(commands, recipe);
      const linked = join(scratch, basename(library));
      runSideBySide([[compiler.command, ...linkFlags, "-o", linked, ...objects]], recipe);
      if (messages) writeFileSync(join(directory, MESSAGES), messages);
      renameSync(linked, library);
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    const log = options.log ?? ((line: string) => console.error(line));
    log(`Compiled the ${name} kernels with ${compiler.version} in ${seconds} s (kept in ${directory}).`);
    return library;
  });
}

/** Sources with every header that one of them may include. */
function inputs(sources: string[]): string[] {
  const folders = new Set([
    KERNELS,
    join(KERNELS, "cuda"),
    join(KERNELS, "emulator"),
    ...sources.map((source) => dirname(source)),
  ]);
  const headers = [...folders].flatMap((folder) =>
    readdirSync(folder)
      .filter((name) => name.endsWith(".h"))
      .map((name) => join(folder, name)),
  );
  return [...sources, ...headers].sort();
}

/**
 * A shell runs the commands, JOBS at a time, since this function must not return before they end. Each writes what it says
 * to a file of its own; all of it is returned.
 */
function runSideBySide(commands: string[][], { compiler, name }: Recipe): string {
  const quoted = (words: string[]) => words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(" ");
  const logs = commands.map((command) => `${command[command.indexOf("-o") + 1]}.log`);
  const lines = commands.map((command, i) => `${quoted(command)} > ${quoted([logs[i]!])} 2>&1`);
  const queues = Array.from({ length: JOBS }, (_, queue) => lines.filter((_line, i) => i % JOBS === queue));
  const started = queues
    .filter((queue) => queue.length > 0)
    .map((queue) => `{ ${queue.join(" && ")}; } & pids="$pids $!"`);
  const wait = "failed=0; for pid in $pids; do wait $pid || failed=1; done; exit $failed";
  const result = Bun.spawnSync(["sh", "-c", [...started, wait].join("\n")], { stdout: "pipe", stderr: "pipe" });
  const said = logs.filter((path) => existsSync(path)).map((path) => readFileSync(path, "utf8"));
  const messages = [...said, result.stderr.toString()].join("").trim();
  if (!result.success) {
    throw new BuildError(`the ${name} kernels did not compile with ${compiler.version}:\n${messages}`);
  }
  return messages;
}
