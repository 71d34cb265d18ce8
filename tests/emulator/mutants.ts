/**
 * Does the suite notice mistakes? Makes one small mistake after another in the CUDA kernels (a mutant: a barrier dropped, a
 * bound off by one, a wrong lane, two fragments swapped), runs the conformance tests of that file on the emulator, and
 * counts how many mutants die and by which build. A mutant that lives is either equivalent, which EQUIVALENT has to say,
 * or a hole in the suite, and then this fails.
 *
 * Usage: bun tests/emulator/mutants.ts [--only PATTERN] [--skip PATTERN] [--builds plain,race,asan] [--list]
 *        [--results FILE] [--part I/N] [--seconds S] [--again] [--report]
 *
 * Verdicts are kept in build/mutants/results.jsonl (or FILE) under the text of the mutated function, so a run goes on where
 * one ended, and a function that changes is judged anew. --part splits the work among processes, --seconds ends one early,
 * --again judges those anew that lived, --report writes mutants.md from what is known.
 */
import { createHash } from "node:crypto";
import { appendFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync } from "node:fs";
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { type Emulation } from "@mantou/model";
import { root } from "../../packages/model/src/build.ts";
import { KERNELS, emulatedLibrary } from "../../packages/model/src/build-cuda.ts";
import { BY_HAND, EQUIVALENT, TESTS } from "./mutants-by-hand.ts";
import { sanitizerEnvironment } from "./sanitizers.ts";

export interface Mutant {
  file: string;
  line: number;
  /** What was done, such as "barrier dropped". */
  kind: string;
  before: string;
  after: string;
}

/** Mistakes that are made wherever they can be, in lines of kernels. */
const OPERATORS: { kind: string; pattern: RegExp; replacement: string }[] = [
  { kind: "barrier dropped", pattern: /__syncthreads\(\);/g, replacement: ";" },
  { kind: "warp's barrier dropped", pattern: /__syncwarp\(\);/g, replacement: ";" },
  { kind: "wait dropped", pattern: /cp_async_wait<[^;]*>\(\);/g, replacement: ";" },
  {
    kind: "wait for one group less",
    pattern: /cp_async_wait<([^;]*)>\(\);/g,
    replacement: "cp_async_wait<($1) + 1>();",
  },
  { kind: "group not closed", pattern: /cp_async_commit\(\);/g, replacement: ";" },
  { kind: "lane missing in a mask", pattern: /ALL_LANES/g, replacement: "0x7fffffffu" },
  {
    kind: "shuffle from another lane",
    pattern: /(__shfl\w*_sync\(\w+, (?:[^,()]|\([^()]*\))+, )((?:[^()]|\([^()]*\))+)\)/g,
    replacement: "$1($2) ^ 1)",
  },
  {
    kind: "atomic made plain",
    pattern: /atomicAdd\((&?[^,]+), ([^;]+)\);/g,
    replacement: "[&] { auto b_ = *($1); *($1) = b_ + ($2); return b_; }();",
  },
  { kind: "matrix transposed", pattern: /\bldmatrix_x4\(/g, replacement: "ldmatrix_x4_trans(" },
  { kind: "matrix not transposed", pattern: /\bldmatrix_x4_trans\(/g, replacement: "ldmatrix_x4(" },
  { kind: "fragments swapped", pattern: /(mma_bf16_16816\(.*), ([^,]+), ([^,]+)\);/g, replacement: "$1, $3, $2);" },
  { kind: "halves swapped", pattern: /\bpack_bf16\(([^,()]+), ([^,()]+)\)/g, replacement: "pack_bf16($2, $1)" },
  { kind: "bound one too far", pattern: / < ([a-z][\w.]*)(?=[;)& ])/g, replacement: " <= $1" },
  { kind: "bound one too near", pattern: / < ([a-z][\w.]*)(?=[;)& ])/g, replacement: " < $1 - 1" },
];

