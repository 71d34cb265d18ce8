/**
 * Who generates when: as many texts at once as the batch has slots, the next ones in a queue of bounded length, one step
 * of all running texts after the other (continuous batching: see `GenerationBatch`).
 */
import { type Finish, type GenerateOptions, GenerationBatch, type Sequence, type TransformerLM } from "@mantou/model";
import { RequestError } from "./request.ts";

/** A text to generate. Its callbacks run between two steps and must be quick. */
export interface Job {
  tokens: number[];
  options: GenerateOptions;
  onToken(token: number): void;
  /** After the last token; not after `cancel`. */
  onEnd(finish: Finish): void;
  /** The step that it was part of failed. */
  onError(error: unknown): void;
}

/** The queue has no room for a request. */
export class QueueFullError extends Error {
  override name = "QueueFullError";
}

export class Scheduler implements Disposable {
  #batch: GenerationBatch;
  #waiting: Job[] = [];
  #running = new Map<Sequence, Job>();
  #isLooping = false;
  #isOver = false;

  /** @param limits slots: texts generated at once; queue: texts that may wait for a slot */
  constructor(
    model: TransformerLM,
    readonly limits: { slots: number; queue: number },
  ) {
    this.#batch = new GenerationBatch(model, limits.slots);
  }

  get running(): number {
    return this.#running.size;
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  /**
   * Takes all of the jobs, or none.
   * @throws RequestError when there is never room for so many; QueueFullError when they would have to wait and the queue has no room for them
   */
  submit(jobs: Job[]): void {
    if (this.#isOver) throw new QueueFullError("the server is stopping");
    const { slots, queue } = this.limits;
    const waiting = this.running + this.waiting + jobs.length - slots;
    if (jobs.length > slots + queue) {
      throw new RequestError(400, `${jobs.length} texts are more than the ${slots + queue} that fit here at once`);
    }
    if (waiting > queue) {
      throw new QueueFullError(`${this.running} texts are being generated and ${this.waiting} wait: no room for more`);
    }
    this.#waiting.push(...jobs);
    if (!this.#isLooping) void this.#loop();
  }

  /** Ends a job, whether it waits or runs; one that is over is left alone. */
  cancel(job: Job): void {
    this.#waiting = this.#waiting.filter((each) => each !== job);
    for (const [sequence, each] of this.#running) if (each === job) this.#end(sequence);
  }

  [Symbol.dispose](): void {
    this.#isOver = true;
    this.#waiting = [];
    this.#running.clear();
    // A loop that is between two steps frees the batch itself.
    if (!this.#isLooping) this.#batch[Symbol.dispose]();
  }

  #end(sequence: Sequence): void {
    this.#batch.remove(sequence);
    this.#running.delete(sequence);
  }

  async #loop(): Promise<void> {
    this.#isLooping = true;
    while (!this.#isOver && this.running + this.waiting > 0) {
      this.#admit();
      this.#step();
      // Requests come in, and texts go out, only when the event loop turns.
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.#isLooping = false;
    if (this.#isOver) this.#batch[Symbol.dispose]();
  }

  #admit(): void {
    while (this.#batch.size < this.limits.slots) {
      const job = this.#waiting.shift();
      if (job === undefined) return;
      try {
        const sequence = this.#batch.add(job.tokens, job.options);
        if (sequence.finish === undefined) this.#running.set(sequence, job);
        else job.onEnd(sequence.finish);
      } catch (error) {
        job.onError(error);
      }
    }
  }

  #step(): void {
    try {
      for (const { sequence, token } of this.#batch.step()) this.#running.get(sequence)?.onToken(token);
      for (const [sequence, job] of this.#running) {
        if (sequence.finish === undefined) continue;
        this.#running.delete(sequence);
        job.onEnd(sequence.finish);
      }
    } catch (error) {
      // Nobody can say whose fault it was, and the cache may be half-written: all of them end, the next ones begin anew.
      for (const [sequence, job] of this.#running) {
        this.#end(sequence);
        job.onError(error);
      }
    }
  }
}
