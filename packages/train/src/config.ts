/**
 * How the settings of a training run come together from the defaults, a preset, a config file and flags, what is
 * chosen for those left to us, and how a run's `config.json` is written and read. The settings themselves are in
 * `config-schema.ts`.
 *
 * Convention: a value may be `"auto"`; it stays so in the config (and in the saved `config.json`, so that the file can
 * be used again with other values), while what was chosen for it goes into `choices` with the reason. `settled` puts
 * the two together into the config that the trainer runs with, in which nothing is automatic any more.
 */

import { existsSync, readFileSync } from "node:fs";
import { basename, extname, join } from "node:path";
import { type Device, MAX_HEAD_DIM } from "@mantou/model";
import { z } from "zod";
import { type PartialConfig, type SettledConfig, type TrainConfig, trainConfigSchema } from "./config-schema.ts";
import { UserError } from "./errors.ts";
import { defaultPreset, presets } from "./presets.ts";
import {
  checkKeys,
  fieldsOf,
  flagOf,
  flatten,
  isRecord,
  joinOr,
  nearest,
  type Origin,
  placeOf,
  settingOf,
  showValue,
  unflatten,
  validate,
} from "./schema.ts";

export { type PartialConfig, type SettledConfig, type TrainConfig, trainConfigSchema } from "./config-schema.ts";

/** What was taken for a setting that was left to us, and why. */
export interface Choice {
  /** Dotted path of the setting, for example `model.dFf`. */
  path: string;
  value: number | string;
  reason: string;
}

export interface ResolvedConfig {
  /** Name of the preset under everything else. */
  preset: string;
  config: TrainConfig;
  /** Where each value came from, by dotted path. */
  origins: Map<string, Origin>;
  /** What was chosen for automatic values so far; the trainer adds to it with `choose`. */
  choices: Choice[];
}

export interface ConfigLayers {
  /** Name of a preset; the default preset when undefined. */
  preset?: string;
  /** A JSON file with some or all settings, such as a run's `config.json`: its path, or what was read of it. */
  file?: string | { name: string; settings: Record<string, unknown> };
  /** Settings given as flags, nested as in the config. */
  flags?: Record<string, unknown>;
}

/**
 * Puts a config together: defaults < preset < run to start from < file < flags, then settles what depends on the config
 * alone.
 *
 * @throws UserError for an unknown preset, an unreadable file, an unknown key, a bad value, or values that do not fit
 * together; it says where the value was set and what to do.
 */
export function resolveConfig(layers: ConfigLayers = {}): ResolvedConfig {
  const preset = layers.preset ?? defaultPreset;
  const merged = new Map<string, unknown>();
  const origins = new Map<string, Origin>();
  const known = new Set(fieldsOf(trainConfigSchema).map((field) => field.path));
  for (const path of known) origins.set(path, { kind: "default" });
  const add = (settings: Record<string, unknown>, origin: Origin) => {
    checkKeys(trainConfigSchema, settings, origin);
    for (const [path, value] of flatten(settings)) {
      if (!known.has(path)) continue; // an empty object
      merged.set(path, value);
      origins.set(path, origin);
    }
  };
  const { file } = layers;
  const { name: fileName = "", settings: fileSettings = {} } =
    typeof file === "string" ? { name: file, settings: readConfigFile(file).settings } : (file ?? {});
  const init = layers.flags?.init ?? fileSettings.init;
  const inherited = typeof init === "string" && init !== "" ? inheritedSettings(init) : undefined;
  add(findPreset(preset), { kind: "preset", name: preset });
  if (inherited !== undefined) add(inherited, { kind: "file", name: join(String(init), "config.json") });
  add(fileSettings, { kind: "file", name: fileName });
  add(layers.flags ?? {}, { kind: "flag" });

  const config = validate(trainConfigSchema, unflatten(merged), (path) => origins.get(path) ?? { kind: "flag" });
  const resolved: ResolvedConfig = { preset, config, origins, choices: [] };
  chooseFromConfig(resolved);
  checkConfig(resolved);
  if (inherited !== undefined) checkInherited(resolved, inherited);
  return resolved;
}

/** What a run that starts from another one has in common with it. */
function inheritedSettings(path: string): { model: SettledConfig["model"]; tokenizer: { path: string } } {
  const file = join(path, "config.json");
  if (!existsSync(file)) {
    throw new UserError(`--init ${path} is no run: there is no ${file}`, {
      fix: "give the directory of a run; bun run import makes one of a Hugging Face checkpoint",
    });
  }
  return { model: loadRunConfig(file).model, tokenizer: { path: join(path, "tokenizer.json") } };
}

