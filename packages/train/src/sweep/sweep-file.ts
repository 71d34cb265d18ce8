/** A sweep's file: settings that all runs share, the runs, and which of them belong together in an experiment. */
import { readFileSync } from "node:fs";
import { basename, extname } from "node:path";
import { z } from "zod";
import { type ConfigLayers, type ResolvedConfig, resolveConfig } from "../config.ts";
import { UserError } from "../errors.ts";
import { flatten, unflatten } from "../schema.ts";

/** Names of directories that a sweep keeps beside its runs. */
const RESERVED = ["configs", "logs", "data", "plots"];

const settings = z.record(z.string(), z.unknown());
const runName = z
  .string()
  .regex(/^[A-Za-z0-9][\w.-]*$/, "a name is of letters, digits, '-', '_' and '.', for it is a directory's");

const sweepSchema = z.strictObject({
  /** Of the sweep; default: the file's. */
  name: runName.optional(),
  preset: z.string().optional(),
  /** Settings of all runs. */
  base: settings.default({}),
  /** Settings of each run, over the base. */
  runs: z.record(runName, settings).default({}),
  /** A list of values for each of some settings: one more run for every combination. */
  grid: z.record(z.string(), z.array(z.unknown()).min(1)).optional(),
  experiments: z
    .array(z.strictObject({ name: z.string().min(1), about: z.string().optional(), runs: z.array(runName).min(1) }))
    .optional(),
});

export interface SweepRun {
  name: string;
  /** All that differs from the preset, nested as in a config file. */
  settings: Record<string, unknown>;
  /** All that differs from the other runs, by dotted path. */
  own: Map<string, unknown>;
}

export interface Sweep {
  /** Where it was read. */
  path: string;
  name: string;
  preset: string | undefined;
  base: Record<string, unknown>;
  runs: SweepRun[];
  experiments: { name: string; about?: string; runs: string[] }[];
}

/** @throws UserError for a file that cannot be read, or is not a sweep, or names a run that it does not have */
export function readSweep(path: string): Sweep {
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(path, "utf8"));
  } catch (cause) {
    throw new UserError(`cannot read the sweep ${path}: ${(cause as Error).message}`, {
      fix: "give a JSON file",
      cause,
    });
  }
  const parsed = sweepSchema.safeParse(content);
  if (!parsed.success) {
    throw new UserError(`${path} is not a sweep: ${z.prettifyError(parsed.error)}`, {
      fix: 'for example { "base": { "steps": 100 }, "runs": { "low": { "lr": 1e-4 }, "high": { "lr": 1e-2 } } }',
    });
  }
  const { name = basename(path, extname(path)), preset, base, runs, grid, experiments } = parsed.data;
  const all: SweepRun[] = [...Object.entries(runs), ...combinations(grid)].map(([each, own]) => ({
    name: each,
    settings: unflatten(new Map([...flatten(base), ...flatten(own)])),
    own: flatten(own),
  }));
  if (all.length === 0) throw new UserError(`${path} has no runs`, { fix: 'add "runs" or a "grid"' });
  const names = new Set(all.map((run) => run.name));
  const reserved = all.find((run) => RESERVED.includes(run.name));
  if (reserved !== undefined) {
    throw new UserError(`${path} has a run "${reserved.name}", which is a directory of the sweep itself`, {
      fix: "rename it",
    });
  }
  const twice = all.find((run, i) => all.findIndex((other) => other.name === run.name) !== i);
  if (twice !== undefined) throw new UserError(`${path} has two runs "${twice.name}"`, { fix: "rename one" });
  for (const experiment of experiments ?? []) {
    const unknown = experiment.runs.find((run) => !names.has(run));
    if (unknown === undefined) continue;
    throw new UserError(`experiment "${experiment.name}" in ${path} names a run "${unknown}" that is not there`, {
      fix: `use ${[...names].join(", ")}`,
    });
  }
  return { path, name, preset, base, runs: all, experiments: experiments ?? [{ name, runs: [...names] }] };
}

function combinations(grid: Record<string, unknown[]> | undefined): [string, Record<string, unknown>][] {
  if (grid === undefined) return [];
  let found: [string, unknown][][] = [[]];
  for (const [path, values] of Object.entries(grid)) {
    found = found.flatMap((before) => values.map((value): [string, unknown][] => [...before, [path, value]]));
  }
  return found.map((pairs) => {
    const parts = pairs.map(([path, value]) => `${path.slice(path.lastIndexOf(".") + 1)}-${String(value)}`);
    return [parts.join("_").replace(/[^\w.-]+/g, "-"), unflatten(pairs)];
  });
}

/** A run's config, checked. @throws UserError naming the run */
export function resolveRun(sweep: Sweep, run: SweepRun, over: ConfigLayers["flags"] = {}): ResolvedConfig {
  try {
    return resolveConfig({ preset: sweep.preset, file: { name: sweep.path, settings: run.settings }, flags: over });
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    throw new UserError(`run "${run.name}": ${error.message}`, { fix: error.fix, cause: error });
  }
}
