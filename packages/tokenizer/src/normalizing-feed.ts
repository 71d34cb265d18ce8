/**
 * A feed that changes the text before it is split: special tokens are found in the text as it is, what lies between two of
 * them is normalized, and other special tokens and the pieces are found in the result. Both halves are TextFeeds, so all
 * holds whatever the chunks are: the first one's "pieces" are what can be normalized apart.
 */
import { type Feed, type Sink, TextFeed } from "./feed.ts";
import type { Pattern } from "./patterns.ts";
import type { SpecialMatcher } from "./special.ts";

/** What came out different: where it lies in the bytes that were normalized, and its new length. */
export interface Change {
  start: number;
  end: number;
  length: number;
}

// where in a text something lies: at its beginning, at the beginning of a stretch behind a special token, or neither
export const TEXT_BEGINS = 2;
export const STRETCH_BEGINS = 1;
export const GOES_ON = 0;

export interface Normalizer {
  /** Splits a text into pieces that can be normalized each for itself. */
  readonly pieces: Pattern;
  /**
   * Hands on the normalized text of `bytes[start, end)`, which are whole pieces and not empty, and says what has changed
   * if asked. `where` is one of the three numbers above.
   */
  normalize(
    bytes: Uint8Array,
    start: number,
    end: number,
    where: number,
    push: (bytes: Uint8Array) => void,
    onChange?: (change: Change) => void,
  ): void;
  /** The same for a whole text. */
  text(text: string): string;
}

export class NormalizingFeed implements Feed {
  readonly #outer: TextFeed;
  readonly #inner: TextFeed;
  #where = TEXT_BEGINS;

  /**
   * @param specials found in the text as it is
   * @param normalizedSpecials found in what is left, when it is normalized
   * @param capacity bytes of each half's buffer, at least 16; tests use small ones
   */
  constructor(
    normalizer: Normalizer,
    pattern: Pattern,
    specials: SpecialMatcher | null,
    normalizedSpecials: SpecialMatcher | null,
    sink: Sink,
    capacity?: number,
  ) {
    const inner = new TextFeed(pattern, normalizedSpecials, sink, capacity);
    const push = (bytes: Uint8Array): void => inner.push(bytes);
    this.#inner = inner;
    this.#outer = new TextFeed(
      normalizer.pieces,
      specials,
      {
        pieces: (bytes, _view, start, ends, count) => {
          normalizer.normalize(bytes, start, ends[count - 1], this.#where, push);
          this.#where = GOES_ON;
        },
        special: (id, length) => {
          inner.finish();
          sink.special(id, length);
          this.#where = STRETCH_BEGINS;
        },
      },
      capacity,
    );
  }

  push(chunk: string | Uint8Array): void {
    this.#outer.push(chunk);
  }

  finish(): void {
    this.#outer.finish();
    this.#inner.finish();
    this.#where = TEXT_BEGINS;
  }

  reset(): void {
    this.#outer.reset();
    this.#inner.reset();
    this.#where = TEXT_BEGINS;
  }
}

/**
 * Turns ascending places in the normalized text, in bytes, into those in the text; within a change: where it begins.
 *
 * @param specials those that are found in the text as it is
 */
export function toOriginal(
  places: Int32Array,
  text: string,
  normalizer: Normalizer,
  specials: SpecialMatcher | null,
): void {
  /** For each change: where it begins and ends in the text, and in the normalized text. */
  const changes: number[] = [];
  let before = 0;
  let after = 0;
  let where = TEXT_BEGINS;
  const feed = new TextFeed(normalizer.pieces, specials, {
    pieces: (bytes, _view, start, ends, count) => {
      const end = ends[count - 1];
      let settled = start; // what lies between changes has its length
      normalizer.normalize(
        bytes,
        start,
        end,
        where,
        () => undefined,
        (change) => {
          const to = after + change.start - settled;
          after = to + change.length;
          changes.push(before + change.start - start, before + change.end - start, to, after);
          settled = change.end;
        },
      );
      after += end - settled;
      before += end - start;
      where = GOES_ON;
    },
    special: (_id, length) => {
      before += length;
      after += length;
      where = STRETCH_BEGINS;
    },
  });
  feed.push(text);
  feed.finish();
  let next = 0;
  let shift = 0; // of what lies behind the last change
  for (let i = 0; i < places.length; i++) {
    while (changes[next + 3] <= places[i]) {
      shift = changes[next + 1] - changes[next + 3];
      next += 4;
    }
    places[i] = changes[next + 2] < places[i] ? changes[next] : places[i] + shift;
  }
}
