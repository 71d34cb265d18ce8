/**
 * The scanner of the o200k pattern (see patterns.ts for its source). A word is, in its terms, `A*B+` or else `A+B*`, where
 * A is an upper case letter, B a lower case one, and a mark or a letter without case is both; one character that is no
 * letter, number or line break may go before it and a contraction after it.
 */
import { contractionLength, runEnd, spacesEnd } from "./scan-runs.ts";
import type { Automaton } from "./scan-table.ts";
import { ASCII_FINE, charAt, FINE_CLASSES, LETTER, LOWER, MARK, NUMBER, OTHER, SPACE, UPPER } from "./unicode.ts";

const LF = 0x0a;
const CR = 0x0d;
const BLANK = 0x20;
const APOSTROPHE = 0x27;
const SLASH = 0x2f;

/** End of the run `[\p{Ll}\p{Lm}\p{Lo}\p{M}]*` that goes on at `bytes[p]`. */
function lowerEnd(bytes: Uint8Array, p: number, end: number): number {
  while (p < end) {
    const character = charAt(bytes, p, end, FINE_CLASSES);
    const kind = character & 7;
    if (kind !== LOWER && kind !== LETTER && kind !== MARK) break;
    p += character >> 3;
  }
  return p;
}

/**
 * End of `A*B+` or, with `upperOnly`, else of `A+B*` at `bytes[p]`; `p` where there is neither. A* takes all it can; where
 * no lower case letter follows, B+ can only have the last of the characters that are both.
 */
function wordEnd(bytes: Uint8Array, p: number, end: number, upperOnly: boolean): number {
  const start = p;
  let lastBoth = -1; // end of it
  while (p < end) {
    const character = charAt(bytes, p, end, FINE_CLASSES);
    const kind = character & 7;
    const next = p + (character >> 3);
    if (kind === LOWER) return lowerEnd(bytes, next, end);
    if (kind === LETTER || kind === MARK) lastBoth = next;
    else if (kind !== UPPER) break;
    p = next;
  }
  if (lastBoth >= 0) return lastBoth;
  return upperOnly ? p : start;
}

/** See `ScanFunction`. */
export function scanO200k(bytes: Uint8Array, p: number, end: number): number {
  const first = bytes[p];
  const character = charAt(bytes, p, end, FINE_CLASSES);
  const kind = character & 7;
  const next = p + (character >> 3);
  if (kind === NUMBER) return runEnd(bytes, next, end, NUMBER, 2);
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
  if (q > p) return q < end && bytes[q] === APOSTROPHE ? q + contractionLength(bytes, q, end, 0x20) : q;
  if (kind !== OTHER && (first !== BLANK || runEnd(bytes, next, end, OTHER) === next)) {
    return spacesEnd(bytes, p, end, true, false);
  }
  q = runEnd(bytes, next, end, OTHER);
  while (q < end && (bytes[q] === LF || bytes[q] === CR || bytes[q] === SLASH)) q++;
  return q;
}

/**
 * States as for cl100k; what is new: upper case letters, as a word may start with (u). A quote goes with the word before it,
 * where it is a contraction, and is like any other character elsewhere; line breaks behind others may have slashes among them.
 */
export const AUTOMATON_O200K: Automaton = {
  columns: [" ", "'", "\r\n", "/", OTHER, UPPER, LOWER, NUMBER, SPACE],
  rows: [
    ". b p n p p u w 1 s",
    "u |b ? |n |p |p u w |1 |s",
    "w |b ? |n |p |p |u w |1 |s",
    "1 |b |p |n |p |p |u |w 2 |s",
    "2 |b |p |n |p |p |u |w x |s",
    "x |b |p |n |p |p |u |w |1 |s",
    "p |b o l o o u w |1 |s",
    "o |b o l o o |u |w |1 |s",
    "l |b |p l l |p |u |w |1 |s",
    "b B o n o o u w |1 S",
    "s B |p n |p |p u w |1 S",
    "B B <o n <o <o <u <w #1 S",
    "S B #p n #p #p <u <w #1 S",
    "n ? |p n |p |p |u |w |1 ?",
  ],
  classes: ASCII_FINE,
};
