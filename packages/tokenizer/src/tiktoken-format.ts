/**
 * tiktoken's `.tiktoken` files: a line for each token, its bytes in base64 and its rank, which is its id and its priority
 * in merging at once. Special tokens and the pattern are not in the file.
 */
import { TokenizerError } from "./errors.ts";
import { checkByteLevel } from "./sentencepiece.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { encodeUtf8 } from "./utf8.ts";
import { showToken, type TokenizerOptions } from "./vocabulary.ts";

/** Bytes as a string of one character each, which can be a key. */
function toKey(bytes: Uint8Array): string {
  let key = "";
  for (const byte of bytes) key += String.fromCharCode(byte);
  return key;
}

function toBytes(key: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(key, (character) => character.charCodeAt(0));
}

/**
 * The merge that makes a token: its bytes are merged by the ranks below its own, and two parts remain, since that is how
 * the token came to be. A piece of text in which it appears goes through the same steps, so no other split can occur.
 */
function splitOf(token: string, rank: number, ranks: ReadonlyMap<string, number>): string[] {
  const parts = [...token];
  while (parts.length > 2) {
    let best = rank;
    let at = -1;
    for (let i = 0; i + 1 < parts.length; i++) {
      const found = ranks.get(parts[i] + parts[i + 1]);
      if (found !== undefined && found < best) {
        best = found;
        at = i;
      }
    }
    if (at < 0) break;
    parts.splice(at, 2, parts[at] + parts[at + 1]);
  }
  return parts;
}

/**
 * Vocabulary and merges (recovered) from the text of a `.tiktoken` file.
 *
 * @param specialTokens text and id of each, as the file has none.
 * @throws naming the line or the token that is wrong.
 */
export function parseTiktoken(
  text: string,
  specialTokens: Readonly<Record<string, number>> = {},
): Pick<TokenizerOptions, "vocab" | "merges" | "specialTokens"> {
  const ranks = new Map<string, number>();
  const vocab = new Map<number, Uint8Array>();
  text.split(/\r?\n/).forEach((line, index) => {
    if (line === "") return;
    const parts = /^([A-Za-z0-9+/]+={0,2}) (\d+)$/.exec(line);
    let token: string;
    try {
      if (parts === null) throw new Error("no match");
      token = atob(parts[1]);
    } catch (error) {
      throw new TokenizerError(
        `tiktoken file, line ${index + 1}: expected a token in base64 and its rank, found ${JSON.stringify(line.slice(0, 80))}`,
        { cause: error },
      );
    }
    const rank = Number(parts[2]);
    if (vocab.has(rank)) throw new TokenizerError(`tiktoken file, line ${index + 1}: rank ${rank} is there twice`);
    if (ranks.has(token)) {
      throw new TokenizerError(
        `tiktoken file, line ${index + 1}: ${showToken(toBytes(token))} has rank ${ranks.get(token)} already`,
      );
    }
    ranks.set(token, rank);
    vocab.set(rank, toBytes(token));
  });
  if (vocab.size === 0) throw new TokenizerError("tiktoken file: it is empty");
  const merges: [Uint8Array, Uint8Array][] = [];
  for (const [token, rank] of [...ranks].sort(([, a], [, b]) => a - b)) {
    if (token.length === 1) continue;
    const parts = splitOf(token, rank, ranks);
    if (parts.length !== 2) {
      throw new TokenizerError(
        `tiktoken file: ${showToken(toBytes(token))} (rank ${rank}) is not made of two tokens of lower rank: ` +
          "lines are missing, or it is not a BPE vocabulary",
      );
    }
    merges.push([toBytes(parts[0]), toBytes(parts[1])]);
  }
  for (const [token, id] of Object.entries(specialTokens)) {
    const taken = vocab.get(id);
    if (taken !== undefined) {
      throw new TokenizerError(`special token ${JSON.stringify(token)}: id ${id} is ${showToken(taken)} already`);
    }
    vocab.set(id, encodeUtf8(token));
  }
  return { vocab, merges, specialTokens: Object.keys(specialTokens) };
}

/**
 * The text of a `.tiktoken` file; give tiktoken the special tokens and the pattern separately.
 *
 * @throws if ids cannot be ranks: where they do not rise with the merges, or tokens are made by no merge.
 */
export function toTiktoken(tokenizer: Tokenizer): string {
  checkByteLevel(tokenizer, "a file of tiktoken's ranks");
  const special = new Set(tokenizer.specialTokens.values());
  const made = new Map(tokenizer.merges.map(([left, right], rank) => [toKey(left) + toKey(right), rank]));
  let lastRank = -1;
  let lines = "";
  for (const [id, bytes] of tokenizer.vocab) {
    const key = toKey(bytes);
    const rank = made.get(key);
    if (rank === undefined && bytes.length > 1) {
      if (special.has(id)) continue;
      throw new TokenizerError(`token ${id} (${showToken(bytes)}) is made by no merge: tiktoken has no such tokens`);
    }
    if (rank !== undefined) {
      if (rank < lastRank) {
        throw new TokenizerError(
          `token ${id} (${showToken(bytes)}) is merged before one with a lower id: tiktoken's ids are its ranks`,
        );
      }
      lastRank = rank;
    }
    lines += `${btoa(key)} ${id}\n`;
  }
  return lines;
}
