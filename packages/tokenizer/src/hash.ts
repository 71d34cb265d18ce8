/**
 * A hash of contents, for good, and one for tables in memory. The first is plain, synchronous TypeScript: two 32-bit lanes
 * in the manner of MurmurHash3, 64 bits together. It tells tokenizers apart and finds damaged files; it is no protection
 * against forgery.
 */
import { encodeUtf8 } from "./utf8.ts";

export class ContentHash {
  #a = 0x9747b28c;
  #b = 0x3c6ef372;
  #count = 0;

  /** A whole number from -2³¹ to 2³² - 1. */
  number(value: number): void {
    let k = Math.imul(value, 0xcc9e2d51);
    k = (k << 15) | (k >>> 17);
    this.#a ^= Math.imul(k, 0x1b873593);
    this.#a = (this.#a << 13) | (this.#a >>> 19);
    this.#a = (Math.imul(this.#a, 5) + 0xe6546b64) | 0;
    k = Math.imul(value ^ 0x5bd1e995, 0x85ebca77);
    k = (k << 13) | (k >>> 19);
    this.#b ^= Math.imul(k, 0xc2b2ae3d);
    this.#b = (this.#b << 11) | (this.#b >>> 21);
    this.#b = (Math.imul(this.#b, 9) + 0x27d4eb2f) | 0;
    this.#count++;
  }

  /** The length and then each byte. */
  bytes(bytes: Uint8Array): void {
    this.number(bytes.length);
    for (let i = 0; i < bytes.length; i++) this.number(bytes[i]);
  }

  text(text: string): void {
    this.bytes(encodeUtf8(text));
  }

  /** 16 hexadecimal digits. */
  digest(): string {
    const finish = (h: number): string => {
      h ^= this.#count;
      h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
      h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
      return ((h ^ (h >>> 16)) >>> 0).toString(16).padStart(8, "0");
    };
    return finish(this.#a) + finish(this.#b);
  }
}

/** Hash for tables of the `length` ≥ 4 bytes at `start`; the high bits are the good ones. */
export function hashBytes(view: DataView, start: number, length: number): number {
  const last = start + length - 4;
  let h = length;
  for (let p = start; p < last; p += 4) {
    h = Math.imul(h ^ view.getInt32(p, true), 0x9e3779b1);
    h ^= h >>> 15;
  }
  h = Math.imul(h ^ view.getInt32(last, true), 0x85ebca6b);
  return Math.imul(h ^ (h >>> 15), 0xc2b2ae35);
}

/** Masks that keep the first n bytes, of at most 15, of each of four little-endian words. */
const MASKS = Array.from({ length: 4 }, (_, word) =>
  Int32Array.from({ length: 16 }, (_, n) => {
    const bytes = n - 4 * word;
    return bytes <= 0 ? 0 : bytes >= 4 ? -1 : (1 << (8 * bytes)) - 1;
  }),
);
export const [MASK_0, MASK_1, MASK_2, MASK_3] = MASKS;
