/**
 * Byte-pair encoding, the training half (Sennrich et al. 2016, arXiv:1508.07909, on bytes): given the distinct
 * pre-tokens and their counts, finds the merges. Ties: the greater count wins, then the greater left bytes, then the
 * greater right bytes, compared lexicographically.
 *
 * All words lie in one flat array with a separator between them; a token covers as many slots as it has bytes and writes
 * its id into the first and the last of them, so both neighbours of a token are found without links. Each slot where a
 * pair starts knows the number of that pair, so counts are kept up without any hash table. Every pair made by a merge
 * contains the new token: all its occurrences are born in that one step, and its list of them is written once and never
 * changed; an entry is stale when its slot belongs to another pair by now.
 */
import { ALPHABET_ORDER } from "./byte-alphabet.ts";
import { TokenizerError } from "./errors.ts";
import { grown } from "./grown.ts";
import { MergeQueue } from "./merge-queue.ts";
import type { PretokenCounts } from "./pretokens.ts";

/**
 * Which of two pairs with the same count is merged first: "bytes", that with the greater left bytes, then the greater
 * right bytes; "id", that with the lower left id, then the lower right id, as rustbpe has it; "huggingface", the same
 * with bytes in the order of their characters (byte-alphabet.ts), as Hugging Face's trainer numbers them.
 */
export type Ties = "bytes" | "id" | "huggingface";

export const TIES: readonly Ties[] = ["bytes", "id", "huggingface"];

export interface TrainBpeOptions {
  /** How many merges to learn at most; fewer come out when no pair is left. */
  numMerges: number;
  /** Pairs that occur less often are not merged; default 1. */
  minFrequency?: number;
  /** Default "bytes". */
  ties?: Ties;
  /** Called now and then with the number of merges done. */
  onProgress?: (done: number, total: number) => void;
  signal?: AbortSignal;
}

export interface TrainBpeResult {
  /** Bytes 0–255, then a token for each merge, in order. */
  vocab: Map<number, Uint8Array>;
  merges: [left: Uint8Array, right: Uint8Array][];
}

const SEPARATOR = -1;
const NO_PAIR = -1;

/** Merges between two looks at the clock or the signal. */
const STRIDE = 64;

/** @throws naming the option that is out of its range. */
export function checkMerging({ numMerges, minFrequency = 1, ties = "bytes" }: TrainBpeOptions): void {
  if (!Number.isInteger(numMerges) || numMerges < 0) {
    throw new TokenizerError(`numMerges is ${numMerges}: it must be a whole number of at least 0`);
  }
  if (!TIES.includes(ties)) throw new TokenizerError(`ties is ${String(ties)}: it is one of ${TIES.join(", ")}`);
  if (!(minFrequency >= 1)) throw new TokenizerError(`minFrequency is ${minFrequency}: it must be at least 1`);
}

/** The state of a training run; `run` advances it, so that callers decide when to let others work. */
export class BpeTrainer {
  readonly numMerges: number;
  readonly #minFrequency: number;
  readonly #wordCounts: Float64Array;

  /** Flat words: ids at the first and the last slot of each token, SEPARATOR before, between and after words. */
  readonly #symbols: Int32Array;
  /** Number of the pair that starts at a slot, or NO_PAIR. */
  readonly #pairAt: Int32Array;

  // pairs, by number
  #pairLeft: Int32Array;
  #pairRight: Int32Array;
  #pairCount: Float64Array;
  #listStart: Float64Array;
  #listLength: Int32Array;
  #numPairs = 0;

  /** Occurrence lists: slot, word, slot, word, … */
  #lists: Int32Array;
  #listsEnd = 0;

  // tokens, by id
  readonly #tokenLength: Int32Array;
  readonly #tokenStart: Int32Array;
  /** First six bytes as a number: decides most comparisons. */
  readonly #tokenKey: Float64Array;
  #tokenBytes: Uint8Array = new Uint8Array(1 << 16);
  #numTokens = 0;

  readonly #queue: MergeQueue;

  // scratch of one step: the new pair for each neighbour of the new token, and the occurrences as they are found
  readonly #newFromLeft: Int32Array;
  readonly #newFromRight: Int32Array;
  #found = new Int32Array(0);
  #cursor = new Float64Array(0);

