/**
 * Counting pre-tokens: how often each distinct piece occurs. Pieces are hashed in place, from the bytes of the feed's
 * buffer. Short ones live in an open-addressed table of 16-byte entries (an 11-byte key with its length, and the count);
 * longer ones in a second table whose keys lie in one growing arena. Memory grows with distinct pieces, not with the
 * input, and no string or object is made per piece.
 */
import { TokenizerError } from "./errors.ts";
import { PADDING, type Sink, TextFeed } from "./feed.ts";
import { grown } from "./grown.ts";
import { hashBytes, MASK_0, MASK_1, MASK_2 } from "./hash.ts";
import { resolvePattern } from "./patterns.ts";
import { SpecialMatcher } from "./special.ts";

/** Distinct pieces and their counts: piece i is `bytes[offsets[i], offsets[i + 1])` and occurred `counts[i]` times. */
export interface PretokenCounts {
  bytes: Uint8Array;
  /** One more than there are pieces. */
  offsets: Int32Array;
  /** Exact up to 2⁵³. */
  counts: Float64Array;
}

/** What a counter holds, to be added to that of another thread; its arrays may be transferred. */
export type CounterTables = [
  short: Int32Array<ArrayBuffer>,
  shortSize: number,
  spilledShort: Map<string, number>,
  long: Int32Array<ArrayBuffer>,
  longSize: number,
  spilledLong: Map<number, number>,
  arena: Uint8Array<ArrayBuffer>,
];

/** Longest key, in bytes, of the table of short pieces. */
const SHORT = 11;
/** A count that reaches this is moved to a number of more bits. */
const SPILL = 2 ** 30;

const FIRST_CAPACITY = 1 << 14;

export class PretokenCounter implements Sink {
  /** Entries of four words: bytes 0–3, bytes 4–7, bytes 8–10 with the length on top (0: free), count. */
  #short = new Int32Array(FIRST_CAPACITY * 4);
  #shortShift = 32 - Math.log2(FIRST_CAPACITY);
  #shortSize = 0;
  /** Entries of four words: hash, offset in the arena, length (0: free), count. */
  #long = new Int32Array(FIRST_CAPACITY * 4);
  #longShift = 32 - Math.log2(FIRST_CAPACITY);
  #longSize = 0;
  #arena = new Uint8Array(1 << 16);
  #arenaSize = 0;
  /** What has been moved out of the tables, a multiple of SPILL: by the words of a short key, by the place of a long one. */
  readonly #spilledShort = new Map<string, number>();
  readonly #spilledLong = new Map<number, number>();

  special(): void {
    // special tokens are no part of the text
  }

  pieces(bytes: Uint8Array, view: DataView, start: number, ends: Int32Array, count: number): void {
    // room for the whole batch at once keeps the check out of the loop
    this.#reserveShort(count);
    for (let i = 0; ; i++) {
      i = this.#countFrequent(view, start, ends, i, count);
      if (i === count) break;
      if (i > 0) start = ends[i - 1];
      const length = ends[i] - start;
      if (length > SHORT) this.#addLong(hashBytes(view, start, length), bytes, start, length, 1);
      else this.#addShort(view, start, length, 1);
      start = ends[i];
    }
  }

