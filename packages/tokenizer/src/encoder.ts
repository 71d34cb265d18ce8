/**
 * From pieces to ids. A piece that is a token is that token; any other is split into bytes and merged, lowest rank first
 * and leftmost first. Results are kept in caches of fixed size that are addressed by content: two-way sets that the newest
 * entry enters, so a text of ever new words costs no more than no cache at all.
 */
import type { Sink } from "./feed.ts";
import { hashBytes, MASK_0, MASK_1, MASK_2, MASK_3 } from "./hash.ts";
import { LongMerger } from "./merge-long.ts";
import { NO_RANK, type Vocabulary } from "./vocabulary.ts";

/** Longest piece, in bytes, of the cache of short pieces, and the most ids that an entry holds. */
const SHORT = 15;
const SHORT_IDS = 4;
/** Word 3 of an entry: three bytes, four bits of length (both part of the key), and the number of ids. */
const COUNT_SHIFT = 28;
const KEY_BITS = (1 << COUNT_SHIFT) - 1;
/** 2¹⁷ sets of two 32-byte entries: 8 MiB when full; what is never used is never touched. */
const SHORT_SETS_BITS = 17;

/** Longest piece of the other cache, which also has short pieces of many ids; entries, and words for their contents. */
const LONG = 64;
const LONG_SLOTS_BITS = 17;
const STORE = 1 << 21;

/** Longer pieces go to the LongMerger: searching the lowest rank again each time is quadratic. */
const PLACE_BITS = 7;
const MAX_LINEAR = 1 << PLACE_BITS;
/** Behind the keys in `#work`. */
const IDS = MAX_LINEAR;
const NEXT = 2 * MAX_LINEAR;
const PREVIOUS = 3 * MAX_LINEAR;
const NO_KEY = (NO_RANK << PLACE_BITS) | (MAX_LINEAR - 1);

const FIRST_BLOCK = 1 << 12;
/** As many as half a megabyte of text has at most. What is never used is never touched. */
const BLOCK = 1 << 19;

/** A typed array that ids can be written to. */
export type IdArray = Int32Array | Uint32Array | Uint16Array;

/** `Int32Array` and so on. */
export type IdArrayType<Ids extends IdArray> = new (length: number) => Ids;

/** Ids that are being collected, in blocks, so that growing copies nothing. */
export class IdBuffer {
  /** The block being filled, and how far. */
  ids: Int32Array = new Int32Array(FIRST_BLOCK);
  length = 0;
  /** The block that is kept between texts. */
  #own = this.ids;
  readonly #full: Int32Array[] = [];
  #fullLength = 0;

  /** Empties the buffer and lets `target` be its first block: what fits is written there at once. */
  begin(target: Int32Array): void {
    this.clear();
    this.ids = target;
  }

  /** Makes sure that `extra` ids fit in the block. */
  reserve(extra: number): void {
    if (this.length + extra <= this.ids.length) return;
    this.#full.push(this.ids.subarray(0, this.length));
    this.#fullLength += this.length;
    this.ids = new Int32Array(Math.max(BLOCK, extra));
    if (this.ids.length === BLOCK) this.#own = this.ids;
    this.length = 0;
  }

  /** Number of ids in all blocks. */
  get total(): number {
    return this.#fullLength + this.length;
  }

  /** Writes all ids to the start of `target`, which must be long enough. */
  copyTo(target: IdArray): void {
    let end = 0;
    for (const block of [...this.#full, this.ids.subarray(0, this.length)]) {
      if (block.buffer !== target.buffer) target.set(block, end); // else it has been written there by `begin`
      end += block.length;
    }
  }

  clear(): void {
    this.length = 0;
    this.#full.length = 0;
    this.#fullLength = 0;
    this.ids = this.#own;
  }

  /** Empties the buffer and returns what was in it. */
  take(): Int32Array<ArrayBuffer>;
  take<Ids extends IdArray>(type: IdArrayType<Ids>): Ids;
  take(type: IdArrayType<IdArray> = Int32Array): IdArray {
    const ids = new type(this.total);
    this.copyTo(ids);
    this.clear();
    return ids;
  }
}

/** Writes the ids of the piece `bytes[start, end)` to `out` from `n` on; returns where they end. */
export type PieceMerge = (bytes: Uint8Array, start: number, end: number, out: Int32Array, n: number) => number;

/** Encodes pieces with a vocabulary; the caches live here. */
export class PieceEncoder {
  readonly #vocabulary: Vocabulary;
  /** Entries of eight words: bytes 0–14, their length and the number of ids on top (0: free), then up to four ids. */
  readonly #short = new Int32Array((2 << SHORT_SETS_BITS) * 8);
  /** Entries of four words: hash, length in bytes (0: free), place in the store, number of ids. */
  readonly #long = new Int32Array(4 << LONG_SLOTS_BITS);
  /** For each entry, the words of the piece (the last one ends with it), then its ids. */
  readonly #store = new Int32Array(STORE);
  #storeEnd = 0;
  /** Where the ids of the last `#encodeFrequent` end. */
  #end = 0;

