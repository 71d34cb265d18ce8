/**
 * The way of a batch to where a model reads it, while the device works on what was queued before: through page-locked memory
 * and on the copy stream into memory of its own, from where the compute stream takes it over.
 */
import type { HostMemory } from "./native.ts";
import { Tensor } from "./tensor.ts";
import type { TransformerLM } from "./transformer.ts";

export const COMPUTE = 0;
const COPY = 1;

/** Steps or batches that can be queued before the first of them must be finished: as many as there are marks. */
export const IN_FLIGHT = 2;

export interface Batch {
  /** int32, whole sequences one after another. */
  inputs: Int32Array;
  targets: Int32Array;
}

export class Uploads implements Disposable {
  /** Where tokens and targets arrive before the compute stream takes them over. */
  #incoming: Tensor;

  constructor(readonly model: TransformerLM) {
    this.#incoming = Tensor.zeros(model.device, [2 * model.batch.tokens.count], "int32", "activations");
  }

  /** What a batch takes of page-locked memory. */
  get bytes(): number {
    return this.#incoming.bytes;
  }

  /**
   * Queues a batch, of as many sequences as the model takes or fewer.
   * @param staging keeps it, from `at` on, until the device has come to what is queued next
   */
  queue(staging: HostMemory, at: number, { inputs, targets }: Batch): void {
    const { device, batch } = this.model;
    const { tokens } = batch;
    staging.write(inputs, at);
    staging.write(targets, at + tokens.bytes);
    device.run("mantou_copy_async", this.#incoming, { memory: staging, byteOffset: at }, this.bytes, COPY);
    device.run("mantou_stream_wait", COMPUTE, COPY);
    const second = this.#incoming.view([tokens.count], tokens.count);
    device.run("mantou_copy_async", tokens, this.#incoming, tokens.bytes, COMPUTE);
    device.run("mantou_copy_async", batch.targets, second, tokens.bytes, COMPUTE);
    // From here on the next batch may arrive.
    device.run("mantou_stream_wait", COPY, COMPUTE);
  }

  [Symbol.dispose](): void {
    this.#incoming[Symbol.dispose]();
  }
}
