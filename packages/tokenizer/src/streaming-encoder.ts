import type { EncodingSink } from "./encoder.ts";
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
