/** What the scanners of all patterns share: the ends of runs of characters of one class. */
import { charAt, SPACE } from "./unicode.ts";

const LF = 0x0a;
const CR = 0x0d;

/** End of the run of at most `most` characters of `kind` that goes on at `bytes[p]`. */
export function runEnd(bytes: Uint8Array, p: number, end: number, kind: number, most = Infinity): number {
  for (let i = 0; i < most && p < end; i++) {
    const character = charAt(bytes, p, end);
    if ((character & 7) !== kind) break;
    p += character >> 3;
  }
  return p;
}

/** `\s+(?!\S)|\s+` at `bytes[p]`; with `lines`, `\s*[\r\n]+` goes before; with `wholeTail`, what a text ends with is whole. */
export function spacesEnd(bytes: Uint8Array, p: number, end: number, lines: boolean, wholeTail: boolean): number {
  const first = p;
  let last = p; // start of the run's last character
  let lineEnd = -1; // end of the run's last line break
  while (p < end) {
    const character = charAt(bytes, p, end);
    if ((character & 7) !== SPACE) break;
    last = p;
    p += character >> 3;
    if (lines && (bytes[last] === LF || bytes[last] === CR)) lineEnd = p;
  }
  if (p === end && wholeTail) return p;
  if (lineEnd >= 0) return lineEnd;
  // \s+(?!\S) gives back the last character when something visible follows; a single one is left to \s+
  return p === end || last === first ? p : last;
}

/**
 * Length of the contraction that starts with the apostrophe at `bytes[p]`, or 0. With `fold` 0x20, and not 0, in any case;
 * the long s (U+017F) is an s in another case.
 */
export function contractionLength(bytes: Uint8Array, p: number, end: number, fold: number): number {
  if (p + 1 >= end) return 0;
  const b1 = bytes[p + 1] | fold;
  if (b1 === 0x73 || b1 === 0x74 || b1 === 0x6d || b1 === 0x64) return 2; // 's 't 'm 'd
  if (p + 2 >= end) return 0;
  if (fold > 0 && bytes[p + 1] === 0xc5) return bytes[p + 2] === 0xbf ? 3 : 0;
  const b2 = bytes[p + 2] | fold;
  if (b2 === 0x65) return b1 === 0x72 || b1 === 0x76 ? 3 : 0; // 're 've
  return b1 === 0x6c && b2 === 0x6c ? 3 : 0; // 'll
}
