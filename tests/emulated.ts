/**
 * `bun run test:emulated [plain|asan|race …]`: the CUDA kernels on the CPU in each build of the emulator (all three by
 * default), and the tests of the emulator itself. `plain` runs the whole conformance suite, the slower builds the tests of
 * single operations, of which models are made. See kernels/emulator/README.md.
 */
import { availableParallelism } from "node:os";
import type { Emulation } from "@mantou/model";
import { sanitizerEnvironment } from "./emulator/sanitizers.ts";

const emulations = process.argv.slice(2) as Emulation[];
if (emulations.length === 0) emulations.push("plain", "asan", "race");

const operations = ["tests/conformance/kernels/", "tests/conformance/goldens.test.ts"];

let failed = false;
for (const emulation of emulations) {
  const started = performance.now();
  const environment: Record<string, string | undefined> = {
    ...process.env,
    MANTOU_BACKENDS: "emulated",
    MANTOU_EMULATION: emulation,
    ...(emulation === "asan" ? sanitizerEnvironment() : {}),
  };
  const parallel = `--parallel=${Math.min(availableParallelism(), 8)}`;
  const command = [process.execPath, "test", "--timeout", "120000", parallel, "tests/emulator"];
  command.push(...(emulation === "plain" ? ["tests/conformance"] : operations));
  const run = Bun.spawn(command, { cwd: `${import.meta.dir}/..`, env: environment, stdout: "ignore", stderr: "pipe" });
  const report = await new Response(run.stderr).text();
  const good = (await run.exited) === 0;
  failed ||= !good;
  if (!good) console.log(report);
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  const [passed] = /^ *\d+ pass$/m.exec(report) ?? ["no"];
  console.log(`${emulation}: ${good ? "passed" : "FAILED"}, ${passed.trim()}, ${seconds} s`);
}
process.exit(failed ? 1 : 0);
