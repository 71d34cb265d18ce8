/**
 * The same work again and again, such as a training step or a token: done the first time, captured the second, then
 * replayed by one native call. The work runs operations on memory that stays where it is, and reads what changes from one
 * time to the next from that memory; it neither allocates nor waits.
 */
import type { Device } from "./device.ts";
import type { Graph } from "./native.ts";

export class Repeated<T = void> implements Disposable {
  #times = 0;
  #graph: Graph | undefined;
  #result: T | undefined;

  constructor(
    readonly device: Device,
    readonly work: () => T,
  ) {}

  /** @returns what `work` returned when it was last called */
  run(): T {
    const work = () => {
      this.#result = this.work();
    };
    if (this.#times++ === 1) this.#graph = this.device.capture(work);
    if (this.#graph) this.device.replay(this.#graph);
    else work();
    return this.#result as T;
  }

  [Symbol.dispose](): void {
    this.#graph?.[Symbol.dispose]();
  }
}
