/** Training in this process, for tests that look inside: a small model on data in memory. */
import { afterAll } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Device, TransformerLM, openDevice, uniform } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import {
  type SettledConfig,
  choose,
  chooseBatchSizes,
  resolveConfig,
  settled,
} from "../../../packages/train/src/config.ts";
import { ArrayTokens, type TokenSource } from "../../../packages/train/src/dataset.ts";
import { RunDirectory } from "../../../packages/train/src/run.ts";
import { type TrainerEvents, type TrainerOptions, train } from "../../../packages/train/src/trainer.ts";

export const device = openDevice("cpu", { threads: 1 });

const made: string[] = [];
afterAll(() => made.splice(0).forEach((directory) => rmSync(directory, { recursive: true, force: true })));

function newDirectory(): RunDirectory {
  made.push(mkdtempSync(join(tmpdir(), "mantou-training-")));
  return new RunDirectory(made.at(-1)!);
}

/** Bytes only. */
export const tokenizer = Tokenizer.train([], { vocabSize: 257, specialTokens: ["<|endoftext|>"] });

/** Tokens that repeat in a pattern which a small model learns in some ten steps. */
export function patternTokens(count: number, seed = 1): ArrayTokens {
  return new ArrayTokens(
    Uint16Array.from({ length: count }, (_, i) => 97 + ((i * 7 + (i >> 3)) % 5) + 5 * (uniform(seed, i) < 0.1 ? 1 : 0)),
  );
}

export function smallConfig(flags: Record<string, unknown> = {}): SettledConfig {
  const model = { dModel: 16, numLayers: 2, numHeads: 2, contextLength: 8 };
  const small = { tokenizer: { vocabSize: 257 }, batchSize: 8, steps: 20, evalBatches: 2, sampleTokens: 4 };
  const intervals = { evalInterval: 5, sampleInterval: 0, checkpointInterval: 5 };
  const resolved = resolveConfig({
    flags: {
      device: "cpu",
      threads: 1,
      ...small,
      ...intervals,
      ...flags,
      model: { ...model, ...(flags.model as object) },
    },
  });
  choose(resolved, "precision", "fp32", "a test");
  choose(resolved, "model.vocabSize", 257, "a test");
  chooseBatchSizes(resolved, "cpu");
  return settled(resolved);
}

export interface TrainingRun {
  directory?: RunDirectory;
  config?: SettledConfig;
  data?: TokenSource;
  events?: (model: TransformerLM, stop: AbortController) => TrainerEvents;
  /** Where to train; the CPU unless given. */
  on?: Device;
}

/** Trains a fresh model, in a new directory unless one is given, and tells what came out. */
export async function trainSmall({ directory, config = smallConfig(), data, events, on = device }: TrainingRun = {}) {
  const run = directory ?? newDirectory();
  using model = new TransformerLM(config.model, { device: on, seed: config.seed, batchSize: config.microBatchSize });
  const stop = new AbortController();
  const options: TrainerOptions = {
    run,
    config,
    model,
    tokenizer,
    train: data ?? patternTokens(4000),
    val: patternTokens(400, 2),
  };
  const outcome = await train(options, events?.(model, stop), stop.signal);
  return { ...outcome, run, weights: model.store.values.toFloat32Array() };
}
