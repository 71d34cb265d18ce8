/**
 * Decoding piece by piece for output that appears as it is generated.
 */
import { TokenizerError } from "./errors.ts";
import type { Vocabulary } from "./vocabulary.ts";

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

/** The bytes of `ids`, one after the other. */
export function joinTokens(vocabulary: Vocabulary, ids: Iterable<number>): Uint8Array<ArrayBuffer> {
  const list = ArrayBuffer.isView(ids) || Array.isArray(ids) ? (ids as unknown as ArrayLike<number>) : Array.from(ids);
  const { bytes, start, length } = vocabulary;
  let total = 0;
  for (let i = 0; i < list.length; i++) {
    const id = list[i];
    const tokenLength = length[id];
    if (!(tokenLength > 0) || typeof id !== "number") checkId(vocabulary, id);
    total += tokenLength;
  }
  const out = new Uint8Array(total);
  let end = 0;
  for (let i = 0; i < list.length; i++) {
    const from = start[list[i]];
    const to = from + length[list[i]];
    for (let p = from; p < to; p++) out[end++] = bytes[p];
  }
  return out;
}
