/**
 * Hugging Face's `tokenizer.json` for byte-level BPE: what GPT-2, Llama 3, Qwen and their relatives ship. Read: the
 * vocabulary, the merges, the added tokens, the pattern and an NFC normalizer. What a tokenizer of ours does not do is
 * refused by name; only what is done to ids afterwards (post-processor, truncation, padding) is passed over.
 */
import { readToken, writeToken } from "./byte-alphabet.ts";
import { writeVocabulary } from "./gpt2-format.ts";
import { checkOrder, fail, type Json, list, object, parseFile, readTokens, writeAdded } from "./huggingface-json.ts";
import { PATTERN_NAMES, resolvePattern } from "./patterns.ts";
import { SentencePieceTokenizer } from "./sentencepiece.ts";
import { parseSentencePiece } from "./sentencepiece-format.ts";
import { Tokenizer } from "./tokenizer.ts";
import { encodeUtf8 } from "./utf8.ts";
import { NO_RANK, showToken, type TokenizerOptions, Vocabulary } from "./vocabulary.ts";

/**
 * What Oniguruma, by which Hugging Face splits, takes for something else than JavaScript does: digits and word characters of
 * other scripts, ends of lines, names of classes. Undefined if there is nothing of the kind.
 */
function differsInOniguruma(source: string): string | undefined {
  let depth = 0; // of classes
  for (const [part] of source.matchAll(/\\[^]|\[\^?\]|\[:|[^]/g)) {
    if (/^(?:\\[bBdDwW]|\[\^?\])$/.test(part) || (depth > 0 ? part === "[:" : /^[.^$]$/.test(part))) return part;
    if (part.startsWith("[")) depth++;
    else if (part === "]") depth--;
  }
  return undefined;
}

/** The pattern as it stands in the file. @throws if it means something else there */
function patternForOniguruma(pattern: string): string {
  const { id, source } = resolvePattern(pattern);
  const part = id === source ? differsInOniguruma(source) : undefined;
  if (part !== undefined) {
    fail(
      `the pattern ${JSON.stringify(source)} has ${part}, which Oniguruma and JavaScript read differently: spell it out`,
    );
  }
  return source;
}

/** The pattern that a pre-tokenizer splits by. */
function patternOf(preTokenizer: Json): string {
  const steps =
    preTokenizer.type === "Sequence"
      ? list(preTokenizer.pretokenizers, "pre_tokenizer.pretokenizers").map((step) => object(step, "a pre_tokenizer"))
      : [preTokenizer];
  const last = steps[steps.length - 1];
  if (last?.type !== "ByteLevel") {
    fail(
      `the pre_tokenizer is ${JSON.stringify(last?.type)}: only byte-level BPE can be read (its last step is ByteLevel)`,
    );
  }
  if (last.add_prefix_space === true) fail("add_prefix_space is true: texts would get a blank in front");
  const splits = steps.slice(0, -1);
  if (splits.length === 0 && last.use_regex !== false) return "gpt2";
  const [split] = splits;
  if (splits.length !== 1 || split.type !== "Split" || last.use_regex !== false) {
    fail("the pre_tokenizer is a sequence other than a Split and a ByteLevel without a pattern");
  }
  const { Regex: source } = object(split.pattern, "the Split's pattern");
  if (typeof source !== "string") fail("the Split's pattern is no regular expression");
  const { id } = resolvePattern(source);
  // Removed with invert keeps the matches alone: the same where everything matches, as with the built-in patterns
  const keepsMatches = split.behavior === "Removed" && split.invert === true && PATTERN_NAMES.includes(id);
  if (!keepsMatches && (split.behavior !== "Isolated" || split.invert === true)) {
    fail(`the Split's behavior is ${JSON.stringify(split.behavior)}, expected "Isolated"`);
  }
  patternForOniguruma(source);
  return id;
}

/** What the normalizer does, alone or as the one step of a sequence. */
function normalizationOf(normalizer: unknown): "NFC" | null {
  if (normalizer == null) return null;
  const { type, normalizers } = object(normalizer, "normalizer");
  if (type === "NFC") return type;
  if (type !== "Sequence") fail(`the normalizer ${JSON.stringify(type)} is not supported`);
  const steps = list(normalizers, "normalizer.normalizers");
  if (steps.length > 1) fail("the normalizer is a sequence of several, which is not supported");
  return normalizationOf(steps[0]);
}

/**
 * A piece that is a token is that token here; without `ignore_merges` the merges have to make it, which they do of every
 * token of a vocabulary that was trained.
 *
 * @throws naming a token that would be found here and not there
 */
function checkMerged(options: TokenizerOptions): void {
  const vocabulary = new Vocabulary(options);
  const apart: number[] = [];
  for (const [id, bytes] of options.vocab) {
    if (!vocabulary.isOrdinary(id)) continue;
    const ids = Array.from(bytes, (byte) => vocabulary.byteIds[byte]);
    for (let rank = 0; rank !== NO_RANK;) {
      let at = 0;
      rank = NO_RANK;
      for (let i = 0; i + 1 < ids.length; i++) {
        const other = vocabulary.rankOf(ids[i], ids[i + 1]);
        if (other < rank) [rank, at] = [other, i];
      }
      if (rank !== NO_RANK) ids.splice(at, 2, vocabulary.merges[3 * rank + 2]);
    }
    if (ids.length > 1) apart.push(id);
  }
  if (apart.length === 0) return;
  const tokenizer = new Tokenizer(options);
  for (const id of apart) {
    const bytes = tokenizer.tokenBytes(id);
    // where it is no piece, nothing becomes of it here either
    if (tokenizer.encodeOrdinary(bytes).length > 1) continue;
    fail(
      `the merges do not make token ${id} (${showToken(bytes)}), and model.ignore_merges is not true: ` +
        "such a vocabulary is not supported",
    );
  }
}

/**
 * A tokenizer's options from the text of a `tokenizer.json`.
 *
 * @throws naming the field that is wrong, or that asks for something else than byte-level BPE.
 */
export function parseHuggingFace(text: string): TokenizerOptions {
  const { file, model } = parseFile(text);
  if (model.byte_fallback === true) fail("byte_fallback is true: this is not byte-level BPE");
  const normalization = normalizationOf(file.normalizer);
  const tokens = readTokens(file, model);
  if (normalization === null) checkOrder(tokens);
  const vocab = new Map(Array.from(tokens.added, ([token, id]) => [id, encodeUtf8(token)]));
  for (const [id, token] of tokens.vocab) vocab.set(id, readToken(token));
  const merges = tokens.merges.map(([left, right]): [Uint8Array, Uint8Array] => [readToken(left), readToken(right)]);
  const pattern = patternOf(object(file.pre_tokenizer, "pre_tokenizer"));
  const options: TokenizerOptions = {
    vocab,
    merges,
    specialTokens: [...tokens.added.keys()],
    pattern,
    normalization,
    normalizedSpecialTokens: tokens.normalized,
  };
  if (model.ignore_merges !== true) checkMerged(options);
  return options;
}

/** The tokenizer of a `tokenizer.json`, byte-level or SentencePiece's. @throws as `parseHuggingFace` does */
export function fromHuggingFace(text: string): Tokenizer {
  const { file, model } = parseFile(text);
  return model.byte_fallback === true
    ? new SentencePieceTokenizer(parseSentencePiece(file, model))
    : new Tokenizer(parseHuggingFace(text));
}

/** The text of a `tokenizer.json` that Hugging Face's tokenizers loads to give the same ids. */
export function toHuggingFace(tokenizer: Tokenizer): string {
  if (tokenizer instanceof SentencePieceTokenizer) return `${JSON.stringify(tokenizer)}\n`;
  const byteLevel = (useRegex: boolean): Json => ({
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: useRegex,
  });
  const vocab = writeVocabulary(tokenizer).map(([token, id]) => `${JSON.stringify(token)}:${id}`);
  const file = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: writeAdded(tokenizer.specialTokens, tokenizer.normalizedSpecialTokens),
    normalizer: tokenizer.normalization === null ? null : { type: tokenizer.normalization },
    pre_tokenizer:
      tokenizer.pattern === "gpt2"
        ? byteLevel(true)
        : {
            type: "Sequence",
            pretokenizers: [
              {
                type: "Split",
                pattern: { Regex: patternForOniguruma(tokenizer.pattern) },
                behavior: "Isolated",
                invert: false,
              },
              byteLevel(false),
            ],
          },
    post_processor: null,
    decoder: byteLevel(true),
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      // a piece that is a token is that token, whatever the merges say
      ignore_merges: true,
      vocab: null,
      merges: tokenizer.merges.map(([left, right]) => [writeToken(left), writeToken(right)]),
    },
  };
  // written by hand, as an object would put tokens that look like numbers first
  return `${JSON.stringify(file).replace('"vocab":null', () => `"vocab":{${vocab.join(",")}}`)}\n`;
}
