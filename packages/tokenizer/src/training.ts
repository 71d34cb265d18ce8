/**
 * From texts to a vocabulary: checks the options, counts pre-tokens, runs the trainer and adds the special tokens. Ids
 * are the bytes 0–255, the merges in order, then the special tokens in the order given, each once.
 */
import { TokenizerError } from "./errors.ts";
import { type PretokenCounts, PretokenStream } from "./pretokens.ts";
import {
  checkMerging,
  type Ties,
  trainBpe,
  trainBpeAsync,
  type TrainBpeOptions,
  type TrainBpeResult,
} from "./train.ts";
import { encodeUtf8 } from "./utf8.ts";
import { distinctTokens, MAX_IDS, type TokenizerOptions } from "./vocabulary.ts";

/** Text, or its UTF-8 bytes. */
export type TextChunk = string | Uint8Array;

export interface TrainProgress {
  phase: "count" | "merge";
  /** Counting: bytes (of strings: UTF-16 code units) read so far. Merging: merges learnt so far. */
  done: number;
  /** Merging: merges asked for. Counting: bytes in all where that is known, otherwise undefined. */
  total: number | undefined;
}

export interface TrainOptions {
  /** Size of the vocabulary, bytes and special tokens included; a text too small for it yields fewer merges. */
  vocabSize: number;
  /** Tokens that cut the text and get ids behind the merges; a token given twice counts once. */
  specialTokens?: readonly string[];
  /** Name of a pattern or the source of a regular expression; default "gpt2". */
  pattern?: string;
  /** Pairs that occur less often are not merged; default 1. */
  minFrequency?: number;
  /** What decides between pairs of the same count; default "bytes". */
  ties?: Ties;
  /**
   * Threads that count files: of `trainFromFiles`, in @mantou/tokenizer/files; this one among them; default 1. Texts that the
   * program holds or streams are counted by the thread that has them, whatever this says. The merges are the same.
   */
  workers?: number;
  /** Called now and then, at least once per phase. */
  onProgress?: (progress: TrainProgress) => void;
  /** Stops the training; the call then throws the signal's reason. */
  signal?: AbortSignal;
}

/** A training run up to the point where the counts are complete. */
export class TrainingRun {
  readonly #options: TrainOptions;
  readonly #specialTokens: string[];
  readonly #mergeOptions: TrainBpeOptions;
  readonly #stream: PretokenStream;
  readonly #total: number | undefined;
  #read = 0;

  /**
   * @param totalBytes size of the whole text, if known, for the progress.
   * @throws if the options contradict each other, before anything is read.
   */
  constructor(options: TrainOptions, totalBytes?: number) {
    const { vocabSize, specialTokens = [], pattern, minFrequency, ties, onProgress, signal } = options;
    this.#specialTokens = [...distinctTokens(specialTokens)];
    for (const token of this.#specialTokens) {
      const bytes = encodeUtf8(token);
      if (bytes.length === 1) {
        throw new TokenizerError(
          `special token ${JSON.stringify(token)} is a single byte, which is token ${bytes[0]} already`,
        );
      }
    }
    const least = 256 + this.#specialTokens.length;
    if (!Number.isInteger(vocabSize) || vocabSize < least || vocabSize > MAX_IDS) {
      throw new TokenizerError(
        `vocabSize is ${vocabSize}: it must be a whole number of at least ${least} ` +
          `(256 bytes and ${this.#specialTokens.length} special tokens) and at most ${MAX_IDS}`,
      );
    }
    this.#options = options;
    this.#mergeOptions = {
      numMerges: vocabSize - least,
      minFrequency,
      ties,
      signal,
      onProgress: onProgress && ((done, total) => onProgress({ phase: "merge", done, total })),
    };
    checkMerging(this.#mergeOptions);
    this.#stream = new PretokenStream({ specialTokens: this.#specialTokens, pattern });
    this.#total = totalBytes;
  }

  push(chunk: TextChunk): void {
    this.#options.signal?.throwIfAborted();
    this.#stream.push(chunk);
    this.#read += chunk.length;
    this.#options.onProgress?.({ phase: "count", done: this.#read, total: this.#total });
  }

  /** Ends a text among several, a file: no token goes across. */
  endText(): void {
    this.#stream.endText();
  }

  /** @param counts what has been counted elsewhere, by the same pattern and special tokens, instead of what was pushed. */
  finish(counts: PretokenCounts = this.#stream.finish()): TokenizerOptions {
    return this.#withSpecials(trainBpe(counts, this.#mergeOptions));
  }

  /** The same, letting other work run in between. */
  async finishAsync(counts: PretokenCounts = this.#stream.finish()): Promise<TokenizerOptions> {
    return this.#withSpecials(await trainBpeAsync(counts, this.#mergeOptions));
  }

  #withSpecials({ vocab, merges }: TrainBpeResult): TokenizerOptions {
    for (const token of this.#specialTokens) vocab.set(vocab.size, encodeUtf8(token));
    return { vocab, merges, specialTokens: this.#specialTokens, pattern: this.#options.pattern };
  }
}
