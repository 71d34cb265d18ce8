/**
 * A run's metrics: `metrics.jsonl`, one JSON object a line and step, and the same as TensorBoard events. Lines are
 * collected and written together, and always before a checkpoint, so that a resumed run can cut off exactly what came
 * after its checkpoint.
 */
import { appendFileSync, existsSync, mkdirSync, readFileSync } from "node:fs";
import { dirname } from "node:path";
import { writeAtomically } from "@mantou/model";
import { fileVersionEvent, metricsEvent } from "./tensorboard.ts";

export interface StepMetrics {
  /** Steps done, from 1. */
  step: number;
  /** Seconds of training so far, over all sittings. */
  time: number;
  /** Tokens seen so far. */
  tokens: number;
  /** Mean cross-entropy of the batch, nats per token. */
  loss: number;
  lr: number;
  /** Global L2 norm of the gradient before clipping. */
  gradNorm: number;
  tokensPerSecond: number;
  /** Model FLOPs utilisation: of the speed of a large matrix product, measured when the run was started. */
  mfu: number;
  /** Seconds of the step that went into getting its batch. */
  dataTime: number;
  /** Resident memory of the process, bytes. */
  memory: number;
  /** The following where a validation was due after this step. Nats per token. */
  valLoss?: number;
  valPerplexity?: number;
  /** Bits per byte of text, which does not depend on the tokenizer. */
  valBitsPerByte?: number;
  /** L2 norm of all weights. */
  paramNorm?: number;
  /** L2 norm of this step's change of the weights, over that of the weights. */
  updateRatio?: number;
  /** L2 norm of each parameter. */
  norms?: Record<string, number>;
}

/** What differs between two runs of the same config. */
export const MACHINE_FIELDS = ["time", "tokensPerSecond", "mfu", "dataTime", "memory"] as const;

const FLUSH_SECONDS = 2;

export class MetricsWriter {
  #lines: string[] = [];
  #events: Uint8Array[] = [];
  #flushed = performance.now();

  /**
   * @param events where TensorBoard events go, if anywhere; the file begins anew with `history`, as TensorBoard does not
   * forget what a run that goes on has taken back
   */
  constructor(
    readonly path: string,
    readonly events: string | undefined,
    history: StepMetrics[],
  ) {
    if (events === undefined) return;
    mkdirSync(dirname(events), { recursive: true });
    const now = Date.now() / 1000;
    const begun = now - (history.at(-1)?.time ?? 0);
    writeAtomically(events, [
      fileVersionEvent(begun),
      ...history.map((metrics) => metricsEvent(metrics, begun + metrics.time)),
    ]);
  }

  write(metrics: StepMetrics): void {
    this.#lines.push(`${JSON.stringify(metrics)}\n`);
    if (this.events !== undefined) this.#events.push(metricsEvent(metrics, Date.now() / 1000));
    if (performance.now() - this.#flushed > FLUSH_SECONDS * 1000) this.flush();
  }

  flush(): void {
    if (this.#lines.length > 0) appendFileSync(this.path, this.#lines.join(""));
    if (this.events !== undefined && this.#events.length > 0) appendFileSync(this.events, Buffer.concat(this.#events));
    this.#lines = [];
    this.#events = [];
    this.#flushed = performance.now();
  }
}

/** All metrics of a file, in order; lines that are none, such as a last one that was cut off, are left out. */
export function readMetrics(path: string): StepMetrics[] {
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").split("\n");
  return lines.flatMap((line) => {
    try {
      const metrics = JSON.parse(line) as StepMetrics | null;
      return Number.isInteger(metrics?.step) ? [metrics!] : [];
    } catch {
      return [];
    }
  });
}

/** Drops the metrics after `step` and returns the others. */
export function truncateMetrics(path: string, step: number): StepMetrics[] {
  const kept = readMetrics(path).filter((metrics) => metrics.step <= step);
  if (existsSync(path)) {
    writeAtomically(path, [new TextEncoder().encode(kept.map((line) => `${JSON.stringify(line)}\n`).join(""))]);
  }
  return kept;
}
