/**
 * The training loop: batch, forward and backward, clip, AdamW, and every so often validation, a sample, a checkpoint.
 * Everything a step does is a function of the config and the step's number, so a run that was stopped anywhere goes on
 * bit for bit as if it had not been.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AdamW, type TransformerLM, deriveSeed, generate } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { checkpointName, loadCheckpoint, loadNewest, pruneCheckpoints } from "./checkpoint.ts";
import { CheckpointWriter } from "./checkpoint-writer.ts";
import type { SettledConfig } from "./config.ts";
import { BatchReader, type TokenSource, checkLength } from "./dataset.ts";
import { Skips, firstNonFinite, spikeAbove } from "./divergence.ts";
import { UserError } from "./errors.ts";
import { encodePrompt } from "./prompt.ts";
import { MetricsWriter, type StepMetrics, truncateMetrics } from "./metrics.ts";
import { UpdateProbe, bytesPerToken, flopsPerToken, measurePeak } from "./measure.ts";
import type { RunDirectory } from "./run.ts";
import { appendSample, truncateSamples } from "./samples.ts";
import { learningRate } from "./schedule.ts";

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
  /** The run diverged and goes on from `step`. */
  onRollback?(step: number): void;
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

/**
 * Mean loss, in nats per token, over at most `batches` batches that cover the data evenly.
 * @param tokenBytes bytes of text that each id stands for; ids past its end stand for none
 */
