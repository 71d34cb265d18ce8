/**
 * The path of every text through the package: strings and bytes come in, in chunks cut anywhere, and pieces and special
 * tokens come out exactly as if all chunks had been one text. The text passes through one buffer of fixed size that is
 * ours (so the hot loops see a single kind of array, padded for word-wise reads); only a piece longer than the buffer
 * makes it grow, and doubling keeps even that linear.
 *
 * What is settled: a stretch between special tokens can be scanned at once. In the last stretch, of which the end is not
 * known yet, all pieces are final but the last `pattern.unsettled`, when a character or a special token that may have
 * begun at the very end is left out. The rest waits for more text.
 */
import { TokenizerError } from "./errors.ts";
import type { Pattern, Scanner } from "./patterns.ts";
import { NOTHING, type SpecialMatcher, TOKEN } from "./special.ts";
import { completeEnd } from "./unicode.ts";
import { encodeUtf8Into } from "./utf8.ts";

/** Bytes that may be read, but not used, beyond the end of a piece. */
export const PADDING = 16;

const CAPACITY = 1 << 15;
/** Places in the buffer are 32-bit integers. */
const MAX_CAPACITY = 2 ** 30;
/** Pieces per call of a scanner. */
const BATCH = 1 << 12;

/** Receives pieces and special tokens in the order of the text. */
export interface Sink {
  /**
   * `count` pieces of `bytes`: the first from `start` to `ends[0]`, the next from there to `ends[1]`, and so on. The arrays
   * are reused after the call; up to PADDING bytes may be read behind each piece.
   */
  pieces(bytes: Uint8Array, view: DataView, start: number, ends: Int32Array, count: number): void;
  /** A special token of `length` bytes. */
  special(id: number, length: number): void;
}

/** Takes a text in chunks, cut anywhere. */
export interface Feed {
  push(chunk: string | Uint8Array): void;
  /** Ends the text; the feed is then ready for another one. */
  finish(): void;
  /** Forgets everything pushed since the last `finish`, for use after an error. */
  reset(): void;
}

export class TextFeed implements Feed {
  readonly #unsettled: number;
  readonly #scanner: Scanner;
  readonly #specials: SpecialMatcher | null;
  readonly #sink: Sink;
  readonly #ends = new Int32Array(BATCH);
  readonly #firstCapacity: number;
  #capacity: number;
  #bytes: Uint8Array<ArrayBuffer>;
  #view: DataView;
  /** Bytes in the buffer, always from 0. */
  #length = 0;
  /** First half of a surrogate pair at the end of the last chunk. */
  #highSurrogate = "";

  /** @param capacity bytes of the buffer, at least 16; tests use small ones. */
  constructor(pattern: Pattern, specials: SpecialMatcher | null, sink: Sink, capacity = CAPACITY) {
    this.#firstCapacity = capacity;
    this.#capacity = capacity;
    this.#bytes = new Uint8Array(capacity + PADDING);
    this.#view = new DataView(this.#bytes.buffer);
    this.#unsettled = pattern.unsettled;
    this.#scanner = pattern.createScanner();
    this.#specials = specials;
    this.#sink = sink;
  }

  push(chunk: string | Uint8Array): void {
    if (typeof chunk === "string") this.#pushString(chunk);
    else if (chunk instanceof Uint8Array) this.#pushBytes(chunk);
    else throw new TokenizerError(`text is ${chunk === null ? "null" : typeof chunk}: use strings or Uint8Arrays`);
  }

  finish(): void {
    this.#flushSurrogate();
    this.#settle(true);
  }

  reset(): void {
    this.#length = 0;
    this.#highSurrogate = "";
  }

