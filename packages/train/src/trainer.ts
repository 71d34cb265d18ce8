/**
 * The training loop: batch, forward and backward, clip, AdamW, and every so often validation, a sample, a checkpoint.
 * Everything a step does is a function of the config and the step's number, so a run that was stopped anywhere goes on
 * bit for bit as if it had not been.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AdamW, type TransformerLM, deriveSeed, generate } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { checkpointName, loadCheckpoint, loadNewest, pruneCheckpoints, saveCheckpoint } from "./checkpoint.ts";
import type { SettledConfig } from "./config.ts";
import { BatchReader, type TokenSource, checkLength } from "./dataset.ts";
import { UserError } from "./errors.ts";
import { encodePrompt } from "./prompt.ts";
import { MetricsWriter, type StepMetrics, truncateMetrics } from "./metrics.ts";
import type { RunDirectory } from "./run.ts";
import { appendSample, truncateSamples } from "./samples.ts";
import { cosineLearningRate } from "./schedule.ts";

export interface TrainerOptions {
  run: RunDirectory;
  config: SettledConfig;
  model: TransformerLM;
  tokenizer: Tokenizer;
  train: TokenSource;
  val: TokenSource;
}

/** What the loop tells whoever watches. */
export interface TrainerEvents {
  onResume?(step: number): void;
  onStep?(metrics: StepMetrics): void;
  onValidation?(step: number, loss: number): void;
  onSample?(step: number, text: string): void;
  onCheckpoint?(path: string): void;
  onWarning?(message: string): void;
}

export interface Outcome {
  /** Steps done in all. */
  step: number;
  /** Whether it ended because `signal` was aborted. */
  stopped: boolean;
  /** Metrics of the whole run, all sittings. */
  history: StepMetrics[];
}

/** Options of AdamW that a config asks for: gains of norms do not decay. */
export function createOptimizer(model: TransformerLM, config: SettledConfig): AdamW {
  const { betas, eps, weightDecay } = config;
  const decays = ({ shape }: { shape: readonly number[] }) => shape.length > 1;
  return new AdamW(model.parameters(), { betas, eps, weightDecay, decays });
}

/** Mean loss over at most `batches` batches that cover the data evenly. */
export function evaluate(model: TransformerLM, reader: BatchReader, batches: number): number {
  let [sum, count] = [0, 0];
  for (const { inputs, targets } of reader.sweep(batches)) {
    sum += model.loss(inputs, targets, { length: reader.contextLength }) * inputs.length;
    count += inputs.length;
  }
  return sum / count;
}

/** A text sampled from the model, up to the end of the document; `prompt` "" begins a document. */
export function sampleText(
  model: TransformerLM,
  tokenizer: Tokenizer,
  options: { prompt: string; maxTokens: number; seed: number; temperature?: number; topP?: number },
): string {
  const decoder = tokenizer.createDecoder();
  let text = options.prompt;
  for (const token of sampleTokens(model, tokenizer, options)) text += decoder.push(token);
  return text + decoder.finish();
}

/** The tokens that follow a prompt, ending before `<|endoftext|>`. */
export function sampleTokens(
  model: TransformerLM,
  tokenizer: Tokenizer,
  options: { prompt: string; maxTokens: number; seed: number; temperature?: number; topP?: number },
): Generator<number> {
  const { tokens, stopTokens } = encodePrompt(tokenizer, options.prompt);
  return generate(model, tokens, { ...options, stopTokens });
}

/**
 * Trains until `config.steps` are done or `signal` is aborted, saving a checkpoint in both cases.
 * @throws UserError when the loss is no longer a number; the last checkpoint stays as it was
 */
