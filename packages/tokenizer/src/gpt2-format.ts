/**
 * GPT-2's files: `vocab.json` (token → id) and `merges.txt`, in which each byte is written as a printable character:
 * itself where it is printable in Latin-1, otherwise U+0100 and up in order (Radford et al. 2019, encoder.py).
 */
import { TokenizerError } from "./errors.ts";
import { encodeUtf8 } from "./utf8.ts";
import type { TokenizerOptions } from "./vocabulary.ts";

/** Byte of each character of the alphabet. */
const BYTE_OF = new Map<string, number>();
let next = 0x100;
for (let byte = 0; byte < 256; byte++) {
  const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  BYTE_OF.set(String.fromCharCode(printable ? byte : next++), byte);
}

/** Bytes of a token as the files write it; one with a character outside the alphabet (an added token) stands for itself. */
function tokenOf(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const byte = BYTE_OF.get(text[i]);
    if (byte === undefined) return encodeUtf8(text);
    bytes[i] = byte;
  }
  return bytes;
}

/**
 * Vocabulary and merges of the two files' texts.
 *
 * @throws naming the line or the token that is wrong.
 */
export function parseGpt2(vocabJson: string, mergesTxt: string): Pick<TokenizerOptions, "vocab" | "merges"> {
  let ids: unknown;
  try {
    ids = JSON.parse(vocabJson);
  } catch (error) {
    throw new TokenizerError(`vocab.json is not valid JSON, or cut short: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (typeof ids !== "object" || ids === null || Array.isArray(ids)) {
    throw new TokenizerError("vocab.json is not an object from tokens to ids");
  }
  const vocab = new Map<number, Uint8Array>();
  for (const [text, id] of Object.entries(ids)) {
    if (typeof id !== "number")
      throw new TokenizerError(`vocab.json: the id of ${JSON.stringify(text)} is not a number`);
    if (vocab.has(id)) throw new TokenizerError(`vocab.json: two tokens have id ${id}, one is ${JSON.stringify(text)}`);
    vocab.set(id, tokenOf(text));
  }
  const merges: [Uint8Array, Uint8Array][] = [];
  mergesTxt.split(/\r?\n/).forEach((line, index) => {
    if (line === "" || (index === 0 && line.startsWith("#version"))) return;
    const parts = line.split(" ");
    if (parts.length !== 2 || parts[0] === "" || parts[1] === "") {
      throw new TokenizerError(`merges.txt, line ${index + 1}: expected two tokens, found ${JSON.stringify(line)}`);
    }
    merges.push([tokenOf(parts[0]), tokenOf(parts[1])]);
  });
  return { vocab, merges };
}
