/**
 * A few worker threads that take parts of files one after the other and give back results in the order of the parts.
 */
import { Worker } from "node:worker_threads";
import { TokenizerError } from "./errors.ts";
import type { FilePart, WorkerRequest, WorkerSetup } from "./worker.ts";

/** Parts that may be finished, or in work, ahead of the one whose result is due, for each worker. */
const AHEAD = 3;

interface Pending {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

export class WorkerPool implements Disposable {
  readonly #workers: Worker[];
  /** For each worker, what settles the request that it is at. */
  readonly #waiting: (Pending | undefined)[];
  #failure: Error | undefined;

  constructor(count: number, setup: WorkerSetup) {
    const file = import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js";
    this.#waiting = Array<undefined>(count).fill(undefined);
    this.#workers = Array.from({ length: count }, (_, index) => {
      const worker = new Worker(new URL(file, import.meta.url), { workerData: setup });
      worker.on("message", (result: unknown) => {
        const waiting = this.#waiting[index];
        this.#waiting[index] = undefined;
        waiting?.resolve(result);
      });
      worker.on("error", (error: Error) => this.#fail(error));
      worker.on("exit", () => this.#fail(new Error("it ended early")));
      return worker;
    });
  }

  /** Works on all parts; `onResult` gets each result in their order, one at a time. */
  async run(
    parts: Iterable<FilePart>,
    onResult: (result: unknown, part: FilePart) => void | Promise<void>,
    signal?: AbortSignal,
  ): Promise<void> {
    const due: { part: FilePart; result: Promise<unknown> }[] = [];
    const idle = this.#workers.map((_, index) => Promise.resolve(index));
    const takeDue = async (): Promise<void> => {
      const { part, result } = due.shift()!;
      await onResult(await result, part);
      signal?.throwIfAborted();
    };
    for (const part of parts) {
      signal?.throwIfAborted();
      while (due.length >= AHEAD * this.#workers.length) await takeDue();
      const index = await Promise.race(idle);
      const result = this.#ask(index, part);
      result.catch(() => undefined); // it is reported when it is due
      idle[index] = result.then(() => index);
      idle[index].catch(() => undefined);
      due.push({ part, result });
    }
    while (due.length > 0) await takeDue();
  }

  /** Asks every worker for what it has gathered. */
  finish(): Promise<unknown[]> {
    return Promise.all(this.#workers.map((_, index) => this.#ask(index, "finish")));
  }

  [Symbol.dispose](): void {
    this.#failure ??= new Error("the workers have been ended");
    for (const worker of this.#workers) void worker.terminate();
  }

  #ask(index: number, request: WorkerRequest): Promise<unknown> {
    if (this.#failure) return Promise.reject(this.#failure);
    return new Promise((resolve, reject) => {
      this.#waiting[index] = { resolve, reject };
      this.#workers[index].postMessage(request);
    });
  }

  /** One lost worker ends the work: its part would be missing. */
  #fail(cause: Error): void {
    this.#failure ??= new TokenizerError(`a worker failed: ${cause.message}`, { cause });
    for (const waiting of this.#waiting) waiting?.reject(this.#failure);
  }
}
