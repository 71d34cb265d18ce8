/**
 * The public face of the package: a trained or imported byte-level BPE tokenizer.
 */
import { TokenizerError } from "./errors.ts";
import { checkId, decodeIdsToBytes, decodeIdsToText, StreamingDecoder } from "./decoder.ts";
import { EncodingSink, type IdArray, PieceEncoder, type PieceMerge } from "./encoder.ts";
import type { Feed } from "./feed.ts";
import { ContentHash } from "./hash.ts";
import { optionsFromJson, parseJson, vocabularyToJson } from "./json.ts";
import { NFC } from "./nfc.ts";
import type { Normalizer } from "./normalizing-feed.ts";
import { type Pattern, resolvePattern } from "./patterns.ts";
import type { PretokenCounts } from "./pretokens.ts";
import { type SpecialOptions, Splitter } from "./splitter.ts";
import { StreamingEncoder } from "./streaming-encoder.ts";
import { type TextChunk, type TrainOptions, TrainingRun } from "./training.ts";
import { utf16Offsets } from "./utf8.ts";
import { type TokenizerOptions, Vocabulary } from "./vocabulary.ts";

/** Code units or bytes of a long chunk that are taken in before ids are handed out. */
const STEP = 1 << 17;

/** A text for training: one chunk, or chunks of one text, cut anywhere. Separate documents with a special token. */
export type TextSource = TextChunk | Iterable<TextChunk>;

export interface TokenOffsets {
  ids: Int32Array<ArrayBuffer>;
  /** In UTF-16 code units; one more than there are ids. */
  utf16: Int32Array<ArrayBuffer>;
  /** In bytes of the text's UTF-8; one more than there are ids. */
  bytes: Int32Array<ArrayBuffer>;
}

export interface DecodeOptions {
  /**
   * Whether the ids go on from others; default false. Some tokenizers (sentencepiece.ts) put a blank in front of a text,
   * which decoding takes away from its beginning alone.
   */
  continues?: boolean;
}

/** What a tokenizer is made of, where that is not what its options say; see sentencepiece.ts and file-parts.ts. */
export interface TokenizerParts {
  vocabulary: Vocabulary;
  pattern: Pattern;
  normalizer: Normalizer;
  merge: PieceMerge;
  /** For large texts on several threads; see `PieceEncoder`. */
  touch: boolean;
}

/** What a worker makes the same tokenizer of (see file-parts.ts), as a structured clone. */
export interface TokenizerTables {
  vocabulary: object;
  pattern: string;
  normalization: "NFC" | null;
  normalizedSpecialTokens: readonly string[];
}

export class Tokenizer {
  readonly #vocabulary: Vocabulary;
  readonly #splitter: Splitter;
  /** Normalization form C, or none. */
  readonly normalization: "NFC" | null;
  readonly #encoder: PieceEncoder;
  readonly #sink: EncodingSink;
  readonly #feed: Feed;
  /** The feed for the special tokens of the last call that named some. */
  #otherFeed: { key: string; feed: Feed } | undefined;
  #vocab: ReadonlyMap<number, Uint8Array> | undefined;
  #merges: readonly [Uint8Array, Uint8Array][] | undefined;
  #hash: string | undefined;

  /**
   * A tokenizer from its vocabulary; ids are taken from `vocab` as they are.
   *
   * @throws if a byte, a part or the result of a merge, or a special token is not in the vocabulary, if two ids have the
   * same bytes, if a special token is empty, or if the pattern is unknown.
   */
  constructor(options: TokenizerOptions, parts?: Partial<TokenizerParts>) {
    const { pattern = "gpt2", normalization = null, normalizedSpecialTokens = [] } = options;
    if (normalization !== null && normalization !== "NFC") {
      throw new TokenizerError(`normalization is ${JSON.stringify(normalization)}: it must be "NFC" or null`);
    }
    const resolved = parts?.pattern ?? resolvePattern(pattern);
    this.#vocabulary = parts?.vocabulary ?? new Vocabulary(options);
    this.normalization = normalization;
    const normalizer = parts?.normalizer ?? (normalization && NFC);
    this.#splitter = new Splitter(resolved, normalizer, this.specialTokens, normalizedSpecialTokens);
    this.#encoder = new PieceEncoder(this.#vocabulary, parts?.merge, parts?.touch);
    this.#sink = new EncodingSink(this.#encoder);
    this.#feed = this.#splitter.createFeed(this.#sink);
  }

