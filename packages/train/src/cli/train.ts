/**
 * `bun run train`: from text (or generated stories) to a trained model in `runs/NAME`, in one command.
 * Usage: bun run train [--data FILE] [--preset NAME] [--config FILE] [any setting of the config as a flag]
 */
import { BuildError, type Device, type DeviceName, NativeError, OUT_OF_MEMORY, Profile } from "@mantou/model";
import { TransformerLM, openDevice } from "@mantou/model";
import { z } from "zod";
import { listCheckpoints } from "../checkpoint.ts";
import { type SettledConfig, resolveConfig, settled, trainConfigSchema } from "../config.ts";
import { watchRun, writeReport } from "../dashboard/index.ts";
import { UserError } from "../errors.ts";
import { estimateSeconds } from "../estimate.ts";
import { DirectoryLock } from "../lock.ts";
import { prepareData, prepareTokenizer } from "../prepare.ts";
import { presets } from "../presets.ts";
import { formatPlan, outOfMemory, planTraining } from "../plan.ts";
import { MACHINE_SETTINGS, type RunDirectory, checkStillFree, initialise } from "../run.ts";
import { modelOptions, saveConfig } from "../run.ts";
import { validate } from "../schema.ts";
import { formatCount, formatDuration, shellWord } from "../terminal/format.ts";
import { plotCurve } from "../terminal/plot.ts";
import { profileTable } from "../terminal/profile.ts";
import { ProgressBar } from "../terminal/progress.ts";
import { type Style, styleFor, visible, widthOf, wrap } from "../terminal/style.ts";
import { type Outcome, train } from "../trainer.ts";
import { WandbLog, checkWandb } from "../wandb.ts";
import { print, runCommand } from "./command.ts";
import { formatConfig } from "./config-summary.ts";
import { type Command, parseFlags } from "./options.ts";
import { type Layers, chooseForDevice, chooseThreads, machineFlags, reopen, settleVocabulary } from "./train-begin.ts";
import { settledThreads, start } from "./train-begin.ts";

const watchOptions = z.strictObject({
  watch: z
    .boolean()
    .default(false)
    .meta({ group: "Watch", description: "serve a live dashboard on 127.0.0.1 while it trains" }),
  watchPort: z
    .int()
    .min(0)
    .max(65535)
    .default(6060)
    .meta({ group: "Watch", description: "port of the dashboard; 0: any that is free" }),
  wandb: z.string().min(1).optional().meta({
    group: "Watch",
    description: "log to this Weights & Biases project too; needs Python with wandb (MANTOU_PYTHON names one)",
    placeholder: "PROJECT",
  }),
});

/** The first two steps touch memory for the first time. */
const [PROFILED_AFTER, PROFILED_UNTIL] = [2, 12];

const command: Command = {
  usage: "bun run train",
  summary: "Trains a language model from scratch on a text, or on generated stories where there is none",
  options: trainConfigSchema.extend({
    preset: z
      .string()
      .optional()
      .meta({ group: "Start from", description: `settings to start from: ${Object.keys(presets).join(", ")}` }),
    config: z
      .string()
      .optional()
      .meta({ group: "Start from", description: "JSON file with settings over the preset's", placeholder: "FILE" }),
    plan: z.boolean().default(false).meta({
      group: "Start from",
      description: "only tell what the run would need: memory by kind, arithmetic, tokens, time; needs no GPU",
    }),
    resume: z.string().optional().meta({
      group: "Start from",
      description: "go on with a run that was stopped; takes --threads and --device",
      placeholder: "DIR",
    }),
    profile: z
      .boolean()
      .default(false)
      .meta({ group: "Machine", description: `say where the time of a step goes (CPU; steps 3 to ${PROFILED_UNTIL})` }),
    ...watchOptions.shape,
  }),
  examples: [
    "bun run train",
    "bun run train --data book.txt --preset books",
    "bun run train --model.numLayers 6 --steps 2000 --lr 1e-3 --name deeper",
    "bun run train --init runs/tiny --data other.txt --lr 3e-4",
    "bun run train --preset tinystories-17m --device cuda --plan",
    "bun run train --watch",
    "bun run train --wandb my-project",
    "bun run train --resume runs/tiny",
  ],
};

