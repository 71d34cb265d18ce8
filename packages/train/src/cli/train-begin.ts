/**
 * How a run begins: a new one, or one that was stopped and goes on, with what is chosen for it on this machine.
 */
import { existsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { type Device, openDevice } from "@mantou/model";
import { holdsWeightsAlone, listCheckpoints } from "../checkpoint.ts";
import { type ResolvedConfig, choose, chooseBatchSizes, readRunConfig, resolveConfig, settled } from "../config.ts";
import { type SettledConfig, type TrainConfig, trainConfigSchema } from "../config.ts";
import { UserError } from "../errors.ts";
import { checkSources, checkTextLengths, givenTokenizer } from "../prepare.ts";
import { MACHINE_SETTINGS, RunDirectory, checkBegun, claimDirectory, saveConfig } from "../run.ts";
import { validate } from "../schema.ts";
import { shellWord } from "../terminal/format.ts";
import { styleFor, widthOf } from "../terminal/style.ts";
import { readTokenizer } from "../tokenizer-file.ts";
import { formatConfig } from "./config-summary.ts";

/** A run that is ready to start. */
export interface Prepared {
  device: Device;
  run: RunDirectory;
  /** What was asked for; the tokenizer settles the size of the vocabulary. */
  resolved: ResolvedConfig;
  /** Whether nothing of it was there yet. */
  isNew: boolean;
}

/** How `train` was called: preset, config file and flags. */
export type Layers = Parameters<typeof resolveConfig>[0];

/** Resolves a new config, and chooses what depends on the machine. Nothing is written before all of it is sound. */
export function start(layers: Layers, say: (line: string) => void): Prepared {
  const resolved = resolveConfig(layers);
  const { config } = resolved;
  if (config.init !== undefined) checkBegun(config.init);
  checkSources(config);
  checkVocabulary(resolved);
  checkTextLengths(config);
  const run = claimDirectory(resolved, nameOf(resolved));
  if (run.exists) {
    say(`${run.path} holds an unfinished run of this config: going on with it`);
    return reopen(run.path, say, machineSettings(resolved));
  }
  chooseThreads(resolved);
  const device = openDevice(config.device, { threads: settledThreads(resolved), log: say });
  chooseForDevice(resolved, device);
  const style = styleFor(process.stdout);
  say(`${formatConfig(resolved, widthOf(process.stdout), style)}\n`);
  return { run, resolved, device, isNew: true };
}

/** A run that was stopped, with the config it had and what was chosen for it, on the machine that it is given now. */
export function reopen(path: string, say: (line: string) => void, machine: Machine): Prepared {
  const run = new RunDirectory(path);
  if (!existsSync(run.config)) {
    throw new UserError(`there is no run in ${path}`, { fix: "give the directory of a run, such as runs/tiny" });
  }
  const [newest] = listCheckpoints(run.checkpoints);
  if (newest !== undefined && holdsWeightsAlone(newest)) {
    throw new UserError(`${path} holds weights alone, without the optimizer's state to go on from`, {
      fix: `begin a run with them: bun run train --init ${shellWord(path)} --data FILE`,
    });
  }
  const resolved = readRunConfig(run.config);
  const { steps, device: before } = settled(resolved);
  if (run.isFinished(steps)) {
    throw new UserError(`${path} is finished: ${steps} of ${steps} steps`, {
      fix: `sample from it: bun run generate --run ${shellWord(path)}`,
    });
  }
  Object.assign(resolved.config, machine);
  resolved.choices = resolved.choices.filter(({ path }) => !(path in machine));
  chooseThreads(resolved);
  const device = openDevice(machine.device ?? before, { threads: settledThreads(resolved), log: say });
  if (machine.device === "auto") choose(resolved, "device", device.name, device.reason);
  return { run, resolved, device, isNew: false };
}

/** Puts the tokenizer's true number of ids into the config that is kept. */
export function settleVocabulary(resolved: ResolvedConfig, run: RunDirectory, vocabSize: number): SettledConfig {
  const asked = resolved.config.model.vocabSize;
  if (asked === "auto") choose(resolved, "model.vocabSize", vocabSize, "as many as the tokenizer has ids");
  else if (asked < vocabSize) {
    throw new UserError(`--model.vocab-size ${asked} is smaller than the tokenizer's ${vocabSize}`, {
      fix: "leave it out: it follows the tokenizer",
    });
  }
  saveConfig(run, resolved);
  return settled(resolved);
}

/** Refuses a size for the tokenizer that a given one does not have. */
function checkVocabulary({ config, origins }: ResolvedConfig): void {
  const asked = config.tokenizer.vocabSize;
  const given = givenTokenizer(config);
  if (given === undefined || origins.get("tokenizer.vocabSize")?.kind !== "flag") return;
  const { vocabSize } = readTokenizer(given);
  if (vocabSize === asked) return;
  const wrong = `--tokenizer.vocabSize ${asked} is for a tokenizer to be trained, and ${given} has ${vocabSize} ids`;
  throw new UserError(wrong, { fix: "leave out --tokenizer.vocabSize" });
}

/** What depends on the device, and the vocabulary as far as it is known. */
export function chooseForDevice(
  resolved: ResolvedConfig,
  device: Pick<Device, "name" | "reason" | "preferredPrecision">,
): void {
  const { config } = resolved;
  if (config.device === "auto") choose(resolved, "device", device.name, device.reason);
  if (config.precision === "auto") {
    const { precision, reason } = device.preferredPrecision;
    choose(resolved, "precision", precision, reason);
  }
  chooseBatchSizes(resolved, device.name);
  if (config.model.vocabSize !== "auto") return;
  const tokenizer = givenTokenizer(config);
  if (tokenizer === undefined) {
    const reason = "at most; the tokenizer may find fewer merges";
    choose(resolved, "model.vocabSize", config.tokenizer.vocabSize, reason);
  } else choose(resolved, "model.vocabSize", readTokenizer(tokenizer).vocabSize, `as many ids as ${tokenizer} has`);
}

function nameOf({ config, choices }: ResolvedConfig): string {
  return String(choices.find(({ path }) => path === "name")?.value ?? config.name);
}

/** Any number of threads gives the same bits, so a run may go on with another one. */
export function chooseThreads(resolved: ResolvedConfig): void {
  if (resolved.config.threads !== "auto") return;
  choose(resolved, "threads", availableParallelism(), "one for each core this process may use");
}

export function settledThreads({ config, choices }: ResolvedConfig): number {
  return Number(choices.find(({ path }) => path === "threads")?.value ?? config.threads);
}

/** What was asked for of the machine; what is left out stays as the run has it. */
type Machine = Partial<Pick<TrainConfig, (typeof MACHINE_SETTINGS)[number]>>;

export function machineFlags(flags: Record<string, unknown>): Machine {
  const { device, threads } = flags;
  const settings = validate(trainConfigSchema.pick({ device: true, threads: true }), { device, threads });
  return pickMachine(settings, (path) => flags[path] !== undefined);
}

/** An automatic setting that is no flag says nothing new. */
function machineSettings({ config, origins }: ResolvedConfig): Machine {
  return pickMachine(config, (path) => {
    const kind = origins.get(path)?.kind;
    return kind === "flag" || (kind === "file" && config[path] !== "auto");
  });
}

function pickMachine(settings: Required<Machine>, isAsked: (path: keyof Machine) => boolean): Machine {
  return Object.fromEntries(MACHINE_SETTINGS.filter(isAsked).map((path) => [path, settings[path]]));
}
