/**
 * A vocabulary in the form that the hot paths want: all tokens' bytes in one array, an open-addressed table from bytes to
 * ids and one from pairs of ids to merges. Ids may be any numbers: nothing here assumes that byte b has id b or that
 * merges are numbered in order.
 */
import { TokenizerError } from "./errors.ts";
import { encodeUtf8 } from "./utf8.ts";

export interface TokenizerOptions {
  /** Bytes of every token, special tokens included, by id. All 256 single bytes must be there. */
  vocab: ReadonlyMap<number, Uint8Array>;
  /** Pairs of tokens in the order in which they are merged; both and their concatenation are in the vocabulary. */
  merges: readonly (readonly [left: Uint8Array, right: Uint8Array])[];
  /** Tokens that are found as a whole, before anything else; each must be in the vocabulary. */
  specialTokens?: readonly string[];
  /** Name of a pre-tokenisation pattern or the source of a regular expression; default "gpt2". */
  pattern?: string;
  /** What is done to text before it is split, but not to special tokens in it; default nothing. */
  normalization?: "NFC" | null;
  /** Special tokens that are found in the text when it is normalized, after all others. */
  normalizedSpecialTokens?: readonly string[];
}

/** Ids are below this (16,777,216), so that tables indexed by id stay reasonable. */
export const MAX_IDS = 2 ** 24;

/** Bytes behind the last token's: tokens of so many bytes, or fewer, can be copied as three words. */
export const SPARE_BYTES = 12;

/** In the table of pairs: rank + 1, which is below MAX_IDS, and from this bit on some of the hash. */
const TAG_SHIFT = 24;
const RANK_BITS = MAX_IDS - 1;

