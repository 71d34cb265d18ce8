/**
 * The scanner of the patterns of cl100k, Llama 3 and Qwen 2, which are one but for two details:
 *   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * Qwen 2 takes digits one by one, and cl100k, as tiktoken spells it, keeps the white space at the end of a text together
 * (`\s++$` in front of `\s*[\r\n]`). See patterns.ts for what a scanner promises.
 */
import type { ScanFunction } from "./patterns.ts";
import { ASCII_CLASS, charAt, LETTER, MULTIBYTE, NUMBER, OTHER, SPACE } from "./unicode.ts";

const LF = 0x0a;
const CR = 0x0d;
const BLANK = 0x20;
const APOSTROPHE = 0x27;

/**
 * Length of the contraction, in any case, that starts with the apostrophe at `bytes[p]`, or 0. The long s (U+017F) is an
 * s in another case.
 */
export function contractionLength(bytes: Uint8Array, p: number, end: number): number {
  if (p + 1 >= end) return 0;
  const b1 = bytes[p + 1] | 0x20;
  if (b1 === 0x73 || b1 === 0x74 || b1 === 0x6d || b1 === 0x64) return 2; // 's 't 'm 'd
  if (p + 2 >= end) return 0;
  if (bytes[p + 1] === 0xc5) return bytes[p + 2] === 0xbf ? 3 : 0;
  const b2 = bytes[p + 2] | 0x20;
  if (b2 === 0x65) return b1 === 0x72 || b1 === 0x76 ? 3 : 0; // 're 've
  return b1 === 0x6c && b2 === 0x6c ? 3 : 0; // 'll
}

/** End of the run of letters that goes on at `bytes[p]`. */
function lettersEnd(bytes: Uint8Array, p: number, end: number): number {
  for (;;) {
    while (p < end && ASCII_CLASS[bytes[p]] === LETTER) p++;
    if (p >= end || bytes[p] < 0x80) return p;
    const character = charAt(bytes, p, end);
    if ((character & 7) !== LETTER) return p;
    p += character >> 3;
  }
}

/** End of the run of `[^\s\p{L}\p{N}]` that goes on at `bytes[p]`. */
export function othersEnd(bytes: Uint8Array, p: number, end: number): number {
  while (p < end) {
    const k = ASCII_CLASS[bytes[p]];
    if (k === OTHER) {
      p++;
    } else if (k === MULTIBYTE) {
      const character = charAt(bytes, p, end);
      if ((character & 7) !== OTHER) return p;
      p += character >> 3;
    } else {
      return p;
    }
  }
  return p;
}

/** End of the run of at most `most` numbers that starts at `bytes[p]`. */
export function numbersEnd(bytes: Uint8Array, p: number, end: number, most: number): number {
  for (let i = 0; i < most && p < end; i++) {
    const character = charAt(bytes, p, end);
    if ((character & 7) !== NUMBER) break;
    p += character >> 3;
  }
  return p;
}

/** End of the piece of white space that starts at `bytes[p]`. */
export function spacesEnd(bytes: Uint8Array, p: number, end: number, wholeTail: boolean): number {
  const first = p;
  let last = p; // start of the run's last character
  let lineEnd = -1; // end of the run's last line break
  while (p < end) {
    const byte = bytes[p];
    const k = ASCII_CLASS[byte];
    if (k === SPACE) {
      last = p++;
      if (byte === LF || byte === CR) lineEnd = p;
    } else if (k === MULTIBYTE) {
      const character = charAt(bytes, p, end);
      if ((character & 7) !== SPACE) break;
      last = p;
      p += character >> 3;
    } else {
      break;
    }
  }
  if (p === end && wholeTail) return p;
  if (lineEnd >= 0) return lineEnd;
  // \s+(?!\S) gives back the last character when something visible follows; a single one is left to \s+
  return p === end || last === first ? p : last;
}

function scan(
  bytes: Uint8Array,
  start: number,
  end: number,
  ends: Int32Array,
  mostDigits: number,
  wholeTail: boolean,
): number {
  const limit = ends.length;
  let n = 0;
  let p = start;
  while (p < end && n < limit) {
    const first = bytes[p];
    let kind = ASCII_CLASS[first];
    let next = p + 1;
    if (kind === MULTIBYTE) {
      const character = charAt(bytes, p, end);
      kind = character & 7;
      next = p + (character >> 3);
    }
    if (kind === LETTER) {
      p = lettersEnd(bytes, next, end);
    } else if (kind === NUMBER) {
      p = mostDigits === 1 ? next : numbersEnd(bytes, next, end, mostDigits - 1);
    } else {
      const contraction = first === APOSTROPHE ? contractionLength(bytes, p, end) : 0;
      let second = next < end ? ASCII_CLASS[bytes[next]] : SPACE;
      if (second === MULTIBYTE) second = charAt(bytes, next, end) & 7;
      if (contraction > 0) p += contraction;
      else if (second === LETTER && first !== LF && first !== CR) p = lettersEnd(bytes, next, end);
      else if (kind === OTHER || (first === BLANK && second === OTHER)) {
        p = othersEnd(bytes, next, end);
        while (p < end && (bytes[p] === LF || bytes[p] === CR)) p++;
      } else p = spacesEnd(bytes, p, end, wholeTail);
    }
    ends[n++] = p;
  }
  return n;
}

export const scanCl100k: ScanFunction = (bytes, start, end, ends) => scan(bytes, start, end, ends, 3, true);
export const scanLlama3: ScanFunction = (bytes, start, end, ends) => scan(bytes, start, end, ends, 3, false);
export const scanQwen2: ScanFunction = (bytes, start, end, ends) => scan(bytes, start, end, ends, 1, false);