  /**
   * Learns a vocabulary. Chunks of an iterable are one text; no matter where it is cut. From an async iterable the result
   * is a promise, and other work runs in between; otherwise the call returns the tokenizer itself.
   *
   * @throws on contradicting options, before anything is read, and the signal's reason when it is aborted.
   */
  static train(source: TextSource, options: TrainOptions): Tokenizer;
  static train(source: AsyncIterable<TextChunk>, options: TrainOptions): Promise<Tokenizer>;
  static train(source: TextSource | AsyncIterable<TextChunk>, options: TrainOptions): Tokenizer | Promise<Tokenizer> {
    const run = new TrainingRun(options);
    if (typeof source === "string" || source instanceof Uint8Array) {
      run.push(source);
    } else if (Symbol.asyncIterator in source) {
      return (async () => {
        for await (const chunk of source) run.push(chunk);
        return new Tokenizer(await run.finishAsync());
      })();
    } else {
      for (const chunk of source) run.push(chunk);
    }
    return new Tokenizer(run.finish());
  }

  /** Learns a vocabulary from counts, which must have been made with the pattern and the special tokens of the options. */
  static trainFromCounts(counts: PretokenCounts, options: TrainOptions): Tokenizer {
    return new Tokenizer(new TrainingRun(options).finish(counts));
  }

  /**
   * The tokenizer that `toJSON` described, from the parsed value or from the JSON text.
   *
   * @throws if anything is missing, damaged or contradictory, naming it.
   */
  static fromJSON(json: unknown): Tokenizer {
    const { options, hash } = optionsFromJson(typeof json === "string" ? parseJson(json) : json);
    const tokenizer = new Tokenizer(options);
    if (tokenizer.hash !== hash) {
      throw new TokenizerError(
        `corrupt tokenizer file: its content has the hash ${tokenizer.hash}, but it says ${hash}`,
      );
    }
    return tokenizer;
  }

  /** Greatest id + 1: the number of rows that an embedding needs. */
  get vocabSize(): number {
    return this.#vocabulary.size;
  }

  /** Ids of the special tokens, in the order given. */
  get specialTokens(): ReadonlyMap<string, number> {
    return this.#vocabulary.specialTokens;
  }

  /** For workers; not of a SentencePieceTokenizer, which is more than that. */
  get tables(): TokenizerTables {
    const { pattern, normalization, normalizedSpecialTokens } = this;
    return { vocabulary: this.#vocabulary, pattern, normalization, normalizedSpecialTokens };
  }

  /** Name of the pattern, or the regular expression. */
  get pattern(): string {
    return this.#splitter.pattern.id;
  }

  /** Special tokens that are found in the text when it is normalized, after all others. */
  get normalizedSpecialTokens(): readonly string[] {
    return this.#splitter.normalizedSpecials;
  }

  /** Bytes of every token by id, in the order of the ids. A copy. */
  get vocab(): ReadonlyMap<number, Uint8Array> {
    if (this.#vocab === undefined) {
      const vocab = new Map<number, Uint8Array>();
      for (let id = 0; id < this.vocabSize; id++) {
        if (this.#vocabulary.has(id)) vocab.set(id, this.#vocabulary.tokenBytes(id));
      }
      this.#vocab = vocab;
    }
    return this.#vocab;
  }

  /** Pairs of tokens in the order in which they are merged. A copy. */
  get merges(): readonly [left: Uint8Array, right: Uint8Array][] {
    if (this.#merges === undefined) {
      const { merges } = this.#vocabulary;
      this.#merges = Array.from({ length: merges.length / 3 }, (_, i) => [
        this.#vocabulary.tokenBytes(merges[3 * i]),
        this.#vocabulary.tokenBytes(merges[3 * i + 1]),
      ]);
    }
    return this.#merges;
  }

  /** 16 hexadecimal digits over all that decides how text is encoded: equal hashes, equal ids. */
  get hash(): string {
    if (this.#hash === undefined) {
      const vocabulary = this.#vocabulary;
      const hash = new ContentHash();
      hash.text(this.pattern);
      hash.number(vocabulary.size);
      for (let id = 0; id < vocabulary.size; id++) {
        const start = vocabulary.start[id];
        hash.bytes(vocabulary.bytes.subarray(start, start + vocabulary.length[id]));
      }
      hash.number(vocabulary.merges.length);
      for (const id of vocabulary.merges) hash.number(id);
      for (const id of [...vocabulary.specialTokens.values()].sort((a, b) => a - b)) hash.number(id);
      if (this.normalization !== null) {
        for (const text of [this.normalization, ...[...this.normalizedSpecialTokens].sort()]) hash.text(text);
      }
      this.#hash = hash.digest();
    }
    return this.#hash;
  }

  /**
   * Ids of a text. By default every special token in it becomes its id; with options, those of `allowedSpecial` do, those
   * of `disallowedSpecial` are errors, and any other is text. Lone surrogates count as U+FFFD.
   *
   * @throws if the text contains a disallowed special token, or an allowed one is not special.
   */
  encode(text: string, options?: SpecialOptions): Int32Array<ArrayBuffer> {
    return this.#ids(text, this.#feedFor(text, options));
  }

