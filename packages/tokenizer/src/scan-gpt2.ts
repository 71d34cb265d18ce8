/**
 * The scanner of the GPT-2 pattern
 *   '(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 * (Radford et al. 2019, encoder.py), written as a hand-made automaton over UTF-8 bytes. See patterns.ts for what a
 * scanner promises. Every alternative reads at most one character beyond its own match, except a contraction.
 */
import { ASCII_CLASS, charAt, LETTER, MULTIBYTE, SPACE } from "./unicode.ts";

const BLANK = 0x20;
const APOSTROPHE = 0x27;

/** Length of the contraction that starts with the apostrophe at `bytes[p]`, or 0. */
function contractionLength(bytes: Uint8Array, p: number, end: number): number {
  if (p + 1 >= end) return 0;
  const b1 = bytes[p + 1];
  if (b1 === 0x73 || b1 === 0x74 || b1 === 0x6d || b1 === 0x64) return 2; // 's 't 'm 'd
  if (p + 2 >= end) return 0;
  const b2 = bytes[p + 2];
  if (b2 === 0x65) return b1 === 0x72 || b1 === 0x76 ? 3 : 0; // 're 've
  return b1 === 0x6c && b2 === 0x6c ? 3 : 0; // 'll
}

/** End of the run of characters of `kind` that goes on at `bytes[p]`. */
function runEnd(bytes: Uint8Array, p: number, end: number, kind: number): number {
  while (p < end) {
    const k = ASCII_CLASS[bytes[p]];
    if (k === kind) {
      p++;
    } else if (k === MULTIBYTE) {
      const character = charAt(bytes, p, end);
      if ((character & 7) !== kind) break;
      p += character >> 3;
    } else {
      break;
    }
  }
  return p;
}

/** End of the white-space piece whose first character ends at `next`; `p` is where that character starts. */
function spaceEnd(bytes: Uint8Array, p: number, next: number, end: number): number {
  const first = p;
  let last = p; // start of the run's last character
  p = next;
  while (p < end) {
    const k = ASCII_CLASS[bytes[p]];
    if (k === SPACE) {
      last = p++;
    } else if (k === MULTIBYTE) {
      const character = charAt(bytes, p, end);
      if ((character & 7) !== SPACE) break;
      last = p;
      p += character >> 3;
    } else {
      break;
    }
  }
  // \s+(?!\S) gives back the last character when something visible follows; a single one is left to \s+
  return p === end || last === first ? p : last;
}

/** Scans `bytes[start, end)` as a whole text; see `ScanFunction`. */
export function scanGpt2(bytes: Uint8Array, start: number, end: number, ends: Int32Array): number {
  const limit = ends.length;
  let n = 0;
  let p = start;
  while (p < end && n < limit) {
    const first = bytes[p];
    let q = p; // where the run starts: after the optional blank
    let kind = ASCII_CLASS[first];
    if (first === BLANK && p + 1 < end) {
      const second = ASCII_CLASS[bytes[p + 1]];
      if (second !== SPACE) {
        q = p + 1;
        kind = second;
      }
    }
    if (kind === LETTER) {
      q++;
      while (q < end && ASCII_CLASS[bytes[q]] === LETTER) q++;
      if (q < end && bytes[q] >= 0x80) q = runEnd(bytes, q, end, LETTER);
    } else if (kind === SPACE) {
      q = spaceEnd(bytes, p, p + 1, end);
    } else if (kind !== MULTIBYTE) {
      const contraction = first === APOSTROPHE ? contractionLength(bytes, p, end) : 0;
      q = contraction > 0 ? p + contraction : runEnd(bytes, q + 1, end, kind);
    } else {
      const character = charAt(bytes, q, end);
      const next = q + (character >> 3);
      kind = character & 7;
      if (kind !== SPACE) q = runEnd(bytes, next, end, kind);
      else if (q === p) q = spaceEnd(bytes, p, next, end);
      else q = spaceEnd(bytes, p, q, end);
    }
    p = q;
    ends[n++] = p;
  }
  return n;
}
