/**
 * A run's metrics: `metrics.jsonl`, one JSON object a line and step. Lines are collected and written together, and
 * always before a checkpoint, so that a resumed run can cut off exactly what came after its checkpoint.
 */
import { existsSync, readFileSync, appendFileSync } from "node:fs";
import { writeAtomically } from "@mantou/model";

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
  /** Validation loss, where one was measured after this step. */
  valLoss?: number;
}

const FLUSH_SECONDS = 2;

export class MetricsWriter {
  #lines: string[] = [];
  #flushed = performance.now();

  constructor(readonly path: string) {}

  write(metrics: StepMetrics): void {
    this.#lines.push(`${JSON.stringify(metrics)}\n`);
    if (performance.now() - this.#flushed > FLUSH_SECONDS * 1000) this.flush();
  }

  flush(): void {
    if (this.#lines.length > 0) appendFileSync(this.path, this.#lines.join(""));
    this.#lines = [];
    this.#flushed = performance.now();
  }
}

/** All metrics of a file, in order; a last line that was cut off is left out. */
export function readMetrics(path: string): StepMetrics[] {
  if (!existsSync(path)) return [];
  const lines = readFileSync(path, "utf8").split("\n");
  return lines.flatMap((line) => {
    try {
      return line === "" ? [] : [JSON.parse(line) as StepMetrics];
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
