/**
 * Character classes and UTF-8 by table. Everything works on bytes: text is never turned into strings here. A byte that
 * is not part of well-formed UTF-8 counts as one character of class OTHER, so every byte string can be scanned.
 */
import { CLASS_RUNS } from "./unicode-data.ts";

export { UNICODE_VERSION } from "./unicode-data.ts";

/** Anything that is not a letter, a number or white space: `[^\s\p{L}\p{N}]`. */
export const OTHER = 0;
/** `\p{L}` */
export const LETTER = 1;
/** `\p{N}` */
export const NUMBER = 2;
/** Unicode White_Space: U+0085 is one, U+FEFF is not (JavaScript's `\s` says the opposite of both). */
export const SPACE = 3;
// Finer classes, in FINE_CLASSES only: there LETTER means a letter without case (\p{Lm}, \p{Lo}).
/** `[\p{Lu}\p{Lt}]` */
export const UPPER = 5;
/** `\p{Ll}` */
export const LOWER = 6;
/** `\p{M}` */
export const MARK = 7;
/** In ASCII_CLASS only: the byte starts or continues a multi-byte character; ask `charAt`. */
const MULTIBYTE = 4;

/** Fine classes of all code points, for `charAt`. A megabyte, of which a text's scripts alone come to the processor. */
export const FINE_CLASSES = new Uint8Array(0x110000);

/** OTHER, LETTER, NUMBER or SPACE, of each code point. */
export const CLASSES = new Uint8Array(0x110000);

let end = 0;
let [before, last] = ["", ""];
for (const [, letter, high, low] of CLASS_RUNS.matchAll(/([A-Z]?)(\d*)([a-z])/g)) {
  const start = end;
  end += 26 * Number(high) + parseInt(low, 36) - 9;
  [before, last] = [last, letter || before];
  const fine = "OLNS-UDM".indexOf(last); // in the order of the numbers above
  if (fine === OTHER) continue;
  FINE_CLASSES.fill(fine, start, end);
  if (fine !== MARK) CLASSES.fill(fine > MULTIBYTE ? LETTER : fine, start, end);
}

/** Class of each byte that is a character of its own; MULTIBYTE for 0x80 and above. */
export const ASCII_CLASS = CLASSES.slice(0, 256).fill(MULTIBYTE, 128);

/** The same in fine classes. */
export const ASCII_FINE = FINE_CLASSES.slice(0, 256).fill(MULTIBYTE, 128);

/**
 * The character that starts at `bytes[p]`, as `(length << 3) | class`: one number, so that the scanners allocate nothing.
 * Malformed, overlong and truncated sequences and encoded surrogates are `(1 << 3) | OTHER`, one byte at a time.
 */
export function charAt(bytes: Uint8Array, p: number, end: number, classes: Uint8Array = CLASSES): number {
  const b0 = bytes[p];
  if (b0 < 0x80) return 8 | classes[b0];
  if (b0 < 0xe0) {
    if (b0 < 0xc2 || p + 2 > end) return 8 | OTHER;
    const b1 = bytes[p + 1];
    if ((b1 & 0xc0) !== 0x80) return 8 | OTHER;
    return 16 | classes[((b0 & 0x1f) << 6) | (b1 & 0x3f)];
  }
  if (b0 < 0xf0) {
    if (p + 3 > end) return 8 | OTHER;
    const b1 = bytes[p + 1];
    const b2 = bytes[p + 2];
    if ((b1 & 0xc0) !== 0x80 || (b2 & 0xc0) !== 0x80) return 8 | OTHER;
    const codePoint = ((b0 & 0x0f) << 12) | ((b1 & 0x3f) << 6) | (b2 & 0x3f);
    if (codePoint < 0x800 || (codePoint & 0xf800) === 0xd800) return 8 | OTHER;
    return 24 | classes[codePoint];
  }
  if (b0 > 0xf4 || p + 4 > end) return 8 | OTHER;
  const b1 = bytes[p + 1];
  const b2 = bytes[p + 2];
  const b3 = bytes[p + 3];
  if ((b1 & 0xc0) !== 0x80 || (b2 & 0xc0) !== 0x80 || (b3 & 0xc0) !== 0x80) return 8 | OTHER;
  const codePoint = ((b0 & 0x07) << 18) | ((b1 & 0x3f) << 12) | ((b2 & 0x3f) << 6) | (b3 & 0x3f);
  if (codePoint < 0x10000 || codePoint > 0x10ffff) return 8 | OTHER;
  return 32 | classes[codePoint];
}

/**
 * Where `bytes[start, end)` stops being decided: `end`, or the start of a multi-byte character whose last bytes have not
 * come yet.
 */
export function completeEnd(bytes: Uint8Array, start: number, end: number): number {
  for (let p = end - 1; p >= start && p >= end - 3; p--) {
    const byte = bytes[p];
    if (byte < 0x80) return end;
    if (byte < 0xc0) continue;
    const length = byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    return p + length > end ? p : end;
  }
  return end;
}

/**
 * Length of what TextDecoder turns into one character at `bytes[p]`: a well-formed sequence, or the longest malformed
 * stretch that becomes a single U+FFFD (Encoding Standard, "maximal subpart").
 */
export function decodedLength(bytes: Uint8Array, p: number, end: number): number {
  const whole = charAt(bytes, p, end) >> 3;
  const b0 = bytes[p];
  if (whole > 1 || b0 < 0xe0 || b0 > 0xf4 || p + 1 >= end) return whole;
  const b1 = bytes[p + 1];
  const low = b0 === 0xe0 ? 0xa0 : b0 === 0xf0 ? 0x90 : 0x80;
  const high = b0 === 0xed ? 0x9f : b0 === 0xf4 ? 0x8f : 0xbf;
  if (b1 < low || b1 > high) return 1;
  if (b0 < 0xf0 || p + 2 >= end) return 2;
  return (bytes[p + 2] & 0xc0) === 0x80 ? 3 : 2;
}
