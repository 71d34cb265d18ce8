/**
 * The tests on a CPU library that checks itself (Linux with g++).
 * Usage: bun tests/sanitize.ts [--threads] [ARGUMENTS OF bun test]
 *
 * By default AddressSanitizer and UndefinedBehaviorSanitizer, over every test. Memory is checked to the byte:
 * mantou_malloc's blocks lie between zones that nobody may touch. Leaks are not looked for, as Bun frees little when it
 * ends.
 *
 * With --threads ThreadSanitizer, over the tests of single operations. It does not know GNU OpenMP's barriers and would
 * report every parallel loop, so `parallel_for`, the only place that starts threads, starts and joins them itself in this
 * build; what its pieces do is the same. Nothing is suppressed, but accesses of Bun's own, which is not instrumented, are
 * not looked at.
 */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { buildCpuLibrary, findCompiler, root } from "../packages/model/src/build.ts";

const given = process.argv.slice(2);
const threads = given[0] === "--threads";
if (threads) given.shift();
if (threads && !given.some((argument) => !argument.startsWith("-"))) given.push("tests/conformance/kernels");

const runtime = threads ? "libtsan.so" : "libasan.so";
// Bun's engine has handlers for its own faults, and allocates before the runtime is up.
const handlers = "handle_segv=0:handle_sigbus=0:handle_sigill=0:allow_user_segv_handler=1";
const flags = [
  ...(threads ? ["-fsanitize=thread"] : ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]),
  "-fno-omit-frame-pointer",
  "-g",
  "-O1",
];
const env = {
  ...process.env,
  MANTOU_LIBRARY: buildCpuLibrary({ directory: join(root, "build/sanitize"), flags }),
  MANTOU_BACKENDS: "cpu", // the CUDA kernels have sanitizers of their own (kernels/emulator)
  LD_PRELOAD: Bun.spawnSync([findCompiler().command, `-print-file-name=${runtime}`])
    .stdout.toString()
    .trim(),
  ASAN_OPTIONS: `detect_leaks=0:${handlers}`,
  UBSAN_OPTIONS: "print_stacktrace=1",
  TSAN_OPTIONS: `halt_on_error=1:ignore_noninstrumented_modules=1:${handlers}`,
};
const parallel = `--parallel=${Math.min(availableParallelism(), 4)}`; // a process takes up to two gigabytes
const command = [process.execPath, "test", "--timeout", "600000", parallel, ...given];
const tests = Bun.spawnSync(command, { cwd: root, env, stdio: ["inherit", "inherit", "inherit"] });
process.exitCode = tests.exitCode;
