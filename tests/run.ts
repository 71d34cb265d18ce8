/**
 * `bun run test [ARGUMENTS OF bun test]`: the whole conformance suite, then a line `N passed, N failed`.
 */
import { availableParallelism } from "node:os";
import { buildCpuLibrary } from "@mantou/model";

buildCpuLibrary(); // here, where no test waits for it

// Files side by side, in a process per core; some take half a gigabyte, so no more than eight.
const parallel = `--parallel=${Math.min(availableParallelism(), 8)}`;
const child = Bun.spawn([process.execPath, "test", "--timeout", "60000", parallel, ...process.argv.slice(2)], {
  cwd: new URL("..", import.meta.url).pathname,
  stdout: "inherit",
  stderr: "pipe",
});

const decoder = new TextDecoder();
let report = "";
for await (const chunk of child.stderr) {
  process.stderr.write(chunk);
  report += decoder.decode(chunk, { stream: true });
}
const count = (word: string) => Number(new RegExp(`^\\s*(\\d+) ${word}$`, "m").exec(report)?.[1] ?? 0);
const code = await child.exited;
// A run that ends without a summary (a crash, a broken file) has failed even where no test says so.
const failed = count("fail") + count("error") || (code === 0 ? 0 : 1);
console.log(`${count("pass")} passed, ${failed} failed`);
process.exit(code === 0 && count("pass") > 0 ? 0 : 1);
