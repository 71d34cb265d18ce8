/**
 * From pieces to ids. A piece that is a token is that token; any other is split into bytes and merged, lowest rank first
 * and leftmost first. Results are kept in caches of fixed size that are addressed by content: two-way sets that the newest
 * entry enters, so a text of ever new words costs no more than no cache at all.
 */
import type { Sink } from "./feed.ts";
import type { Vocabulary } from "./vocabulary.ts";

/** Longest piece, in bytes, of the cache of short pieces, and the most ids that an entry holds. */
const SHORT = 15;
const SHORT_IDS = 4;
/** 2¹⁷ sets of two 32-byte entries: 8 MiB. */
const SHORT_SETS_BITS = 17;

/** The same of the cache of longer pieces; 2¹¹ slots. */
const LONG = 64;
const LONG_IDS = 31;
const LONG_SLOTS_BITS = 11;

/** Longer pieces are merged with a heap: searching the lowest rank again each time is quadratic. */
const MAX_LINEAR = 96;

const NO_RANK = 0x7fffffff;

/** Masks that keep the first n bytes of each of four little-endian words. */
const MASKS = Array.from({ length: 4 }, (_, word) =>
  Int32Array.from({ length: SHORT + 1 }, (_, n) => {
    const bytes = n - 4 * word;
    return bytes <= 0 ? 0 : bytes >= 4 ? -1 : (1 << (8 * bytes)) - 1;
  }),
);
const [MASK_0, MASK_1, MASK_2, MASK_3] = MASKS;

const FIRST_BLOCK = 1 << 12;
const BLOCK = 1 << 17;

/** Ids that are being collected, in blocks, so that growing copies nothing. */
export class IdBuffer {
  /** The block being filled, and how far. */
  ids = new Int32Array(FIRST_BLOCK);
  length = 0;
  readonly #full: Int32Array[] = [];
  #fullLength = 0;

  /** Makes sure that `extra` ids fit in the block. */
  reserve(extra: number): void {
    if (this.length + extra <= this.ids.length) return;
    this.#full.push(this.ids.subarray(0, this.length));
    this.#fullLength += this.length;
    this.ids = new Int32Array(Math.max(BLOCK, extra));
    this.length = 0;
  }

  /** Number of ids in all blocks. */
  get total(): number {
    return this.#fullLength + this.length;
  }

  /** Writes all ids to the start of `target`, which must be long enough. */
  copyTo(target: { set(ids: Int32Array, offset: number): void }): void {
    let end = 0;
    for (const block of this.#full) {
      target.set(block, end);
      end += block.length;
    }
    target.set(this.ids.subarray(0, this.length), end);
  }

  clear(): void {
    this.length = 0;
    if (this.ids.length > BLOCK) this.ids = new Int32Array(FIRST_BLOCK);
    this.#full.length = 0;
    this.#fullLength = 0;
  }

  /** Empties the buffer and returns what was in it. */
  take(): Int32Array<ArrayBuffer> {
    const ids = new Int32Array(this.total);
    this.copyTo(ids);
    this.clear();
    return ids;
  }
}

/** Encodes pieces with a vocabulary; the caches live here. */
export class PieceEncoder {
  readonly #vocabulary: Vocabulary;
  /** Entries of eight words: bytes 0–14 with the length on top (0: free), then up to four ids, ended by -1. */
  readonly #short = new Int32Array((2 << SHORT_SETS_BITS) * 8);
  readonly #longBytes = new Uint8Array(LONG << LONG_SLOTS_BITS);
  readonly #longLengths = new Uint8Array(1 << LONG_SLOTS_BITS);
  /** Number of ids, then the ids. */
  readonly #longIds = new Int32Array((1 + LONG_IDS) << LONG_SLOTS_BITS);

  readonly #ids = new Int32Array(MAX_LINEAR);
  readonly #ranks = new Int32Array(MAX_LINEAR);
  readonly #results = new Int32Array(MAX_LINEAR);

  constructor(vocabulary: Vocabulary) {
    this.#vocabulary = vocabulary;
  }

