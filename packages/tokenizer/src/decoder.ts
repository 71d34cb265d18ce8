/**
 * Decoding piece by piece for output that appears as it is generated.
 */
import { TokenizerError } from "./errors.ts";
import { SPARE_BYTES, type Vocabulary } from "./vocabulary.ts";

/**
 * Turns ids into text one at a time and never emits part of a character: bytes that may still become one are held back
 * until they do, or until `finish`.
 */
export class StreamingDecoder {
  readonly #tokenizer: { tokenBytes(id: number): Uint8Array };
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });

  /** Made by `Tokenizer.createDecoder`. */
  constructor(tokenizer: { tokenBytes(id: number): Uint8Array }) {
    this.#tokenizer = tokenizer;
  }

  /**
   * The text that is complete after one more token; may be empty.
   *
   * @throws if there is no such id.
   */
  push(id: number): string {
    return this.#decoder.decode(this.#tokenizer.tokenBytes(id), { stream: true });
  }

  /** The rest: U+FFFD where a character was left incomplete. The decoder is then ready for another text. */
  finish(): string {
    return this.#decoder.decode();
  }
}

/** @throws if the vocabulary has no such id. */
export function checkId(vocabulary: Vocabulary, id: number): void {
  if (!Number.isInteger(id) || !vocabulary.has(id)) {
    throw new TokenizerError(
      `unknown token id ${String(id)}: the vocabulary's ids go from 0 to ${vocabulary.size - 1}`,
    );
  }
}

/** Bytes that a step of `decodeIdsToText` joins before it makes text of them. */
const STEP = 1 << 16;

/** What one call of `joinTokens` got done. */
interface Joined {
  /** Where the bytes end. */
  end: number;
  /** The first id that was not taken. */
  next: number;
}

/** A list with an index: what is iterable only is copied. One id alone is neither, and an error. */
function asList(ids: Iterable<number>): ArrayLike<number> {
  return ArrayBuffer.isView(ids) || Array.isArray(ids) ? (ids as unknown as ArrayLike<number>) : [...ids];
}

/**
 * Writes the bytes of `list[first…]`, one token after the other, until the ids or the space is used up. Needs
 * SPARE_BYTES of space more than it fills: short tokens are written as whole words.
 */
function joinTokens(vocabulary: Vocabulary, list: ArrayLike<number>, first: number, target: DataView): Joined {
  const { bytes, start, length } = vocabulary;
  const source = new DataView(bytes.buffer);
  const limit = target.byteLength - SPARE_BYTES;
  let end = 0;
  let i = first;
  for (; i < list.length; i++) {
    const id = list[i];
    const size = length[id];
    if (!(size > 0) || typeof id !== "number") checkId(vocabulary, id);
    if (end + size > limit) break;
    if (size <= SPARE_BYTES) {
      const at = start[id];
      target.setInt32(end, source.getInt32(at, true), true);
      target.setInt32(end + 4, source.getInt32(at + 4, true), true);
      target.setInt32(end + 8, source.getInt32(at + 8, true), true);
    } else {
      for (let j = 0; j < size; j++) target.setUint8(end + j, bytes[start[id] + j]);
    }
    end += size;
  }
  return { end, next: i };
}

/** The bytes of `ids`, one after the other. */
export function decodeIdsToBytes(vocabulary: Vocabulary, ids: Iterable<number>): Uint8Array<ArrayBuffer> {
  const list = asList(ids);
  const { length } = vocabulary;
  let total = 0;
  for (let i = 0; i < list.length; i++) {
    const size = length[list[i]];
    if (!(size > 0)) checkId(vocabulary, list[i]);
    total += size;
  }
  const buffer = new ArrayBuffer(total + SPARE_BYTES);
  joinTokens(vocabulary, list, 0, new DataView(buffer));
  return new Uint8Array(buffer, 0, total);
}

/** The text of `ids`; passes through one small buffer. */
export function decodeIdsToText(vocabulary: Vocabulary, ids: Iterable<number>): string {
  const list = asList(ids);
  const size = Math.min(STEP, vocabulary.longest * list.length) + vocabulary.longest + SPARE_BYTES;
  const buffer = new Uint8Array(new ArrayBuffer(size));
  const view = new DataView(buffer.buffer);
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let text = "";
  for (let next = 0; next < list.length;) {
    const joined = joinTokens(vocabulary, list, next, view);
    next = joined.next;
    text += decoder.decode(buffer.subarray(0, joined.end), { stream: next < list.length });
  }
  return text;
}
