/**
 * The tests on a CPU library that checks itself: AddressSanitizer and UndefinedBehaviorSanitizer over every kernel.
 * Usage: bun tests/sanitize.ts [ARGUMENTS OF bun test]      (Linux with g++; takes several times as long as the tests)
 *
 * Memory is checked to the byte: mantou_malloc's blocks lie between zones that nobody may touch. Leaks are not looked
 * for, as Bun frees little when it ends. ThreadSanitizer has no run of its own, because it does not know GNU OpenMP's
 * barriers and reports every parallel loop. In its place stands how threads are used: `parallel_for` is the only place
 * that starts any; its pieces write to disjoint rows, columns or blocks and to their own scratch memory; nothing is
 * shared but what no piece writes; and the conformance suite compares the bits of 1, 2 and 3 threads.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buildCpuLibrary, findCompiler } from "../packages/model/src/build.ts";

const flags = [
  "-fsanitize=address,undefined",
  "-fno-sanitize-recover=undefined",
  "-fno-omit-frame-pointer",
  "-g",
  "-O1",
];
const directory = mkdtempSync(join(tmpdir(), "mantou-sanitize-"));
try {
  const library = buildCpuLibrary({ directory, flags });
  const runtime = Bun.spawnSync([findCompiler().command, "-print-file-name=libasan.so"]).stdout.toString().trim();
  const env = {
    ...process.env,
    MANTOU_LIBRARY: library,
    LD_PRELOAD: runtime,
    // Bun's engine has handlers for its own faults, and allocates before the runtime is up.
    ASAN_OPTIONS: "detect_leaks=0:handle_segv=0:handle_sigbus=0:handle_sigill=0:allow_user_segv_handler=1",
    UBSAN_OPTIONS: "print_stacktrace=1",
  };
  const command = [process.execPath, "test", "--timeout", "600000", ...process.argv.slice(2)];
  const tests = Bun.spawnSync(command, { env, stdio: ["inherit", "inherit", "inherit"] });
  process.exitCode = tests.exitCode;
} finally {
  rmSync(directory, { recursive: true, force: true });
}