  constructor(words: PretokenCounts, options: TrainBpeOptions) {
    checkMerging(options);
    const { numMerges, minFrequency = 1, ties = "bytes" } = options;
    this.numMerges = numMerges;
    this.#minFrequency = minFrequency;
    this.#wordCounts = words.counts;
    const maxTokens = 256 + numMerges;
    this.#tokenLength = new Int32Array(maxTokens);
    this.#tokenStart = new Int32Array(maxTokens);
    this.#tokenKey = new Float64Array(maxTokens);
    this.#newFromLeft = new Int32Array(maxTokens).fill(NO_PAIR);
    this.#newFromRight = new Int32Array(maxTokens).fill(NO_PAIR);
    for (let byte = 0; byte < 256; byte++) {
      this.#tokenBytes[byte] = byte;
      this.#addToken(byte, 1);
    }

    // the flat words, and the pairs of bytes with their counts
    const { bytes, offsets, counts } = words;
    const numWords = counts.length;
    const slots = bytes.length + numWords + 1;
    if (slots > 2 ** 31 - 1) throw new TokenizerError("the distinct pre-tokens exceed 2 GiB in all");
    const symbols = new Int32Array(slots).fill(SEPARATOR);
    const pairAt = new Int32Array(slots).fill(NO_PAIR);
    const pairOf = new Int32Array(65536).fill(NO_PAIR);
    const capacity = 1 << 16;
    this.#pairLeft = new Int32Array(capacity);
    this.#pairRight = new Int32Array(capacity);
    this.#pairCount = new Float64Array(capacity);
    this.#listStart = new Float64Array(capacity);
    this.#listLength = new Int32Array(capacity);
    let slot = 1;
    let occurrences = 0;
    for (let word = 0; word < numWords; word++) {
      const end = offsets[word + 1];
      const count = counts[word];
      for (let i = offsets[word]; i < end; i++, slot++) {
        symbols[slot] = bytes[i];
        if (i + 1 === end) continue;
        const key = (bytes[i] << 8) | bytes[i + 1];
        let pair = pairOf[key];
        if (pair === NO_PAIR) {
          pair = this.#numPairs++;
          pairOf[key] = pair;
          this.#pairLeft[pair] = bytes[i];
          this.#pairRight[pair] = bytes[i + 1];
        }
        pairAt[slot] = pair;
        this.#pairCount[pair] += count;
        this.#listLength[pair]++;
        occurrences++;
      }
      slot++;
    }
    this.#symbols = symbols;
    this.#pairAt = pairAt;

    // their occurrence lists
    this.#lists = new Int32Array(Math.max(1 << 12, occurrences * 4));
    this.#placeLists(0);
    const cursor = this.#listStart.slice(0, this.#numPairs);
    slot = 1;
    for (let word = 0; word < numWords; word++) {
      for (let i = offsets[word]; i < offsets[word + 1]; i++, slot++) {
        const pair = pairAt[slot];
        if (pair === NO_PAIR) continue;
        const at = cursor[pair];
        this.#lists[at] = slot;
        this.#lists[at + 1] = word;
        cursor[pair] = at + 2;
      }
      slot++;
    }

    this.#queue = new MergeQueue(ties === "bytes" ? (a, b) => this.#before(a, b) : this.#beforeById(ties));
    for (let pair = 0; pair < this.#numPairs; pair++) this.#enqueue(pair);
  }

  /** Merges learnt so far. */
  get done(): number {
    return this.#numTokens - 256;
  }

  /** Learns up to `steps` more merges; false when there is nothing left to do. */
  run(steps: number): boolean {
    const queue = this.#queue;
    while (steps > 0 && this.done < this.numMerges && queue.size > 0) {
      const count = queue.topCount;
      const pair = queue.pop();
      const current = this.#pairCount[pair];
      if (current !== count) {
        if (current >= this.#minFrequency) queue.push(pair, current);
        continue;
      }
      this.#merge(pair);
      steps--;
    }
    return this.done < this.numMerges && queue.size > 0;
  }

  result(): TrainBpeResult {
    const vocab = new Map<number, Uint8Array>();
    for (let id = 0; id < this.#numTokens; id++) vocab.set(id, this.#bytesOf(id).slice());
    const merges = Array.from({ length: this.done }, (_, i): [Uint8Array, Uint8Array] => {
      const id = 256 + i;
      const bytes = vocab.get(id)!;
      const leftLength = this.#leftLength[i];
      return [bytes.slice(0, leftLength), bytes.slice(leftLength)];
    });
    return { vocab, merges };
  }

  /** Bytes of the left half of each merge. */
  readonly #leftLength: number[] = [];

  #bytesOf(id: number): Uint8Array {
    const start = this.#tokenStart[id];
    return this.#tokenBytes.subarray(start, start + this.#tokenLength[id]);
  }

  /** Makes a token of the `length` bytes at `start` of the token bytes. */
  #addToken(start: number, length: number): number {
    const id = this.#numTokens++;
    this.#tokenStart[id] = start;
    this.#tokenLength[id] = length;
    let key = 0;
    for (let i = 0; i < 6; i++) key = key * 256 + (i < length ? this.#tokenBytes[start + i] : 0);
    this.#tokenKey[id] = key;
    return id;
  }

  #joinTokens(left: number, right: number): number {
    const start = this.#tokenStart[this.#numTokens - 1] + this.#tokenLength[this.#numTokens - 1];
    const leftLength = this.#tokenLength[left];
    const length = leftLength + this.#tokenLength[right];
    if (start + length > this.#tokenBytes.length) {
      this.#tokenBytes = grown(this.#tokenBytes, Math.max(this.#tokenBytes.length * 2, start + length));
    }
    this.#tokenBytes.set(this.#bytesOf(left), start);
    this.#tokenBytes.set(this.#bytesOf(right), start + leftLength);
    this.#leftLength.push(leftLength);
    return this.#addToken(start, length);
  }

  /** Whether pair a wins a tie against pair b. */
  #before(a: number, b: number): boolean {
    const left = this.#compareTokens(this.#pairLeft[a], this.#pairLeft[b]);
    return left !== 0 ? left > 0 : this.#compareTokens(this.#pairRight[a], this.#pairRight[b]) > 0;
  }