/** Settings of the model that say how it is used; whoever starts from its weights may choose them anew. */
export const MODEL_USES: readonly string[] = [
  "contextLength",
  "ropeTheta",
  "ropeScaling",
  "ropeFactor",
  "ropeLowFreqFactor",
  "ropeHighFreqFactor",
  "ropeOriginalContext",
];

/** Refuses settings that do not go with the weights to start from. */
function checkInherited({ config, origins }: ResolvedConfig, inherited: Record<string, unknown>): void {
  const values = flatten(config);
  for (const [path, value] of flatten(inherited)) {
    if (values.get(path) === value || MODEL_USES.includes(path.replace("model.", ""))) continue;
    const place = placeOf(path, origins.get(path) ?? { kind: "flag" });
    throw new UserError(`${place} = ${showValue(values.get(path))} does not go with --init ${config.init}`, {
      fix: `leave it out: it is ${showValue(value)} there`,
    });
  }
}

function findPreset(name: string): PartialConfig {
  const names = Object.keys(presets);
  const found = names.includes(name) ? presets[name] : undefined;
  if (found !== undefined) return found;
  const near = nearest(name, names);
  throw new UserError(`there is no preset ${showValue(name)}`, {
    fix: near.length > 0 ? `did you mean --preset ${joinOr(near)}?` : `use --preset ${joinOr(names)}`,
  });
}

/** Reads a config file: JSON with any settings, and in a saved `config.json` the `choices` of that run. */
function readConfigFile(path: string): { settings: Record<string, unknown>; choices: Choice[] } {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === "ENOENT";
    const why = missing ? "it does not exist" : (cause as Error).message;
    throw new UserError(`cannot read the config file ${path}: ${why}`, { fix: "give the path of a JSON file", cause });
  }
  let content: unknown;
  try {
    content = JSON.parse(text);
  } catch (cause) {
    throw new UserError(`${path} is not valid JSON: ${(cause as Error).message}`, { fix: "mend the file", cause });
  }
  if (!isRecord(content)) throw new UserError(`${path} holds no JSON object`, { fix: 'for example { "steps": 2000 }' });
  const { choices, ...settings } = content;
  const parsed = choicesSchema.safeParse(choices ?? []);
  if (!parsed.success)
    throw new UserError(`"choices" in ${path} is not a list of { path, value, reason }`, { fix: "take it away" });
  return { settings, choices: parsed.data };
}

const choicesSchema = z.array(
  z.strictObject({ path: z.string(), value: z.union([z.number(), z.string()]), reason: z.string() }),
);

/** Records what was chosen for an automatic setting; a later choice for the same path replaces the earlier one. */
export function choose(resolved: ResolvedConfig, path: string, value: number | string, reason: string): void {
  if (!resolved.origins.has(path)) throw new Error(`no setting is called ${path}`);
  resolved.choices = [...resolved.choices.filter((choice) => choice.path !== path), { path, value, reason }];
}

/** The choices that need nothing but the config itself. */
function chooseFromConfig(resolved: ResolvedConfig): void {
  const { config, preset } = resolved;
  const { model } = config;
  if (config.name === "auto") {
    if (config.data === undefined) choose(resolved, "name", preset, "the preset's name");
    else choose(resolved, "name", nameFromFile(config.data), "the data file's name");
  }
  if (config.minLr === "auto") choose(resolved, "minLr", Number((config.lr / 10).toPrecision(6)), "a tenth of lr");
  if (config.warmupSteps === "auto") {
    choose(resolved, "warmupSteps", Math.floor(config.steps * 0.05), `5 % of ${config.steps} steps`);
  }
  if (config.decaySteps === "auto") {
    choose(resolved, "decaySteps", Math.ceil(config.steps * 0.2), `20 % of ${config.steps} steps`);
  }
  if (model.numKeyValueHeads === "auto") choose(resolved, "model.numKeyValueHeads", model.numHeads, "as numHeads");
  if (model.dFf === "auto") {
    // SwiGLU has three matrices where the plain layer has two; 8/3 (Shazeer 2020) keeps the parameters equal, and a
    // multiple of 64 keeps the matrix products on whole vectors.
    if (model.ffn === "silu") choose(resolved, "model.dFf", 4 * model.dModel, "4 dModel");
    else choose(resolved, "model.dFf", Math.max(1, Math.round(model.dModel / 24)) * 64, "8/3 dModel, a multiple of 64");
  }
}

function nameFromFile(path: string): string {
  const plain = basename(path, extname(path)).replace(/[^\w.-]+/g, "-");
  return plain.replace(/^[^A-Za-z0-9]+/, "") || "run";
}

/** How many sequences a step has when `batchSize` is `"auto"`. */
export function autoBatchSize(device: Device["name"], contextLength: number): { value: number; reason: string } {
  const tokens = device === "cpu" ? 2048 : 16384;
  const where = device === "cpu" ? "a CPU" : "a GPU";
  return {
    value: Math.max(1, Math.round(tokens / contextLength)),
    reason: `about ${tokens} tokens a step on ${where}`,
  };
}

