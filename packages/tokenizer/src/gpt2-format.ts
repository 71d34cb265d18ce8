/**
 * GPT-2's files: `vocab.json` (token → id) and `merges.txt` (Radford et al. 2019), in the alphabet of byte-alphabet.ts.
 */
import { readToken, writeToken } from "./byte-alphabet.ts";
import { TokenizerError } from "./errors.ts";
import { checkByteLevel } from "./sentencepiece.ts";
import type { Tokenizer } from "./tokenizer.ts";
import type { TokenizerOptions } from "./vocabulary.ts";

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
    vocab.set(id, readToken(text));
  }
  const merges: [Uint8Array, Uint8Array][] = [];
  mergesTxt.split(/\r?\n/).forEach((line, index) => {
    if (line === "" || (index === 0 && line.startsWith("#version"))) return;
    const parts = line.split(" ");
    if (parts.length !== 2 || parts[0] === "" || parts[1] === "") {
      throw new TokenizerError(`merges.txt, line ${index + 1}: expected two tokens, found ${JSON.stringify(line)}`);
    }
    merges.push([readToken(parts[0]), readToken(parts[1])]);
  });
  return { vocab, merges };
}

/**
 * Tokens as vocab.json and tokenizer.json write them, with their ids: special tokens as they are, all others in the alphabet.
 *
 * @throws naming a special token that would be read as another token, or is one that merges need
 */
export function writeVocabulary(tokenizer: Tokenizer): [token: string, id: number][] {
  const special = new Map(Array.from(tokenizer.specialTokens, ([text, id]) => [id, text]));
  const made = new Set(tokenizer.merges.map(([left, right]) => writeToken(left) + writeToken(right)));
  return Array.from(tokenizer.vocab, ([id, bytes]) => {
    const written = writeToken(bytes);
    const text = special.get(id) ?? written;
    const isOrdinary = bytes.length === 1 || made.has(written);
    if (text !== written && (isOrdinary || writeToken(readToken(text)) !== written)) {
      throw new TokenizerError(
        `special token ${JSON.stringify(text)} cannot be told from an ordinary one in this format, which writes bytes as ` +
          'characters: use another one, or the format "mantou"',
      );
    }
    return [text, id];
  });
}

/** The texts of GPT-2's two files. They have no place for the pattern; special tokens are in the vocabulary by their text. */
export function toGpt2(tokenizer: Tokenizer): { vocabJson: string; mergesTxt: string } {
  checkByteLevel(tokenizer, "GPT-2's vocab.json and merges.txt");
  const entries = writeVocabulary(tokenizer).map(([token, id]) => `${JSON.stringify(token)}: ${id}`);
  const lines = tokenizer.merges.map(([left, right]) => `${writeToken(left)} ${writeToken(right)}\n`);
  return { vocabJson: `{${entries.join(", ")}}\n`, mergesTxt: `#version: 0.2\n${lines.join("")}` };
}