  /** The tokens of a piece, by the place of their first byte; see #mergeLinear. One array is less to compile than four. */
  readonly #work = new Int32Array(4 * MAX_LINEAR + 1);
  #longMerger: LongMerger | undefined;
  readonly #merge: PieceMerge | undefined;

  /**
   * @param merge what to do with a piece, if not to look it up and merge its bytes.
   * @param touch writes to the caches' memory at once, which takes some 6 ms: a page that is read before it is written, the
   * system has to move, and interrupts the other threads.
   */
  constructor(vocabulary: Vocabulary, merge?: PieceMerge, touch = false) {
    this.#vocabulary = vocabulary;
    this.#merge = merge;
    if (touch) for (const table of [this.#short, this.#long]) table.fill(0);
  }

  /** Appends the ids of a batch of pieces; see `Sink.pieces`. */
  encode(bytes: Uint8Array, view: DataView, start: number, ends: Int32Array, count: number, out: IdBuffer): void {
    out.reserve(ends[count - 1] - start + SHORT_IDS); // never more ids than bytes
    let n = out.length;
    for (let i = 0; ;) {
      i = this.#encodeFrequent(view, start, ends, i, count, out.ids, n);
      n = this.#end;
      if (i === count) break;
      if (i > 0) start = ends[i - 1];
      const after = this.#encodeOther(bytes, view, start, ends[i], out.ids, n);
      if (after < 0) continue;
      n = after;
      start = ends[i++];
    }
    out.length = n;
  }

  /**
   * Appends the ids of the pieces from number `i` on, the first of which begins at `start`, while each is the first entry
   * of its set; leaves the end of the ids in `#end` and returns the number of the piece that is not. Most are, so this is
   * the hot loop: it holds nothing else, and no call, which would cost it its registers.
   */
  #encodeFrequent(
    view: DataView,
    start: number,
    ends: Int32Array,
    i: number,
    count: number,
    ids: Int32Array,
    n: number,
  ): number {
    const table = this.#short;
    for (; i < count; i++) {
      const end = ends[i];
      const length = end - start;
      if (length > SHORT) break;
      const w0 = view.getInt32(start, true) & MASK_0[length];
      const w1 = view.getInt32(start + 4, true) & MASK_1[length];
      const w2 = view.getInt32(start + 8, true) & MASK_2[length];
      const w3 = (view.getInt32(start + 12, true) & MASK_3[length]) | (length << 24);
      let h = Math.imul(
        w0 ^ Math.imul(w1 ^ Math.imul(w2 ^ Math.imul(w3, 0x27d4eb2f), 0x85ebca6b), 0xc2b2ae35),
        0x9e3779b1,
      );
      h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
      const slot = (h >>> (32 - SHORT_SETS_BITS)) << 4;
      const last = table[slot + 3];
      if (table[slot] !== w0 || (last & KEY_BITS) !== w3 || table[slot + 1] !== w1 || table[slot + 2] !== w2) break;
      start = end;
      // all four are written and the count decides how many stay: most pieces have one or two, and guessing costs more
      ids[n] = table[slot + 4];
      ids[n + 1] = table[slot + 5];
      ids[n + 2] = table[slot + 6];
      ids[n + 3] = table[slot + 7];
      n += last >>> COUNT_SHIFT;
    }
    this.#end = n;
    return i;
  }

  /** Any other piece; one that is the second of its set becomes the first instead, for #encodeFrequent, and -1 says so. */
  #encodeOther(bytes: Uint8Array, view: DataView, start: number, end: number, ids: Int32Array, n: number): number {
    const length = end - start;
    if (length > SHORT) return this.#encodeRare(bytes, view, start, end, ids, n);
    const table = this.#short;
    const w0 = view.getInt32(start, true) & MASK_0[length];
    const w1 = view.getInt32(start + 4, true) & MASK_1[length];
    const w2 = view.getInt32(start + 8, true) & MASK_2[length];
    const w3 = (view.getInt32(start + 12, true) & MASK_3[length]) | (length << 24);
    let h = Math.imul(
      w0 ^ Math.imul(w1 ^ Math.imul(w2 ^ Math.imul(w3, 0x27d4eb2f), 0x85ebca6b), 0xc2b2ae35),
      0x9e3779b1,
    );
    h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
    const slot = ((h >>> (32 - SHORT_SETS_BITS)) << 4) + 8;
    if (table[slot] === w0 && (table[slot + 3] & KEY_BITS) === w3 && table[slot + 1] === w1 && table[slot + 2] === w2) {
      // seen again: it takes the first place, where no newcomer displaces it
      for (let j = slot; j < slot + 8; j++) {
        const other = table[j - 8];
        table[j - 8] = table[j];
        table[j] = other;
      }
      return -1;
    }
    const after = this.#encodeRare(bytes, view, start, end, ids, n);
    const count = after - n;
    if (count > SHORT_IDS) return after;
    table[slot] = w0;
    table[slot + 1] = w1;
    table[slot + 2] = w2;
    table[slot + 3] = w3 | (count << COUNT_SHIFT);
    for (let j = 0; j < count; j++) table[slot + 4 + j] = ids[n + j];
    return after;
  }