  #beforeById(ties: Ties): (a: number, b: number) => boolean {
    const order = (id: number): number => (ties === "huggingface" && id < 256 ? ALPHABET_ORDER[id] : id);
    return (a, b) => {
      const left = order(this.#pairLeft[a]) - order(this.#pairLeft[b]);
      return left !== 0 ? left < 0 : order(this.#pairRight[a]) < order(this.#pairRight[b]);
    };
  }

  /** Lexicographic order of two tokens' bytes. */
  #compareTokens(a: number, b: number): number {
    if (a === b) return 0;
    const difference = this.#tokenKey[a] - this.#tokenKey[b];
    if (difference !== 0) return difference;
    const bytes = this.#tokenBytes;
    const startA = this.#tokenStart[a];
    const startB = this.#tokenStart[b];
    const lengthA = this.#tokenLength[a];
    const lengthB = this.#tokenLength[b];
    const shorter = Math.min(lengthA, lengthB);
    for (let i = 0; i < shorter; i++) {
      if (bytes[startA + i] !== bytes[startB + i]) return bytes[startA + i] - bytes[startB + i];
    }
    return lengthA - lengthB;
  }

  #enqueue(pair: number): void {
    const count = this.#pairCount[pair];
    if (count >= this.#minFrequency) this.#queue.push(pair, count);
  }

  /** Gives the pairs from number `first` on a place for their occurrences. */
  #placeLists(first: number): void {
    let end = this.#listsEnd;
    for (let pair = first; pair < this.#numPairs; pair++) {
      this.#listStart[pair] = end;
      end += 2 * this.#listLength[pair];
    }
    if (end > this.#lists.length) this.#lists = grown(this.#lists, Math.max(end, this.#lists.length * 1.5));
    this.#listsEnd = end;
  }

