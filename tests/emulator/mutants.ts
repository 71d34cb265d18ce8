/**
 * Does the suite notice mistakes? Makes one small mistake after another in the CUDA kernels (a mutant: a barrier dropped, a
 * bound off by one, a wrong lane, two fragments swapped), runs the conformance tests of that file on the emulator, and
 * counts how many mutants die and by which build. A mutant that lives is either equivalent, which EQUIVALENT has to say,
 * or a hole in the suite, and then this fails.
 *
 * Usage: bun tests/emulator/mutants.ts [--only PATTERN] [--skip PATTERN] [--builds plain,race,asan]
 *        [--list] [--out FILE.json]
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { type Emulation } from "@mantou/model";
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

/** Numbers of the lines that belong to kernels and their helpers. */
function deviceLines(lines: string[]): Set<number> {
  const found = new Set<number>();
  for (let i = 0; i < lines.length; i++) {
    if (!/^[^/#]*\b(GLOBAL|DEVICE)\b/.test(lines[i]!)) continue;
    const indent = /^ */.exec(lines[i]!)![0];
    let end = i;
    while (!/\{$|\}$|;$/.test(lines[end]!)) end++;
    if (lines[end]!.endsWith("{")) while (lines[end] !== `${indent}}`) end++;
    for (; i <= end; i++) found.add(i);
    i--;
  }
  return found;
}

/** Every mutant of the kernels as they are. */
export function allMutants(): Mutant[] {
  const mutants: Mutant[] = [];
  for (const file of readdirSync(join(KERNELS, "cuda")).sort()) {
    if (!TESTS[file]) continue;
    const lines = readFileSync(join(KERNELS, "cuda", file), "utf8").split("\n");
    const device = deviceLines(lines);
    lines.forEach((text, line) => {
      if (!device.has(line) || /^\s*(\/\/|template|static_assert|constexpr)/.test(text)) return;
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
let builds: Emulation[] = ["plain", "race", "asan"];

/** Compiles a copy of the kernels, again and again, and only what a change touches. */
class Workshop implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "mantou-mutants-"));
  readonly #kernels = join(this.folder, "kernels");

  constructor() {
    cpSync(KERNELS, this.#kernels, { recursive: true });
    for (const build of builds) mkdirSync(join(this.folder, build));
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true });
  }

  /** Runs `work` while the mutant is in place. */
  with<T>({ file, line, after }: Mutant, work: () => T): T {
    const path = join(this.#kernels, "cuda", file);
    const original = readFileSync(path, "utf8");
    const lines = original.split("\n");
    lines[line - 1] = after;
    writeFileSync(path, lines.join("\n"));
    try {
      return work();
    } finally {
      writeFileSync(path, original);
    }
  }

  /**
   * The library in `build` with `file` as it is now and the others as they were (all of them as they are for null), or the
   * compiler's words.
   */
  compile(build: Emulation, file: string | null): { library: string } | { error: string } {
    const whole = join(this.folder, build, "whole.so");
    if (file === null && existsSync(whole)) return { library: whole };
    const { compiler, units, linkFlags } = emulatedLibrary(build);
    const folder = join(this.folder, build);
    const objects: string[] = [];
    for (const { source, flags } of units) {
      const object = join(folder, `${basename(source)}.o`);
      const affected = file !== null && (file.endsWith(".h") ? source.endsWith(".cu") : basename(source) === file);
      const output = affected ? `${object}.mutant` : object;
      objects.push(output);
      if (file !== null && !affected) continue;
      const own = flags.filter((flag) => file === null || flag !== "-Werror");
      const copy = source.replace(KERNELS, this.#kernels);
      const { success, stderr } = Bun.spawnSync([compiler.command, ...own, "-c", copy, "-o", output], {
        stderr: "pipe",
      });
      if (!success) return { error: stderr.toString() };
    }
    const library = join(folder, file === null ? "whole.so" : "mutant.so");
    const { success, stderr } = Bun.spawnSync([compiler.command, ...linkFlags, "-o", library, ...objects], {
      stderr: "pipe",
    });
    return success ? { library } : { error: stderr.toString() };
  }
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
  const command = [process.execPath, "test", "--bail", "--timeout", "120000", ...tests, "-t", pattern];
  const run = Bun.spawnSync(command, { env: environment, stdout: "pipe", stderr: "pipe", timeout: 90_000 });
  const text = `${run.stdout}${run.stderr}`;
  if (run.exitCode === 0 && !/^ *0 pass/m.test(text)) return null;
  const words = /^(?:\w*Error: .*|==\d+==ERROR: .*|.*runtime error: .*|error: .*|panic.*)$/m.exec(text)?.[0];
  if (words?.includes("cannot load")) throw new Error(words); // no verdict on the kernels
  return words ?? `exit code ${run.exitCode} ${run.signalCode ?? ""}`.trim();
}

interface Verdict extends Mutant {
  /** The build whose tests failed, "does not compile", or null where the mutant lives. */
  killedBy: Emulation | "compiler" | null;
  reason: string;
  equivalent: string | null;
}

/** Builds and files whose tests were seen to pass without a mistake. */
const sound = new Set<string>();

/** The first use of a build on a file shows that its tests pass as they should. */
function expectSound(workshop: Workshop, build: Emulation, file: string): void {
  if (sound.has(`${build} ${file}`)) return;
  const compiled = workshop.compile(build, null);
  if ("error" in compiled) throw new Error(compiled.error);
  const reason = failure(build, compiled.library, file);
  if (reason !== null) throw new Error(`without a mistake, ${build} fails the tests of ${file}: ${reason}`);
  sound.add(`${build} ${file}`);
}

function judge(workshop: Workshop, mutant: Mutant): Verdict {
  const matches = ({ file, text, kind }: (typeof EQUIVALENT)[number]) =>
    file === mutant.file && mutant.before.includes(text) && (!kind || mutant.kind === kind);
  const equivalent = EQUIVALENT.find(matches)?.reason ?? null;
  for (const build of builds) {
    expectSound(workshop, build, mutant.file);
    const verdict = workshop.with(mutant, (): Verdict | null => {
      const compiled = workshop.compile(build, mutant.file);
      if ("error" in compiled) {
        return { ...mutant, killedBy: "compiler", reason: compiled.error.split("\n")[0]!, equivalent };
      }
      const reason = failure(build, compiled.library, mutant.file);
      return reason === null ? null : { ...mutant, killedBy: build, reason, equivalent };
    });
    if (verdict) return verdict;
  }
  return { ...mutant, killedBy: null, reason: "", equivalent };
}

if (import.meta.main) {
  const { values } = parseArgs({
    options: {
      only: { type: "string", default: "" },
      skip: { type: "string", default: "^$" },
      builds: { type: "string" },
      list: { type: "boolean" },
      out: { type: "string" },
    },
  });
  builds = (values.builds?.split(",") as Emulation[] | undefined) ?? builds;
  const [only, skip] = [new RegExp(values.only), new RegExp(values.skip)];
  const describe = ({ file, line, kind }: Mutant) => `${file}:${line} ${kind}`;
  const mutants = allMutants().filter((mutant) => only.test(describe(mutant)) && !skip.test(describe(mutant)));
  if (values.list) {
    for (const { file, line, kind, after } of mutants) console.log(`${file}:${line} ${kind}: ${after.trim()}`);
    console.log(`${mutants.length} mutants`);
    process.exit(0);
  }
  using workshop = new Workshop();
  const verdicts: Verdict[] = [];
  for (const mutant of mutants) {
    const verdict = judge(workshop, mutant);
    verdicts.push(verdict);
    const { file, line, kind, killedBy, reason, equivalent } = verdict;
    const result = killedBy ?? (equivalent ? `lives, equivalent: ${equivalent}` : "LIVES");
    console.log(`${file}:${line} ${kind}: ${result} ${reason.slice(0, 150)}`);
    if (values.out) writeFileSync(values.out, `${JSON.stringify(verdicts, null, 1)}\n`);
  }
  const counted = verdicts.filter(({ killedBy, equivalent }) => killedBy !== "compiler" && !equivalent);
  const by = (build: Emulation | null) => counted.filter(({ killedBy }) => killedBy === build).length;
  console.log(
    `${counted.length} mutants: ${by("plain")} die in the plain build, ${by("race")} more by the race checker, ` +
      `${by("asan")} more with sanitizers, ${by(null)} live; ` +
      `${verdicts.filter(({ equivalent }) => equivalent).length} are equivalent, ` +
      `${verdicts.filter(({ killedBy }) => killedBy === "compiler").length} do not compile`,
  );
  process.exit(by(null) === 0 ? 0 : 1);
}
