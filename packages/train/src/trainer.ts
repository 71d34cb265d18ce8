/**
 * The training loop: batch, forward and backward, clip, AdamW, and every so often validation, a sample, a checkpoint.
 * Everything a step does is a function of the config and the step's number, so a run that was stopped anywhere goes on
 * bit for bit as if it had not been.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { AdamW, Muon, Stepper, type TransformerLM, deriveSeed, generate, losses } from "@mantou/model";
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
import { TextStream } from "./text-stream.ts";

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
  /** All steps are done and written down, but for the last checkpoint, which makes the run a finished one. */
  onComplete?(): void;
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

/** The optimizer that a config asks for: gains of norms do not decay. */
export function createOptimizer(model: TransformerLM, config: SettledConfig): AdamW {
  const { betas, eps, weightDecay, muonMomentum: momentum } = config;
  const decays = ({ shape }: { shape: readonly number[] }) => shape.length > 1;
  const options = { betas, eps, weightDecay, decays };
  return config.optimizer === "muon"
    ? new Muon(model.parameters(), { ...options, momentum })
    : new AdamW(model.parameters(), options);
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
  const counted = function* () {
    for (const batch of reader.sweep(batches)) {
      for (const id of batch.targets) bytes += tokenBytes[id] ?? 0;
      yield batch;
    }
  };
  for (const { loss, count: tokens } of losses(model, counted(), { length: reader.contextLength })) {
    nats += loss * tokens;
    count += tokens;
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
  const stream = new TextStream(tokenizer, [], options.prompt !== "");
  let text = options.prompt;
  for (const token of sampleTokens(model, tokenizer, options)) text += stream.push(token);
  return text + stream.finish();
}

/** The tokens that follow a prompt, ending before the end of the document. */
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
  let lacking = -history.length;
  for (let step = 1; step <= saved; step++) if (!skips.has(step)) lacking++;
  if (lacking > 0) {
    const which = `${lacking} of the ${saved} steps done so far`;
    events.onWarning?.(`${run.metrics} was damaged or taken away: it lacks ${which}, and so do the curves`);
  }
  let metricsFile = new MetricsWriter(run.metrics, run.events, history);
  await using writer = new CheckpointWriter();
  const checkpoint = async (step: number) => {
    // What a checkpoint's run goes on after must be on the disk before it.
    metricsFile.flush();
    if (step === steps) events.onComplete?.();
    const path = join(run.checkpoints, checkpointName(step));
    const best = bestStep(history);
    const keeps = (old: number) =>
      (config.keepEvery > 0 && old % config.keepEvery === 0) || (config.keepBest && old === best);
    const onWritten = () => {
      pruneCheckpoints(run.checkpoints, config.keepCheckpoints, step, keeps);
      events.onCheckpoint?.(path);
    };
    await writer.save(path, { model, optimizer, iteration: step }, onWritten, [run.metrics, run.samples]);
    saved = step;
  };
  const probe = new UpdateProbe(model);
  const tokenBytes = bytesPerToken(tokenizer);
  const flops = flopsPerToken(model);
  const peak = measurePeak(model.device, model.type);
  // A GPU works on one step while the next is prepared; its loss is known one step late. The CPU has no time to share.
  using stepper = model.device.isAsynchronous
    ? new Stepper(model, optimizer, { parts: accumulation, maxNorm: clipNorm })
    : null;
  // There must be something to go back to, be it to find out what went wrong.
  if (begun === undefined && (stepper !== null || config.onDivergence === "skip")) await checkpoint(0);
  /** One part of a step, of which there are `accumulation`; the next is prepared meanwhile. */
  const batch = (at: number, part: number) => {
    const index = (at - 1) * accumulation + part;
    const tokens = batches.at(config.order, batchSeed, index);
    batches.prefetch(config.order, batchSeed, index + 1);
    return tokens;
  };
  /** The loss of a step, and its gradients in the model; parts after one that has no finite loss are left out. */
  const computeGradients = (read: (part: number) => { inputs: Int32Array; targets: Int32Array }): number => {
    optimizer.zeroGrad();
    let loss = 0;
    for (let part = 0; part < accumulation && Number.isFinite(loss); part++) {
      const { inputs, targets } = read(part);
      const gradientScale = 1 / accumulation;
      loss += model.lossAndGradients(inputs, targets, { length: contextLength, gradientScale }) / accumulation;
    }
    return loss;
  };
  /**
   * Does the steps from the last checkpoint to `at` again, waiting for each, and leaves weights and gradients as the last
   * of them found them, since a device that works ahead has spoilt them when a loss is known.
   * @returns whether it got there
   */
  const repeatUpTo = async (at: number): Promise<boolean> => {
    await writer.finish();
    const from = loadNewest(
      run.checkpoints,
      (path) => loadCheckpoint(path, { model, optimizer }),
      () => {},
    );
    if (from === undefined) return false;
    const redone = from + 1 === at ? `step ${at}` : `steps ${from + 1} to ${at}`;
    events.onWarning?.(`step ${at} diverged: doing ${redone} again to find out where`);
    for (let next = from + 1; next < at; next++) {
      if (signal?.aborted) return false;
      if (skips.has(next)) continue;
      computeGradients((part) => batch(next, part));
      optimizer.clipAndStep(learningRate(next, config), clipNorm);
      await new Promise((resolve) => setImmediate(resolve));
    }
    computeGradients((part) => batch(at, part));
    return true;
  };
  let step = saved;
  let concluded = performance.now();
  /** What becomes of a step whose loss and norm are known; nothing after it may have been saved or sampled. */
  const conclude = async ({ at, lr, dataTime, loss, gradNorm, spike }: Concluded): Promise<void> => {
    let problem: string | undefined;
    if (spike !== undefined || !Number.isFinite(loss + gradNorm)) {
      while (stepper !== null && stepper.inFlight > 0) stepper.finish();
      const isKept = spike !== undefined || stepper === null || (await repeatUpTo(at));
      problem = describe(loss, spike, isKept ? model : null);
    }
    const now = performance.now();
    const seconds = (now - concluded) / 1000;
    const metrics: StepMetrics = {
      step: at,
      time: Number(((history.at(-1)?.time ?? 0) + seconds).toFixed(4)),
      tokens: at * batchSize * contextLength,
      loss,
      lr,
      gradNorm,
      tokensPerSecond: Math.round((batchSize * contextLength) / seconds),
      mfu: Number(((flops * batchSize * contextLength) / seconds / peak).toFixed(4)),
      dataTime: Number(dataTime.toFixed(6)),
      memory: process.memoryUsage.rss(),
    };
    if (problem === undefined && due(config.evalInterval, at)) {
      const validated = evaluate(model, validation, config.evalBatches * accumulation, tokenBytes);
      Object.assign(metrics, validated, probe.end());
      if (Number.isFinite(validated.valLoss)) events.onValidation?.(at, validated.valLoss);
      else problem = describe(validated.valLoss, undefined, model);
    }
    if (problem !== undefined) {
      metricsFile.flush();
      await writer.finish();
      const where = `its batch: ${batches.describe(config.order, batchSeed, (at - 1) * accumulation, accumulation)}`;
      const error = diverged(`step ${at} diverged: ${problem}; ${where}`, lr, saved, run);
      const skipped = config.onDivergence === "skip" ? skips.add(at, saved) : undefined;
      if (skipped === undefined) throw error;
      const { first, last } = skipped;
      const which = first === last ? `step ${last}` : `steps ${first} to ${last}`;
      step = restore() ?? 0;
      metricsFile = new MetricsWriter(run.metrics, run.events, history);
      events.onRollback?.(step);
      events.onWarning?.(`${error.message}; going back to it and skipping the batch of ${which}`);
      return;
    }
    metricsFile.write(metrics);
    history.push(metrics);
    events.onStep?.(metrics);
    if (due(config.sampleInterval, at)) {
      const { samplePrompt: prompt, sampleTokens: maxTokens, seed } = config;
      const text = sampleText(model, tokenizer, { prompt, maxTokens, seed: seed + at, temperature: 0.7, topP: 0.9 });
      appendSample(run.samples, at, text);
      events.onSample?.(at, text);
    }
    const isBest = config.keepBest && metrics.valLoss !== undefined && at === bestStep(history);
    if (due(config.checkpointInterval, at) || isBest) await checkpoint(at);
  };

  const underway: { at: number; lr: number; dataTime: number }[] = [];
  /** Concludes the oldest step that is underway. */
  const catchUp = async () => {
    const result = stepper!.finish();
    const spike = spikeAbove(result.loss, history, config.lossSpike);
    const begun = step;
    await conclude({ ...underway.shift()!, ...result, spike });
    concluded = performance.now();
    if (step === begun) return;
    underway.length = 0; // gone back: it has no place any more
  };

  while (step < steps && !signal?.aborted) {
    if (skips.has(step + 1)) {
      step++;
      continue;
    }
    const lr = learningRate(step + 1, config);
    let dataTime = 0;
    const timedBatch = (part: number) => {
      const asked = performance.now();
      const tokens = batch(step + 1, part);
      dataTime += (performance.now() - asked) / 1000;
      return tokens;
    };
    const isProbed = due(config.evalInterval, step + 1);
    if (stepper) {
      if (isProbed) probe.begin();
      stepper.queue(timedBatch, lr);
      underway.push({ at: ++step, lr, dataTime });
      const intervals = [config.evalInterval, config.sampleInterval, config.checkpointInterval];
      // Who looks at the model must not see a later step's.
      const ahead = intervals.some((interval) => due(interval, step)) ? 0 : 1;
      while (stepper.inFlight > ahead) await catchUp();
    } else {
      concluded = performance.now();
      const loss = computeGradients(timedBatch);
      const spike = spikeAbove(loss, history, config.lossSpike);
      const isSound = Number.isFinite(loss) && spike === undefined;
      if (isSound && isProbed) probe.begin();
      const gradNorm = isSound ? optimizer.clipAndStep(lr, clipNorm) : Number.NaN;
      await conclude({ at: ++step, lr, dataTime, loss, gradNorm, spike });
    }
    // Signals are heard only when the event loop turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
  while (stepper && stepper.inFlight > 0) await catchUp();
  if (saved !== step) await checkpoint(step);
  await writer.finish();
  metricsFile.flush();
  return { step, stopped: step < steps, history };
}

/** A step that has been done, and what came out. */
interface Concluded {
  /** Its number, from 1. */
  at: number;
  lr: number;
  dataTime: number;
  loss: number;
  gradNorm: number;
  /** The mean loss before it, where this one is too far above. */
  spike: number | undefined;
}

/** The step with the lowest validation loss so far. */
function bestStep(history: StepMetrics[]): number | undefined {
  let best: StepMetrics | undefined;
  for (const metrics of history) {
    if (metrics.valLoss !== undefined && metrics.valLoss < (best?.valLoss ?? Number.POSITIVE_INFINITY)) best = metrics;
  }
  return best?.step;
}

/** What is wrong, and with which parameter of `model` first: null where that has gone on since. */
function describe(loss: number, spike: number | undefined, model: TransformerLM | null): string {
  if (spike !== undefined) return `the loss is ${loss.toFixed(3)}, the mean of the steps before it ${spike.toFixed(3)}`;
  const what = Number.isFinite(loss) ? "the gradient is" : `the loss is ${loss},`;
  // Gradients that are not finite have spoilt the weights by now.
  const first = model === null ? undefined : firstNonFinite(model, { weights: !Number.isFinite(loss) });
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