  /** A piece that is not in the cache of short ones. */
  #encodeRare(bytes: Uint8Array, view: DataView, start: number, end: number, ids: Int32Array, n: number): number {
    const length = end - start;
    const hash = length < 4 || length > LONG ? 0 : hashBytes(view, start, length); // no entry has such a length
    const slot = (hash >>> (32 - LONG_SLOTS_BITS)) << 2;
    const table = this.#long;
    const store = this.#store;
    if (table[slot] === hash && table[slot + 1] === length) {
      let at = table[slot + 2];
      let p = start;
      for (; p < end - 4 && store[at] === view.getInt32(p, true); p += 4) at++;
      if (p >= end - 4 && store[at] === view.getInt32(end - 4, true)) {
        const last = at + table[slot + 3];
        while (at < last) ids[n++] = store[++at];
        return n;
      }
    }
    const after = this.#encodeUncached(bytes, start, end, ids, n); // in one place only: it is compiled into each
    // what is shorter goes to the other cache
    if (length > LONG || length <= (after - n > SHORT_IDS ? 3 : SHORT)) return after;
    if (this.#storeEnd + length + after - n > STORE) {
      table.fill(0);
      this.#storeEnd = 0;
    }
    let at = this.#storeEnd;
    table[slot] = hash;
    table[slot + 1] = length;
    table[slot + 2] = at;
    table[slot + 3] = after - n;
    for (let p = start; p < end - 4; p += 4) store[at++] = view.getInt32(p, true);
    store[at++] = view.getInt32(end - 4, true);
    while (n < after) store[at++] = ids[n++];
    this.#storeEnd = at;
    return after;
  }

  #encodeUncached(bytes: Uint8Array, start: number, end: number, ids: Int32Array, n: number): number {
    if (this.#merge !== undefined) return this.#merge(bytes, start, end, ids, n);
    const id = this.#vocabulary.idOf(bytes, start, end);
    if (id >= 0 && this.#vocabulary.isOrdinary(id)) {
      ids[n] = id;
      return n + 1;
    }
    // The first one goes the long way whatever its length: code that has never run is left out when it is compiled, and the
    // first long piece, which may come late, would have all of it compiled anew.
    return end - start <= MAX_LINEAR && this.#longMerger
      ? this.#mergeLinear(bytes, start, end, ids, n)
      : (this.#longMerger ??= new LongMerger(this.#vocabulary)).merge(bytes, start, end, ids, n);
  }

  /**
   * The pair of the lowest rank, leftmost first, is the least of numbers that are ranks above and places below. Tokens stay
   * where they begin; those of one place only are searched without a branch, as no processor guesses which will win.
   */
  #mergeLinear(bytes: Uint8Array, start: number, end: number, out: Int32Array, n: number): number {
    const vocabulary = this.#vocabulary;
    const { byteIds, byteRanks, merges } = vocabulary;
    const work = this.#work;
    const last = end - start - 1;
    for (let i = 0; i <= last; i++) {
      const left = bytes[start + i];
      // behind the last one is what is never read
      work[i] = (byteRanks[(left << 8) | bytes[start + i + 1]] << PLACE_BITS) | i;
      work[IDS + i] = byteIds[left];
      work[NEXT + i] = i + 1;
      work[PREVIOUS + i] = i - 1;
    }
    for (;;) {
      let best = NO_KEY;
      for (let i = 0; i < last; i++) best = Math.min(best, work[i]);
      const rank = best >> PLACE_BITS;
      if (rank === NO_RANK) break;
      const at = best & (MAX_LINEAR - 1);
      const right = work[NEXT + at];
      const after = work[NEXT + right];
      work[IDS + at] = merges[3 * rank + 2];
      work[NEXT + at] = after;
      work[PREVIOUS + after] = at;
      work[right] = NO_KEY;
      work[at] = NO_KEY;
      const before = work[PREVIOUS + at];
      // the pairs on both sides are new: in a loop, as the look-up is compiled into each place where it is written
      for (let i = before < 0 ? at : before, j = work[NEXT + i]; j <= last; i = at, j = after) {
        work[i] = (vocabulary.rankOf(work[IDS + i], work[IDS + j]) << PLACE_BITS) | i;
        if (i === at) break;
      }
    }
    for (let i = 0; i <= last; i = work[NEXT + i]) out[n++] = work[IDS + i];
    return n;
  }
}

/** Collects the ids of what a feed hands on. */
export class EncodingSink implements Sink {
  readonly out = new IdBuffer();
  readonly #encoder: PieceEncoder;

  constructor(encoder: PieceEncoder) {
    this.#encoder = encoder;
  }

  pieces(bytes: Uint8Array, view: DataView, start: number, ends: Int32Array, count: number): void {
    this.#encoder.encode(bytes, view, start, ends, count, this.out);
  }

  special(id: number): void {
    this.out.reserve(1);
    this.out.ids[this.out.length++] = id;
  }
}
