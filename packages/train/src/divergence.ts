/**
 * Runs that go wrong: a loss or a gradient that is not a finite number, or a loss far above those before it. What is
 * said about it (which batch, which parameter), and the batches that a run passes over after it went back.
 */
import { existsSync, readFileSync } from "node:fs";
import { type TransformerLM, writeAtomically } from "@mantou/model";
import { z } from "zod";
import { UserError } from "./errors.ts";
import type { StepMetrics } from "./metrics.ts";

/** Steps whose mean loss a new loss is held against. */
const WINDOW = 50;

/** A run may go back this often to the same checkpoint before it gives up. */
const MAX_ATTEMPTS = 5;

/** A loss that is more than `threshold` nats above the mean of the last steps' gives that mean; 0: no threshold. */
export function spikeAbove(loss: number, history: StepMetrics[], threshold: number): number | undefined {
  if (threshold === 0 || history.length < WINDOW / 5) return undefined;
  const recent = history.slice(-WINDOW);
  const mean = recent.reduce((sum, metrics) => sum + metrics.loss, 0) / recent.length;
  return loss > mean + threshold ? mean : undefined;
}

/**
 * The first parameter that has a number which is not finite: of the weights in the order of the forward pass, and where
 * they are sound of the gradients in the order of the backward pass, which is how such numbers spread.
 * @param options weights: whether to look at them at all
 */
export function firstNonFinite(model: TransformerLM, options: { weights: boolean }): string | undefined {
  const parameters = [...model.parameters().values()];
  const weights = options.weights ? parameters : [];
  const places = [
    ...weights.map(({ name, value }) => ({ what: `weight ${name}`, tensor: value })),
    ...parameters.toReversed().map(({ name, grad }) => ({ what: `gradient of ${name}`, tensor: grad })),
  ];
  for (const { what, tensor } of places) {
    const data = tensor.toFloat32Array();
    const index = data.findIndex((value) => !Number.isFinite(value));
    if (index < 0) continue;
    const count = data.reduce((sum, value) => sum + (Number.isFinite(value) ? 0 : 1), 0);
    const place = [Math.floor(index / tensor.columns), index % tensor.columns];
    const at = tensor.shape.length > 1 ? `row ${place[0]}, column ${place[1]}` : `element ${index}`;
    return `${what}, ${at}: ${data[index]} (${count} of ${data.length} are not finite)`;
  }
  return undefined;
}

const skipsSchema = z.array(
  z.strictObject({ checkpoint: z.int().min(0), first: z.int().min(1), last: z.int().min(1) }),
);

/** The steps that a run passes over, kept in a file so that a resumed run passes over the same. */
export class Skips {
  #ranges: z.output<typeof skipsSchema> = [];

  /** @throws UserError for a file that is not one of ours */
  constructor(readonly path: string) {
    if (!existsSync(path)) return;
    try {
      this.#ranges = skipsSchema.parse(JSON.parse(readFileSync(path, "utf8")));
    } catch (cause) {
      throw new UserError(`${path} is no list of skipped steps: ${(cause as Error).message}`, {
        fix: "mend it, or remove it to train on all batches",
        cause,
      });
    }
  }

  has(step: number): boolean {
    return this.#ranges.some(({ first, last }) => step >= first && step <= last);
  }

  /**
   * Skips `step` once the run is back at `checkpoint`; where that did not help before, twice as many steps up to it.
   * @returns the steps to skip, or undefined when it has been tried often enough
   */
  add(step: number, checkpoint: number): { first: number; last: number } | undefined {
    const attempts = this.#ranges.filter((range) => range.checkpoint === checkpoint).length;
    if (attempts === MAX_ATTEMPTS) return undefined;
    const range = { checkpoint, first: Math.max(checkpoint + 1, step - 2 ** attempts + 1), last: step };
    this.#ranges.push(range);
    writeAtomically(this.path, [new TextEncoder().encode(`${JSON.stringify(this.#ranges, null, 2)}\n`)]);
    return range;
  }
}