  /** Makes room for `extra` more pairs. */
  #reservePairs(extra: number): void {
    const needed = this.#numPairs + extra;
    if (needed <= this.#pairLeft.length) return;
    const size = Math.max(needed, this.#pairLeft.length * 2);
    this.#pairLeft = grown(this.#pairLeft, size);
    this.#pairRight = grown(this.#pairRight, size);
    this.#pairCount = grown(this.#pairCount, size);
    this.#listStart = grown(this.#listStart, size);
    this.#listLength = grown(this.#listLength, size);
  }

  #merge(pair: number): void {
    const left = this.#pairLeft[pair];
    const right = this.#pairRight[pair];
    const token = this.#joinTokens(left, right);
    const leftLength = this.#tokenLength[left];
    const tokenLength = this.#tokenLength;
    const length = tokenLength[token];
    const listStart = this.#listStart[pair];
    const listEnd = listStart + 2 * this.#listLength[pair];
    // every occurrence makes two pairs at most, and no two of them with the same neighbour on the same side
    this.#reservePairs(Math.min(listEnd - listStart, 2 * this.#numTokens));
    if (this.#found.length < 3 * (listEnd - listStart)) this.#found = new Int32Array(4 * (listEnd - listStart));

    const symbols = this.#symbols;
    const pairAt = this.#pairAt;
    const pairCount = this.#pairCount;
    const pairLeft = this.#pairLeft;
    const pairRight = this.#pairRight;
    const listLength = this.#listLength;
    const lists = this.#lists;
    const wordCounts = this.#wordCounts;
    const newFromLeft = this.#newFromLeft;
    const newFromRight = this.#newFromRight;
    const found = this.#found;
    const firstNew = this.#numPairs;
    let numPairs = firstNew;
    let numFound = 0;

    for (let at = listStart; at < listEnd; at += 2) {
      const slot = lists[at];
      if (pairAt[slot] !== pair) continue;
      const word = lists[at + 1];
      const count = wordCounts[word];
      const middle = slot + leftLength;
      const next = slot + length;
      const leftNeighbour = symbols[slot - 1];
      const rightNeighbour = symbols[next];
      if (leftNeighbour >= 0) {
        const start = slot - tokenLength[leftNeighbour];
        pairCount[pairAt[start]] -= count;
        let born = newFromLeft[leftNeighbour];
        if (born === NO_PAIR) {
          born = numPairs++;
          newFromLeft[leftNeighbour] = born;
          pairLeft[born] = leftNeighbour;
          pairRight[born] = token;
        }
        pairCount[born] += count;
        listLength[born]++;
        pairAt[start] = born;
        found[numFound++] = born;
        found[numFound++] = start;
        found[numFound++] = word;
      }
      if (rightNeighbour >= 0) {
        pairCount[pairAt[middle]] -= count;
        let born = newFromRight[rightNeighbour];
        if (born === NO_PAIR) {
          born = numPairs++;
          newFromRight[rightNeighbour] = born;
          pairLeft[born] = token;
          pairRight[born] = rightNeighbour;
        }
        pairCount[born] += count;
        listLength[born]++;
        pairAt[slot] = born;
        found[numFound++] = born;
        found[numFound++] = slot;
        found[numFound++] = word;
      } else {
        pairAt[slot] = NO_PAIR;
      }
      pairAt[middle] = NO_PAIR;
      symbols[slot] = token;
      symbols[next - 1] = token;
    }
    pairCount[pair] = 0;
    this.#numPairs = numPairs;
    this.#writeLists(firstNew, numFound);

    for (let born = firstNew; born < numPairs; born++) {
      // one of the two neighbours is the new token itself, whose entry may be in use: (token, token) is from the left
      if (pairRight[born] === token) newFromLeft[pairLeft[born]] = NO_PAIR;
      else newFromRight[pairRight[born]] = NO_PAIR;
      this.#enqueue(born);
    }
  }

  /** Sorts the occurrences in `#found` into the lists of the pairs from `firstNew` on; their order is kept. */
  #writeLists(firstNew: number, numFound: number): void {
    this.#placeLists(firstNew);
    const numNew = this.#numPairs - firstNew;
    if (this.#cursor.length < numNew) this.#cursor = new Float64Array(2 * numNew);
    const cursor = this.#cursor;
    const listStart = this.#listStart;
    for (let i = 0; i < numNew; i++) cursor[i] = listStart[firstNew + i];
    const found = this.#found;
    const lists = this.#lists;
    for (let i = 0; i < numFound; i += 3) {
      const pair = found[i] - firstNew;
      const at = cursor[pair];
      lists[at] = found[i + 1];
      lists[at + 1] = found[i + 2];
      cursor[pair] = at + 2;
    }
  }
}

/**
 * Learns merges from pre-token counts.
 *
 * @throws the signal's reason when it is aborted.
 */
export function trainBpe(words: PretokenCounts, options: TrainBpeOptions): TrainBpeResult {
  const trainer = new BpeTrainer(words, options);
  let more = true;
  while (more) {
    options.signal?.throwIfAborted();
    more = trainer.run(STRIDE);
    options.onProgress?.(trainer.done, trainer.numMerges);
  }
  return trainer.result();
}

/** The same, letting other work run every few dozen milliseconds. */
export async function trainBpeAsync(words: PretokenCounts, options: TrainBpeOptions): Promise<TrainBpeResult> {
  const trainer = new BpeTrainer(words, options);
  let rested = performance.now();
  let more = true;
  while (more) {
    options.signal?.throwIfAborted();
    more = trainer.run(STRIDE);
    if (performance.now() - rested < 50) continue;
    options.onProgress?.(trainer.done, trainer.numMerges);
    await new Promise((resolve) => setTimeout(resolve));
    rested = performance.now();
  }
  options.onProgress?.(trainer.done, trainer.numMerges);
  return trainer.result();
}
