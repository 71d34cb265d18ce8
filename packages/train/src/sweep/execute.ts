/** Runs a sweep: prepares the data once, trains each run in a process of its own, in turn or several at once. */
import { closeSync, existsSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { availableParallelism, freemem } from "node:os";
import { join } from "node:path";
import { writeAtomically, type Device } from "@mantou/model";
import { z } from "zod";
import { type ResolvedConfig, choose, chooseBatchSizes, settled } from "../config.ts";
import { UserError } from "../errors.ts";
import { DirectoryLock } from "../lock.ts";
import { planTraining } from "../plan.ts";
import { checkSources, checkTextLengths, isTokenFile, prepareData, prepareTokenizer } from "../prepare.ts";
import { RunDirectory } from "../run.ts";
import { readUpdate } from "../dashboard/data.ts";
import { isDirectory } from "../shards.ts";
import { removeTemporaries } from "../temporaries.ts";
import { type Sweep, type SweepRun, resolveRun } from "./sweep-file.ts";
import type { RunOutcome } from "./results.ts";

/** Memory of a training process besides its model's. */
const PROGRAM_BYTES = 3e8;

export interface SweepEvents {
  /** Preparing the data. */
  onProgress?(label: string, done: number, total: number): void;
  /** Steps done of all runs, and what is running. */
  onSteps?(done: number, running: string[]): void;
  onEnd?(run: SweepRun, outcome: RunOutcome): void;
}

export interface SweepOptions {
  directory: string;
  /** Runs at once; auto: as many as have threads and memory. */
  parallel: number | "auto";
  device: Device;
  signal?: AbortSignal;
}

/** All runs' steps together. @throws UserError for the first run whose settings are wrong */
export function checkSweep(sweep: Sweep): number {
  let steps = 0;
  for (const run of sweep.runs) {
    const { config } = resolveRun(sweep, run);
    checkSources(config);
    checkTextLengths(config);
    steps += config.steps;
  }
  return steps;
}

/** Data and tokenizer for all runs, as settings; those of a run that has its own come on top of them. */
function prepareShared(sweep: Sweep, options: SweepOptions, events: SweepEvents): Record<string, unknown> {
  const { config } = resolveRun(sweep, { name: "base", settings: sweep.base, own: new Map() });
  const { directory, device } = options;
  const isReady = config.data !== undefined && (isDirectory(config.data) || isTokenFile(config.data));
  if (isReady) return {};
  const progress = (label: string, done: number, total: number) => events.onProgress?.(label, done, total);
  const tokenizer = prepareTokenizer(directory, config, progress);
  prepareData(directory, config, tokenizer, device, progress);
  const [data, val] = ["train", "val"].map((part) => join(directory, "data", `${part}.bin`));
  return { data, val, tokenizer: { path: join(directory, "tokenizer.json") } };
}

/** Whether a run has a tokenizer or data of its own. */
function sharesData({ own }: SweepRun): boolean {
  return ![...own.keys()].some((path) => path.startsWith("tokenizer.") || ["data", "val", "heldOut"].includes(path));
}

/**
 * Trains what is not done yet. @returns how each run ended
 * @throws UserError when it was stopped; repeating the command goes on
 */
export async function executeSweep(
  sweep: Sweep,
  options: SweepOptions,
  events: SweepEvents = {},
): Promise<Record<string, RunOutcome>> {
  const { directory, signal } = options;
  using _lock = new DirectoryLock(directory, 'wait until it has ended, or give this sweep another "name"');
  for (const folder of ["configs", "logs"]) mkdirSync(join(directory, folder), { recursive: true });
  for (const folder of ["", "configs", "data", "plots"]) removeTemporaries(join(directory, folder));
  claim(sweep, directory);
  const shared = prepareShared(sweep, options, events);
  const state = join(directory, "outcomes.json");
  const outcomes = readOutcomes(state);
  const queue = sweep.runs.filter(({ name }) => !["finished", "diverged"].includes(outcomes[name]?.status ?? ""));
  const running = new Map<string, Bun.Subprocess>();
  const stop = () => {
    for (const child of running.values()) child.kill("SIGINT");
  };
  signal?.addEventListener("abort", stop);

  const read = new Map(sweep.runs.map(({ name }) => [name, { next: 0, step: 0 }]));
  const report = () => {
    let done = 0;
    for (const [name, known] of read) {
      const { next, columns, restarted } = readUpdate(new RunDirectory(join(directory, name)), known.next);
      known.step = columns.step.at(-1) ?? (restarted ? 0 : known.step);
      known.next = next;
      done += known.step;
    }
    events.onSteps?.(done, [...running.keys()]);
  };
  const work = async () => {
    for (let run = queue.shift(); run !== undefined && !signal?.aborted; run = queue.shift()) {
      const outcome = await trainOne(sweep, run, sharesData(run) ? shared : {}, directory, running);
      running.delete(run.name);
      if (signal?.aborted) return;
      outcomes[run.name] = outcome;
      writeAtomically(state, [new TextEncoder().encode(`${JSON.stringify(outcomes, null, 2)}\n`)]);
      report();
      events.onEnd?.(run, outcome);
    }
  };
  const timer = setInterval(report, 1000);
  try {
    const parallel = options.parallel === "auto" ? autoParallel(sweep) : options.parallel;
    await Promise.all(Array.from({ length: Math.min(parallel, queue.length) }, work));
  } finally {
    clearInterval(timer);
    signal?.removeEventListener("abort", stop);
  }
  signal?.throwIfAborted();
  return outcomes;
}

const outcomesSchema = z.record(
  z.string(),
  z.strictObject({
    status: z.enum(["finished", "diverged", "failed", "unfinished"]),
    message: z.string().optional(),
  }),
);

/** How runs ended, as far as it is known. @throws UserError for a file that does not say so */
function readOutcomes(path: string): Record<string, RunOutcome> {
  if (!existsSync(path)) return {};
  try {
    return outcomesSchema.parse(JSON.parse(readFileSync(path, "utf8")));
  } catch (cause) {
    const fix = "take it away: runs that are finished stay so, those that diverged are trained again";
    throw new UserError(`${path} does not say how runs ended`, { fix, cause });
  }
}

/** A directory belongs to one sweep: runs that are there must be those of the file. */
function claim(sweep: Sweep, directory: string): void {
  const path = join(directory, "sweep.json");
  const { path: _, ...about } = sweep;
  const runs = sweep.runs.map(({ name, settings }) => ({ name, settings }));
  const text = `${JSON.stringify({ ...about, runs }, null, 2)}\n`;
  if (existsSync(path) && readFileSync(path, "utf8") !== text) {
    throw new UserError(`${directory} holds another sweep, or this one with other settings`, {
      fix: 'give this one another "name", or take the directory away',
    });
  }
  writeAtomically(path, [new TextEncoder().encode(text)]);
}

async function trainOne(
  sweep: Sweep,
  run: SweepRun,
  shared: Record<string, unknown>,
  directory: string,
  running: Map<string, Bun.Subprocess>,
): Promise<RunOutcome> {
  const { config } = resolveRun(sweep, run, { ...shared, name: run.name, runsDir: directory });
  if (new RunDirectory(join(directory, run.name)).isFinished(config.steps)) return { status: "finished" };
  const file = join(directory, "configs", `${run.name}.json`);
  writeAtomically(file, [new TextEncoder().encode(`${JSON.stringify(config, null, 2)}\n`)]);
  const log = openSync(join(directory, "logs", `${run.name}.log`), "a");
  const script = join(import.meta.dir, "../cli/train.ts");
  const child = Bun.spawn([process.execPath, script, "--config", file], {
    stdout: log,
    stderr: "pipe",
    stdin: "ignore",
  });
  closeSync(log);
  running.set(run.name, child);
  const stderr = await new Response(child.stderr).text();
  if ((await child.exited) === 0) return { status: "finished" };
  const message = stderr.trim();
  return { status: /^error: step \d+ diverged/m.test(message) ? "diverged" : "failed", message };
}

/** As many runs as have their threads, and the memory of the largest of them. */
function autoParallel(sweep: Sweep): number {
  const needs = sweep.runs.map((run) => needOf(resolveRun(sweep, run)));
  const threads = Math.max(...needs.map((need) => need.threads));
  const bytes = Math.max(...needs.map((need) => need.bytes));
  return Math.max(1, Math.min(Math.floor(availableParallelism() / threads), Math.floor(freemem() / bytes)));
}

/** Threads and bytes that a run takes on the CPU. */
function needOf(resolved: ResolvedConfig): { threads: number; bytes: number } {
  choose(resolved, "device", "cpu", "as a sweep counts");
  choose(resolved, "precision", "fp32", "as a sweep counts");
  choose(resolved, "threads", availableParallelism(), "as a sweep counts");
  choose(resolved, "model.vocabSize", resolved.config.tokenizer.vocabSize, "as a sweep counts");
  chooseBatchSizes(resolved, "cpu");
  const config = settled(resolved);
  const { total, checkpointCopy } = planTraining(config);
  return { threads: config.threads, bytes: total + checkpointCopy + PROGRAM_BYTES };
}
