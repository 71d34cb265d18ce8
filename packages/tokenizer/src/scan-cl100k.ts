/**
 * The scanner of the patterns of cl100k, Llama 3 and Qwen 2, which are one but for two details:
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * Qwen 2 takes digits one by one, and cl100k, as tiktoken spells it, keeps the white space at the end of a text together
 * (`\s++$` in front of `\s*[\r\n]`).
 */
import { contractionLength, runEnd, spacesEnd } from "./scan-runs.ts";
import type { Automaton, ScanFunction } from "./scan-table.ts";
import { ASCII_CLASS, charAt, LETTER, NUMBER, OTHER, SPACE } from "./unicode.ts";

const LF = 0x0a;
const CR = 0x0d;

function scan(bytes: Uint8Array, p: number, end: number, mostDigits: number, wholeTail: boolean): number {
  const first = bytes[p];
  const contraction = first === 0x27 ? contractionLength(bytes, p, end, 0x20) : 0;
  if (contraction > 0) return p + contraction;
  const character = charAt(bytes, p, end);
  const kind = character & 7;
  const next = p + (character >> 3);
  if (kind === LETTER) return runEnd(bytes, next, end, LETTER);
  if (kind === NUMBER) return runEnd(bytes, next, end, NUMBER, mostDigits - 1);
  const second = next < end ? charAt(bytes, next, end) & 7 : SPACE;
  if (second === LETTER && first !== LF && first !== CR) return runEnd(bytes, next, end, LETTER);
  if (kind !== OTHER && (first !== 0x20 || second !== OTHER)) return spacesEnd(bytes, p, end, true, wholeTail);
  p = runEnd(bytes, next, end, OTHER);
  while (p < end && (bytes[p] === LF || bytes[p] === CR)) p++;
  return p;
}

export const scanCl100k: ScanFunction = (bytes, p, end) => scan(bytes, p, end, 3, true);
export const scanLlama3: ScanFunction = (bytes, p, end) => scan(bytes, p, end, 3, false);
export const scanQwen2: ScanFunction = (bytes, p, end) => scan(bytes, p, end, 1, false);

/**
 * States: start; word; one (1) or two digits (2) and a piece that is complete with three (x); one other character (p),
 * others (o), and line breaks behind them (l); a quote, which may begin a contraction (q); one blank (b) or other white
 * space (s), and more that ends with a blank (B), not with one (S), or with a line break (n), behind which nobody knows yet
 * what more white space belongs to. White space leaves its last character to letters, a blank to others as well.
 */
export const AUTOMATON_CL100K: Automaton = {
  columns: [" ", "'", "\r\n", OTHER, LETTER, NUMBER, SPACE],
  rows: [
    ". b q n p w 1 s",
    "w |b |q |n |p w |1 |s",
    "1 |b |q |n |p |w 2 |s",
    "2 |b |q |n |p |w x |s",
    "x |b |q |n |p |w |1 |s",
    "p |b o l o w |1 |s",
    "o |b o l o |w |1 |s",
    "l |b |q l |p |w |1 |s",
    "q ? ? ? ? ? ? ?",
    "b B o n o w |1 S",
    "s B |q n |p w |1 S",
    "B B <o n <o <w #1 S",
    "S B #q n #p <w #1 S",
    "n ? |q n |p |w |1 ?",
  ],
  classes: ASCII_CLASS,
};

/** Digits are pieces one by one. */
export const AUTOMATON_QWEN2: Automaton = {
  ...AUTOMATON_CL100K,
  rows: AUTOMATON_CL100K.rows.map((row) => row.replace(/(?!^)1/g, "x")),
};
