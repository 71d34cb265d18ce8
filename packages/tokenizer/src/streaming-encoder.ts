import type { EncodingSink, IdArray, IdArrayType } from "./encoder.ts";
import type { Feed } from "./feed.ts";
import type { TextChunk } from "./training.ts";

/** Encodes a text that comes in chunks, cut anywhere; made by `Tokenizer.createEncoder`. */
export class StreamingEncoder {
  readonly #sink: EncodingSink;
  readonly #feed: Feed;

  constructor(sink: EncodingSink, feed: Feed) {
    this.#sink = sink;
    this.#feed = feed;
  }

  /** Takes the next chunk and returns the ids that are certain by now; often none, as the text is gathered in a buffer. */
  push(chunk: TextChunk): Int32Array<ArrayBuffer>;
  push<Ids extends IdArray>(chunk: TextChunk, type: IdArrayType<Ids>): Ids;
  push(chunk: TextChunk, type: IdArrayType<IdArray> = Int32Array): IdArray {
    this.write(chunk);
    return this.#sink.out.take(type);
  }

  /** Takes the next chunk and leaves its ids to the next `push` or `finish`. */
  write(chunk: TextChunk): void {
    this.#feed.push(chunk);
  }

  /** Ends the text and returns the remaining ids. The encoder is then ready for another text. */
  finish(): Int32Array<ArrayBuffer>;
  finish<Ids extends IdArray>(type: IdArrayType<Ids>): Ids;
  finish(type: IdArrayType<IdArray> = Int32Array): IdArray {
    this.#feed.finish();
    return this.#sink.out.take(type);
  }
}