await runCommand(async (argv) => {
  const { given } = parseFlags(command, argv);
  const {
    preset,
    config: file,
    resume,
    plan,
    profile,
    ...others
  } = given as Record<string, unknown> & Record<string, string>;
  const { watch: asked, watchPort: askedPort, wandb: askedProject, ...flags } = others as Record<string, unknown>;
  const watching = { watch: asked, watchPort: askedPort, wandb: askedProject };
  const { watch, watchPort, wandb: project } = validate(watchOptions, watching);
  const ofTheRun = Object.keys(flags).filter((name) => !(MACHINE_SETTINGS as readonly string[]).includes(name));
  if (resume !== undefined && (preset ?? file ?? plan ?? ofTheRun[0]) !== undefined) {
    const others = "--device, --threads, --watch, --wandb and --profile";
    throw new UserError(`--resume goes on with the run's own config and takes no other flag but ${others}`, {
      fix: `bun run train --resume ${shellWord(resume)}; other settings begin a new run: bun run train --init ${shellWord(resume)}`,
    });
  }
  const style = styleFor(process.stdout);
  const say = (line: string) => console.log(line);
  if (plan) {
    await print(`${planOf({ preset, file, flags }, style)}\n`);
    return;
  }
  if (project !== undefined) checkWandb(project);
  const begin = resume === undefined ? start({ preset, file, flags }, say) : reopen(resume, say, machineFlags(flags));
  using device = begin.device;
  if (profile && device.name !== "cpu") {
    throw new UserError("--profile measures operations that end with their calls, as on the CPU", {
      fix: "leave it out, or use --device cpu",
    });
  }
  const { run, resolved } = begin;
  using _lock = new DirectoryLock(run.path, "wait until it has ended, or take another --name");
  if (begin.isNew) checkStillFree(run);
  using dashboard = watch ? await watchRun(run, watchPort) : null;
  if (dashboard !== null) say(`${style.bold("watch")}   ${dashboard.url}\n`);
  saveConfig(run, resolved);
  run.removeTemporaries();

  const bars = new Map<string, ProgressBar>();
  const progress = (label: string, done: number, total: number) => {
    const bar = bars.get(label) ?? new ProgressBar({ total, label });
    bars.set(label, bar);
    bar.update(done, { size: `${(done / 1e6).toFixed(1)} MB` });
    if (done >= total) bar.finish();
  };
  const tokenizer = prepareTokenizer(run.path, settled(resolved), progress);
  const config = settleVocabulary(resolved, run, tokenizer.vocabSize);
  const { train: trainTokens, val } = prepareData(run.path, config, tokenizer, device, progress);
  using model = makeModel(config, device);
  if (config.init !== undefined && listCheckpoints(run.checkpoints).length === 0) {
    initialise(model, config.init, (message) => say(`${style.color("yellow", "warning")}: ${message}`));
  }

  const tokensPerStep = config.batchSize * config.model.contextLength;
  say(
    `${style.bold("model")}   ${formatCount(model.store.count)} parameters, vocabulary ${config.model.vocabSize}\n` +
      `${style.bold("data")}    ${formatCount(trainTokens.count)} training tokens, ${formatCount(val.count)} for validation; ` +
      `${formatCount(config.steps * tokensPerStep)} to see in ${config.steps} steps\n` +
      `${style.bold("device")}  ${device.description}\n` +
      `${style.bold("run")}     ${run.path}\n`,
  );

  const onWarning = (message: string) => bar.print(`${style.color("yellow", "warning")}: ${message}`);
  const wandb = project === undefined ? null : await WandbLog.start(run, config, { project, onWarning });
  if (wandb !== null) say(`${style.bold("wandb")}   ${wandb.where}\n`);

  const stop = new AbortController();
  const onSignal = () => stop.abort();
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  // Where nobody reads any more (`| head`), the run stops as by a signal, with a checkpoint.
  process.stdout.removeAllListeners("error").on("error", ({ message }) => {
    if (!stop.signal.aborted) console.error(`warning: standard output cannot be written, so the run stops: ${message}`);
    stop.abort();
  });
  let bar = new ProgressBar({ total: config.steps });
  let valLoss = Number.NaN;
  let first = 0;
  const profileStep = (step: number) => {
    if (step === config.steps && step <= first + PROFILED_AFTER) {
      bar.print(`${style.bold("profile")}: none, for the first ${PROFILED_AFTER} steps are left out\n`);
      return;
    }
    if (step === first + PROFILED_AFTER) device.profile = new Profile();
    if (!device.profile || (step < first + PROFILED_UNTIL && step < config.steps)) return;
    const counted = device.profile;
    device.profile = null;
    counted.stop();
    const table = profileTable(counted, device.peaks(), step - first - PROFILED_AFTER);
    bar.print(`${style.bold("profile")} of steps ${first + PROFILED_AFTER + 1} to ${step}\n${table}`);
  };
  const outcome = await train(
    { run, config, model, tokenizer, train: trainTokens, val },
    {
      onResume(step) {
        bar = new ProgressBar({ total: config.steps, start: step });
        first = step;
        say(`resuming after step ${step}`);
      },
      onStep(metrics) {
        const { step, loss, lr, tokensPerSecond } = metrics;
        wandb?.log(metrics);
        const values = { loss: loss.toFixed(3), lr: lr.toExponential(1), "tok/s": formatCount(tokensPerSecond) };
        if (profile) profileStep(step);
        bar.update(step, Number.isNaN(valLoss) ? values : { ...values, val: valLoss.toFixed(3) });
      },
      onValidation(_, loss) {
        valLoss = loss;
      },
      onSample(step, text) {
        const lines = text.trim().split("\n");
        // A terminal would break words.
        const fitted = (line: string) => wrap(visible(line), widthOf(process.stdout));
        const shown = process.stdout.isTTY ? lines.flatMap(fitted) : lines;
        bar.print(`${style.dim(`── sample after step ${step}`)}\n${shown.join("\n")}\n\n`);
      },
      onComplete() {
        writeReport(run);
      },
      onRollback(step) {
        bar.finish();
        bar = new ProgressBar({ total: config.steps, start: step });
      },
      onWarning,
    },
    stop.signal,
  ).catch((error: unknown) => {
    throw explained(error, config);
  });
  bar.finish();
  await wandb?.finish();
  process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  if (outcome.stopped) writeReport(run);
  report(outcome, run, say);
});

