/** Tokenizers that come with a Hugging Face checkpoint. */
import { type Tokenizer, TokenizerError } from "@mantou/tokenizer";
import { fromHuggingFace } from "@mantou/tokenizer/formats";
import { UserError } from "../errors.ts";

/** GPT-2's pattern on what lies between single digits: the two splits of SmolLM's tokenizers in one. */
export const DIGITS_GPT2 = String.raw`\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+`;

/**
 * The tokenizer that the text of a `tokenizer.json` describes.
 * @param label what the file is called in errors
 * @throws UserError for another family than byte-level BPE, and naming what of it we do not have
 */
export function readHuggingFaceTokenizer(text: string, label: string): Tokenizer {
  try {
    return fromHuggingFace(withoutDigitSplit(text));
  } catch (error) {
    if (!(error instanceof TokenizerError)) throw error;
    const message = error.message.replace(/^tokenizer\.json/, label);
    throw new UserError(message.includes(label) ? message : `${label}: ${message}`, {
      fix: "import a checkpoint with a BPE tokenizer, as Llama 2 and 3 have, or give one with --tokenizer to train on with",
      cause: error,
    });
  }
}

/** A split into digits before GPT-2's pattern, put as one pattern; anything else as it is. */
function withoutDigitSplit(text: string): string {
  if (!text.includes('"Digits"')) return text;
  const file = JSON.parse(text) as { pre_tokenizer?: { type?: string; pretokenizers?: Record<string, unknown>[] } };
  const [digits, byteLevel, ...rest] = file.pre_tokenizer?.pretokenizers ?? [];
  const isSmolLm =
    digits?.type === "Digits" &&
    digits.individual_digits === true &&
    byteLevel?.type === "ByteLevel" &&
    byteLevel.use_regex !== false &&
    rest.length === 0;
  if (!isSmolLm) return text;
  const split = { type: "Split", pattern: { Regex: DIGITS_GPT2 }, behavior: "Isolated", invert: false };
  const pretokenizers = [split, { ...byteLevel, use_regex: false }];
  return JSON.stringify({ ...file, pre_tokenizer: { type: "Sequence", pretokenizers } });
}