  /**
   * Counts the pieces from number `i` on, the first of which begins at `start`, while each is in the table, in its first
   * place; returns the number of the piece that is not. Most are, so this is the hot loop: it holds nothing else, and no
   * call, which would cost it its registers.
   */
  #countFrequent(view: DataView, start: number, ends: Int32Array, i: number, count: number): number {
    const table = this.#short;
    const shift = this.#shortShift;
    for (; i < count; i++) {
      const end = ends[i];
      const length = end - start;
      if (length > SHORT) break;
      const w0 = view.getInt32(start, true) & MASK_0[length];
      const w1 = view.getInt32(start + 4, true) & MASK_1[length];
      const w2 = (view.getInt32(start + 8, true) & MASK_2[length]) | (length << 24);
      const slot = (hashWords(w0, w1, w2) >>> shift) << 2;
      if (table[slot + 2] !== w2 || table[slot] !== w0 || table[slot + 1] !== w1) break;
      const total = table[slot + 3] + 1;
      if (total === SPILL) break;
      table[slot + 3] = total;
      start = end;
    }
    return i;
  }

  #addShort(view: DataView, start: number, length: number, count: number): void {
    const w0 = view.getInt32(start, true) & MASK_0[length];
    const w1 = view.getInt32(start + 4, true) & MASK_1[length];
    const w2 = (view.getInt32(start + 8, true) & MASK_2[length]) | (length << 24);
    this.#addWords(w0, w1, w2, count);
  }

  #addWords(w0: number, w1: number, w2: number, count: number): void {
    const table = this.#short;
    const mask = table.length - 1;
    let slot = (hashWords(w0, w1, w2) >>> this.#shortShift) << 2;
    while (table[slot + 2] !== 0 && (table[slot + 2] !== w2 || table[slot] !== w0 || table[slot + 1] !== w1)) {
      slot = (slot + 4) & mask;
    }
    if (table[slot + 2] === 0) this.#shortSize++;
    table[slot] = w0;
    table[slot + 1] = w1;
    table[slot + 2] = w2;
    const total = table[slot + 3] + count;
    table[slot + 3] = total % SPILL;
    if (total >= SPILL) spill(this.#spilledShort, shortKey(table, slot), total - (total % SPILL));
  }

  #addLong(hash: number, bytes: Uint8Array, start: number, length: number, count: number): void {
    const table = this.#long;
    const mask = table.length - 1;
    const arena = this.#arena;
    let slot = (hash >>> this.#longShift) << 2;
    for (; table[slot + 2] !== 0; slot = (slot + 4) & mask) {
      if (table[slot] !== hash || table[slot + 2] !== length) continue;
      const offset = table[slot + 1];
      let i = 0;
      while (i < length && arena[offset + i] === bytes[start + i]) i++;
      if (i === length) break;
    }
    if (table[slot + 2] === 0) {
      table[slot] = hash;
      table[slot + 1] = this.#arenaSize;
      table[slot + 2] = length;
      this.#longSize++;
      const size = this.#arenaSize + length;
      if (size > arena.length) {
        if (size > 2 ** 31 - 1) throw new TokenizerError("the distinct pre-tokens exceed 2 GiB in all");
        this.#arena = grown(arena, Math.min(Math.max(arena.length * 2, size), 2 ** 31));
      }
      this.#arena.set(bytes.subarray(start, start + length), this.#arenaSize);
      this.#arenaSize = size;
    }
    const total = table[slot + 3] + count;
    table[slot + 3] = total % SPILL;
    if (total >= SPILL) spill(this.#spilledLong, table[slot + 1], total - (total % SPILL));
    this.#reserveLong(0);
  }

  /** Makes room for `extra` more: half full at most. */
  #reserveLong(extra: number): void {
    while ((this.#longSize + extra) * 2 > this.#long.length >> 2) {
      const table = this.#long;
      this.#longShift--;
      this.#long = rehash(table, this.#longShift, (at) => table[at]);
    }
  }

  /** Makes room for `extra` more: three quarters full at most, which keeps more of the table in the processor's cache. */
  #reserveShort(extra: number): void {
    while ((this.#shortSize + extra) * 4 > 3 * (this.#short.length >> 2)) {
      const table = this.#short;
      this.#shortShift--;
      this.#short = rehash(table, this.#shortShift, (at) => hashWords(table[at], table[at + 1], table[at + 2]));
    }
  }

  /** The tables themselves; nothing may be counted from here on. */
  tables(): CounterTables {
    return [
      this.#short,
      this.#shortSize,
      this.#spilledShort,
      this.#long,
      this.#longSize,
      this.#spilledLong,
      this.#arena,
    ];
  }

  /**
   * Adds the counts of another thread. Both tables are in the order of the same hashes, so memory is read in its order; a
   * table that is too small would fill up in one corner, and therefore has room for all first.
   */
  addTables([short, shortSize, spilledShort, long, longSize, spilledLong, arena]: CounterTables): void {
    this.#reserveShort(shortSize);
    this.#reserveLong(longSize);
    for (let at = 0; at < short.length; at += 4) {
      if (short[at + 2] === 0) continue;
      this.#addWords(short[at], short[at + 1], short[at + 2], shortCount(short, at, spilledShort));
    }
    for (let at = 0; at < long.length; at += 4) {
      if (long[at + 2] === 0) continue;
      const count = long[at + 3] + (spilledLong.get(long[at + 1]) ?? 0);
      this.#addLong(long[at], arena, long[at + 1], long[at + 2], count);
    }
  }

  /** Adds the counts of another text, or of another machine. */
  add({ bytes, offsets, counts }: PretokenCounts): void {
    let long = 0;
    for (let i = 0; i < counts.length; i++) if (offsets[i + 1] - offsets[i] > SHORT) long++;
    this.#reserveShort(counts.length - long);
    this.#reserveLong(long);
    const padded = new Uint8Array(bytes.length + PADDING);
    padded.set(bytes);
    const view = new DataView(padded.buffer);
    for (let i = 0; i < counts.length; i++) {
      const start = offsets[i];
      const length = offsets[i + 1] - start;
      if (length > SHORT) this.#addLong(hashBytes(view, start, length), padded, start, length, counts[i]);
      else this.#addShort(view, start, length, counts[i]);
    }
  }

  /** The counts so far. */
  counts(): PretokenCounts {
    const short = this.#short;
    const long = this.#long;
    let byteLength = this.#arenaSize;
    for (let at = 0; at < short.length; at += 4) byteLength += short[at + 2] >>> 24;
    if (byteLength > 2 ** 31 - 1) throw new TokenizerError("the distinct pre-tokens exceed 2 GiB in all");
    const bytes = new Uint8Array(byteLength);
    const counts = new Float64Array(this.#shortSize + this.#longSize);
    const offsets = new Int32Array(counts.length + 1);
    let n = 0;
    let end = 0;
    for (let at = 0; at < short.length; at += 4) {
      const length = short[at + 2] >>> 24;
      if (length === 0) continue;
      for (let i = 0; i < length; i++) bytes[end++] = short[at + (i >> 2)] >>> (8 * (i & 3));
      counts[n] = shortCount(short, at, this.#spilledShort);
      offsets[++n] = end;
    }
    for (let at = 0; at < long.length; at += 4) {
      const length = long[at + 2];
      if (length === 0) continue;
      const offset = long[at + 1];
      bytes.set(this.#arena.subarray(offset, offset + length), end);
      end += length;
      counts[n] = long[at + 3] + (this.#spilledLong.get(offset) ?? 0);
      offsets[++n] = end;
    }
    return { bytes, offsets, counts };
  }
}

/** By what a short piece's spilled count is found. */
function shortKey(table: Int32Array, at: number): string {
  return table.subarray(at, at + 3).join();
}

function shortCount(table: Int32Array, at: number, spilled: ReadonlyMap<string, number>): number {
  return table[at + 3] + ((spilled.size > 0 && spilled.get(shortKey(table, at))) || 0);
}

function spill<Key>(spilled: Map<Key, number>, key: Key, count: number): void {
  spilled.set(key, (spilled.get(key) ?? 0) + count);
}

/** Hash of a short key; the high bits are the good ones. */
function hashWords(w0: number, w1: number, w2: number): number {
  const h = Math.imul(w0 ^ Math.imul(w1 ^ Math.imul(w2, 0x85ebca6b), 0xc2b2ae35), 0x9e3779b1);
  return Math.imul(h ^ (h >>> 15), 0x85ebca6b);
}

/** A table of twice the size; `hashAt(at)` is the hash of the old entry at word `at`. */
function rehash(table: Int32Array, shift: number, hashAt: (at: number) => number): Int32Array<ArrayBuffer> {
  // Zeros are written first: a page that is read before, the system has to move later, and interrupts the other threads.
  const larger = new Int32Array(table.length * 2).fill(0);
  const mask = larger.length - 1;
  for (let at = 0; at < table.length; at += 4) {
    if (table[at + 2] === 0) continue;
    let slot = (hashAt(at) >>> shift) << 2;
    while (larger[slot + 2] !== 0) slot = (slot + 4) & mask;
    for (let i = 0; i < 4; i++) larger[slot + i] = table[at + i];
  }
  return larger;
}

export interface CountOptions {
  /** Cut the text; no piece contains one, and they are not counted. */
  specialTokens?: readonly string[];
  /** Name of a pattern or a regular expression; default "gpt2". */
  pattern?: string;
}

/** Counts the pre-tokens of texts that come in chunks. */
export class PretokenStream {
  /** For the threads of `countFiles`. */
  readonly counter = new PretokenCounter();
  readonly #feed: TextFeed;

  constructor({ specialTokens = [], pattern = "gpt2" }: CountOptions = {}) {
    const specials = new Map(specialTokens.map((token, index) => [token, index]));
    this.#feed = new TextFeed(
      resolvePattern(pattern),
      specials.size > 0 ? new SpecialMatcher(specials) : null,
      this.counter,
    );
  }

  /** The next chunk of the current text; it may be cut anywhere. */
  push(chunk: string | Uint8Array): void {
    this.#feed.push(chunk);
  }

  /** Ends the current text (a file, say): no piece goes beyond it. */
  endText(): void {
    this.#feed.finish();
  }

  /** Adds counts of texts that were counted elsewhere, by the same pattern and special tokens. */
  add(counts: PretokenCounts): void {
    this.counter.add(counts);
  }

  /** Ends the current text and returns the counts of all texts so far. */
  finish(): PretokenCounts {
    this.endText();
    return this.counter.counts();
  }
}

/** The counts of all of these together. */
export function mergeCounts(list: Iterable<PretokenCounts>): PretokenCounts {
  const counter = new PretokenCounter();
  for (const counts of list) counter.add(counts);
  return counter.counts();
}