  /** Appends the ids of a batch of pieces; see `Sink.pieces`. */
  encode(bytes: Uint8Array, view: DataView, start: number, ends: Int32Array, count: number, out: IdBuffer): void {
    out.reserve(ends[count - 1] - start + SHORT_IDS); // never more ids than bytes
    const table = this.#short;
    const ids = out.ids;
    const byteIds = this.#vocabulary.byteIds;
    let n = out.length;
    for (let i = 0; i < count; i++) {
      const end = ends[i];
      const length = end - start;
      if (length === 1) {
        ids[n++] = byteIds[bytes[start]];
        start = end;
        continue;
      }
      if (length > SHORT) {
        n = this.#encodeLong(bytes, start, end, ids, n);
        start = end;
        continue;
      }
      const w0 = view.getInt32(start, true) & MASK_0[length];
      const w1 = view.getInt32(start + 4, true) & MASK_1[length];
      const w2 = view.getInt32(start + 8, true) & MASK_2[length];
      const w3 = (view.getInt32(start + 12, true) & MASK_3[length]) | (length << 24);
      let h = Math.imul(
        w0 ^ Math.imul(w1 ^ Math.imul(w2 ^ Math.imul(w3, 0x27d4eb2f), 0x85ebca6b), 0xc2b2ae35),
        0x9e3779b1,
      );
      h = Math.imul(h ^ (h >>> 15), 0x85ebca6b);
      let slot = (h >>> (32 - SHORT_SETS_BITS)) << 4;
      if (table[slot] !== w0 || table[slot + 3] !== w3 || table[slot + 1] !== w1 || table[slot + 2] !== w2) {
        slot += 8;
        if (table[slot] !== w0 || table[slot + 3] !== w3 || table[slot + 1] !== w1 || table[slot + 2] !== w2) {
          const before = n;
          n = this.#encodeUncached(bytes, start, end, ids, n);
          start = end;
          if (n - before > SHORT_IDS) continue;
          slot -= 8;
          table.copyWithin(slot + 8, slot, slot + 8);
          table[slot] = w0;
          table[slot + 1] = w1;
          table[slot + 2] = w2;
          table[slot + 3] = w3;
          for (let j = 0; j < SHORT_IDS; j++) table[slot + 4 + j] = before + j < n ? ids[before + j] : -1;
          continue;
        }
      }
      start = end;
      ids[n++] = table[slot + 4];
      if (table[slot + 5] < 0) continue;
      ids[n++] = table[slot + 5];
      if (table[slot + 6] < 0) continue;
      ids[n++] = table[slot + 6];
      if (table[slot + 7] >= 0) ids[n++] = table[slot + 7];
    }
    out.length = n;
  }

  #encodeLong(bytes: Uint8Array, start: number, end: number, ids: Int32Array, n: number): number {
    const length = end - start;
    if (length > LONG) return this.#encodeUncached(bytes, start, end, ids, n);
    let hash = length;
    for (let p = start; p < end; p++) hash = Math.imul(hash ^ bytes[p], 0x01000193);
    hash = Math.imul(hash ^ (hash >>> 15), 0x85ebca6b);
    const slot = hash >>> (32 - LONG_SLOTS_BITS);
    const keys = this.#longBytes;
    const values = this.#longIds;
    const key = slot * LONG;
    const value = slot * (1 + LONG_IDS);
    if (this.#longLengths[slot] === length) {
      let i = 0;
      while (i < length && keys[key + i] === bytes[start + i]) i++;
      if (i === length) {
        for (let j = 1; j <= values[value]; j++) ids[n++] = values[value + j];
        return n;
      }
    }
    const before = n;
    n = this.#encodeUncached(bytes, start, end, ids, n);
    if (n - before > LONG_IDS) return n;
    this.#longLengths[slot] = length;
    for (let i = 0; i < length; i++) keys[key + i] = bytes[start + i];
    values[value] = n - before;
    for (let j = before; j < n; j++) values[value + 1 + j - before] = ids[j];
    return n;
  }

  #encodeUncached(bytes: Uint8Array, start: number, end: number, ids: Int32Array, n: number): number {
    const id = this.#vocabulary.idOf(bytes, start, end);
    if (id >= 0) {
      ids[n] = id;
      return n + 1;
    }
    return end - start <= MAX_LINEAR
      ? this.#mergeLinear(bytes, start, end, ids, n)
      : mergeWithHeap(this.#vocabulary, bytes, start, end, ids, n);
  }

  #mergeLinear(bytes: Uint8Array, start: number, end: number, out: Int32Array, n: number): number {
    const vocabulary = this.#vocabulary;
    const ids = this.#ids;
    const ranks = this.#ranks; // of the pair that starts at each place
    const results = this.#results;
    const pairs = vocabulary.pairs;
    let length = end - start;
    for (let i = 0; i < length; i++) ids[i] = vocabulary.byteIds[bytes[start + i]];
    for (let i = 0; i + 1 < length; i++) {
      const slot = vocabulary.byteMerges[(bytes[start + i] << 8) | bytes[start + i + 1]];
      ranks[i] = slot < 0 ? NO_RANK : pairs[slot + 2];
      results[i] = slot < 0 ? -1 : pairs[slot + 3];
    }
    while (length > 1) {
      let best = NO_RANK;
      let at = -1;
      for (let i = 0; i + 1 < length; i++) {
        if (ranks[i] < best) {
          best = ranks[i];
          at = i;
        }
      }
      if (at < 0) break;
      ids[at] = results[at];
      length--;
      for (let i = at + 1; i < length; i++) {
        ids[i] = ids[i + 1];
        ranks[i] = ranks[i + 1];
        results[i] = results[i + 1];
      }
      if (at > 0) this.#rankPair(at - 1);
      if (at + 1 < length) this.#rankPair(at);
    }
    for (let i = 0; i < length; i++) out[n++] = ids[i];
    return n;
  }

  #rankPair(i: number): void {
    const slot = this.#vocabulary.findMerge(this.#ids[i], this.#ids[i + 1]);
    this.#ranks[i] = slot < 0 ? NO_RANK : this.#vocabulary.pairs[slot + 2];
    this.#results[i] = slot < 0 ? -1 : this.#vocabulary.pairs[slot + 3];
  }
}

