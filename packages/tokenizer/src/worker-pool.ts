/**
 * A few threads, this one among them, that take parts of files one after the other and give back results in the order of
 * the parts. This thread works on a part itself whenever the others have enough to do, so that none of them waits for it,
 * nor it for them.
 */
import { Worker } from "node:worker_threads";
import { TokenizerError } from "./errors.ts";
import type { FilePart } from "./file-parts.ts";
import type { WorkerRequest, WorkerSetup } from "./worker.ts";

/** Parts that may be finished, or in work, ahead of the one whose result is due, for each thread. */
const AHEAD = 8;
/** Parts that a worker has at a time: one in work, the others to go on with while this thread is at work itself. */
const AT_ONCE = 4;

interface Pending {
  resolve(result: unknown): void;
  reject(error: Error): void;
}

export class WorkerPool implements Disposable {
  readonly #workers: Worker[];
  /** For each worker, what settles the requests that it has, the oldest first. */
  readonly #waiting: Pending[][];
  #failure: Error | undefined;

  /** @param count threads besides this one. */
  constructor(count: number, setup: WorkerSetup) {
    const file = import.meta.url.endsWith(".ts") ? "./worker.ts" : "./worker.js";
    this.#waiting = Array.from({ length: count }, () => []);
    this.#workers = this.#waiting.map((waiting) => {
      const worker = new Worker(new URL(file, import.meta.url), { workerData: setup });
      worker.on("message", (result: unknown) => waiting.shift()?.resolve(result));
      worker.on("error", (error: Error) => this.#fail(error));
      worker.on("exit", () => this.#fail(new Error("it ended early")));
      return worker;
    });
  }

  /**
   * Works on all parts; `onResult` gets each result in their order, one at a time.
   *
   * @param here does in this thread what the workers do.
   */
  async run<Result>(
    parts: Iterable<FilePart>,
    here: (part: FilePart) => Result,
    onResult: (result: Result, part: FilePart) => void | Promise<void>,
    signal?: AbortSignal,
  ): Promise<void> {
    const due: { part: FilePart; result: Promise<Result> }[] = [];
    const takeDue = async (): Promise<void> => {
      const { part, result } = due.shift()!;
      await onResult(await result, part);
      signal?.throwIfAborted();
    };
    for (const part of parts) {
      signal?.throwIfAborted();
      while (due.length >= AHEAD * (this.#workers.length + 1)) await takeDue();
      const index = this.#waiting.findIndex(({ length }) => length < AT_ONCE);
      const result = index < 0 ? Promise.resolve(here(part)) : (this.#ask(index, part) as Promise<Result>);
      result.catch(() => undefined); // it is reported when it is due
      due.push({ part, result });
      if (index < 0) await new Promise((resolve) => setImmediate(resolve)); // the workers' messages, timers, signals
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
      this.#waiting[index].push({ resolve, reject });
      this.#workers[index].postMessage(request);
    });
  }

  /** One lost worker ends the work: its part would be missing. */
  #fail(cause: Error): void {
    this.#failure ??= new TokenizerError(`a worker failed: ${cause.message}`, { cause });
    for (const { reject } of this.#waiting.flat()) reject(this.#failure);
  }
}
