/**
 * Checkpoints: one safetensors file with the weights under their names, AdamW's moments as `optimizer.m.NAME` and
 * `optimizer.v.NAME`, and in the metadata the step, the model's config and a SHA-256 of all that and of all tensors. A
 * checkpoint of weights alone, such as an imported one, lacks the moments.
 * Whole logical tensors, nothing about devices, threads or processes. A file appears under its name only when it is
 * complete.
 */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type AdamW, type ResolvedModelConfig, SafetensorsError, SafetensorsFile, type Tensor } from "@mantou/model";
import { type TensorEntry, type TransformerLM, resolveModelConfig } from "@mantou/model";
import { type CheckpointContents, type CheckpointTarget, METADATA_KEY, type Manifest } from "./checkpoint-format.ts";
import { asBytes, manifestSchema, startHash, writeCheckpoint } from "./checkpoint-format.ts";
import { MODEL_USES } from "./config.ts";
import { removeTemporaries } from "./temporaries.ts";

export type { CheckpointTarget } from "./checkpoint-format.ts";

/** A checkpoint that cannot be used; the message says why. */
export class CheckpointError extends Error {
  override name = "CheckpointError";
}

interface Trained {
  model: TransformerLM;
  optimizer: AdamW;
}

interface Saved {
  model: TransformerLM;
  optimizer: AdamW | null;
}

/** The tensors of a checkpoint, in the order of the file; all are float32, whatever the model computes in. */
function entries({ model, optimizer }: Saved): (TensorEntry & { tensor: Tensor; put: (data: Float32Array) => void })[] {
  const all = [...model.parameters().values()];
  const entry = (name: string, shape: readonly number[], tensor: Tensor) => {
    const put = (data: Float32Array) => tensor.upload(data);
    return { name, dtype: "F32" as const, shape, tensor, put, data: () => tensor.toFloat32Array() };
  };
  const moments = (prefix: string, flat: Tensor) =>
    all.map(({ name, shape, offset }) => entry(`${prefix}.${name}`, shape, flat.view(shape, offset)));
  const weights = all.map((parameter) => ({
    ...entry(parameter.name, parameter.shape, parameter.value),
    put: (data: Float32Array) => parameter.set(data),
  }));
  if (optimizer === null) return weights;
  return [
    ...weights,
    ...moments("optimizer.m", optimizer.firstMoments),
    ...moments("optimizer.v", optimizer.secondMoments),
  ];
}

/** A checkpoint's contents after `iteration` steps; tensors are copied when they are asked for. */
function contentsOf(saved: Saved & { iteration: number }): CheckpointContents & { tensors: TensorEntry[] } {
  const { model, optimizer, iteration } = saved;
  const optimizerSteps = optimizer === null ? null : optimizer.stepCount;
  return { about: { version: 1, iteration, optimizerSteps, model: { ...model.config } }, tensors: entries(saved) };
}

/** Writes a checkpoint after `iteration` steps; without an optimizer, of the weights alone. */
export function saveCheckpoint(target: CheckpointTarget, saved: Saved & { iteration: number }): void {
  writeCheckpoint(target, contentsOf(saved));
}

/** A copy of all that a checkpoint holds, which can go to another thread. */
export interface Snapshot {
  about: CheckpointContents["about"];
  tensors: { name: string; dtype: "F32"; shape: readonly number[]; values: Float32Array<ArrayBuffer> }[];
}

/** Bytes that a snapshot takes. */
export function snapshotBytes(saved: Saved): number {
  return entries(saved).reduce((sum, { tensor }) => sum + tensor.count * 4, 0);
}

/** @param spare arrays to use again, of an earlier snapshot of the same model */
export function takeSnapshot(saved: Saved & { iteration: number }, spare?: Float32Array<ArrayBuffer>[]): Snapshot {
  const { about } = contentsOf(saved);
  const tensors = entries(saved).map(({ name, shape, tensor }, i) => {
    const values = spare?.[i] ?? new Float32Array(new ArrayBuffer(tensor.count * 4));
    tensor.download(values);
    return { name, dtype: "F32" as const, shape, values };
  });
  return { about, tensors };
}

