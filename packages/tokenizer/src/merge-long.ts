/**
 * Merging a long piece, in time that grows little faster than its length whatever is in it. Ranks wait in a heap; the
 * places where a rank's pair was seen wait in a list of that rank. All places of the lowest rank are merged from left to
 * right before the next rank is asked for, unless a merge makes a pair of a still lower rank (no trained vocabulary does,
 * an imported one may): then that one goes first.
 */
import { grown } from "./grown.ts";
import { MergeQueue } from "./merge-queue.ts";
import { NO_RANK, type Vocabulary } from "./vocabulary.ts";

const NONE = -1;

export class LongMerger {
  readonly #vocabulary: Vocabulary;
  /** First entry of each rank's list. */
  readonly #heads: Int32Array;
  /** Ranks whose list is not empty, the lowest first: none is there twice. */
  readonly #queue = new MergeQueue(() => true);
  // entries of the lists: a place and the entry after it
  #places = new Int32Array(0);
  #nexts = new Int32Array(0);
  #numEntries = 0;

  constructor(vocabulary: Vocabulary) {
    this.#vocabulary = vocabulary;
    this.#heads = new Int32Array(vocabulary.merges.length / 3).fill(NONE);
  }

  /** Writes the ids of the piece `bytes[start, end)` to `out` from `n` on; returns where they end. */
  merge(bytes: Uint8Array, start: number, end: number, out: Int32Array, n: number): number {
    const { byteIds, byteRanks } = this.#vocabulary;
    const length = end - start;
    const ids = new Int32Array(length);
    const ranks = new Int32Array(length).fill(NO_RANK);
    for (let i = 0; i < length; i++) ids[i] = byteIds[bytes[start + i]];
    for (let i = 0; i + 1 < length; i++) ranks[i] = byteRanks[(bytes[start + i] << 8) | bytes[start + i + 1]];
    return this.mergeIds(ids, ranks, out, n);
  }

  /** The same for tokens; `ranks[i]` is that of tokens i and i + 1, of the last NO_RANK. Both arrays are used up. */
  mergeIds(ids: Int32Array, ranks: Int32Array, out: Int32Array, n: number): number {
    const { merges } = this.#vocabulary;
    const { length } = ids;
    const next = new Int32Array(length); // length: none
    const previous = new Int32Array(length); // NONE: none
    this.#places = new Int32Array(2 * length);
    this.#nexts = new Int32Array(2 * length);
    for (let i = length - 1; i >= 0; i--) {
      next[i] = i + 1;
      previous[i] = i - 1;
      if (ranks[i] !== NO_RANK) this.#add(ranks[i], i);
    }

    const rankPair = (place: number): number => {
      const rank = this.#vocabulary.rankOf(ids[place], ids[next[place]]);
      ranks[place] = rank;
      if (rank !== NO_RANK) this.#add(rank, place);
      return rank;
    };
    while (this.#queue.size > 0) {
      const rank = this.#queue.pop();
      const list = this.#takeList(rank);
      const merged = merges[3 * rank + 2];
      for (let i = 0; i < list.length; i++) {
        const place = list[i];
        if (ranks[place] !== rank) continue;
        const right = next[place];
        const after = next[right];
        ids[place] = merged;
        ranks[right] = NO_RANK;
        ranks[place] = NO_RANK;
        next[place] = after;
        let lowest = rank;
        if (after < length) {
          previous[after] = place;
          lowest = Math.min(lowest, rankPair(place));
        }
        if (previous[place] !== NONE) lowest = Math.min(lowest, rankPair(previous[place]));
        if (lowest < rank) {
          // put the rest back and start again from the lower rank
          for (let j = list.length - 1; j > i; j--) this.#add(rank, list[j]);
          break;
        }
      }
    }
    for (let place = 0; place < length; place = next[place]) out[n++] = ids[place];
    this.#places = this.#nexts = new Int32Array(0);
    this.#numEntries = 0;
    return n;
  }

  #add(rank: number, place: number): void {
    if (this.#numEntries === this.#places.length) {
      this.#places = grown(this.#places, 2 * this.#numEntries);
      this.#nexts = grown(this.#nexts, 2 * this.#numEntries);
    }
    const entry = this.#numEntries++;
    this.#places[entry] = place;
    this.#nexts[entry] = this.#heads[rank];
    if (this.#heads[rank] === NONE) this.#queue.push(rank, -rank);
    this.#heads[rank] = entry;
  }

  /** Empties the list of a rank and returns its places from left to right. */
  #takeList(rank: number): Int32Array {
    let size = 0;
    for (let entry = this.#heads[rank]; entry !== NONE; entry = this.#nexts[entry]) size++;
    const list = new Int32Array(size);
    let sorted = true;
    // newest first: where places were added from left to right, this puts them in order
    for (let entry = this.#heads[rank], i = size - 1; entry !== NONE; entry = this.#nexts[entry], i--) {
      list[i] = this.#places[entry];
      if (i + 1 < size && list[i] > list[i + 1]) sorted = false;
    }
    this.#heads[rank] = NONE;
    if (!sorted) list.sort();
    return list;
  }
}
