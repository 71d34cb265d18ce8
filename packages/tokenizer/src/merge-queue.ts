/**
 * The priority queue of training: pairs by count, then by the bytes of the left and of the right token, all greater
 * first. It is lazy: a pair's count only falls after it has entered (every pair born later contains a newer token), so an
 * entry may overstate its pair but never understate it; whoever takes one out compares and puts it back if it was stale.
 */
import { grown } from "./grown.ts";
export class MergeQueue {
  /** Heap of pair numbers, and beside it the count that each had when it was put in. */
  #pairs = new Int32Array(1 << 12);
  #counts = new Float64Array(1 << 12);
  #size = 0;
  /** Whether pair a goes before pair b when their counts are equal. */
  readonly #before: (a: number, b: number) => boolean;

  constructor(before: (a: number, b: number) => boolean) {
    this.#before = before;
  }

  get size(): number {
    return this.#size;
  }

  /** Count under which the first pair was put in. */
  get topCount(): number {
    return this.#counts[0];
  }

  push(pair: number, count: number): void {
    if (this.#size === this.#pairs.length) {
      this.#pairs = grown(this.#pairs, this.#size * 2);
      this.#counts = grown(this.#counts, this.#size * 2);
    }
    const pairs = this.#pairs;
    const counts = this.#counts;
    let at = this.#size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const parentCount = counts[parent];
      if (parentCount > count || (parentCount === count && this.#before(pairs[parent], pair))) break;
      pairs[at] = pairs[parent];
      counts[at] = parentCount;
      at = parent;
    }
    pairs[at] = pair;
    counts[at] = count;
  }

  /** Takes out the first pair; the queue must not be empty. */
  pop(): number {
    const top = this.#pairs[0];
    const last = --this.#size;
    if (last > 0) this.#siftDown(this.#pairs[last], this.#counts[last]);
    return top;
  }

  #siftDown(pair: number, count: number): void {
    const pairs = this.#pairs;
    const counts = this.#counts;
    const size = this.#size;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      let childCount = counts[child];
      if (child + 1 < size) {
        const right = counts[child + 1];
        if (right > childCount || (right === childCount && this.#before(pairs[child + 1], pairs[child]))) {
          child++;
          childCount = right;
        }
      }
      if (count > childCount || (count === childCount && this.#before(pair, pairs[child]))) break;
      pairs[at] = pairs[child];
      counts[at] = childCount;
      at = child;
    }
    pairs[at] = pair;
    counts[at] = count;
  }
}