/** Of a pair that no merge is of: greater than any rank. */
export const NO_RANK = MAX_IDS - 1;

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A token as an error message shows it. */
export function showToken(bytes: Uint8Array): string {
  try {
    return JSON.stringify(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch {
    return `0x${toHex(bytes)}`;
  }
}

/** Each of these special tokens once. @throws on one that is empty, or has the bytes of another. */
export function distinctTokens(specialTokens: readonly string[]): Set<string> {
  const byBytes = new Map<string, string>();
  for (const token of specialTokens) {
    if (typeof token !== "string") throw new TokenizerError(`special token ${String(token)} is not a string`);
    if (token === "") throw new TokenizerError("a special token is empty: leave it out");
    const key = encodeUtf8(token).join();
    const other = byBytes.get(key) ?? token;
    if (other !== token) {
      throw new TokenizerError(
        `special tokens ${JSON.stringify(other)} and ${JSON.stringify(token)} are the same bytes`,
      );
    }
    byBytes.set(key, token);
  }
  return new Set(byBytes.values());
}

export class Vocabulary {
  /** Greatest id + 1. */
  readonly size: number;
  /** Bytes of token id: `bytes[start[id], start[id] + length[id])`; length 0 means that there is no such token. SPARE_BYTES follow. */
  readonly bytes: Uint8Array;
  readonly start: Int32Array;
  readonly length: Int32Array;
  /** Bytes of the longest token. */
  readonly longest: number;
  /** Id of each single byte. */
  readonly byteIds: Int32Array;
  /** `rankOf` each pair of bytes, at (left << 8) | right: most look-ups are of these. */
  readonly byteRanks: Int32Array;
  /** Left id, right id and id of the result of merge i: at 3i, 3i + 1, 3i + 2. */
  readonly merges: Int32Array;
  readonly specialTokens: ReadonlyMap<string, number>;

  // private to the type checker alone: a worker makes a vocabulary of a clone, and clones have none of the other kind
  /** Id + 1 by hash of the bytes; 0 is free. */
  private readonly byBytes: Int32Array;
  /** Rank + 1 by hash of the pair (0: free), and on top of it eight other bits of the hash, so that few pairs are compared. */
  private readonly byPair: Int32Array;
  private readonly pairShift: number;
  /** Special tokens that neither a byte nor a merge makes. */
  private readonly onlySpecial = new Set<number>();

  /**
   * @param byteTokens ids of the 256 bytes, where those are tokens beside the one of a character with the same bytes
   * @throws naming the first token, merge or special token that does not fit.
   */
  constructor({ vocab, merges, specialTokens = [] }: TokenizerOptions, byteTokens: readonly number[] = []) {
    let size = 0;
    let byteLength = 0;
    // forEach: for-of makes an array of every entry until it is compiled, which is late here
    vocab.forEach((token, id) => {
      if (!Number.isInteger(id) || id < 0 || id >= MAX_IDS) {
        throw new TokenizerError(`token id ${id} is not a whole number from 0 to ${MAX_IDS - 1}`);
      }
      if (!(token instanceof Uint8Array)) throw new TokenizerError(`token ${id} is not a Uint8Array`);
      if (token.length === 0) throw new TokenizerError(`token ${id} is empty`);
      size = Math.max(size, id + 1);
      byteLength += token.length;
    });
    this.size = size;
    this.bytes = new Uint8Array(byteLength + SPARE_BYTES);
    this.start = new Int32Array(size);
    this.length = new Int32Array(size);
    this.byBytes = new Int32Array(2 ** Math.ceil(Math.log2(2 * vocab.size + 2)));
    const apart = new Set(byteTokens);
    let end = 0;
    let longest = 0;
    vocab.forEach((token, id) => {
      this.#addToken(id, token, end);
      if (!apart.has(id)) this.#enterToken(id, token);
      longest = Math.max(longest, token.length);
      end += token.length;
    });
    this.longest = longest;

    this.byteIds = new Int32Array(256);
    for (let byte = 0; byte < 256; byte++) {
      const id = byteTokens[byte] ?? this.idOf(Uint8Array.of(byte), 0, 1);
      if (id < 0) {
        throw new TokenizerError(
          `the vocabulary has no token for the byte 0x${byte.toString(16).padStart(2, "0")}: ` +
            "a byte-level vocabulary holds all 256",
        );
      }
      this.byteIds[byte] = id;
    }

    if (merges.length >= MAX_IDS) throw new TokenizerError(`${merges.length} merges: there may be ${MAX_IDS - 1}`);
    const pairSlots = 2 ** Math.ceil(Math.log2(2 * merges.length + 2));
    this.pairShift = 32 - Math.log2(pairSlots);
    this.byPair = new Int32Array(pairSlots);
    this.merges = new Int32Array(3 * merges.length);
    this.byteRanks = new Int32Array(65536).fill(NO_RANK);
    const joined = new Uint8Array(2 * longest);
    for (let rank = 0; rank < merges.length; rank++) this.#addMerge(merges[rank], rank, joined);

    const specials = new Map<string, number>();
    for (const token of distinctTokens(specialTokens)) {
      const bytes = encodeUtf8(token);
      const id = this.idOf(bytes, 0, bytes.length);
      if (id < 0) throw new TokenizerError(`special token ${JSON.stringify(token)} is not in the vocabulary`);
      specials.set(token, id);
    }
    this.specialTokens = specials;
    for (const id of specials.values()) if (this.length[id] > 1) this.onlySpecial.add(id);
    for (let i = 2; i < this.merges.length && specials.size > 0; i += 3) this.onlySpecial.delete(this.merges[i]);
  }

  /** Whether text that is not looked through for special tokens may become this id. */
  isOrdinary(id: number): boolean {
    return !this.onlySpecial.has(id);
  }

  has(id: number): boolean {
    return id >= 0 && id < this.size && this.length[id] > 0;
  }

  /** A copy of the bytes of a token. */
  tokenBytes(id: number): Uint8Array<ArrayBuffer> {
    return this.bytes.slice(this.start[id], this.start[id] + this.length[id]) as Uint8Array<ArrayBuffer>;
  }

  /** Id of the token `bytes[start, end)`, or -1. */
  idOf(bytes: Uint8Array, start: number, end: number): number {
    return this.byBytes[this.slotOf(bytes, start, end)] - 1;
  }

  /** Number of the merge of two tokens, or NO_RANK. */
  rankOf(left: number, right: number): number {
    const entry = this.byPair[this.pairSlot(left, right)];
    return entry === 0 ? NO_RANK : (entry & RANK_BITS) - 1;
  }

  // The three below are methods, not loops in the constructor, since the JIT compiles what is called often sooner: GPT-2's
  // vocabulary takes a fifth less time.

  /** Lets a token's bytes be `this.bytes[end…]`. */
  #addToken(id: number, token: Uint8Array, end: number): void {
    const { bytes } = this;
    const { length } = token;
    for (let i = 0; i < length; i++) bytes[end + i] = token[i]; // tokens are short: `set` costs more
    this.start[id] = end;
    this.length[id] = length;
  }

  /** Lets `idOf` find a token. */
  #enterToken(id: number, token: Uint8Array): void {
    const slot = this.slotOf(token, 0, token.length);
    const taken = this.byBytes[slot];
    if (taken > 0) throw new TokenizerError(`token ${showToken(token)} has two ids, ${taken - 1} and ${id}`);
    this.byBytes[slot] = id + 1;
  }

  /** Enters a merge; `joined` is space for two tokens. */
  #addMerge([left, right]: TokenizerOptions["merges"][number], rank: number, joined: Uint8Array): void {
    const leftId = this.idOf(left, 0, left.length);
    const rightId = this.idOf(right, 0, right.length);
    const length = left.length + right.length;
    let id = -1;
    if (leftId >= 0 && rightId >= 0) {
      joined.set(left);
      joined.set(right, left.length);
      id = this.idOf(joined, 0, length);
    }
    if (id < 0) {
      const missing = leftId < 0 ? left : rightId < 0 ? right : joined.subarray(0, length);
      throw new TokenizerError(
        `merge ${rank} (${showToken(left)} + ${showToken(right)}): ${showToken(missing)} is not in the vocabulary`,
      );
    }
    const slot = this.pairSlot(leftId, rightId);
    const entry = this.byPair[slot];
    if (entry !== 0) {
      throw new TokenizerError(
        `merges ${(entry & RANK_BITS) - 1} and ${rank} are the same: ${showToken(left)} + ${showToken(right)}`,
      );
    }
    this.byPair[slot] = (hashPair(leftId, rightId) << TAG_SHIFT) | (rank + 1);
    this.merges[3 * rank] = leftId;
    this.merges[3 * rank + 1] = rightId;
    this.merges[3 * rank + 2] = id;
    if (length === 2) this.byteRanks[(left[0] << 8) | right[0]] = rank;
  }

  private slotOf(bytes: Uint8Array, start: number, end: number): number {
    let hash = end - start;
    for (let p = start; p < end; p++) hash = Math.imul(hash ^ bytes[p], 0x01000193);
    const table = this.byBytes;
    const mask = table.length - 1;
    let slot = (hash ^ (hash >>> 15)) & mask;
    for (; table[slot] !== 0; slot = (slot + 1) & mask) {
      const id = table[slot] - 1;
      if (this.length[id] !== end - start) continue;
      const at = this.start[id] - start;
      let p = start;
      while (p < end && this.bytes[at + p] === bytes[p]) p++;
      if (p === end) break;
    }
    return slot;
  }

  /** Where the rank of a pair is, or would be. */
  private pairSlot(left: number, right: number): number {
    const { byPair, merges } = this;
    const mask = byPair.length - 1;
    const hash = hashPair(left, right);
    const tag = hash << TAG_SHIFT;
    let slot = hash >>> this.pairShift;
    for (; byPair[slot] !== 0; slot = (slot + 1) & mask) {
      const at = (byPair[slot] ^ tag) - 1; // the rank, if the tags are equal
      if (at >>> TAG_SHIFT === 0 && merges[3 * at] === left && merges[3 * at + 1] === right) break;
    }
    return slot;
  }
}

/** Hash of a pair of ids; the high bits are the good ones. */
function hashPair(left: number, right: number): number {
  return Math.imul(left ^ Math.imul(right, 0x85ebca6b), 0x9e3779b1);
}