  #pushString(text: string): void {
    if (text.length === 0) return;
    if (this.#highSurrogate !== "") {
      text = this.#highSurrogate + text;
      this.#highSurrogate = "";
    }
    let end = text.length;
    const last = text.charCodeAt(end - 1);
    if (last >= 0xd800 && last < 0xdc00) {
      this.#highSurrogate = text[end - 1];
      end--;
    }
    let index = 0;
    while (index < end) {
      if (this.#capacity - this.#length < this.#capacity >> 2) this.#makeRoom();
      // three bytes for each unit: where the room may not do, encodeInto is many times slower
      let stop = Math.min(end, index + Math.max(2, Math.floor((this.#capacity - this.#length) / 3)));
      if (stop < end) {
        const unit = text.charCodeAt(stop - 1);
        if (unit >= 0xd800 && unit < 0xdc00) stop--; // the other half comes with the next slice
      }
      const slice = index === 0 && stop === text.length ? text : text.substring(index, stop);
      const { read, written } = encodeUtf8Into(slice, this.#bytes.subarray(this.#length, this.#capacity));
      index += read;
      this.#length += written;
    }
  }

  #pushBytes(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#flushSurrogate();
    let index = 0;
    while (index < chunk.length) {
      if (this.#length === this.#capacity) this.#makeRoom();
      const stop = Math.min(chunk.length, index + this.#capacity - this.#length);
      this.#bytes.set(chunk.subarray(index, stop), this.#length);
      this.#length += stop - index;
      index = stop;
    }
  }

  /** A first half that never got its second becomes U+FFFD. */
  #flushSurrogate(): void {
    if (this.#highSurrogate === "") return;
    this.#highSurrogate = "";
    this.#pushBytes(Uint8Array.of(0xef, 0xbf, 0xbd));
  }

  /** Hands on what is settled; where that leaves the buffer more than half full, doubles it. */
  #makeRoom(): void {
    this.#settle(false);
    if (this.#length <= this.#capacity / 2) return;
    if (this.#capacity >= MAX_CAPACITY) {
      throw new TokenizerError(
        `a stretch of more than ${MAX_CAPACITY} bytes cannot be split: ` +
          (this.#unsettled === Infinity
            ? "a custom pattern is only sure of its pieces at special tokens; put some between the documents"
            : "it is a single piece"),
      );
    }
    this.#resize(2 * this.#capacity);
  }

  #settle(final: boolean): void {
    const bytes = this.#bytes;
    const length = this.#length;
    const specials = this.#specials;
    let position = 0;
    let limit = length;
    while (specials !== null && position < length) {
      const found = specials.find(bytes, position, length, final);
      if (found === NOTHING) break;
      if (found !== TOKEN) {
        limit = specials.start;
        break;
      }
      const { start, end, id } = specials;
      this.#scanWhole(position, start);
      this.#sink.special(id, end - start);
      position = end;
    }
    if (final) this.#scanWhole(position, limit);
    else position = this.#scanSettled(position, limit);
    if (final) {
      this.#length = 0;
      if (this.#capacity > this.#firstCapacity) this.#resize(this.#firstCapacity);
    } else if (position > 0) {
      bytes.copyWithin(0, position, length);
      this.#length = length - position;
    }
  }

  #resize(capacity: number): void {
    const resized = new Uint8Array(capacity + PADDING);
    resized.set(this.#bytes.subarray(0, this.#length));
    this.#capacity = capacity;
    this.#bytes = resized;
    this.#view = new DataView(resized.buffer);
  }

  /** `bytes[start, end)` is all there is between two special tokens or ends of the text. */
  #scanWhole(start: number, end: number): void {
    if (start >= end) return;
    const scanner = this.#scanner;
    const ends = this.#ends;
    scanner.begin(this.#bytes, start, end);
    for (let count = scanner.next(ends); count > 0; count = scanner.next(ends)) {
      this.#sink.pieces(this.#bytes, this.#view, start, ends, count);
      start = ends[count - 1];
    }
  }

  /** The text goes on after `end`, nobody knows how. Returns where the unsettled rest starts. */
  #scanSettled(start: number, end: number): number {
    const unsettled = this.#unsettled;
    if (unsettled === Infinity) return start;
    end = completeEnd(this.#bytes, start, end);
    const ends = this.#ends;
    while (start < end) {
      // Begin anew from each piece that stays behind: pieces are the same from wherever one of them starts.
      this.#scanner.begin(this.#bytes, start, end);
      const count = this.#scanner.next(ends);
      const settled = count - unsettled;
      if (settled <= 0) break;
      this.#sink.pieces(this.#bytes, this.#view, start, ends, settled);
      start = ends[settled - 1];
      if (ends[count - 1] === end) break;
    }
    return start;
  }
}
