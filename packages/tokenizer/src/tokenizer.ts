/**
 * The public face of the package: a trained or imported byte-level BPE tokenizer.
 */
import { TokenizerError } from "./errors.ts";
import { checkId, joinTokens, StreamingDecoder } from "./decoder.ts";
import { EncodingSink, PieceEncoder } from "./encoder.ts";
import { TextFeed } from "./feed.ts";
import { ContentHash } from "./hash.ts";
import { optionsFromJson, parseJson, type TokenizerJson, vocabularyToJson } from "./json.ts";
import { type Pattern, resolvePattern } from "./patterns.ts";
import { SpecialMatcher } from "./special.ts";
import { type TextChunk, type TrainOptions, TrainingRun } from "./training.ts";
import { decodeUtf8 } from "./utf8.ts";
import { type TokenizerOptions, Vocabulary } from "./vocabulary.ts";

/** Code units or bytes of a long chunk that are taken in before ids are handed out. */
const STEP = 1 << 17;

/** A text for training: one chunk, or chunks of one text, cut anywhere. Separate documents with a special token. */
export type TextSource = TextChunk | Iterable<TextChunk>;

/** A typed array that ids can be written to. */
export type IdArray = Int32Array | Uint32Array | Uint16Array;

export class Tokenizer {
  readonly #vocabulary: Vocabulary;
  readonly #pattern: Pattern;
  readonly #specials: SpecialMatcher | null;
  readonly #encoder: PieceEncoder;
  readonly #sink: EncodingSink;
  readonly #feed: TextFeed;
  #vocab: ReadonlyMap<number, Uint8Array> | undefined;
  #merges: readonly [Uint8Array, Uint8Array][] | undefined;
  #hash: string | undefined;

  /**
   * A tokenizer from its vocabulary; ids are taken from `vocab` as they are.
   *
   * @throws if a byte, a part or the result of a merge, or a special token is not in the vocabulary, if two ids have the
   * same bytes, if a special token is empty, or if the pattern is unknown.
   */
  constructor(options: TokenizerOptions) {
    this.#pattern = resolvePattern(options.pattern ?? "gpt2");
    this.#vocabulary = new Vocabulary(options);
    const { specialTokens } = this.#vocabulary;
    this.#specials = specialTokens.size > 0 ? new SpecialMatcher(specialTokens) : null;
    this.#encoder = new PieceEncoder(this.#vocabulary);
    this.#sink = new EncodingSink(this.#encoder);
    this.#feed = new TextFeed(this.#pattern, this.#specials, this.#sink);
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

  /** Name of the pattern, or the regular expression. */
  get pattern(): string {
    return this.#pattern.id;
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
      this.#hash = hash.digest();
    }
    return this.#hash;
  }

  /** Ids of a text. Special tokens in it become their ids; lone surrogates count as U+FFFD. */
  encode(text: string): Int32Array<ArrayBuffer> {
    this.#run(text);
    return this.#sink.out.take();
  }

  /** Ids of a text in UTF-8. Malformed bytes are kept: they are encoded one by one. */
  encodeBytes(bytes: Uint8Array): Int32Array<ArrayBuffer> {
    this.#run(bytes);
    return this.#sink.out.take();
  }

  /**
   * Writes the ids of a text to the start of `target` and returns how many there are (never more than the text has bytes).
   *
   * @throws if they do not fit, or the vocabulary is too large for 16 bits.
   */
  encodeInto(text: TextChunk, target: IdArray): number {
    if (target instanceof Uint16Array && this.vocabSize > 65536) {
      throw new TokenizerError(`${this.vocabSize} ids do not fit in a Uint16Array: use a Uint32Array`);
    }
    this.#run(text);
    const { out } = this.#sink;
    const { total } = out;
    if (total > target.length) {
      throw new TokenizerError(`the text has ${total} tokens, the target has room for ${target.length}`);
    }
    out.copyTo(target);
    return total;
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
      for (let i = 0; i < chunk.length; i += STEP) {
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
    return new StreamingEncoder(sink, new TextFeed(this.#pattern, this.#specials, sink));
  }

  /**
   * The text of `ids`; malformed UTF-8 becomes U+FFFD.
   *
   * @throws naming the first unknown id.
   */
  decode(ids: Iterable<number>): string {
    return decodeUtf8(this.decodeBytes(ids));
  }

  /**
   * The bytes of `ids`, exactly.
   *
   * @throws naming the first unknown id.
   */
  decodeBytes(ids: Iterable<number>): Uint8Array<ArrayBuffer> {
    return joinTokens(this.#vocabulary, ids);
  }

  /** A decoder for ids that come one at a time; never emits half a character. */
  createDecoder(): StreamingDecoder {
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

  /** A plain object for `JSON.stringify`; see `TokenizerJson`. */
  toJSON(): TokenizerJson {
    return vocabularyToJson(this.#vocabulary, this.pattern, this.hash);
  }

  /** Encodes a whole text into the sink. */
  #run(text: TextChunk): void {
    this.#feed.reset(); // an error may have left something of the last text
    this.#sink.out.clear();
    this.#feed.push(text);
    this.#feed.finish();
  }
}

/** Encodes a text that comes in chunks, cut anywhere; made by `Tokenizer.createEncoder`. */
export class StreamingEncoder {
  readonly #sink: EncodingSink;
  readonly #feed: TextFeed;

  constructor(sink: EncodingSink, feed: TextFeed) {
    this.#sink = sink;
    this.#feed = feed;
  }

  /** Takes the next chunk and returns the ids that are certain by now; often none, as the text is gathered in a buffer. */
  push(chunk: TextChunk): Int32Array<ArrayBuffer> {
    this.#feed.push(chunk);
    return this.#sink.out.take();
  }

  /** Ends the text and returns the remaining ids. The encoder is then ready for another text. */
  finish(): Int32Array<ArrayBuffer> {
    this.#feed.finish();
    return this.#sink.out.take();
  }
}
