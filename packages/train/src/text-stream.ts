/**
 * Text as its tokens come: whole characters alone, and nothing from the first stop string on. An id that the tokenizer
 * lacks is no text: a model may have more rows than there are tokens.
 */
import type { StreamingDecoder, Tokenizer } from "@mantou/tokenizer";

export class TextStream {
  #decoder: StreamingDecoder;
  /** What may yet turn out to be the beginning of a stop string. */
  #held = "";
  /** Whether a stop string has come. */
  stopped = false;

  /**
   * @param stop strings that end the text; they are not part of it
   * @param continues whether the text goes on from a prompt
   */
  constructor(
    private readonly tokenizer: Tokenizer,
    readonly stop: readonly string[] = [],
    continues = false,
  ) {
    this.#decoder = tokenizer.createDecoder({ continues });
  }

  /** Takes a token and returns the text that is certain by now, often none. */
  push(token: number): string {
    return this.tokenizer.vocab.has(token) ? this.#take(this.#decoder.push(token)) : "";
  }

  /** The rest, when no more tokens come. */
  finish(): string {
    const text = this.#take(this.#decoder.finish()) + this.#held;
    this.#held = "";
    return text;
  }

  #take(piece: string): string {
    if (this.stopped) return "";
    const text = this.#held + piece;
    // The one that is complete first counts, however the text is cut into tokens; of several the longest.
    const found = this.stop
      .map((each) => ({ begin: text.indexOf(each), length: each.length }))
      .filter(({ begin }) => begin >= 0)
      .sort((a, b) => a.begin + a.length - (b.begin + b.length) || a.begin - b.begin);
    if (found[0] !== undefined) {
      this.stopped = true;
      this.#held = "";
      return text.slice(0, found[0].begin);
    }
    const kept = Math.max(0, ...this.stop.map((each) => overlap(text, each)));
    this.#held = text.slice(text.length - kept);
    return text.slice(0, text.length - kept);
  }
}

/** Length of the longest end of `text` that `stop` begins with. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