/** What a run would need, without a trace of it. A GPU that is asked for need not be there, nor work. */
function planOf(layers: Layers, style: Style): string {
  const resolved = resolveConfig(layers);
  const { device: asked } = resolved.config;
  chooseThreads(resolved);
  const found = openForPlan(asked, settledThreads(resolved));
  using opened = typeof found === "string" ? null : found;
  const preferredPrecision = { precision: "bf16" as const, reason: "what a GPU is fastest in" };
  chooseForDevice(resolved, opened ?? { name: "cuda", reason: "asked for", preferredPrecision });
  const config = settled(resolved);
  const seconds = typeof found === "string" ? found : estimateSeconds(config, found);
  const plan = formatPlan(planTraining(config), seconds, style);
  return `${formatConfig(resolved, widthOf(process.stdout), style)}\n\n${plan}`;
}

/** The device, to be measured, or why a GPU cannot be. */
function openForPlan(asked: DeviceName, threads: number): Device | string {
  try {
    return openDevice(asked, { threads });
  } catch (error) {
    if (asked !== "cuda" || !(error instanceof NativeError || error instanceof BuildError)) throw error;
    return error.message.split("\n", 1)[0]!;
  }
}

/** The model with the memory of its steps. @throws UserError when there is not enough */
function makeModel(config: SettledConfig, device: Device): TransformerLM {
  try {
    const model = new TransformerLM(config.model, { device, ...modelOptions(config) });
    model.prepare();
    return model;
  } catch (error) {
    throw explained(error, config);
  }
}

/** An error of the device's that there is not enough memory comes with the plan and ways out; others as they are. */
function explained(error: unknown, config: SettledConfig): unknown {
  return error instanceof NativeError && error.status === OUT_OF_MEMORY ? outOfMemory(error, config) : error;
}

function report({ step, stopped, history }: Outcome, run: RunDirectory, say: (line: string) => void): void {
  const style = styleFor(process.stdout);
  if (stopped) {
    say(
      `\nstopped after step ${step}; a checkpoint is saved. Go on with: bun run train --resume ${shellWord(run.path)}`,
    );
    return;
  }
  const losses = history.map(({ step: x, loss }): [number, number] => [x, loss]);
  const validation = history.flatMap(({ step: x, valLoss }): [number, number][] => {
    return valLoss === undefined ? [] : [[x, valLoss]];
  });
  const series = [
    { label: "training", points: losses },
    { label: "validation", points: validation },
  ];
  const width = Math.min(100, widthOf(process.stdout));
  say(`\n${plotCurve(series, { width, title: "loss (nats per token)", xLabel: "step", style })}\n`);
  const last = history.at(-1);
  if (last) {
    const speed = formatCount(last.tokens / last.time);
    const final = last.valLoss === undefined ? "" : `validation loss ${last.valLoss.toFixed(4)}, `;
    say(`${final}${formatCount(last.tokens)} tokens in ${formatDuration(last.time)} (${speed} tok/s)`);
  }
  say(`everything is in ${run.path}: ${["report.html", "metrics.jsonl", "samples.txt", "checkpoints"].join(", ")}`);
  say(`sample from it: bun run generate --run ${shellWord(run.path)} --prompt "Once upon a time"`);
}
