/** An imported checkpoint as a run's directory, with which every command can go on. */
import { mkdirSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { basename, dirname, join } from "node:path";
import type { TransformerLM } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { saveTokenizer } from "@mantou/tokenizer/files";
import { checkpointName, saveCheckpoint } from "../checkpoint.ts";
import { type ResolvedConfig, choose, resolveConfig } from "../config.ts";
import { RunDirectory, saveConfig } from "../run.ts";

/** The config of a run that begins with imported weights. @param out directory of the run */
export function importedConfig(out: string, model: TransformerLM["config"]): ResolvedConfig {
  const run = new RunDirectory(out);
  const flags = { name: basename(out), runsDir: dirname(out), model: { ...model }, tokenizer: { path: run.tokenizer } };
  const resolved = resolveConfig({ flags });
  const settings: [path: string, value: string | number][] = [
    ["device", "cpu"],
    ["precision", "fp32"],
    ["threads", availableParallelism()],
    ["batchSize", 8],
    ["microBatchSize", 8],
  ];
  for (const [path, value] of settings) choose(resolved, path, value, "for an imported model");
  return resolved;
}

/** Writes the directory: tokenizer, a checkpoint of the weights alone, and last the config, which makes it a run. */
export function saveImported(
  run: RunDirectory,
  config: ResolvedConfig,
  model: TransformerLM,
  tokenizer: Tokenizer,
): void {
  try {
    mkdirSync(run.checkpoints, { recursive: true });
    saveTokenizer(tokenizer, run.tokenizer);
    saveCheckpoint(join(run.checkpoints, checkpointName(0)), { model, optimizer: null, iteration: 0 });
    saveConfig(run, config);
  } catch (error) {
    for (const path of [run.tokenizer, run.checkpoints, run.config]) rmSync(path, { recursive: true, force: true });
    throw error;
  }
}