export function evaluate(
  model: TransformerLM,
  reader: BatchReader,
  batches: number,
  tokenBytes: Uint32Array,
): { valLoss: number; valPerplexity: number; valBitsPerByte: number } {
  let [nats, count, bytes] = [0, 0, 0];
  for (const { inputs, targets } of reader.sweep(batches)) {
    nats += model.loss(inputs, targets, { length: reader.contextLength }) * inputs.length;
    count += inputs.length;
    for (const id of targets) bytes += tokenBytes[id] ?? 0;
  }
  const valLoss = nats / count;
  return { valLoss, valPerplexity: Math.exp(valLoss), valBitsPerByte: nats / Math.LN2 / bytes };
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
 * @throws UserError when the run diverged and may not or cannot go back; the last checkpoint stays as it was
 */
export async function train(
  options: TrainerOptions,
  events: TrainerEvents = {},
  signal?: AbortSignal,
): Promise<Outcome> {
  const { run, config, model, tokenizer } = options;
  const { steps, batchSize, microBatchSize, clipNorm } = config;
  const { contextLength } = config.model;
  checkLength("the training data", options.train.count, contextLength);
  checkLength("the validation data", options.val.count, contextLength);
  const batches = new BatchReader(options.train, microBatchSize, contextLength);
  const validation = new BatchReader(options.val, microBatchSize, contextLength);
  const accumulation = batchSize / microBatchSize;
  const batchSeed = deriveSeed(config.seed, "batches");
  const due = (interval: number, step: number) => step === steps || (interval > 0 && step % interval === 0);

  using optimizer = createOptimizer(model, config);
  mkdirSync(run.checkpoints, { recursive: true });
  const skips = new Skips(run.skipped);
  let history: StepMetrics[] = [];
  let saved = 0;
  /** Puts back the newest checkpoint, and what was written after it away. */
  const restore = () => {
    const load = (path: string) => loadCheckpoint(path, { model, optimizer });
    const step = loadNewest(run.checkpoints, load, (message) => events.onWarning?.(message));
    saved = step ?? 0;
    history = truncateMetrics(run.metrics, saved);
    truncateSamples(run.samples, saved);
    return step;
  };
  const begun = restore();
  if (begun !== undefined && begun > 0) events.onResume?.(begun);
  let metricsFile = new MetricsWriter(run.metrics, run.events, history);
  await using writer = new CheckpointWriter();
  const checkpoint = async (step: number) => {
    // What a checkpoint's run goes on after must be on the disk before it.
    metricsFile.flush();
    const path = join(run.checkpoints, checkpointName(step));
    const best = bestStep(history);
    const keeps = (old: number) =>
      (config.keepEvery > 0 && old % config.keepEvery === 0) || (config.keepBest && old === best);
    await writer.save(path, { model, optimizer, iteration: step }, () => {
      pruneCheckpoints(run.checkpoints, config.keepCheckpoints, step, keeps);
      events.onCheckpoint?.(path);
    });
    saved = step;
  };
  const probe = new UpdateProbe(model);
  const tokenBytes = bytesPerToken(tokenizer);
  const flops = flopsPerToken(model);
  const peak = measurePeak(model.device, model.type);
  // There must be something to go back to.
  if (begun === undefined && config.onDivergence === "skip") await checkpoint(0);

  let step = saved;
  while (step < steps && !signal?.aborted) {
    if (skips.has(step + 1)) {
      step++;
      continue;
    }
    const started = performance.now();
    optimizer.zeroGrad();
    let [loss, dataTime] = [0, 0];
    for (let part = step * accumulation; part < (step + 1) * accumulation && Number.isFinite(loss); part++) {
      const asked = performance.now();
      const { inputs, targets } = batches.at(config.order, batchSeed, part);
      batches.prefetch(config.order, batchSeed, part + 1);
      dataTime += (performance.now() - asked) / 1000;
      const gradientScale = 1 / accumulation;
      loss += model.lossAndGradients(inputs, targets, { length: contextLength, gradientScale }) / accumulation;
    }
    const lr = learningRate(step + 1, config);
    const spike = spikeAbove(loss, history, config.lossSpike);
    const isSound = Number.isFinite(loss) && spike === undefined;
    const isProbed = isSound && due(config.evalInterval, step + 1);
    if (isProbed) probe.begin();
    const gradNorm = isSound ? optimizer.clipAndStep(lr, clipNorm) : Number.NaN;
    step++;
    let problem = isSound && Number.isFinite(gradNorm) ? undefined : describe(loss, spike, model);
    const seconds = (performance.now() - started) / 1000;
    const metrics: StepMetrics = {
      step,
      time: Number(((history.at(-1)?.time ?? 0) + seconds).toFixed(4)),
      tokens: step * batchSize * contextLength,
      loss,
      lr,
      gradNorm,
      tokensPerSecond: Math.round((batchSize * contextLength) / seconds),
      mfu: Number(((flops * batchSize * contextLength) / seconds / peak).toFixed(4)),
      dataTime: Number(dataTime.toFixed(6)),
      memory: process.memoryUsage.rss(),
    };
    if (problem === undefined && due(config.evalInterval, step)) {
      const validated = evaluate(model, validation, config.evalBatches * accumulation, tokenBytes);
      Object.assign(metrics, validated, probe.end());
      if (Number.isFinite(validated.valLoss)) events.onValidation?.(step, validated.valLoss);
      else problem = describe(validated.valLoss, undefined, model);
    }
    if (problem !== undefined) {
      metricsFile.flush();
      await writer.finish();
      const where = `its batch: ${batches.describe(config.order, batchSeed, (step - 1) * accumulation, accumulation)}`;
      const error = diverged(`step ${step} diverged: ${problem}; ${where}`, lr, saved, run);
      const skipped = config.onDivergence === "skip" ? skips.add(step, saved) : undefined;
      if (skipped === undefined) throw error;
      const { first, last } = skipped;
      const which = first === last ? `step ${last}` : `steps ${first} to ${last}`;
      step = restore() ?? 0;
      metricsFile = new MetricsWriter(run.metrics, run.events, history);
      events.onRollback?.(step);
      events.onWarning?.(`${error.message}; going back to it and skipping the batch of ${which}`);
      continue;
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
    const isBest = config.keepBest && step === bestStep(history);
    if (due(config.checkpointInterval, step) || isBest) await checkpoint(step);
    // Signals are heard only when the event loop turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (saved !== step) await checkpoint(step);
  await writer.finish();
  metricsFile.flush();
  return { step, stopped: step < steps, history };
}

/** The step with the lowest validation loss so far. */
function bestStep(history: StepMetrics[]): number | undefined {
  let best: StepMetrics | undefined;
  for (const metrics of history) {
    if (metrics.valLoss !== undefined && metrics.valLoss < (best?.valLoss ?? Number.POSITIVE_INFINITY)) best = metrics;
  }
  return best?.step;
}

/** What is wrong, and with which parameter first. */
function describe(loss: number, spike: number | undefined, model: TransformerLM): string {
  if (spike !== undefined) return `the loss is ${loss.toFixed(3)}, the mean of the steps before it ${spike.toFixed(3)}`;
  const what = Number.isFinite(loss) ? "the gradient is" : `the loss is ${loss},`;
  const first = firstNonFinite(model);
  return `${what} not a finite number${first === undefined ? "" : `, first in the ${first}`}`;
}

function diverged(problem: string, lr: number, saved: number, run: RunDirectory): UserError {
  const kept =
    saved > 0 ? `the checkpoint after step ${saved} is kept in ${run.checkpoints}` : "no checkpoint was due yet";
  return new UserError(`${problem} (learning rate ${lr.toPrecision(3)}); ${kept}`, {
    fix: "train with a smaller --lr, a longer --warmup-steps or a smaller --clip-norm, or pass --on-divergence skip",
    exitCode: 1,
  });
}
