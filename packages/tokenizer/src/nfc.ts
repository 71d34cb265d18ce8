/**
 * Unicode's normalization form C (UAX #15), as Hugging Face's "NFC" normalizer applies it, on bytes that may be malformed
 * anywhere. What a code point does is asked of the runtime's `String.prototype.normalize` when it is first met; text whose
 * code points are all inert, as in most texts they are, is handed on as it lies.
 */
import type { Normalizer } from "./normalizing-feed.ts";
import { FunctionScanner } from "./scan-function.ts";
import { charAt, FINE_CLASSES, MARK } from "./unicode.ts";
import { encodeUtf8 } from "./utf8.ts";

// what a code point may be
/** It may join the character before it, or change places with it. */
const JOINING = 1;
/** It does nothing to what comes before it, but is another in NFC. */
const CHANGING = 2;
/** Nor is it another. What follows may still join it. */
const INERT = 3;

/** By code point; 0: not asked for yet. */
const kinds = new Uint8Array(0x110000);

/** All below U+0300 are inert; in UTF-8 those are the characters that begin with a lower byte than this. */
const FIRST_LEAD = 0xcc;

function kindOf(codePoint: number): number {
  if (codePoint > 0x10ffff) return INERT; // malformed, which is left as it is
  let kind = kinds[codePoint];
  if (kind === 0) {
    // Marks, the vowels and final consonants of Hangul, vowel signs of Kirat Rai. Not all of them join, but nothing else
    // does: the tests hold this against every composition that the runtime knows.
    const joins =
      FINE_CLASSES[codePoint] === MARK ||
      (codePoint >= 0x1160 && codePoint <= 0x11ff) ||
      (codePoint >= 0x16d63 && codePoint <= 0x16d6a);
    const text = String.fromCodePoint(codePoint);
    kind = joins ? JOINING : text.normalize("NFC") === text ? INERT : CHANGING;
    kinds[codePoint] = kind;
  }
  return kind;
}

/** Kind of what begins with `bytes[p]`, taken for well-formed; of a malformed byte any kind will do. */
function kindAt(bytes: Uint8Array, p: number): number {
  const b0 = bytes[p];
  if (b0 < FIRST_LEAD) return INERT;
  const b1 = bytes[p + 1] & 0x3f;
  if (b0 < 0xe0) return kindOf(((b0 & 0x1f) << 6) | b1);
  const b2 = bytes[p + 2] & 0x3f;
  if (b0 < 0xf0) return kindOf(((b0 & 0x0f) << 12) | (b1 << 6) | b2);
  return kindOf(((b0 & 0x07) << 18) | (b1 << 12) | (b2 << 6) | (bytes[p + 3] & 0x3f));
}

/** Whether nothing in `bytes[start, end)` is other than inert. */
function isInert(bytes: Uint8Array, view: DataView, start: number, end: number): boolean {
  let p = start;
  while (p < end) {
    while (p + 4 <= end && (view.getInt32(p, true) & 0x80808080) === 0) p += 4;
    // continuation bytes count as inert, so that of a malformed sequence no byte is passed over
    for (const stop = Math.min(end, p + 16); p < stop; p++) {
      if (bytes[p] >= FIRST_LEAD && kindAt(bytes, p) !== INERT) return false;
    }
  }
  return true;
}

/** Whether what begins with `bytes[p]`, if anything does, leaves alone what comes before it. */
function isBoundary(bytes: Uint8Array, p: number): boolean {
  if ((bytes[p] & 0xc0) !== 0x80) return kindAt(bytes, p) !== JOINING;
  // the fourth continuation byte in a row belongs to no character
  return ((bytes[p - 1] ^ 0x80) | (bytes[p - 2] ^ 0x80) | (bytes[p - 3] ^ 0x80)) < 0x40;
}

/** Two pieces: up to the last boundary, and the rest, which may still change. */
function scanStretches(bytes: Uint8Array, start: number, end: number, ends: Int32Array): number {
  let p = end;
  while (--p > start && !isBoundary(bytes, p));
  let count = 0;
  if (p > start) ends[count++] = p;
  if (start < end) ends[count++] = end;
  return count;
}

export const NFC: Normalizer = {
  pieces: { id: "NFC", source: "", unsettled: 1, createScanner: () => new FunctionScanner(scanStretches) },

  normalize(bytes, start, end, _where, push, onChange) {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (isInert(bytes, view, start, end)) {
      push(bytes.subarray(start, end));
      return;
    }
    let done = start;
    let p = start;
    while (p < end) {
      // the longest well-formed stretch: a malformed byte parts what is on its two sides
      const from = p;
      while (p < end) {
        const length = charAt(bytes, p, end) >> 3;
        if (length === 1 && bytes[p] >= 0x80) break;
        // changes are told one by one
        if (onChange !== undefined && p > from && kindAt(bytes, p) !== JOINING) break;
        p += length;
      }
      if (p === from) {
        p++;
      } else if (!isInert(bytes, view, from, p)) {
        const text = decoder.decode(bytes.subarray(from, p));
        const normal = normalizeText(text);
        if (normal !== text) {
          push(bytes.subarray(done, from));
          const part = encodeUtf8(normal);
          push(part);
          onChange?.({ start: from, end: p, length: part.length });
          done = p;
        }
      }
    }
    push(bytes.subarray(done, end));
  },

  text: normalizeText,
};

const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Marks in a row from which on they are sorted here: the runtime's way to do so is quadratic. */
const MANY_MARKS = /\p{M}{64,}/gu;

/** `text.normalize("NFC")`, in little more than linear time for texts of marks too. */
export function normalizeText(text: string): string {
  return text.replace(MANY_MARKS, sortMarks).normalize("NFC");
}

/** Marks in canonical order (Unicode, D109): by their combining classes; those of class 0 stay where they are. */
function sortMarks(text: string): string {
  const marks = Array.from(text, (mark) => mark.normalize("NFD"));
  const swap = (a: string, b: string): boolean => (a + b).normalize("NFD") !== a + b;
  // U+0345 has the greatest class: whatever else has one swaps with it
  const moving = [...new Set(marks.join(""))].filter((mark) => swap("\u0345", mark)).join("");
  return marks
    .join("")
    .replace(new RegExp(`[${moving}\u0345]+`, "gu"), (run) =>
      [...run].sort((a, b) => Number(swap(a, b)) - Number(swap(b, a))).join(""),
    );
}
