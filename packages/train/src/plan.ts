/**
 * What a run needs, before it starts: memory by kind, parameters, arithmetic, tokens. The memory is counted by building
 * the model and the optimizer on a planning device, so what allocates and what counts is the same code.
 */
import { Decoder, type MemoryKind, type NativeError, Stepper, TransformerLM, Uploads } from "@mantou/model";
import { openPlanningDevice } from "@mantou/model";
import { snapshotBytes } from "./checkpoint.ts";
import type { SettledConfig } from "./config.ts";
import { UserError } from "./errors.ts";
import { modelOptions } from "./run.ts";
import { flopsPerToken as flopsOf } from "./measure.ts";
import { flagOf } from "./schema.ts";
import { type Cell, formatBytes, formatCount, formatDuration, formatTable } from "./terminal/format.ts";
import { plainStyle, type Style } from "./terminal/style.ts";
import { createOptimizer } from "./trainer.ts";

export interface Plan {
  /** What it is for. */
  device: "cpu" | "cuda";
  /** Bytes on the device, by kind. */
  memory: [kind: MemoryKind, bytes: number][];
  /** All of `memory`. */
  total: number;
  /** Bytes on the host for the copy that a checkpoint is written from while training goes on. */
  checkpointCopy: number;
  parameters: number;
  /** Floating-point operations per token, forward and backward. */
  flopsPerToken: number;
  tokensPerStep: number;
  tokens: number;
}

/** @throws BuildError without a compiler */
export function planTraining(config: SettledConfig): Plan {
  const name = config.device === "cpu" ? "cpu" : "cuda";
  using device = openPlanningDevice(name);
  using model = new TransformerLM(config.model, { device, ...modelOptions(config) });
  model.prepare();
  using optimizer = createOptimizer(model, config);
  const stepping = { parts: config.batchSize / config.microBatchSize, maxNorm: config.clipNorm };
  using _stepper = device.isAsynchronous ? new Stepper(model, optimizer, stepping) : null;
  using _validation = device.isAsynchronous ? new Uploads(model) : null;
  // A sample on the way reads half a context at once when the context is full.
  using decoder = new Decoder(model);
  decoder.forward(new Int32Array(Math.max(1, Math.floor(config.model.contextLength / 2))));
  const tokensPerStep = config.batchSize * config.model.contextLength;
  return {
    device: name,
    memory: device.memory.entries(),
    total: device.memory.total,
    checkpointCopy: snapshotBytes({ model, optimizer }),
    parameters: model.store.count,
    flopsPerToken: flopsOf(model),
    tokensPerStep,
    tokens: config.steps * tokensPerStep,
  };
}

/**
 * The plan as a command prints it, without a final newline.
 * @param seconds the estimate of the time, from and to, or why there is none
 */
export function formatPlan(
  plan: Plan,
  seconds: [from: number, to: number] | string,
  style: Style = plainStyle,
): string {
  const { parameters, flopsPerToken, tokensPerStep, tokens, checkpointCopy } = plan;
  const indented = (rows: Cell[][]) => formatTable(rows).replaceAll(/^/gm, "  ");
  const sizes: Cell[][] = [
    ["parameters", formatCount(parameters)],
    ["arithmetic", `${formatCount(flopsPerToken)} FLOPs a token, ${(flopsPerToken * tokens).toExponential(2)} in all`],
    ["tokens", `${formatCount(tokensPerStep)} a step, ${formatCount(tokens)} in all`],
    [
      "time",
      typeof seconds === "string"
        ? `not known: ${seconds}`
        : `${seconds.map((each) => formatDuration(each)).join(" to ")}, by the speed of this device, samples not counted`,
    ],
  ];
  return [
    style.bold("plan"),
    indented(sizes),
    style.bold("memory"),
    memoryTable(plan),
    `  and ${formatBytes(checkpointCopy)} on the host while a checkpoint is written`,
  ].join("\n");
}

function memoryTable({ device, memory, total }: Plan): string {
  const rows = [...memory.toSorted(([, a], [, b]) => b - a), ["total", total] as const];
  const table = formatTable(rows.map(([kind, bytes]): Cell[] => [kind, formatBytes(bytes).padStart(10)]));
  const more =
    device === "cuda" ? "\nand what CUDA itself takes, which only the GPU can tell: context, code, cuBLASLt" : "";
  return `${table}${more}`.replaceAll(/^/gm, "  ");
}

/** Why memory ran out, for the person who chose the settings: what was asked for, what the run needs, what shrinks it. */
export function outOfMemory(error: NativeError, config: SettledConfig): UserError {
  const plan = planTraining(config);
  const smaller: [path: string, changed: SettledConfig][] = [];
  const { microBatchSize, activations, precision, model } = config;
  const divisor = [2, 3, 5, 7, microBatchSize].find((prime) => microBatchSize % prime === 0) ?? 1;
  if (microBatchSize > 1) {
    smaller.push(["microBatchSize", { ...config, microBatchSize: microBatchSize / divisor }]);
  }
  if (activations === "keep") smaller.push(["activations", { ...config, activations: "recompute" }]);
  if (precision === "fp32") smaller.push(["precision", { ...config, precision: "bf16" }]);
  if (model.contextLength > 1) {
    const contextLength = Math.ceil(model.contextLength / 2);
    smaller.push(["model.contextLength", { ...config, model: { ...model, contextLength } }]);
  }
  const ways = smaller.flatMap(([path, changed]) => {
    const value = path.split(".").reduce<unknown>((of, key) => (of as Record<string, unknown>)[key], changed);
    const { total } = planTraining(changed);
    return total < plan.total ? [`${flagOf(path)} ${String(value)} (${formatBytes(total)})`] : [];
  });
  return new UserError(`${error.message}\nThis run needs ${formatBytes(plan.total)} in all:\n${memoryTable(plan)}`, {
    fix: `use ${ways.join(", or ")}, or a smaller model; the batch stays what it is with a smaller --micro-batch-size`,
    exitCode: 1,
    cause: error,
  });
}
