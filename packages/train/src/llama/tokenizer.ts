/** Byte-level BPE to and from a Hugging Face `tokenizer.json`, and its tokens as the texts that GPT-2 writes them as. */
import { Tokenizer, TokenizerError } from "@mantou/tokenizer";
import { z } from "zod";
import { UserError } from "../errors.ts";

/**
 * Each byte as a printable character: itself where it is printable in Latin-1, otherwise U+0100 and up in order (Radford
 * et al. 2019, encoder.py).
 */
const CHARACTERS: string[] = [];
let next = 0x100;
for (let byte = 0; byte < 256; byte++) {
  const isPrintable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  CHARACTERS.push(String.fromCharCode(isPrintable ? byte : next++));
}

function printable(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => CHARACTERS[byte]).join("");
}

/** Texts of the tokens by id, special ones as they are, and the merges in order. */
export function printableVocabulary(tokenizer: Tokenizer): { tokens: Map<number, string>; merges: [string, string][] } {
  const specials = new Map([...tokenizer.specialTokens].map(([text, id]) => [id, text]));
  const tokens = new Map([...tokenizer.vocab].map(([id, bytes]) => [id, specials.get(id) ?? printable(bytes)]));
  return { tokens, merges: tokenizer.merges.map(([left, right]) => [printable(left), printable(right)]) };
}

/** @throws UserError for a pattern that only we know by its name */
export function huggingFaceTokenizer(tokenizer: Tokenizer): Record<string, unknown> {
  const { tokens, merges } = printableVocabulary(tokenizer);
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: [...tokenizer.specialTokens].map(([content, id]) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: preTokenizer(tokenizer.pattern),
    post_processor: null,
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: Object.fromEntries([...tokens].map(([id, text]) => [text, id])),
      merges,
    },
  };
}

function preTokenizer(pattern: string): Record<string, unknown> {
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true };
  if (pattern === "gpt2") return { ...byteLevel, use_regex: true };
  if (/^\w+$/.test(pattern)) throw new UserError(`the tokenizer's pattern ${pattern} has no tokenizer.json form`);
  const split = { type: "Split", pattern: { Regex: pattern }, behavior: "Isolated", invert: false };
  return { type: "Sequence", pretokenizers: [split, { ...byteLevel, use_regex: false }] };
}

// ---- reading -------------------------------------------------------------------------------------------------------

const BYTES = new Map(CHARACTERS.map((character, byte) => [character, byte]));

const merge = z.union([z.string(), z.tuple([z.string(), z.string()])]);

const fileSchema = z.looseObject({
  added_tokens: z.array(z.looseObject({ id: z.int().min(0), content: z.string().min(1) })).default([]),
  normalizer: z.looseObject({ type: z.string() }).nullish(),
  pre_tokenizer: z.looseObject({ type: z.string() }).nullish(),
  model: z.looseObject({
    type: z.string(),
    byte_fallback: z.boolean().nullish(),
    vocab: z.record(z.string(), z.int().min(0)),
    merges: z.array(merge),
  }),
});

/**
 * The tokenizer that a `tokenizer.json` of the byte-level BPE family describes (GPT-2, Llama 3, SmolLM2, Qwen).
 * @param label what the file is called in errors
 * @throws UserError for another family, and naming what of it we do not have
 */
export function fromHuggingFaceTokenizer(content: unknown, label: string): Tokenizer {
  const parsed = fileSchema.safeParse(content);
  if (!parsed.success) throw new UserError(`${label} is not valid: ${z.prettifyError(parsed.error)}`);
  const { model, added_tokens: added, normalizer, pre_tokenizer: pre } = parsed.data;
  if (model.type !== "BPE" || model.byte_fallback) {
    const what = model.byte_fallback ? "BPE over characters with a fallback to bytes" : model.type;
    throw new UserError(`${label} is ${what}: only byte-level BPE is supported`, {
      fix: "import a checkpoint with a tokenizer like GPT-2's or Llama 3's",
    });
  }
  if (normalizer) throw new UserError(`${label} has a normalizer (${normalizer.type}), which is not supported`);
  const vocab = new Map<number, Uint8Array>();
  for (const [text, id] of Object.entries(model.vocab)) vocab.set(id, bytesOf(text));
  for (const { id, content: text } of added) vocab.set(id, new TextEncoder().encode(text));
  const merges = model.merges.map((each) => {
    const [left, right, ...rest] = typeof each === "string" ? each.split(" ") : each;
    if (!left || !right || rest.length > 0) throw new UserError(`${label}: ${JSON.stringify(each)} is no merge`);
    return [bytesOf(left), bytesOf(right)] as const;
  });
  try {
    return new Tokenizer({
      vocab,
      merges,
      specialTokens: added.map(({ content: text }) => text),
      pattern: patternOf(pre, label),
    });
  } catch (error) {
    if (!(error instanceof TokenizerError)) throw error;
    throw new UserError(`${label}: ${error.message}`, { cause: error });
  }
}

/** Bytes of a token as the file writes it; one with other characters (an added token) stands for itself. */
function bytesOf(text: string): Uint8Array {
  const bytes = Uint8Array.from(text, (character) => BYTES.get(character) ?? 256);
  return Array.from(text).every((character) => BYTES.has(character)) ? bytes : new TextEncoder().encode(text);
}

const pieceSchema = z.looseObject({
  type: z.string(),
  add_prefix_space: z.boolean().nullish(),
  use_regex: z.boolean().nullish(),
  individual_digits: z.boolean().nullish(),
  pattern: z.looseObject({ Regex: z.string().optional() }).optional(),
  behavior: z.string().optional(),
  invert: z.boolean().nullish(),
  pretokenizers: z.array(z.unknown()).optional(),
});

/** GPT-2's pattern on what lies between single digits: the two splits of SmolLM's tokenizers in one. */
const DIGITS_GPT2 = String.raw`\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+`;

function patternOf(pre: unknown, label: string): string {
  const refuse = (what: string) => new UserError(`${label}: ${what} is not supported`);
  const whole = pieceSchema.safeParse(pre ?? {});
  if (!whole.success) throw refuse("a tokenizer without byte-level pre-tokenizer");
  const list = whole.data.type === "Sequence" ? (whole.data.pretokenizers ?? []) : [pre];
  const pieces = list.map((each) => {
    const piece = pieceSchema.safeParse(each);
    if (!piece.success) throw refuse(`a pre-tokenizer ${JSON.stringify(each)}`);
    return piece.data;
  });
  const last = pieces.at(-1);
  if (last?.type !== "ByteLevel") throw refuse("a tokenizer whose last pre-tokenizer is not ByteLevel");
  if (last.add_prefix_space) throw refuse("add_prefix_space");
  const regex = last.use_regex !== false;
  const before = pieces.slice(0, -1);
  if (before.length === 0 && regex) return "gpt2";
  const [only] = before;
  if (before.length === 1 && only!.type === "Digits" && only!.individual_digits && regex) return DIGITS_GPT2;
  const isSplit = only?.type === "Split" && only.pattern?.Regex !== undefined && !only.invert;
  if (before.length === 1 && isSplit && !regex && only.behavior === "Isolated") return only.pattern!.Regex!;
  throw refuse(`the pre-tokenizer ${before.map(({ type }) => type).join(", ")}`);
}
