/**
 * The `tokenizer.json` that Hugging Face makes of SentencePiece's BPE models. Two spellings are read: a normalizer that puts
 * "▁" in front and in the place of blanks (Llama 2, TinyLlama), or a Metaspace pre-tokenizer (newer conversions). Anything
 * else is refused by name; the post-processor, which adds <s> to a text, is passed over.
 */
import { checkOrder, fail, type Json, list, object, readTokens, writeAdded } from "./huggingface-json.ts";
import type { BlankInFront, SentencePieceOptions } from "./sentencepiece.ts";

const LOW_LINE = "▁";

/** A step, or the steps of a sequence; without one, none. */
function stepsOf(value: unknown, field: string, steps: string): Json[] {
  if (value == null) return [];
  const step = object(value, field);
  if (step.type !== "Sequence") return [step];
  return list(step[steps], `${field}.${steps}`).flatMap((each) => stepsOf(each, field, steps));
}

function unknown(field: string, step: unknown): never {
  fail(`the ${field} ${JSON.stringify(step)} is not supported with byte fallback`);
}

/** Whether a Replace step puts `content` in the place of `pattern`. */
function replaces(step: Json, pattern: string, content: string): boolean {
  return step.type === "Replace" && object(step.pattern, "a pattern").String === pattern && step.content === content;
}

/** What becomes of blanks. */
function readBlanks(file: Json): Pick<SentencePieceOptions, "blankInFront" | "splitsAtBlanks"> {
  const normalizers = stepsOf(file.normalizer, "normalizer", "normalizers");
  const preTokenizers = stepsOf(file.pre_tokenizer, "pre_tokenizer", "pretokenizers");
  let blankInFront: BlankInFront = "never";
  let replaced = false;
  for (const step of normalizers) {
    if (step.type === "Prepend" && step.prepend === LOW_LINE) blankInFront = "stretches";
    else if (replaces(step, " ", LOW_LINE)) replaced = true;
    else unknown("normalizer", step);
  }
  if (preTokenizers.length === 0 && replaced) return { blankInFront, splitsAtBlanks: false };
  const [metaspace, ...more] = preTokenizers;
  if (more.length > 0 || metaspace?.type !== "Metaspace" || metaspace.replacement !== LOW_LINE) {
    unknown("pre_tokenizer", file.pre_tokenizer ?? null);
  }
  if (blankInFront !== "never") fail("both the normalizer and the pre_tokenizer put a blank in front");
  const inFront: Record<string, BlankInFront> = { always: "unlessBlank", first: "text", never: "never" };
  // before there were schemes there was a flag
  const scheme = metaspace.prepend_scheme ?? (metaspace.add_prefix_space === false ? "never" : "always");
  if (typeof scheme !== "string" || !Object.hasOwn(inFront, scheme)) unknown("pre_tokenizer", metaspace);
  return { blankInFront: inFront[scheme], splitsAtBlanks: metaspace.split !== false };
}

/** Whether the decoder takes a blank away in front. */
function readDecoder(file: Json): boolean {
  const [replace, fallback, fuse, strip, ...more] = stepsOf(file.decoder, "decoder", "decoders");
  const isStrip = strip?.type === "Strip" && strip.content === " " && strip.start === 1 && strip.stop === 0;
  const isKnown =
    replace !== undefined &&
    replaces(replace, LOW_LINE, " ") &&
    fallback?.type === "ByteFallback" &&
    fuse?.type === "Fuse" &&
    (strip === undefined || isStrip) &&
    more.length === 0;
  if (!isKnown) unknown("decoder", file.decoder ?? null);
  return isStrip;
}

/** @throws naming what is damaged, or asks for something else */
export function parseSentencePiece(file: Json, model: Json): SentencePieceOptions {
  if (model.ignore_merges === true) fail("model.ignore_merges is not supported with byte fallback");
  const tokens = readTokens(file, model);
  const { vocab, added, normalized, merges } = tokens;
  if (file.normalizer == null) checkOrder(tokens);
  const blanks = readBlanks(file);
  // with the blank in front it is found; without, the model may still make it
  const alone = normalized.find((token) => [...token].length === 1);
  if (alone !== undefined && blanks.blankInFront === "stretches") {
    fail(`added token ${JSON.stringify(alone)} is one character and "normalized": that is not supported`);
  }
  return {
    vocab,
    merges,
    specialTokens: added,
    // a pre-tokenizer comes after all added tokens
    normalizedSpecialTokens: file.normalizer == null ? [] : normalized,
    ...blanks,
    stripsBlank: readDecoder(file),
  };
}

/** The content of a `tokenizer.json`. */
export function sentencePieceToJson({
  vocab,
  merges,
  specialTokens,
  normalizedSpecialTokens = [],
  blankInFront,
  splitsAtBlanks,
  stripsBlank,
}: SentencePieceOptions): Json {
  const replace = (from: string, to: string): Json => ({ type: "Replace", pattern: { String: from }, content: to });
  const prepend = { type: "Prepend", prepend: LOW_LINE };
  const isMetaspace = splitsAtBlanks || blankInFront === "unlessBlank" || blankInFront === "text";
  const scheme = { stretches: "always", unlessBlank: "always", text: "first", never: "never" }[blankInFront];
  const tokens = [...specialTokens, ...Array.from(vocab, ([id, text]): [string, number] => [text, id])];
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: writeAdded(specialTokens, normalizedSpecialTokens),
    normalizer: isMetaspace
      ? null
      : {
          type: "Sequence",
          normalizers: [...(blankInFront === "stretches" ? [prepend] : []), replace(" ", LOW_LINE)],
        },
    pre_tokenizer: isMetaspace
      ? { type: "Metaspace", replacement: LOW_LINE, prepend_scheme: scheme, split: splitsAtBlanks }
      : null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        replace(LOW_LINE, " "),
        { type: "ByteFallback" },
        { type: "Fuse" },
        ...(stripsBlank ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: specialTokens.has("<unk>") ? "<unk>" : null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.sort(([, a], [, b]) => a - b)),
      merges,
    },
  };
}
