/**
 * The alphabet in which GPT-2's and Hugging Face's files write bytes: a byte is itself where it is printable in Latin-1,
 * otherwise U+0100 and up in order (Radford et al. 2019, encoder.py, bytes_to_unicode).
 */
import { encodeUtf8 } from "./utf8.ts";

const isPrintable = (byte: number): boolean =>
  (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;

/** The bytes in the order of their characters: those that are themselves, then the others. */
const BYTES = Array.from({ length: 256 }, (_, byte) => byte);
const ORDERED = [...BYTES.filter(isPrintable), ...BYTES.filter((byte) => !isPrintable(byte))];

const CHARACTERS: string[] = [];
const BYTE_OF = new Map<string, number>();

/** Place of each byte when they are sorted by their characters: the ids that Hugging Face's trainer gives them. */
export const ALPHABET_ORDER = new Int32Array(256);

let next = 0x100;
ORDERED.forEach((byte, place) => {
  CHARACTERS[byte] = String.fromCharCode(isPrintable(byte) ? byte : next++);
  BYTE_OF.set(CHARACTERS[byte], byte);
  ALPHABET_ORDER[byte] = place;
});

/** A token as the files write it. */
export function writeToken(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += CHARACTERS[byte];
  return text;
}

/** Bytes of a token as the files write it; one with a character outside the alphabet (an added token) stands for itself. */
export function readToken(text: string): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const byte = BYTE_OF.get(text[i]);
    if (byte === undefined) return encodeUtf8(text);
    bytes[i] = byte;
  }
  return bytes;
}
