/**
 * The scanner of the o200k pattern (see patterns.ts for its source). A word is, in its terms, `A*B+` or else `A+B*`, where
 * A is an upper case letter, B a lower case one, and a mark or a letter without case is both; one character that is no
 * letter, number or line break may go before it and a contraction after it.
 */
import { contractionLength, numbersEnd, othersEnd, spacesEnd } from "./scan-cl100k.ts";
import { ASCII_FINE, charAt, FINE_CLASSES, LETTER, LOWER, MARK, MULTIBYTE, NUMBER, OTHER, UPPER } from "./unicode.ts";

const LF = 0x0a;
const CR = 0x0d;
const BLANK = 0x20;
const APOSTROPHE = 0x27;
const SLASH = 0x2f;

/** End of the run `[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` that goes on at `bytes[p]`. */
function lowerEnd(bytes: Uint8Array, p: number, end: number): number {
  for (;;) {
    while (p < end && ASCII_FINE[bytes[p]] === LOWER) p++;
    if (p >= end || bytes[p] < 0x80) return p;
    const character = charAt(bytes, p, end, FINE_CLASSES);
    const kind = character & 7;
    if (kind !== LOWER && kind !== LETTER && kind !== MARK) return p;
    p += character >> 3;
  }
}

/**
 * End of `A*B+` or, with `upperOnly`, else of `A+B*` at `bytes[p]`; `p` where there is neither. A* takes all it can; where
 * no lower case letter follows, B+ can only have the last of the characters that are both.
 */
function wordEnd(bytes: Uint8Array, p: number, end: number, upperOnly: boolean): number {
  const start = p;
  let lastBoth = -1; // end of it
  while (p < end) {
    let kind = ASCII_FINE[bytes[p]];
    let next = p + 1;
    if (kind === MULTIBYTE) {
      const character = charAt(bytes, p, end, FINE_CLASSES);
      kind = character & 7;
      next = p + (character >> 3);
    }
    if (kind === LOWER) return lowerEnd(bytes, next, end);
    if (kind === LETTER || kind === MARK) lastBoth = next;
    else if (kind !== UPPER) break;
    p = next;
  }
  if (lastBoth >= 0) return lastBoth;
  return upperOnly ? p : start;
}

/** Scans `bytes[start, end)` as a whole text; see `ScanFunction`. */
export function scanO200k(bytes: Uint8Array, start: number, end: number, ends: Int32Array): number {
  const limit = ends.length;
  let n = 0;
  let p = start;
  while (p < end && n < limit) {
    const first = bytes[p];
    let kind = ASCII_FINE[first];
    let next = p + 1;
    if (kind === MULTIBYTE) {
      const character = charAt(bytes, p, end, FINE_CLASSES);
      kind = character & 7;
      next = p + (character >> 3);
    }
    if (kind === NUMBER) {
      p = numbersEnd(bytes, next, end, 2);
      ends[n++] = p;
      continue;
    }
    let q: number; // end of the word, or p
    if (kind === LOWER) {
      q = lowerEnd(bytes, next, end);
    } else if (kind === UPPER || kind === LETTER) {
      q = wordEnd(bytes, p, end, true);
    } else if (kind === MARK) {
      // a mark may be the character in front, or the word's first
      q = wordEnd(bytes, next, end, false);
      if (q === next) q = wordEnd(bytes, p, end, false);
    } else {
      q = first === LF || first === CR ? next : wordEnd(bytes, next, end, true);
      if (q === next) q = p;
    }
    if (q > p) {
      if (q < end && bytes[q] === APOSTROPHE) q += contractionLength(bytes, q, end);
    } else if (kind === OTHER || (first === BLANK && othersEnd(bytes, next, end) > next)) {
      q = othersEnd(bytes, next, end);
      while (q < end && (bytes[q] === LF || bytes[q] === CR || bytes[q] === SLASH)) q++;
    } else {
      q = spacesEnd(bytes, p, end, false);
    }
    p = q;
    ends[n++] = p;
  }
  return n;
}
