/**
 * A run's directory and what lies in it:
 *
 *   config.json      the config as asked for, and what was chosen for its automatic values
 *   tokenizer.json   data/train.bin  data/val.bin  (and data/stories.txt, if they were generated)
 *   checkpoints/     step-00000500.safetensors …
 *   metrics.jsonl    one line a step
 *   tensorboard/     the same for `tensorboard --logdir runs`
 *   samples.txt      texts sampled on the way
 *   report.html      curves and samples for a browser, written at the end
 *   wandb/           with --wandb: what W&B's SDK keeps there, and the run's id
 *   skipped.json     the steps that were passed over after the run diverged, if there are any
 *   lock.tmp-PID     while a process trains, to keep others away
 */
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { type Device, TransformerLM, writeAtomically } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { CheckpointError, checkpointStep, isWholeCheckpoint } from "./checkpoint.ts";
import { listCheckpoints, loadNewest, loadWeights } from "./checkpoint.ts";
import { type ResolvedConfig, type SettledConfig, choose, configJson, loadRunConfig } from "./config.ts";
import { UserError } from "./errors.ts";
import { flatten } from "./schema.ts";
import { isTemporary, removeTemporaries } from "./temporaries.ts";
import { shellWord } from "./terminal/format.ts";
import { readTokenizer } from "./tokenizer-file.ts";

export class RunDirectory {
  readonly checkpoints: string;
  readonly data: string;
  readonly metrics: string;
  readonly samples: string;
  readonly config: string;
  readonly skipped: string;
  readonly events: string;
  readonly tokenizer: string;

  constructor(readonly path: string) {
    this.checkpoints = join(path, "checkpoints");
    this.data = join(path, "data");
    this.metrics = join(path, "metrics.jsonl");
    this.samples = join(path, "samples.txt");
    this.config = join(path, "config.json");
    this.events = join(path, "tensorboard", "events.out.tfevents.0.mantou");
    this.skipped = join(path, "skipped.json");
    this.tokenizer = join(path, "tokenizer.json");
  }

  /** Whether something was begun here: a process killed before it had written config.json leaves directories alone. */
  get exists(): boolean {
    if (!existsSync(this.path)) return false;
    if (!statSync(this.path).isDirectory()) return true;
    const entries = readdirSync(this.path, { recursive: true, withFileTypes: true });
    return entries.some((entry) => !entry.isDirectory() && !isTemporary(entry.name));
  }

  /** Whether all `steps` are done: the newest checkpoint says so, and it is whole. */
  isFinished(steps: number): boolean {
    const [newest] = listCheckpoints(this.checkpoints);
    return newest !== undefined && checkpointStep(newest) >= steps && isWholeCheckpoint(newest);
  }

  /** Removes what processes that were killed while they wrote left behind. */
  removeTemporaries(): void {
    const directories = [this.path, this.data, this.checkpoints, dirname(this.events)];
    for (const directory of directories) removeTemporaries(directory);
  }
}

/**
 * The directory for a run that `train` was asked for. An unfinished run of the same config goes on; anything else that
 * stands in the way is left alone: an automatic name gets a number, a name that was asked for is refused.
 * @throws UserError saying what is there and how to go on
 */
export function claimDirectory(resolved: ResolvedConfig, name: string): RunDirectory {
  const { runsDir, name: asked } = resolved.config;
  for (let number = 1; ; number++) {
    const candidate = number === 1 ? name : `${name}-${number}`;
    const run = new RunDirectory(join(runsDir, candidate));
    const obstacle = run.exists ? obstacleTo(run, resolved) : undefined;
    if (obstacle === undefined) {
      if (number > 1) choose(resolved, "name", candidate, `${join(runsDir, name)} holds another run`);
      return run;
    }
    if (asked !== "auto") throw obstacle;
  }
}

/**
 * Holds a new run, once its directory is locked, against what has come there since it was claimed: devices take their
 * time to open, above all where kernels are compiled first.
 * @throws UserError when another process has begun a run there
 */
export function checkStillFree(run: RunDirectory): void {
  if (!run.exists) return;
  throw new UserError(`another process has meanwhile begun a run in ${run.path}`, {
    fix: "repeat the command, or take another --name",
    exitCode: 1,
  });
}

/** Settings of the machine that a run goes on with, not of the run: they do not make another one of it. */
export const MACHINE_SETTINGS = ["device", "threads"] as const;