/**
 * How many sequences are computed at once when `microBatchSize` is `"auto"`: the largest divisor of the batch whose
 * activations, at about 20 dModel + 4 dFf numbers a layer and token, stay within a budget of memory.
 */
export function autoMicroBatchSize(
  device: Device["name"],
  batchSize: number,
  model: { contextLength: number; dModel: number; dFf: number; numLayers: number },
): { value: number; reason: string } {
  const budget = device === "cpu" ? 2e9 : 24e9;
  const bytes = 4 * model.contextLength * model.numLayers * (20 * model.dModel + 4 * model.dFf);
  let value = Math.min(batchSize, Math.max(1, Math.floor(budget / bytes)));
  while (batchSize % value !== 0) value--;
  const size = `at most about ${((bytes * value) / 1e9).toPrecision(2)} GB of activations`;
  return { value, reason: value === batchSize ? `all of the batch: ${size}` : `${size}, within ${budget / 1e9} GB` };
}

/** Chooses the sizes of the batch and of its parts for a device. */
export function chooseBatchSizes(resolved: ResolvedConfig, device: Device["name"]): void {
  const { batchSize, microBatchSize } = resolved.config;
  const { model } = withChoices(resolved.config, resolved.choices);
  if (batchSize === "auto") {
    const { value, reason } = autoBatchSize(device, model.contextLength);
    const unit = microBatchSize === "auto" ? 1 : microBatchSize;
    choose(resolved, "batchSize", Math.ceil(value / unit) * unit, reason);
  }
  if (microBatchSize === "auto") {
    const { value, reason } = autoMicroBatchSize(
      device,
      withChoices(resolved.config, resolved.choices).batchSize,
      model,
    );
    choose(resolved, "microBatchSize", value, reason);
  }
}

/** Refuses values that are fine one by one and wrong together. */
function checkConfig(resolved: ResolvedConfig): void {
  const config = withChoices(resolved.config, resolved.choices);
  const { model, tokenizer } = config;
  const { dModel, numHeads } = model;
  const originOf = (path: string): Origin => resolved.origins.get(path) ?? { kind: "default" };
  const show = (path: string, value: unknown) => {
    const chosen = resolved.choices.find((choice) => choice.path === path);
    return chosen === undefined
      ? `${placeOf(path, originOf(path))} = ${showValue(value)}`
      : `${path} = ${value} (auto)`;
  };
  const refuse = (message: string, fix: string): never => {
    throw new UserError(message, { fix });
  };
  const set = (path: string, value: unknown) => settingOf(path, value, { kind: "flag" });

  const headSize = dModel / numHeads;
  const fits = (width: number, heads: number) => (width / heads) % 2 === 0 && width / heads <= MAX_HEAD_DIM;
  if (!fits(dModel, numHeads)) {
    const heads = Array.from({ length: Math.min(dModel / 2, 1024) }, (_, i) => i + 1).filter((i) => fits(dModel, i));
    const nearHeads = heads.sort((a, b) => Math.abs(a - numHeads) - Math.abs(b - numHeads)).slice(0, 2);
    const unit = 2 * numHeads;
    const down = Math.min(Math.floor(dModel / unit) * unit, MAX_HEAD_DIM * numHeads);
    const widths = [down, down + unit].filter((width) => width > 0 && fits(width, numHeads));
    const options = [
      ...(nearHeads.length > 0 ? [`${flagOf("model.numHeads")} ${joinOr(nearHeads.map(String))}`] : []),
      `${flagOf("model.dModel")} ${joinOr(widths.map(String))}`,
    ];
    const [width, count] = [show("model.dModel", dModel), show("model.numHeads", numHeads)];
    const wrong = Number.isInteger(headSize)
      ? `${width} over ${count} gives the head size ${headSize}, which must be even and at most ${MAX_HEAD_DIM}`
      : `${width} is not a multiple of ${count}`;
    refuse(wrong, `use ${options.join(", or ")}`);
  }
  const groups = model.numKeyValueHeads;
  if (numHeads % groups !== 0) {
    const divisors = Array.from({ length: numHeads }, (_, i) => i + 1).filter((i) => numHeads % i === 0);
    refuse(
      `${show("model.numHeads", numHeads)} is not a multiple of ${show("model.numKeyValueHeads", groups)}`,
      `use ${flagOf("model.numKeyValueHeads")} ${joinOr(divisors.map(String))}`,
    );
  }
  const specials = tokenizer.specialTokens;
  const twice = specials.find((token, i) => specials.indexOf(token) !== i);
  if (twice !== undefined) {
    refuse(
      `${show("tokenizer.specialTokens", specials)} names ${showValue(twice)} twice`,
      "give each special token once",
    );
  }
  if (tokenizer.path === undefined && tokenizer.vocabSize < 256 + specials.length) {
    refuse(
      `${show("tokenizer.vocabSize", tokenizer.vocabSize)} has no room for 256 bytes and ${specials.length} special token${specials.length === 1 ? "" : "s"}`,
      `use ${set("tokenizer.vocabSize", 256 + specials.length)} (bytes only) or more`,
    );
  }
  if (tokenizer.path === undefined && typeof model.vocabSize === "number" && model.vocabSize < tokenizer.vocabSize) {
    refuse(
      `${show("model.vocabSize", model.vocabSize)} is smaller than ${show("tokenizer.vocabSize", tokenizer.vocabSize)}`,
      `leave it out: ${set("model.vocabSize", "auto")} follows the tokenizer`,
    );
  }
  if (config.minLr > config.lr) {
    refuse(
      `${show("minLr", config.minLr)} is above ${show("lr", config.lr)}`,
      `use ${set("minLr", "auto")} (a tenth of lr) or a value up to ${config.lr}`,
    );
  }
  if (config.warmupSteps >= config.steps) {
    refuse(
      `${show("warmupSteps", config.warmupSteps)} leaves nothing of ${show("steps", config.steps)}`,
      `use ${set("warmupSteps", "auto")} (5 % of the steps) or a value below ${config.steps}`,
    );
  }
  if (config.schedule === "wsd" && config.decaySteps > config.steps) {
    refuse(
      `${show("decaySteps", config.decaySteps)} is more than ${show("steps", config.steps)}`,
      `use ${set("decaySteps", "auto")} (20 % of the steps) or a value up to ${config.steps}`,
    );
  }
  const { batchSize, microBatchSize } = config;
  if (typeof batchSize === "number" && typeof microBatchSize === "number" && batchSize % microBatchSize !== 0) {
    const divisors = Array.from({ length: batchSize }, (_, i) => i + 1).filter((i) => batchSize % i === 0);
    const near = divisors.sort((a, b) => Math.abs(a - microBatchSize) - Math.abs(b - microBatchSize)).slice(0, 2);
    refuse(
      `${show("batchSize", batchSize)} is not a multiple of ${show("microBatchSize", microBatchSize)}`,
      `use ${flagOf("microBatchSize")} ${joinOr(near.map(String))}`,
    );
  }
}

