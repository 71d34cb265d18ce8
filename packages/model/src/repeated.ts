/**
 * The same work again and again, such as a training step or a token: done the first time, captured the second, then
 * replayed by one native call. The work runs operations on memory that stays where it is, and reads what changes from one
 * time to the next from that memory; it neither allocates nor waits. It may be made of such works: what is captured then is
 * the whole.
 */
import type { Device } from "./device.ts";
import type { Graph } from "./native.ts";

/** Devices on which some work is being captured, and what it is made of with it. */
const capturing = new WeakSet<Device>();

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
    if (capturing.has(this.device)) return this.work();
    if (this.#times++ === 1) this.#graph = this.#capture();
    if (this.#graph) this.device.replay(this.#graph);
    else this.#result = this.work();
    return this.#result as T;
  }

  #capture(): Graph | undefined {
    capturing.add(this.device);
    try {
      return this.device.capture(() => {
        this.#result = this.work();
      });
    } finally {
      capturing.delete(this.device);
    }
  }

  [Symbol.dispose](): void {
    this.#graph?.[Symbol.dispose]();
  }
}