  /** Ids of a text in which special tokens are text like any other. */
  encodeOrdinary(text: TextChunk): Int32Array<ArrayBuffer> {
    return this.#ids(text, this.#feedOf(new Set()));
  }

  /** Ids of each text, as `encode` gives them. */
  encodeBatch(texts: Iterable<string>, options?: SpecialOptions): Int32Array<ArrayBuffer>[] {
    return Array.from(texts, (text) => this.encode(text, options));
  }

  /** Number of ids of a text, as `encode` gives them, without an array of them. */
  count(text: TextChunk, options?: SpecialOptions): number {
    return this.#countUpTo(text, Infinity, options);
  }

  /** The number of ids of a text if it is at most `limit`, otherwise false; reads little more than it must. */
  isWithinLimit(text: TextChunk, limit: number, options?: SpecialOptions): number | false {
    const count = this.#countUpTo(text, limit, options);
    return count <= limit && count;
  }

  /**
   * The longest beginning of a text that ends with one of its tokens, or with the last whole character in it, and has at
   * most `maxTokens` ids of its own. Reads little more than it must.
   *
   * @throws if `maxTokens` is not a whole number of at least 0.
   */
  truncate(text: string, maxTokens: number): string {
    if (!Number.isInteger(maxTokens) || maxTokens < 0) {
      throw new TokenizerError(`maxTokens is ${maxTokens}: it must be a whole number of at least 0`);
    }
    // a token may be long: read on until there are more tokens than asked for, or the text ends
    let read = Math.min(text.length, 8 * maxTokens + 256);
    while (read < text.length && this.isWithinLimit(text.slice(0, read), maxTokens + 64) !== false) {
      read = Math.min(text.length, 2 * read);
    }
    // the last tokens of a cut text may be others than the whole's: what follows is checked on the text itself
    const { ids, utf16 } = this.offsets(text.slice(0, 2 * read));
    if (ids.length <= maxTokens) return text;
    for (let kept = maxTokens; kept > 0; kept--) {
      const start = text.slice(0, utf16[kept]);
      if (this.isWithinLimit(start, maxTokens) !== false) return start;
    }
    return "";
  }

  /**
   * Where each token of a text starts, and at the end of each array where the last one ends: in UTF-16 code units of the
   * text (of a token that starts within a character: where the character does) and in bytes of its UTF-8. Of a token that
   * starts within characters which normalization has changed: where they start.
   */
  offsets(text: string, options?: SpecialOptions): TokenOffsets {
    const allowed = this.#splitter.allowed(text, options);
    const ids = this.#ids(text, this.#feedOf(allowed));
    const bytes = this.#splitter.byteOffsets(text, ids, this.#vocabulary.length, allowed);
    return { ids, utf16: utf16Offsets(text, bytes), bytes };
  }

  /** Ids of a text in UTF-8. Malformed bytes are kept: they are encoded one by one. */
  encodeBytes(bytes: Uint8Array): Int32Array<ArrayBuffer> {
    return this.#ids(bytes, this.#feed);
  }

  /**
   * Writes the ids of a text to the start of `target` and returns how many there are (never more than the text has bytes;
   * with a normalization, than three times as many). Up to three elements behind them may be overwritten.
   *
   * @throws if they do not fit, or the vocabulary is too large for 16 bits.
   */
  encodeInto(text: TextChunk, target: IdArray): number {
    if (target instanceof Uint16Array && this.vocabSize > 65536) {
      throw new TokenizerError(`${this.vocabSize} ids do not fit in a Uint16Array: use a Uint32Array`);
    }
    const { out } = this.#sink;
    if (!(target instanceof Uint16Array)) {
      out.begin(new Int32Array(target.buffer, target.byteOffset, target.length));
    } else {
      out.clear();
    }
    this.#feed.reset();
    try {
      this.#feed.push(text);
      this.#feed.finish();
      const { total } = out;
      if (total > target.length) {
        throw new TokenizerError(`the text has ${total} tokens, the target has room for ${target.length}`);
      }
      out.copyTo(target);
      return total;
    } finally {
      out.clear();
    }
  }

  /**
   * Ids of a text that comes in chunks, cut anywhere, even within a special token or a surrogate pair: exactly the ids of
   * the whole. Holds a buffer of fixed size, or of the size of the longest piece. With a custom pattern pieces are only
   * certain at special tokens, so the text between two of them is held.
   */
  *encodeIterable(chunks: Iterable<string>): Generator<number, void, undefined> {
    for (const ids of this.encodeChunks(chunks)) yield* ids;
  }

