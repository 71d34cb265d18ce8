/** A run as the dashboard and the report show it: columns of its metrics, its samples, what it is. */
import { closeSync, existsSync, fstatSync, openSync, readFileSync, readSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { RunDirectory } from "../run.ts";

/** The metrics that are drawn. */
export const COLUMNS = [
  "step",
  "time",
  "tokens",
  "loss",
  "valLoss",
  "valBitsPerByte",
  "lr",
  "gradNorm",
  "updateRatio",
  "tokensPerSecond",
  "mfu",
  "memory",
] as const;

export type Columns = Record<(typeof COLUMNS)[number], (number | null)[]>;

export interface Sample {
  step: number;
  text: string;
}

export interface RunData {
  name: string;
  /** Steps it is to have. */
  steps: number;
  /** Settings worth a line, as texts. */
  facts: [name: string, value: string][];
  columns: Columns;
  samples: Sample[];
}

/** What a page was given at its making. */
export interface PageData {
  /** Whether the page asks its server for more. */
  live: boolean;
  /** The run that is looked at; others are drawn beside it. */
  main: string;
  /** What curves are drawn over at first. */
  axis: "step" | "time" | "tokens";
  runs: RunData[];
}

/** A part of a run's metrics: the lines from byte `from` on, and where the next part begins. */
export interface Update {
  /** The file has become shorter: what was read before counts no more. */
  restarted: boolean;
  next: number;
  columns: Columns;
  samples: Sample[];
}

function emptyColumns(): Columns {
  return Object.fromEntries(COLUMNS.map((name) => [name, []])) as unknown as Columns;
}

/** Names of the runs in a directory, sorted. */
export function listRuns(runsDir: string): string[] {
  if (!existsSync(runsDir)) return [];
  return readdirSync(runsDir)
    .filter((name) => existsSync(new RunDirectory(join(runsDir, name)).metrics))
    .toSorted();
}

/** Whole lines of the metrics from byte `from` on; all of them where the file is shorter than that. */
export function readUpdate(run: RunDirectory, from: number): Update {
  const columns = emptyColumns();
  if (!existsSync(run.metrics)) return { restarted: from > 0, next: 0, columns, samples: [] };
  const file = openSync(run.metrics, "r");
  try {
    const { size } = fstatSync(file);
    const begin = from > size ? 0 : from;
    const bytes = Buffer.alloc(size - begin);
    const got = readSync(file, bytes, 0, bytes.length, begin);
    const end = bytes.subarray(0, got).lastIndexOf(10) + 1;
    for (const line of bytes.toString("utf8", 0, end).split("\n")) appendLine(columns, line);
    return { restarted: from > size, next: begin + end, columns, samples: readSamples(run.samples) };
  } finally {
    closeSync(file);
  }
}

function appendLine(columns: Columns, line: string): void {
  let metrics: Record<string, unknown> | null;
  try {
    metrics = JSON.parse(line) as Record<string, unknown> | null;
  } catch {
    return; // cut off, or empty
  }
  if (!Number.isInteger(metrics?.step)) return;
  for (const name of COLUMNS) {
    const value = metrics![name];
    columns[name].push(typeof value === "number" ? value : null);
  }
}

function readSamples(path: string): Sample[] {
  if (!existsSync(path)) return [];
  const parts = readFileSync(path, "utf8").split(/^--- step (\d+)\n/m);
  const samples: Sample[] = [];
  for (let i = 1; i + 1 < parts.length; i += 2) samples.push({ step: Number(parts[i]), text: parts[i + 1].trimEnd() });
  return samples;
}

/** @param points most points of a column; more are thinned out, but for those with a validation. Default: all */
export function readRun(path: string, name: string, points = Number.POSITIVE_INFINITY): RunData {
  const run = new RunDirectory(path);
  const { columns, samples } = readUpdate(run, 0);
  return { name, ...describe(run), columns: thin(columns, points), samples };
}

/** Steps and settings, read leniently: a page is better than none. */
function describe(run: RunDirectory): { steps: number; facts: RunData["facts"] } {
  try {
    return describeConfig(JSON.parse(readFileSync(run.config, "utf8")) as Record<string, unknown>);
  } catch {
    // A run without a readable config has no facts.
    return { steps: 0, facts: [] };
  }
}

function describeConfig(config: Record<string, unknown>): { steps: number; facts: RunData["facts"] } {
  const { model = {}, choices = [] } = config as {
    model?: Record<string, unknown>;
    choices?: { path: string; value: unknown }[];
  };
  const chosen = new Map(choices.map(({ path, value }) => [path, value]));
  const value = (key: string) => {
    const asked = key.startsWith("model.") ? model[key.slice("model.".length)] : config[key];
    return asked === "auto" ? chosen.get(key) : asked;
  };
  /** `name value` of the settings that are there. */
  const list = (prefix: string, keys: string[]) => {
    const present = keys.filter((key) => value(prefix + key) !== undefined);
    return present.map((key) => `${key} ${String(value(prefix + key))}`).join(", ");
  };
  const facts: [string, string][] = [
    ["model", list("model.", ["numLayers", "dModel", "numHeads", "dFf", "contextLength", "vocabSize"])],
    ["variant", list("model.", ["norm", "position", "ffn"])],
    ["training", list("", ["batchSize", "microBatchSize", "lr", "minLr", "schedule", "warmupSteps", "weightDecay"])],
    ["data", list("", ["data", "order", "seed"])],
    ["machine", list("", ["device", "precision", "threads"])],
  ];
  return { steps: Number(value("steps")) || 0, facts: facts.filter(([, text]) => text !== "") };
}

/** Keeps about `points` rows, evenly, the last one and all that have a validation. */
function thin(columns: Columns, points: number): Columns {
  const count = columns.step.length;
  if (count <= points) return columns;
  const stride = Math.ceil(count / points);
  const kept = emptyColumns();
  for (let i = 0; i < count; i++) {
    if (i % stride !== 0 && i !== count - 1 && columns.valLoss[i] === null) continue;
    for (const name of COLUMNS) kept[name].push(columns[name][i]);
  }
  return kept;
}
