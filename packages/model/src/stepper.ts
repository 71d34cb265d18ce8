/**
 * Training steps that the host queues and does not wait for. While a step runs, the next batch travels from page-locked
 * memory on the copy stream; what changes from step to step (tokens, learning rate, bias corrections) is read from device
 * memory, so that a backend that can capture work replays it by one call for each part, the last of which makes the update
 * too. Losses and norms are read when the next step is queued.
 *
 * The results have the same bits as `lossAndGradients` and `clipAndStep`, which wait for each.
 */
import { type AdamW, checkMaxNorm } from "./adamw.ts";
import { checkCount } from "./config.ts";
import type { HostMemory } from "./native.ts";
import { Repeated } from "./repeated.ts";
import type { Tensor } from "./tensor.ts";
import type { TransformerLM } from "./transformer.ts";
import { type Batch, COMPUTE, IN_FLIGHT, Uploads } from "./uploads.ts";

/** Bytes of a step's scalars (learning rate, bias corrections) in page-locked memory, and of its norm. */
const SCALAR_BYTES = 12;
const NORM_BYTES = 4;

export interface StepperOptions {
  /** Batches whose gradients are added up for one step. */
  parts: number;
  /** As in `clipAndStep`. */
  maxNorm: number;
}

export interface StepResult {
  /** Mean loss of the step's parts. */
  loss: number;
  /** Norm of the gradients before clipping. */
  gradNorm: number;
}

export class Stepper implements Disposable {
  #uploads: Uploads;
  /** Page-locked, one for each step in flight: tokens of its parts, scalars, norm, losses. */
  #staging: HostMemory[];
  /** What ends a step, or is all of it: its last part and the update, as one. */
  #lastPart: Repeated<Tensor>;
  #queued = 0;
  #finished = 0;

  constructor(
    readonly model: TransformerLM,
    readonly optimizer: AdamW,
    readonly options: StepperOptions,
  ) {
    checkCount("parts", options.parts);
    checkMaxNorm(options.maxNorm);
    if (optimizer.store !== model.store) throw new RangeError("the optimizer is not one of this model's parameters");
    const { device } = model;
    this.#uploads = new Uploads(model);
    const bytes = options.parts * (this.#uploads.bytes + 4) + SCALAR_BYTES + NORM_BYTES;
    this.#staging = Array.from({ length: IN_FLIGHT }, () => device.allocateHost(bytes));
    this.#lastPart = new Repeated(device, () => {
      const loss = model.queueLossAndGradients(1 / options.parts);
      optimizer.queueStep(options.maxNorm);
      return loss;
    });
  }

  /** Steps queued and not finished. */
  get inFlight(): number {
    return this.#queued - this.#finished;
  }

  /**
   * Queues a step.
   * @param batch gives the tokens of each part, whole batches of whole contexts
   * @throws RangeError for a token that is not in the vocabulary or a batch of another size
   */
  queue(batch: (part: number) => Batch, lr: number): void {
    if (this.inFlight >= IN_FLIGHT) throw new Error(`${IN_FLIGHT} steps are queued: finish one first`);
    const { model, optimizer } = this;
    const { device } = model;
    const staging = this.#staging[this.#queued % IN_FLIGHT]!;
    const { tokens } = model.batch;
    const place = this.#places();
    optimizer.zeroGrad();
    for (let part = 0; part < this.options.parts; part++) {
      const isLast = part === this.options.parts - 1;
      const { inputs, targets } = batch(part);
      for (const given of [inputs, targets]) {
        if (given.length !== tokens.count) throw new RangeError(`${given.length} tokens are not ${tokens.count}`);
        model.checkTokens(given);
      }
      this.#uploads.queue(staging, part * this.#uploads.bytes, { inputs, targets });
      if (isLast) {
        const scalars = { memory: staging, byteOffset: place.scalars };
        staging.write(optimizer.nextScalars(lr), place.scalars);
        device.run("mantou_copy_async", optimizer.scalars, scalars, SCALAR_BYTES, COMPUTE);
      }
      const loss = isLast ? this.#lastPart.run() : model.queueLossAndGradients(1 / this.options.parts);
      const result = { memory: staging, byteOffset: place.losses + 4 * part };
      device.run("mantou_copy_async", result, loss, 4, COMPUTE);
    }
    const norm = { memory: staging, byteOffset: place.norm };
    device.run("mantou_copy_async", norm, optimizer.norm, NORM_BYTES, COMPUTE);
    device.run("mantou_mark", this.#queued % IN_FLIGHT);
    this.#queued++;
  }

  /** Waits for the oldest step that is in flight. */
  finish(): StepResult {
    if (this.inFlight === 0) throw new Error("no step is queued");
    const slot = this.#finished++ % IN_FLIGHT;
    this.model.device.run("mantou_wait_for_mark", slot);
    const staging = this.#staging[slot]!;
    const place = this.#places();
    let loss = 0;
    for (let part = 0; part < this.options.parts; part++) {
      loss += staging.float32(place.losses + 4 * part) / this.options.parts;
    }
    return { loss, gradNorm: staging.float32(place.norm) };
  }

  [Symbol.dispose](): void {
    this.model.device.synchronize();
    for (const each of [this.#lastPart, this.#uploads, ...this.#staging]) each[Symbol.dispose]();
  }

  /** Where things lie in a step's page-locked memory, behind the tokens of its parts. */
  #places(): { scalars: number; norm: number; losses: number } {
    const scalars = this.options.parts * this.#uploads.bytes;
    return { scalars, norm: scalars + SCALAR_BYTES, losses: scalars + SCALAR_BYTES + NORM_BYTES };
  }
}