/** The lines [begin, end) of each kernel and helper of kernels. */
function deviceFunctions(lines: string[]): { begin: number; end: number }[] {
  const found = [];
  for (let begin = 0; begin < lines.length; begin++) {
    if (!/^[^/#]*\b(GLOBAL|DEVICE)\b/.test(lines[begin]!)) continue;
    const indent = /^ */.exec(lines[begin]!)![0];
    let last = begin;
    while (!/\{$|\}$|;$/.test(lines[last]!)) last++;
    if (lines[last]!.endsWith("{")) while (lines[last] !== `${indent}}`) last++;
    found.push({ begin, end: last + 1 });
    begin = last;
  }
  return found;
}

/** Every mutant of the kernels as they are. */
function allMutants(): Mutant[] {
  const mutants: Mutant[] = [];
  for (const file of readdirSync(join(KERNELS, "cuda")).sort()) {
    if (!TESTS[file]) continue;
    const lines = readFileSync(join(KERNELS, "cuda", file), "utf8").split("\n");
    const functions = deviceFunctions(lines);
    lines.forEach((text, line) => {
      const inside = functions.some(({ begin, end }) => begin <= line && line < end);
      if (!inside || /^\s*(\/\/|template|static_assert|constexpr)/.test(text)) return;
      for (const { kind, pattern, replacement } of OPERATORS) {
        for (const match of text.matchAll(pattern)) {
          const at = match.index;
          const after = text.slice(0, at) + text.slice(at).replace(new RegExp(pattern.source), replacement);
          mutants.push({ file, line: line + 1, kind, before: text, after });
        }
      }
    });
    for (const [before, after, kind] of BY_HAND[file] ?? []) {
      const line = lines.findIndex((text) => text.includes(before));
      if (line < 0) throw new Error(`${file} has no line with: ${before}`);
      mutants.push({ file, line: line + 1, kind, before: lines[line]!, after: lines[line]!.replace(before, after) });
    }
  }
  return mutants;
}

/** In the order in which they get to see a mutant. */
let builds: Emulation[] = ["plain", "race"];

const STORE = join(root, "build/mutants");
const sha = (...texts: string[]) => createHash("sha256").update(texts.join("\0")).digest("hex").slice(0, 16);
/** Every source and header but engine's are in it: what an object depends on. */
const sources = sha(
  ...["", "cuda", "emulator", "cpu"].flatMap((folder) =>
    readdirSync(join(KERNELS, folder))
      .filter((name) => /\.(cu|h|cpp)$/.test(name) && (folder !== "cpu" || name === "file.cpp"))
      .sort()
      .map((name) => name + readFileSync(join(KERNELS, folder, name), "utf8")),
  ),
);

/** A copy of the kernels with one mutant at a time; objects of the files as they are outlive the process. */
class Workshop implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "mantou-mutants-"));
  readonly #kernels = join(this.folder, "kernels");

  constructor() {
    cpSync(KERNELS, this.#kernels, { recursive: true });
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }

  /** Runs `work` while the mutant is in place. */
  with<T>(mutant: Mutant, work: () => T): T {
    const path = join(this.#kernels, "cuda", mutant.file);
    const original = readFileSync(path, "utf8");
    writeFileSync(path, mutated(mutant));
    try {
      return work();
    } finally {
      writeFileSync(path, original);
    }
  }

  /**
   * The library in `build` with `file` as it is now and the others as they were (all of them as they are for null), or
   * the compiler's words.
   */
  compile(build: Emulation, file: string | null): { library: string } | { error: string } {
    const { compiler, units, linkFlags } = emulatedLibrary(build);
    const store = join(STORE, `${build}-${sources}`);
    mkdirSync(store, { recursive: true });
    const objects: string[] = [];
    for (const { source, flags } of units) {
      const affected = file !== null && (basename(source) === file || (file.endsWith(".h") && includes(source, file)));
      const output = join(affected ? this.folder : store, `${basename(source)}.o`);
      objects.push(output);
      if (!affected && existsSync(output)) continue;
      // Mutants leave variables unused, debugging information is for people, and compiling takes longer than running.
      const hasty = (flag: string) => (flag === "-O2" ? "-O1" : flag);
      const own = [...(affected ? flags.filter((flag) => flag !== "-Werror").map(hasty) : flags), "-g0"];
      const copy = source.replace(KERNELS, this.#kernels);
      const part = `${output}.${process.pid}`;
      const { success, stderr } = Bun.spawnSync([compiler.command, ...own, "-c", copy, "-o", part], { stderr: "pipe" });
      if (!success) return { error: stderr.toString() };
      renameSync(part, output);
    }
    const library = join(this.folder, `${build}.so`);
    const { success, stderr } = Bun.spawnSync([compiler.command, ...linkFlags, "-o", library, ...objects], {
      stderr: "pipe",
    });
    return success ? { library } : { error: stderr.toString() };
  }
}

/** Whether a source of kernels/cuda includes that header, itself or through another. */
function includes(source: string, header: string): boolean {
  const text = readFileSync(source, "utf8");
  return [...text.matchAll(/#include "(\w+\.h)"/g)].some(([, name]) => {
    const path = join(dirname(source), name!);
    return name === header || (existsSync(path) && includes(path, header));
  });
}

function mutated({ file, line, after }: Mutant): string {
  const lines = readFileSync(join(KERNELS, "cuda", file), "utf8").split("\n");
  lines[line - 1] = after;
  return lines.join("\n");
}

/** The first failure of the tests of `file` with that library; null where they pass. */
function failure(build: Emulation, library: string, file: string): string | null {
  const { tests, pattern } = TESTS[file]!;
  const environment: Record<string, string | undefined> = {
    ...process.env,
    MANTOU_BACKENDS: "emulated",
    MANTOU_EMULATED_LIBRARY: library,
    ...(build === "asan" ? sanitizerEnvironment() : {}),
  };
  const command = [process.execPath, "test", "--bail", "--timeout", "150000", ...tests, "-t", pattern];
  const run = Bun.spawnSync(command, { env: environment, stdout: "pipe", stderr: "pipe", timeout: 150_000 });
  const text = `${run.stdout}${run.stderr}`;
  if (run.exitCode === 0 && !/^ *0 pass/m.test(text)) return null;
  const words = /^(?:\w*Error: .*|==\d+==ERROR: .*|.*runtime error: .*|error: .*|panic.*)$/m.exec(text)?.[0];
  if (words?.includes("cannot load")) throw new Error(words); // no verdict on the kernels
  return words ?? `exit code ${run.exitCode} ${run.signalCode ?? ""}`.trim();
}

interface Verdict {
  /** Of the text of the function with the mistake in it; of the whole file for a mistake outside of functions. */
  key: string;
  /** The build whose tests failed, "compiler" where it does not compile, or null where the mutant lives. */
  killedBy: Emulation | "compiler" | null;
  reason: string;
}

function keyOf(mutant: Mutant): string {
  const lines = mutated(mutant).split("\n");
  const own = deviceFunctions(lines).find(({ begin, end }) => begin < mutant.line && mutant.line <= end);
  return sha(mutant.file, ...(own ? lines.slice(own.begin, own.end) : lines));
}

/** Why a mutant is no mistake, where it is none. */
function equivalence(mutant: Mutant): string | null {
  const matches = ({ file, text, kind }: (typeof EQUIVALENT)[number]) =>
    file === mutant.file && mutant.before.includes(text) && (!kind || mutant.kind === kind);
  return EQUIVALENT.find(matches)?.reason ?? null;
}

/** Builds and files whose tests were seen to pass without a mistake. */
const sound = new Set<string>();

/** The first use of a build on a file shows that its tests pass as they should. */
function expectSound(workshop: Workshop, build: Emulation, file: string): void {
  const seen = join(STORE, `${build}-${sources}`, `${file}.sound`);
  if (sound.has(seen) || existsSync(seen)) return;
  const compiled = workshop.compile(build, null);
  if ("error" in compiled) throw new Error(compiled.error);
  const reason = failure(build, compiled.library, file);
  if (reason !== null) throw new Error(`without a mistake, ${build} fails the tests of ${file}: ${reason}`);
  sound.add(seen);
  writeFileSync(seen, "");
}

function judge(workshop: Workshop, mutant: Mutant): Verdict {
  const key = keyOf(mutant);
  for (const build of builds) {
    expectSound(workshop, build, mutant.file);
    const verdict = workshop.with(mutant, (): Verdict | null => {
      const compiled = workshop.compile(build, mutant.file);
      if ("error" in compiled) {
        return { key, killedBy: "compiler", reason: /error: .*/.exec(compiled.error)?.[0] ?? compiled.error };
      }
      const reason = failure(build, compiled.library, mutant.file);
      return reason === null ? null : { key, killedBy: build, reason };
    });
    if (verdict) return verdict;
  }
  return { key, killedBy: null, reason: "" };
}

/** What noticed a mutant, from the failure's words. */
function checkOf({ killedBy, reason }: Verdict): string {
  if (killedBy === null) return "nothing";
  for (const [check, pattern] of [
    ["race checker: a race", /race: /],
    ["race checker: a read of what nothing has written", /nothing has written/],
    ["race checker: outside of any array", /outside of any array/],
    ["race checker: a copy before its wait", /before waiting for it/],
    ["a barrier that not all reach, or another one", /barrier/],
    ["a mask, or lanes that do not meet", /mask|lanes/],
    ["copies that nobody waits for", /asynchronous copies/],
    ["addresses, launches", /address|launch/],
    ["a write outside of a tensor", /was written$/],
    ["two runs that differ", /not the same bits/],
    ["a crash, or no end", /exit code|timed out|SIG/],
    ["a result that is wrong (NaN included)", /./],
  ] as const)
    if (pattern.test(reason)) return check;
  return "a result that is wrong (NaN included)";
}

function report(mutants: Mutant[], verdicts: Map<string, Verdict>): string {
  const known = mutants.flatMap((mutant) => {
    const verdict = verdicts.get(keyOf(mutant));
    return verdict ? [{ ...mutant, ...verdict, equivalent: equivalence(mutant) }] : [];
  });
  const table = (head: string[], rows: (string | number)[][]) =>
    [head, head.map((_, i) => (i ? "---:" : "---")), ...rows].map((row) => `| ${row.join(" | ")} |`).join("\n");
  const real = known.filter(
    ({ killedBy, equivalent }) => killedBy !== "compiler" && !(killedBy === null && equivalent),
  );
  const of = (file?: string) => real.filter((mutant) => !file || mutant.file === file);
  const row = (name: string, file?: string) => {
    const by = (build: Emulation | null) => of(file).filter(({ killedBy }) => killedBy === build).length;
    const left = (file ? known.filter((mutant) => mutant.file === file) : known).length - of(file).length;
    return [name, of(file).length, by("plain"), by("race"), by("asan"), by(null), left];
  };
  const files = [...new Set(mutants.map(({ file }) => file))];
  const checks = Map.groupBy(
    real.filter(({ killedBy }) => killedBy),
    checkOf,
  );
  const lines = (list: typeof known, more: (mutant: (typeof known)[number]) => string) =>
    list.map((mutant) => `- \`${mutant.file}\`, ${mutant.kind}: \`${mutant.after.trim()}\`${more(mutant)}`).join("\n");
  const missing = mutants.length - known.length;
  return [
    "# Mutants",
    "Written by `bun run test:mutants --report` (see README.md in `kernels/emulator`): mistakes made in the kernels one by",
    "one, and what noticed them.\n",
    `${mutants.length} mutants, ${known.length} judged${missing ? `, ${missing} not yet` : ""}.\n`,
    table(
      ["file", "mutants", "die in plain", "more by race", "more by asan", "live", "not counted"],
      [...files.map((file) => row(`\`${file}\``, file)), row("all")],
    ),
    "\nNot counted are those that do not compile and those that are equivalent to the kernel without a mistake.\n",
    table(
      ["what noticed", "mutants"],
      [...checks].map(([check, list]) => [check, list.length] as [string, number]).sort((a, b) => b[1] - a[1]),
    ),
    "\n## Live\n",
    lines(
      known.filter(({ killedBy, equivalent }) => killedBy === null && !equivalent),
      () => "",
    ) || "None.",
    "\n## Equivalent\n",
    lines(
      known.filter(({ killedBy, equivalent }) => killedBy === null && equivalent),
      ({ equivalent }) => `: ${equivalent}`,
    ),
    "",
  ].join("\n");
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      only: { type: "string", default: "" },
      skip: { type: "string", default: "^$" },
      builds: { type: "string" },
      list: { type: "boolean" },
      results: { type: "string", default: join(STORE, "results.jsonl") },
      part: { type: "string", default: "0/1" },
      seconds: { type: "string", default: "Infinity" },
      again: { type: "boolean" },
      report: { type: "boolean" },
    },
  });
  builds = (values.builds?.split(",") as Emulation[] | undefined) ?? builds;
  const [only, skip] = [new RegExp(values.only), new RegExp(values.skip)];
  const describe = ({ file, line, kind }: Mutant) => `${file}:${line} ${kind}`;
  const all = allMutants();
  const mutants = all.filter((mutant) => only.test(describe(mutant)) && !skip.test(describe(mutant)));
  if (values.list) {
    for (const { file, line, kind, after } of mutants) console.log(`${file}:${line} ${kind}: ${after.trim()}`);
    console.log(`${mutants.length} mutants`);
    process.exit(0);
  }
  mkdirSync(dirname(values.results), { recursive: true });
  const lines = existsSync(values.results) ? readFileSync(values.results, "utf8").trim().split("\n") : [];
  const verdicts = new Map(
    lines.filter(Boolean).map((line) => {
      const verdict = JSON.parse(line) as Verdict;
      return [verdict.key, verdict];
    }),
  );
  const [part, parts] = values.part.split("/").map(Number) as [number, number];
  const todo = values.report
    ? []
    : mutants.filter((mutant, i) => {
        if (i % parts !== part) return false;
        const known = verdicts.get(keyOf(mutant));
        return !known || (values.again && known.killedBy === null);
      });
  const started = performance.now();
  using workshop = new Workshop();
  for (const mutant of todo) {
    if (performance.now() - started > Number(values.seconds) * 1000) break;
    const verdict = judge(workshop, mutant);
    verdicts.set(verdict.key, verdict);
    appendFileSync(values.results, `${JSON.stringify(verdict)}\n`);
    const equivalent = verdict.killedBy === null ? equivalence(mutant) : null;
    const result = verdict.killedBy ?? (equivalent ? `lives, equivalent: ${equivalent}` : "LIVES");
    console.log(`${describe(mutant)}: ${result} ${verdict.reason.slice(0, 150)}`);
  }
  if (values.report) writeFileSync(join(import.meta.dir, "mutants.md"), report(all, verdicts));
  const known = mutants.filter((mutant) => verdicts.has(keyOf(mutant)));
  const live = known.filter((mutant) => verdicts.get(keyOf(mutant))!.killedBy === null && !equivalence(mutant));
  console.log(`${known.length} of ${mutants.length} mutants judged, ${live.length} live`);
  process.exitCode = live.length === 0 ? 0 : 1;
}
