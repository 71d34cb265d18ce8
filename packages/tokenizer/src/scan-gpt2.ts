/**
 * The scanner of the GPT-2 pattern
 *   '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * (Radford et al. 2019, encoder.py), on UTF-8 bytes.
 */
import { contractionLength, runEnd, spacesEnd } from "./scan-runs.ts";
import type { Automaton } from "./scan-table.ts";
import { ASCII_CLASS, charAt, LETTER, NUMBER, OTHER, SPACE } from "./unicode.ts";

/** See `ScanFunction`. */
export function scanGpt2(bytes: Uint8Array, p: number, end: number): number {
  const contraction = bytes[p] === 0x27 ? contractionLength(bytes, p, end, 0) : 0;
  if (contraction > 0) return p + contraction;
  const start = bytes[p] === 0x20 && p + 1 < end ? p + 1 : p; // of the run, after the optional blank
  const kind = charAt(bytes, start, end) & 7;
  return kind === SPACE ? spacesEnd(bytes, p, end, false, false) : runEnd(bytes, start, end, kind);
}

/**
 * States: start; word, numbers, others (o); a quote, which may begin a contraction (q); one blank (b) or other white space
 * (s), and more that ends with a blank (B) or not (S): it leaves its last character to what follows, which takes in a blank.
 */
export const AUTOMATON_GPT2: Automaton = {
  columns: [" ", "'", OTHER, LETTER, NUMBER, SPACE],
  rows: [
    ". b q o w n s",
    "w |b |q |o w |n |s",
    "n |b |q |o |w n |s",
    "o |b o o |w |n |s",
    "q ? ? ? ? ? ?",
    "b B o o w n S",
    "s B |q |o |w |n S",
    "B B <o <o <w <n S",
    "S B #q #o #w #n S",
  ],
  classes: ASCII_CLASS,
};