/** What a checkpoint says of itself, without its tensors. @throws CheckpointError */
function readManifest(file: SafetensorsFile, label: string): Manifest {
  const text = file.metadata[METADATA_KEY];
  if (text === undefined) throw new CheckpointError(`${label} is a safetensors file but no checkpoint of Mantou`);
  try {
    return manifestSchema.parse(JSON.parse(text));
  } catch (error) {
    throw new CheckpointError(`${label} has a damaged manifest: ${(error as Error).message}`);
  }
}

/** Opens and hands over a checkpoint; everything that is wrong with it is a CheckpointError. */
function withCheckpoint<T>(
  source: string | Uint8Array,
  use: (file: SafetensorsFile, manifest: Manifest, label: string) => T,
): T {
  const label = typeof source === "string" ? source : "the checkpoint";
  if (typeof source === "string" && !existsSync(source)) throw new CheckpointError(`there is no checkpoint ${source}`);
  try {
    using file = new SafetensorsFile(source);
    return use(file, readManifest(file, label), label);
  } catch (error) {
    if (error instanceof SafetensorsError) {
      const { message } = error;
      throw new CheckpointError(message.includes(label) ? message : `${label} is damaged: ${message}`);
    }
    throw error;
  }
}

/**
 * Puts weights, moments and step counts back; nothing is changed unless the whole checkpoint is sound.
 * @returns the iteration at which it was saved
 * @throws CheckpointError when it is cut off, damaged or of another model
 */
export function loadCheckpoint(source: string | Uint8Array, trained: Trained): number {
  return withCheckpoint(source, (file, manifest, label) => {
    checkModel(manifest.model, trained.model.config, label);
    if (manifest.optimizerSteps === null) {
      throw new CheckpointError(`${label} holds weights alone, without the optimizer's state to go on from`);
    }
    const tensors = entries(trained);
    checkTensors(file, manifest, tensors, label);
    const { model, optimizer } = trained;
    // What lies between parameters too, which a step that diverged has spoilt as well.
    const { values, weights } = model.store;
    for (const flat of [values, weights, optimizer.firstMoments, optimizer.secondMoments]) flat.zero();
    for (const { name, put } of tensors) put(file.float32(name).data);
    optimizer.stepCount = manifest.optimizerSteps;
    return manifest.iteration;
  });
}

/**
 * The weights alone, for inference or as a beginning; the whole file must be sound all the same.
 * @param options differ: whether the context and the rotary frequencies may be others than those trained with
 * @throws CheckpointError
 */
export function loadWeights(
  source: string | Uint8Array,
  model: TransformerLM,
  options: { differ?: boolean } = {},
): number {
  return withCheckpoint(source, (file, manifest, label) => {
    checkModel(manifest.model, model.config, label, options.differ ? MODEL_USES : []);
    const weights = [...model.parameters().values()];
    const prefixes = manifest.optimizerSteps === null ? [] : ["optimizer.m", "optimizer.v"];
    const moments = prefixes.flatMap((prefix) =>
      weights.map(({ name, shape }) => ({ name: `${prefix}.${name}`, shape })),
    );
    checkTensors(file, manifest, [...weights, ...moments], label);
    for (const parameter of weights) parameter.set(file.float32(parameter.name).data);
    return manifest.iteration;
  });
}

/** Whether a file is a checkpoint without an optimizer's state, such as an imported one. */
export function holdsWeightsAlone(path: string): boolean {
  try {
    return withCheckpoint(path, (_, manifest) => manifest.optimizerSteps === null);
  } catch (error) {
    if (error instanceof CheckpointError) return false;
    throw error;
  }
}

/** Whether a file is a checkpoint, complete and undamaged, of whatever model. */
export function isWholeCheckpoint(path: string): boolean {
  try {
    withCheckpoint(path, (file, manifest, label) => {
      checkTensors(
        file,
        manifest,
        [...file.tensors].map(([name, { shape }]) => ({ name, shape })),
        label,
      );
    });
    return true;
  } catch (error) {
    if (error instanceof CheckpointError) return false;
    throw error;
  }
}