/** Why this run cannot go on in an existing directory, if it cannot. */
function obstacleTo(run: RunDirectory, resolved: ResolvedConfig): UserError | undefined {
  const other = "take another --name";
  if (!existsSync(run.config)) {
    return new UserError(`${run.path} exists and is no run of Mantou`, { fix: other });
  }
  const [there, here] = [readFileSync(run.config, "utf8"), configJson(resolved)].map(settingsOf);
  const differing = [...new Set([...there.keys(), ...here.keys()])].filter(
    (path) => there.get(path) !== here.get(path),
  );
  if (differing.length > 0) {
    const shown = differing.slice(0, 3).map((path) => `${path} is ${there.get(path)} there and ${here.get(path)} here`);
    const more = differing.length > 3 ? `, and ${differing.length - 3} more` : "";
    return new UserError(`${run.path} holds a run with another config: ${shown.join(", ")}${more}`, {
      fix: `${other}, or go on with that run: bun run train --resume ${shellWord(run.path)}`,
    });
  }
  if (run.isFinished(resolved.config.steps)) {
    return new UserError(`${run.path} holds a finished run of this config (${resolved.config.steps} steps)`, {
      fix: `${other}, or sample from it: bun run generate --run ${shellWord(run.path)}`,
    });
  }
  return undefined;
}

/** The settings of a config.json but its name and the machine's, by their paths, as JSON; of one that cannot be read none. */
function settingsOf(json: string): Map<string, string> {
  try {
    const settings = JSON.parse(json) as Record<string, unknown>;
    for (const key of ["choices", "name", ...MACHINE_SETTINGS]) delete settings[key];
    return new Map([...flatten(settings)].map(([path, value]) => [path, JSON.stringify(value)]));
  } catch {
    return new Map();
  }
}

/** Writes config.json, making the directory. */
export function saveConfig(run: RunDirectory, resolved: ResolvedConfig): void {
  mkdirSync(run.checkpoints, { recursive: true });
  writeAtomically(run.config, [new TextEncoder().encode(configJson(resolved))]);
}

/**
 * Gives a new model the weights of a run to start from; context and rotary frequencies may be others.
 * @throws UserError when that run has no checkpoint, CheckpointError when none of them fits
 */
export function initialise(model: TransformerLM, path: string, warn: (message: string) => void): void {
  const { checkpoints } = new RunDirectory(path);
  const step = loadNewest(checkpoints, (file) => loadWeights(file, model, { differ: true }), warn);
  if (step === undefined) throw noCheckpoint(path);
}

/** Refuses a run that has nothing yet to generate with or to start from. @throws UserError */
export function checkBegun(path: string): void {
  if (listCheckpoints(new RunDirectory(path).checkpoints).length === 0) throw noCheckpoint(path);
}

function noCheckpoint(path: string): UserError {
  return new UserError(`${path} has no checkpoint yet`, { fix: `train it: bun run train --resume ${shellWord(path)}` });
}

/** How a run's config wants the model to be made. */
export function modelOptions({ seed, microBatchSize, precision, activations, zLoss }: SettledConfig) {
  return { seed, batchSize: microBatchSize, precision, activations, zLoss };
}

/** A trained model with its tokenizer, for generation and evaluation. */
export interface LoadedRun {
  run: RunDirectory;
  config: SettledConfig;
  tokenizer: Tokenizer;
  model: TransformerLM;
  /** Steps after which the weights were saved. */
  step: number;
}

/**
 * Opens a run with its newest sound checkpoint.
 * @throws UserError when there is no run, or it has no usable checkpoint or tokenizer
 */
export function loadRun(path: string, device: Device, warn: (message: string) => void): LoadedRun {
  const run = new RunDirectory(path);
  if (!existsSync(run.config)) {
    throw new UserError(`there is no run in ${path}`, { fix: "give the directory of a run, such as runs/tiny" });
  }
  const config = loadRunConfig(run.config);
  // One that was stopped early has no tokenizer either.
  checkBegun(path);
  const tokenizer = readTokenizer(run.tokenizer, "put back the file that the run was trained with, or train again");
  const model = new TransformerLM(config.model, { device, ...modelOptions(config) });
  try {
    const step = loadNewest(run.checkpoints, (file) => loadWeights(file, model), warn);
    if (step === undefined) throw noCheckpoint(path);
    return { run, config, tokenizer, model, step };
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    throw new UserError(error.message, { fix: "no older checkpoint is usable: train again", exitCode: 1 });
  }
}