/** Merges a long piece in n log n: a linked list of tokens and a heap of its pairs, by rank and then by place. */
function mergeWithHeap(
  vocabulary: Vocabulary,
  bytes: Uint8Array,
  start: number,
  end: number,
  out: Int32Array,
  n: number,
): number {
  const length = end - start;
  const ids = new Int32Array(length);
  const next = new Int32Array(length); // length: none
  const previous = new Int32Array(length); // -1: none
  const ranks = new Int32Array(length).fill(NO_RANK); // of the pair that starts at each place, where one does
  for (let i = 0; i < length; i++) {
    ids[i] = vocabulary.byteIds[bytes[start + i]];
    next[i] = i + 1;
    previous[i] = i - 1;
  }
  const pairs = vocabulary.pairs;
  const merges = vocabulary.merges;
  // Keys are rank · length + place. A merge removes the keys of two pairs, which go stale, and adds two at most.
  let heap = new Float64Array(length + 2);
  let size = 0;
  for (let i = 0; i + 1 < length; i++) {
    const slot = vocabulary.byteMerges[(bytes[start + i] << 8) | bytes[start + i + 1]];
    if (slot < 0) continue;
    ranks[i] = pairs[slot + 2];
    heap[size++] = ranks[i] * length + i;
  }
  const siftDown = (at: number, key: number): void => {
    for (;;) {
      let child = 2 * at + 1;
      if (child >= size) break;
      if (child + 1 < size && heap[child + 1] < heap[child]) child++;
      if (key <= heap[child]) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = key;
  };
  const push = (place: number): void => {
    const slot = vocabulary.findMerge(ids[place], ids[next[place]]);
    ranks[place] = slot < 0 ? NO_RANK : pairs[slot + 2];
    if (slot < 0) return;
    if (size === heap.length) {
      const grown = new Float64Array(2 * size);
      grown.set(heap);
      heap = grown;
    }
    const key = ranks[place] * length + place;
    let at = size++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent] <= key) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = key;
  };
  for (let at = (size >> 1) - 1; at >= 0; at--) siftDown(at, heap[at]);
  while (size > 0) {
    const key = heap[0];
    size--;
    if (size > 0) siftDown(0, heap[size]);
    const rank = Math.floor(key / length);
    const place = key - rank * length;
    if (ranks[place] !== rank) continue;
    const right = next[place];
    const after = next[right];
    ids[place] = merges[3 * rank + 2];
    ranks[right] = NO_RANK;
    next[place] = after;
    if (after < length) {
      previous[after] = place;
      push(place);
    } else {
      ranks[place] = NO_RANK;
    }
    if (previous[place] >= 0) push(previous[place]);
  }
  for (let place = 0; place < length; place = next[place]) out[n++] = ids[place];
  return n;
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
