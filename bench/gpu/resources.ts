/**
 * What nvcc's assembler says of every kernel: registers, shared memory, stack and spills. Compiles the CUDA library first
 * if need be; no GPU is needed. Exits with 1 where a kernel spills, as all of them are hot, or a compiler warned.
 * Usage: bun bench/gpu/resources.ts [--all]   (without --all: the architecture of H100 and H200 only)
 */
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { buildCudaLibrary } from "@mantou/model";
import { MESSAGES } from "../../packages/model/src/build-cuda.ts";
import { formatTable } from "../../packages/train/src/terminal/format.ts";

/** Kernels that may spill, and why. */
const MAY_SPILL: Record<string, string> = {};

export interface Resources {
  kernel: string;
  architecture: string;
  registers: number;
  /** Static shared memory, bytes. */
  shared: number;
  stack: number;
  spills: number;
}

/** Reads what `ptxas -v` writes. */
export function parseResources(text: string): Resources[] {
  const found: Resources[] = [];
  for (const line of text.split("\n")) {
    const entry = /Compiling entry function '(\w+)' for '(\w+)'/.exec(line);
    if (entry) {
      found.push({ kernel: entry[1]!, architecture: entry[2]!, registers: 0, shared: 0, stack: 0, spills: 0 });
      continue;
    }
    const last = found.at(-1);
    const frame = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (last && frame) Object.assign(last, { stack: Number(frame[1]), spills: Number(frame[2]) + Number(frame[3]) });
    const used = /Used (\d+) registers/.exec(line);
    if (last && used) {
      last.registers = Number(used[1]);
      last.shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0);
    }
  }
  return found;
}

/** The lines in which nvcc, its host compiler or its assembler warns of something. */
export function parseWarnings(text: string): string[] {
  return text.split("\n").filter((line) => /\bwarning\b/i.test(line));
}

/** Names as they stand in the source, without parameters and namespaces. */
function demangle(names: string[]): string[] {
  const answer = Bun.spawnSync(["c++filt", "-p"], { stdin: Buffer.from(names.join("\n")) });
  if (!answer.success) return names;
  return answer.stdout
    .toString()
    .trimEnd()
    .split("\n")
    .map((name) => name.replaceAll("(anonymous namespace)::", "").replaceAll("mantou::", ""));
}

if (import.meta.main) {
  const library = buildCudaLibrary();
  const text = readFileSync(join(dirname(library), MESSAGES), "utf8");
  const [all, warnings] = [parseResources(text), parseWarnings(text)];
  const names = demangle(all.map(({ kernel }) => kernel));
  const kernels = all.map((resources, i) => ({ ...resources, kernel: names[i]! }));
  const shown = kernels
    .filter(({ architecture }) => process.argv.includes("--all") || architecture === "sm_90a")
    .toSorted((a, b) => a.kernel.localeCompare(b.kernel));
  const rows = shown.map((k) => [k.kernel, k.architecture, k.registers, k.shared, k.stack, k.spills]);
  console.log(formatTable(rows, { header: ["kernel", "for", "registers", "shared", "stack", "spills"] }));
  const spilling = kernels.filter(({ kernel, spills }) => spills > 0 && !MAY_SPILL[kernel]);
  for (const { kernel, architecture, spills } of spilling)
    console.log(`${kernel} spills ${spills} bytes on ${architecture}`);
  for (const warning of warnings) console.log(warning);
  console.log(
    `${kernels.length} kernels, ${spilling.length} of which spill and should not; ${warnings.length} warnings`,
  );
  process.exit(spilling.length + warnings.length === 0 && kernels.length > 0 ? 0 : 1);
}
