/**
 * A tokenizer as GGUF's metadata. llama.cpp has two kinds of BPE: "gpt2", which works on bytes, and "llama", which is
 * SentencePiece's. How the latter merges is not written down as merges: of all neighbours whose texts together are a token
 * it takes those with the token of the highest score (`llm_tokenizer_spm_session` in its llama-vocab.cpp).
 */
import type { Tokenizer } from "@mantou/tokenizer";
import { SentencePieceTokenizer, toHuggingFace } from "@mantou/tokenizer/formats";
import { UserError } from "../errors.ts";
import { documentMarks } from "../prompt.ts";
import type { GgufValue } from "./gguf.ts";
import { DIGITS_GPT2 } from "./tokenizer.ts";

/** Names that llama.cpp has for the patterns we know ("tokenizer.ggml.pre"). */
const PATTERNS: Record<string, string> = {
  gpt2: "gpt-2",
  llama3: "llama-bpe",
  qwen2: "qwen2",
  o200k: "gpt-4o",
  [DIGITS_GPT2]: "smollm",
};

/** tokenizer.ggml.token_type: ordinary, for what is not known, control (special), unused, a byte. */
const [NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE] = [1, 2, 3, 5, 6];

/**
 * @param vocabSize rows of the embedding
 * @throws UserError for a tokenizer from which llama.cpp would make other ids
 */
export function tokenizerMetadata(tokenizer: Tokenizer, vocabSize: number): Record<string, GgufValue> {
  const marks = documentMarks(tokenizer);
  const ends: Record<string, GgufValue> =
    marks === undefined
      ? {}
      : {
          "tokenizer.ggml.bos_token_id": { type: "uint32", value: marks.begin.id },
          "tokenizer.ggml.eos_token_id": { type: "uint32", value: marks.end.id },
        };
  return {
    ...(tokenizer instanceof SentencePieceTokenizer
      ? sentencePiece(tokenizer, vocabSize)
      : byteLevel(tokenizer, vocabSize)),
    ...ends,
    // A prompt begins a document, as in `encodePrompt`.
    "tokenizer.ggml.add_bos_token": { type: "bool", value: marks !== undefined },
  };
}

function byteLevel(tokenizer: Tokenizer, vocabSize: number): Record<string, GgufValue> {
  const pattern = Object.hasOwn(PATTERNS, tokenizer.pattern) ? PATTERNS[tokenizer.pattern] : undefined;
  if (pattern === undefined) {
    throw new UserError(`llama.cpp does not know the tokenizer's pattern ${JSON.stringify(tokenizer.pattern)}`, {
      fix: `it knows ${Object.keys(PATTERNS).join(", ")}`,
    });
  }
  const { model } = JSON.parse(toHuggingFace(tokenizer)) as {
    model: { vocab: Record<string, number>; merges: [string, string][] };
  };
  const texts = new Map(Object.entries(model.vocab).map(([text, id]) => [id, text]));
  const specials = new Set(tokenizer.specialTokens.values());
  return {
    "tokenizer.ggml.model": { type: "string", value: "gpt2" },
    "tokenizer.ggml.pre": { type: "string", value: pattern },
    ...tokens(vocabSize, texts, (id) => (specials.has(id) ? CONTROL : NORMAL)),
    "tokenizer.ggml.merges": { type: "strings", value: model.merges.map(([left, right]) => `${left} ${right}`) },
  };
}

function sentencePiece({ options }: SentencePieceTokenizer, vocabSize: number): Record<string, GgufValue> {
  const order = mergeOrder(options);
  const texts = new Map(options.vocab);
  const types = new Map<number, number>();
  for (const [id, text] of options.vocab) types.set(id, isByte(text) ? BYTE : NORMAL);
  for (const [text, id] of options.specialTokens) {
    texts.set(id, text);
    types.set(id, text === "<unk>" ? UNKNOWN : CONTROL);
  }
  // As SentencePiece's own: falling in the order of the merges, then for single characters; none for all else.
  const score = (id: number): number => (types.get(id) === NORMAL ? -order.get(texts.get(id)!)! : 0);
  const unknown = options.specialTokens.get("<unk>");
  return {
    "tokenizer.ggml.model": { type: "string", value: "llama" },
    "tokenizer.ggml.pre": { type: "string", value: "default" },
    ...tokens(vocabSize, texts, (id) => types.get(id)!),
    "tokenizer.ggml.scores": { type: "float32s", value: Array.from({ length: vocabSize }, (_, id) => score(id)) },
    ...(unknown === undefined ? {} : { "tokenizer.ggml.unknown_token_id": { type: "uint32", value: unknown } }),
    "tokenizer.ggml.add_space_prefix": { type: "bool", value: options.blankInFront !== "never" },
  };
}

function tokens(vocabSize: number, texts: ReadonlyMap<number, string>, typeOf: (id: number) => number) {
  const ids = Array.from({ length: vocabSize }, (_, id) => id);
  return {
    // Rows of the embedding that no token has still need a name.
    "tokenizer.ggml.tokens": { type: "strings", value: ids.map((id) => texts.get(id) ?? `[UNUSED${id}]`) },
    "tokenizer.ggml.token_type": { type: "int32s", value: ids.map((id) => (texts.has(id) ? typeOf(id) : UNUSED)) },
  } as const;
}

function isByte(text: string): boolean {
  return /^<0x[0-9A-F]{2}>$/.test(text);
}

/**
 * The ordinary tokens by their texts: what merges make, in order, and then the others.
 * @throws UserError where highest scores first is not the order of the merges: a pair that makes a token and is no merge, a
 * token that merges make at two places of the order, merges that may not go across blanks
 */
function mergeOrder({ vocab, merges, splitsAtBlanks }: SentencePieceTokenizer["options"]): Map<string, number> {
  const refuse = (what: string): UserError =>
    new UserError(`llama.cpp would make other ids of texts than this tokenizer: ${what}`, {
      fix: "export it with --format hf",
    });
  const order = new Map<string, number>();
  let last: string | undefined;
  for (const [left, right] of merges) {
    const text = left + right;
    if (text !== last && order.has(text)) throw refuse(`merges that make ${JSON.stringify(text)} are apart`);
    order.set(text, order.get(text) ?? order.size);
    last = text;
  }
  const pairs = new Set(merges.map(([left, right]) => `${left} ${right}`));
  const normal = new Set([...vocab].sort(([a], [b]) => a - b).flatMap(([, text]) => (isByte(text) ? [] : [text])));
  for (const text of normal) {
    if (splitsAtBlanks && text.includes("▁", 1))
      throw refuse(`it never merges across blanks to ${JSON.stringify(text)}`);
    let at = 0;
    for (const character of text) {
      at += character.length;
      const [left, right] = [text.slice(0, at), text.slice(at)];
      if (!normal.has(left) || !normal.has(right) || pairs.has(`${left} ${right}`)) continue;
      const pair = `${JSON.stringify(left)} and ${JSON.stringify(right)}`;
      throw refuse(`it does not merge ${pair}, which together are a token`);
    }
    order.set(text, order.get(text) ?? order.size);
  }
  return order;
}
