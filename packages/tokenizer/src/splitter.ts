/**
 * How a tokenizer's texts are split: special tokens, normalization, pattern. Makes the feeds that do it, and tells what
 * becomes of special tokens in a call.
 */
import { TokenizerError } from "./errors.ts";
import { type Feed, type Sink, TextFeed } from "./feed.ts";
import { type Normalizer, NormalizingFeed, toOriginal } from "./normalizing-feed.ts";
import type { Pattern } from "./patterns.ts";
import { SpecialMatcher } from "./special.ts";
import { encodeUtf8 } from "./utf8.ts";

/** What becomes of special tokens in a text, in tiktoken's sense. */
export interface SpecialOptions {
  /** Those that become their ids; default "all". */
  allowedSpecial?: "all" | Iterable<string>;
  /** Those that are errors, where they are not allowed; default "all". Empty: they are text. */
  disallowedSpecial?: "all" | Iterable<string>;
}

export class Splitter {
  readonly pattern: Pattern;
  readonly #normalizer: Normalizer | null;
  readonly #specialTokens: ReadonlyMap<string, number>;
  /** Special tokens that are found in normalized text; without a normalizer, none. */
  readonly normalizedSpecials: readonly string[];

  /** @throws if one of `normalizedSpecials` is no special token */
  constructor(
    pattern: Pattern,
    normalizer: Normalizer | null,
    specialTokens: ReadonlyMap<string, number>,
    normalizedSpecials: readonly string[],
  ) {
    const stranger = normalizedSpecials.find((token) => !specialTokens.has(token));
    if (stranger !== undefined) {
      throw new TokenizerError(`normalizedSpecialTokens: ${JSON.stringify(stranger)} is no special token`);
    }
    this.pattern = pattern;
    this.#normalizer = normalizer;
    this.#specialTokens = specialTokens;
    this.normalizedSpecials = normalizer === null ? [] : [...normalizedSpecials];
  }

  /** A feed that finds some of the special tokens; default all. */
  createFeed(sink: Sink, tokens: Iterable<string> = this.#specialTokens.keys()): Feed {
    const [plain, normalized] = this.#matchers(tokens);
    return this.#normalizer === null
      ? new TextFeed(this.pattern, plain, sink)
      : new NormalizingFeed(this.#normalizer, this.pattern, plain, normalized, sink);
  }

  /** The special tokens that a call allows. @throws if the text has one that it disallows, or it allows what is none */
  allowed(
    text: string | Uint8Array,
    { allowedSpecial = "all", disallowedSpecial = "all" }: SpecialOptions = {},
  ): Set<string> {
    const all = this.#specialTokens;
    const allowed = new Set(allowedSpecial === "all" ? all.keys() : allowedSpecial);
    for (const token of allowed) {
      if (!all.has(token)) {
        throw new TokenizerError(`allowedSpecial: ${JSON.stringify(token)} is no special token of this tokenizer`);
      }
    }
    const disallowed = [...(disallowedSpecial === "all" ? all.keys() : disallowedSpecial)];
    const searched = disallowed.filter((token) => !allowed.has(token) && token !== "");
    if (searched.length > 0) {
      const string = typeof text === "string" ? text : new TextDecoder().decode(text);
      const found = searched.find((token) =>
        this.normalizedSpecials.includes(token)
          ? this.#normalizer!.text(string).includes(this.#normalizer!.text(token))
          : string.includes(token),
      );
      if (found !== undefined) {
        throw new TokenizerError(
          `the text contains the special token ${JSON.stringify(found)}, which is not allowed: name it in ` +
            "allowedSpecial to encode it as such, or leave it out of disallowedSpecial to take it as text",
        );
      }
    }
    return allowed;
  }

  /**
   * Where each token of a text starts, and the end, in bytes of its UTF-8.
   *
   * @param lengths bytes of each token, by id
   * @param allowed the special tokens that were found
   */
  byteOffsets(text: string, ids: Int32Array, lengths: Int32Array, allowed: Iterable<string>): Int32Array<ArrayBuffer> {
    const normalizer = this.#normalizer;
    const normalized = new Map(
      this.normalizedSpecials.map((token) => [
        this.#specialTokens.get(token)!,
        encodeUtf8(normalizer!.text(token)).length,
      ]),
    );
    const offsets = new Int32Array(ids.length + 1);
    for (let i = 0; i < ids.length; i++) offsets[i + 1] = offsets[i] + (normalized.get(ids[i]) ?? lengths[ids[i]]);
    if (normalizer !== null) toOriginal(offsets, text, normalizer, this.#matchers(allowed)[0]);
    return offsets;
  }

  /** What finds these special tokens in a text as it is, and what finds those that are looked for afterwards. */
  #matchers(tokens: Iterable<string>): [plain: SpecialMatcher | null, normalized: SpecialMatcher | null] {
    const [plain, normalized] = [new Map<string, number>(), new Map<string, number>()];
    for (const token of tokens) {
      const id = this.#specialTokens.get(token)!;
      if (this.normalizedSpecials.includes(token)) normalized.set(this.#normalizer!.text(token), id);
      else plain.set(token, id);
    }
    const matcher = (map: Map<string, number>): SpecialMatcher | null =>
      map.size > 0 ? new SpecialMatcher(map) : null;
    return [matcher(plain), matcher(normalized)];
  }
}