export async function train(
  options: TrainerOptions,
  events: TrainerEvents = {},
  signal?: AbortSignal,
): Promise<Outcome> {
  const { run, config, model, tokenizer } = options;
  const { steps, batchSize, clipNorm } = config;
  const { contextLength } = config.model;
  checkLength("the training data", options.train.count, contextLength);
  checkLength("the validation data", options.val.count, contextLength);
  const batches = new BatchReader(options.train, batchSize, contextLength);
  const validation = new BatchReader(options.val, batchSize, contextLength);
  const schedule = {
    maxLearningRate: config.lr,
    minLearningRate: config.minLr,
    warmupIters: config.warmupSteps,
    cosineCycleIters: steps,
  };
  const batchSeed = deriveSeed(config.seed, "batches");
  const due = (interval: number, step: number) => step === steps || (interval > 0 && step % interval === 0);

  using optimizer = createOptimizer(model, config);
  mkdirSync(run.checkpoints, { recursive: true });
  const load = (path: string) => loadCheckpoint(path, { model, optimizer });
  const first = loadNewest(run.checkpoints, load, (message) => events.onWarning?.(message)) ?? 0;
  const history = truncateMetrics(run.metrics, first);
  truncateSamples(run.samples, first);
  if (first > 0) events.onResume?.(first);
  const metricsFile = new MetricsWriter(run.metrics);
  let saved = first;
  const checkpoint = (step: number) => {
    metricsFile.flush();
    const path = join(run.checkpoints, checkpointName(step));
    saveCheckpoint(path, { model, optimizer, iteration: step });
    saved = step;
    pruneCheckpoints(run.checkpoints, config.keepCheckpoints, step);
    events.onCheckpoint?.(path);
  };

  let time = history.at(-1)?.time ?? 0;
  let step = first;
  while (step < steps && !signal?.aborted) {
    const started = performance.now();
    const { inputs, targets } = batches.random(batchSeed, step);
    optimizer.zeroGrad();
    const loss = model.lossAndGradients(inputs, targets, { length: contextLength });
    const lr = cosineLearningRate(step + 1, schedule);
    const gradNorm = Number.isFinite(loss) ? optimizer.clipAndStep(lr, clipNorm) : Number.NaN;
    step++;
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      metricsFile.flush();
      throw diverged(step, loss, lr, saved, run);
    }
    const seconds = (performance.now() - started) / 1000;
    time += seconds;
    const tokens = step * batchSize * contextLength;
    const metrics: StepMetrics = {
      step,
      time: Number(time.toFixed(4)),
      tokens,
      loss,
      lr,
      gradNorm,
      tokensPerSecond: Math.round((batchSize * contextLength) / seconds),
    };
    if (due(config.evalInterval, step)) {
      metrics.valLoss = evaluate(model, validation, config.evalBatches);
      if (!Number.isFinite(metrics.valLoss)) {
        metricsFile.flush();
        throw diverged(step, metrics.valLoss, lr, saved, run);
      }
      events.onValidation?.(step, metrics.valLoss);
    }
    metricsFile.write(metrics);
    history.push(metrics);
    events.onStep?.(metrics);
    if (due(config.sampleInterval, step)) {
      const { samplePrompt: prompt, sampleTokens: maxTokens, seed } = config;
      const text = sampleText(model, tokenizer, { prompt, maxTokens, seed: seed + step, temperature: 0.7, topP: 0.9 });
      appendSample(run.samples, step, text);
      events.onSample?.(step, text);
    }
    if (due(config.checkpointInterval, step)) checkpoint(step);
    // Signals are heard only when the event loop turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (saved !== step) checkpoint(step);
  metricsFile.flush();
  return { step, stopped: step < steps, history };
}

function diverged(step: number, loss: number, lr: number, saved: number, run: RunDirectory): UserError {
  const what = Number.isFinite(loss) ? "the gradient is" : `the loss is ${loss},`;
  const kept =
    saved > 0 ? `the checkpoint after step ${saved} is kept in ${run.checkpoints}` : "no checkpoint was due yet";
  return new UserError(
    `step ${step} diverged: ${what} not a finite number (learning rate ${lr.toPrecision(3)}); ${kept}`,
    {
      fix: "train with a smaller --lr, a longer --warmup-steps or a smaller --clip-norm",
      exitCode: 1,
    },
  );
}