  /** The same for strings or bytes, many ids at a time. */
  *encodeChunks(chunks: Iterable<TextChunk>): Generator<Int32Array<ArrayBuffer>, void, undefined> {
    const encoder = this.createEncoder();
    for (const chunk of chunks) {
      // so written, the loop runs, and fails, for what has no length because it is no text
      for (let i = 0; !(i >= chunk.length); i += STEP) {
        const ids = encoder.push(
          typeof chunk === "string" ? chunk.substring(i, i + STEP) : chunk.subarray(i, i + STEP),
        );
        if (ids.length > 0) yield ids;
      }
    }
    const ids = encoder.finish();
    if (ids.length > 0) yield ids;
  }

  /** An encoder for a text that comes in chunks; independent of every other call. */
  createEncoder(): StreamingEncoder {
    const sink = new EncodingSink(this.#encoder);
    return new StreamingEncoder(sink, this.#splitter.createFeed(sink));
  }

  /**
   * The text of `ids`; malformed UTF-8 becomes U+FFFD.
   *
   * @throws naming the first unknown id.
   */
  decode(ids: Iterable<number>): string {
    return decodeIdsToText(this.#vocabulary, ids);
  }

  /**
   * The bytes of `ids`, exactly.
   *
   * @throws naming the first unknown id.
   */
  decodeBytes(ids: Iterable<number>, _options?: DecodeOptions): Uint8Array<ArrayBuffer> {
    return decodeIdsToBytes(this.#vocabulary, ids);
  }

  /** A decoder for ids that come one at a time; never emits half a character. */
  createDecoder(_options?: DecodeOptions): StreamingDecoder {
    return new StreamingDecoder(this);
  }

  /**
   * The bytes of one token.
   *
   * @throws if there is no such id.
   */
  tokenBytes(id: number): Uint8Array<ArrayBuffer> {
    checkId(this.#vocabulary, id);
    return this.#vocabulary.tokenBytes(id);
  }

  /** A plain object for `JSON.stringify`: a `TokenizerJson`. */
  toJSON(): object {
    return vocabularyToJson(this.#vocabulary, this, this.hash);
  }

  /** Turns a stream of strings or bytes into one of arrays of ids. */
  encoderStream(): TransformStream<TextChunk, Int32Array<ArrayBuffer>> {
    const encoder = this.createEncoder();
    const hand = (ids: Int32Array<ArrayBuffer>, controller: TransformStreamDefaultController): void => {
      if (ids.length > 0) controller.enqueue(ids);
    };
    return new TransformStream({
      transform: (chunk, controller) => hand(encoder.push(chunk), controller),
      flush: (controller) => hand(encoder.finish(), controller),
    });
  }

  /** Turns a stream of ids, or of lists of them, into one of strings; never half a character. */
  decoderStream(): TransformStream<number | Iterable<number>, string> {
    const decoder = this.createDecoder();
    return new TransformStream({
      transform(chunk, controller) {
        let text = "";
        for (const id of typeof chunk === "number" ? [chunk] : chunk) text += decoder.push(id);
        if (text !== "") controller.enqueue(text);
      },
      flush(controller) {
        const text = decoder.finish();
        if (text !== "") controller.enqueue(text);
      },
    });
  }

  /** Ids of a whole text. */
  #ids(text: TextChunk, feed: Feed): Int32Array<ArrayBuffer> {
    feed.reset(); // an error may have left something of the last text
    this.#sink.out.clear();
    feed.push(text);
    feed.finish();
    return this.#sink.out.take();
  }

  /** Number of ids of a text; where there are more than `limit`, some number greater than that. */
  #countUpTo(text: TextChunk, limit: number, options: SpecialOptions | undefined): number {
    const feed = this.#feedFor(text, options);
    const { out } = this.#sink;
    feed.reset();
    out.clear();
    let count = 0;
    if (!text?.length) feed.push(text); // it refuses what is no text, which the loop would take for an empty one
    for (let i = 0; i < text.length && count <= limit; i += STEP) {
      feed.push(typeof text === "string" ? text.substring(i, i + STEP) : text.subarray(i, i + STEP));
      count += out.total;
      out.clear();
    }
    if (count <= limit) feed.finish();
    count += out.total;
    out.clear();
    return count;
  }

  /** A feed that knows the special tokens that the options allow in this text. */
  #feedFor(text: TextChunk, options: SpecialOptions | undefined): Feed {
    return options === undefined ? this.#feed : this.#feedOf(this.#splitter.allowed(text, options));
  }

  /** A feed that knows these special tokens; the last one is kept. */
  #feedOf(tokens: ReadonlySet<string>): Feed {
    if (tokens.size === this.specialTokens.size) return this.#feed;
    const key = JSON.stringify([...tokens]);
    if (this.#otherFeed?.key !== key) {
      this.#otherFeed = { key, feed: this.#splitter.createFeed(this.#sink, tokens) };
    }
    return this.#otherFeed.feed;
  }
}
