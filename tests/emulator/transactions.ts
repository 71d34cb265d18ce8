/** Building with the counter of memory transactions (transactions.cpp), and reading what it writes. Linux only. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Recipe, build, emulatedLibrary, emulatedProgram } from "../../packages/model/src/build-cuda.ts";

const COUNTER = join(import.meta.dir, "transactions.cpp");

export type Kind = "load" | "store" | "atomic" | "shared load" | "shared store";

/** What the accesses at one place of the code, or at several, were. */
export interface Count {
  /** By warps. */
  requests: number;
  /** Bytes; of device memory, those that lanes share count once. */
  asked: number;
  /** Bytes of the sectors of device memory; how many times over shared memory answered. */
  moved: number;
  /** The same if lanes' accesses lay side by side. */
  least: number;
}

export interface Access extends Count {
  kind: Kind;
  /** Address in the library or program, hexadecimal. */
  code: string;
}

export interface Launch {
  operation: string;
  blocks: number;
  threads: number;
  /** Bytes of the sectors that were touched at all. */
  read: number;
  written: number;
  accesses: Access[];
}

export function buildCountingLibrary(): string {
  return build(counting(emulatedLibrary("race")));
}

/** A program in `kernels/tests`. */
export function buildCountingProgram(name: string): string {
  return build(counting(emulatedProgram(name, "race")));
}

/** The instrumented kernels with the counter in place of the race checker. */
function counting(recipe: Recipe): Recipe {
  const wrapped = readFileSync(COUNTER, "utf8").matchAll(/(?:WRAP\(\w+, |__wrap_)(_Z\w+)/g);
  const units = recipe.units.map(({ source, flags }) => ({
    source,
    // Without -fno-tree-sra accesses of 16 bytes become several.
    flags: [...flags.filter((flag) => flag !== "-DMANTOU_RACE_CHECKER"), "-fno-tree-sra"],
  }));
  const { flags } = units.find(({ source }) => source.endsWith("engine.cpp"))!;
  return {
    ...recipe,
    name: `${recipe.name.replace("-race", "")}-counting`,
    units: [...units, { source: COUNTER, flags }],
    linkFlags: [...recipe.linkFlags, ...[...wrapped].map(([, symbol]) => `-Wl,--wrap=${symbol}`)],
  };
}

/** The launches of a process that uses such a library, or is such a program. */
export function countLaunches(command: string[], environment: Record<string, string> = {}): Launch[] {
  const folder = mkdtempSync(join(tmpdir(), "mantou-transactions-"));
  const file = join(folder, "launches");
  try {
    const { success, stderr } = Bun.spawnSync(command, {
      env: { ...process.env, ...environment, MANTOU_TRANSACTIONS: file },
    });
    if (!success) throw new Error(`${command.join(" ")}: ${stderr}`);
    return parseLaunches(readFileSync(file, "utf8"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function parseLaunches(text: string): Launch[] {
  const launches: Launch[] = [];
  for (const line of text.trim().split("\n")) {
    const [first, second, ...rest] = line.split("\t") as [string, string];
    const numbers = rest.map(Number) as [number, number, number, number];
    if (first === "launch") {
      const [blocks, threads, read, written] = numbers;
      launches.push({ operation: second, blocks, threads, read, written, accesses: [] });
    } else {
      const [requests, asked, moved, least] = numbers;
      launches.at(-1)!.accesses.push({ kind: first as Kind, code: second, requests, asked, moved, least });
    }
  }
  return launches;
}

/** The sum over the accesses of these kinds. */
export function total(accesses: Access[], ...kinds: Kind[]): Count {
  const sum: Count = { requests: 0, asked: 0, moved: 0, least: 0 };
  for (const access of accesses) {
    if (!kinds.includes(access.kind)) continue;
    for (const key of Object.keys(sum) as (keyof Count)[]) sum[key] += access[key];
  }
  return sum;
}