/** The config with all its choices put in. Values without a choice stay `"auto"`, which the type does not show. */
function withChoices(config: TrainConfig, choices: Choice[]): SettledConfig {
  const leaves = flatten(config);
  for (const { path, value } of choices) if (leaves.get(path) === "auto") leaves.set(path, value);
  return unflatten(leaves) as SettledConfig;
}

/**
 * The config to train with. Everything automatic must have been chosen (`choose`) before: `device`, `precision`,
 * `threads`, the batch sizes and `model.vocabSize` are the trainer's to choose, since they need the machine and the data.
 */
export function settled(resolved: Pick<ResolvedConfig, "config" | "choices">): SettledConfig {
  const config = withChoices(resolved.config, resolved.choices);
  const open = [...flatten(config)].filter(([, value]) => value === "auto").map(([path]) => path);
  if (open.length > 0) throw new Error(`nothing was chosen for ${open.join(", ")}`);
  return config;
}

/** The text of a run's `config.json`: the config as asked for, and what was chosen for its automatic values. */
export function configJson(resolved: ResolvedConfig): string {
  return `${JSON.stringify({ ...resolved.config, choices: resolved.choices }, null, 2)}\n`;
}

/**
 * Reads a run's `config.json`: what was asked for and what was chosen, to be settled again.
 *
 * @throws UserError if the file is unreadable, has unknown keys or bad values, or lacks a choice.
 */
export function readRunConfig(path: string): ResolvedConfig {
  const { settings, choices } = readConfigFile(path);
  const origin: Origin = { kind: "file", name: path };
  checkKeys(trainConfigSchema, settings, origin);
  const config = validate(trainConfigSchema, settings, () => origin);
  const run = withChoices(config, choices);
  // The choices are read as strictly as the settings: a bad one would reach the kernels.
  validate(trainConfigSchema, run, () => origin);
  try {
    settled({ config, choices });
  } catch (cause) {
    throw new UserError(`${path} is not the config of a finished setup: ${(cause as Error).message}`, {
      fix: "point at the config.json in a run directory",
      cause,
    });
  }
  const origins = new Map(fieldsOf(trainConfigSchema).map((field) => [field.path, origin]));
  return { preset: defaultPreset, config, origins, choices };
}

/** A run's `config.json` as the run was trained, choices included. @throws as `readRunConfig` */
export function loadRunConfig(path: string): SettledConfig {
  return settled(readRunConfig(path));
}