/** Reads all tensors once and holds them to the shapes they must have and to the hash. @throws CheckpointError */
function checkTensors(
  file: SafetensorsFile,
  manifest: Manifest,
  tensors: { name: string; shape: readonly number[] }[],
  label: string,
): void {
  const hash = startHash(manifest);
  for (const { name, shape } of tensors) {
    const stored = file.float32(name);
    if (stored.shape.join() !== shape.join()) {
      throw new CheckpointError(`${label}: ${name} is [${stored.shape.join(", ")}], not [${shape.join(", ")}]`);
    }
    hash.update(asBytes(stored.data));
  }
  if (hash.digest("hex") !== manifest.sha256) throw new CheckpointError(`${label} is damaged: its hash is wrong`);
}

/** Some model: whose optional settings all have their default. */
const MINIMAL = { vocabSize: 1, contextLength: 1, dModel: 2, numLayers: 1, numHeads: 1, dFf: 1, ropeTheta: 2 };

function checkModel(
  stored: Record<string, unknown>,
  config: ResolvedModelConfig,
  label: string,
  mayDiffer: readonly string[] = [],
): void {
  // Settings that are newer than the checkpoint had their default then.
  const known: Record<string, unknown> = { ...resolveModelConfig(MINIMAL), ...stored };
  for (const [key, value] of Object.entries(config)) {
    if (known[key] !== value && !mayDiffer.includes(key)) {
      throw new CheckpointError(`${label} is of another model: ${key} is ${String(known[key])}, not ${value}`);
    }
  }
}

/** File name of the checkpoint after `iteration` steps. */
export function checkpointName(iteration: number): string {
  return `step-${String(iteration).padStart(8, "0")}.safetensors`;
}

/** Paths of the checkpoints in a directory, newest first. */
export function listCheckpoints(directory: string): string[] {
  if (!existsSync(directory)) return [];
  return readdirSync(directory)
    .filter((name) => /^step-\d{8,}\.safetensors$/.test(name))
    .sort((a, b) => checkpointStep(b) - checkpointStep(a))
    .map((name) => join(directory, name));
}

/** The step that a checkpoint's name tells. */
export function checkpointStep(path: string): number {
  return Number(/step-(\d+)\.safetensors$/.exec(path)?.[1]);
}

/**
 * Removes all but the newest `keep` checkpoints up to `iteration`, the one just saved, and those that `keeps` says must
 * stay. Later ones can only be damaged ones that were passed over; they go too, lest they be counted among the newest.
 * So does what killed writers left.
 */
export function pruneCheckpoints(
  directory: string,
  keep: number,
  iteration: number,
  keeps: (step: number) => boolean = () => false,
): void {
  const paths = listCheckpoints(directory);
  const sound = paths.filter((path) => checkpointStep(path) <= iteration);
  const late = paths.filter((path) => checkpointStep(path) > iteration);
  const old = sound.slice(keep).filter((path) => !keeps(checkpointStep(path)));
  for (const path of [...late, ...old]) rmSync(path, { force: true });
  removeTemporaries(directory);
}

/**
 * Uses the newest checkpoint that is whole: `load` is tried on one after the other, newest first.
 * @param warn told of each one that was refused
 * @returns what `load` returned, or undefined when there is no checkpoint at all
 * @throws CheckpointError when there are some and none is usable
 */
export function loadNewest<T>(
  directory: string,
  load: (path: string) => T,
  warn: (message: string) => void,
): T | undefined {
  const paths = listCheckpoints(directory);
  for (const path of paths) {
    try {
      return load(path);
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error;
      if (path === paths.at(-1)) {
        const all = paths.length === 1 ? "" : `none of the ${paths.length} checkpoints can be used; the oldest: `;
        throw new CheckpointError(all + error.message);
      }
      warn(`${error.message}; using the one before it`);
    }
  }
  return undefined;
}
