/**
 * Hugging Face's `tokenizer.json` for byte-level BPE: what GPT-2, Llama 3, Qwen and their relatives ship. Read: the
 * vocabulary, the merges, the added tokens, the pattern and an NFC normalizer. What a tokenizer of ours does not do is
 * refused by name; only the post-processor (which adds tokens around a text) is passed over.
 */
import { readToken, writeToken } from "./byte-alphabet.ts";
import { TokenizerError } from "./errors.ts";
import { resolvePattern } from "./patterns.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { encodeUtf8 } from "./utf8.ts";
import type { TokenizerOptions } from "./vocabulary.ts";

type Json = Record<string, unknown>;

function fail(problem: string): never {
  throw new TokenizerError(`tokenizer.json: ${problem}`);
}

function object(value: unknown, field: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) fail(`${field} is not an object`);
  return value as Json;
}

function list(value: unknown, field: string): unknown[] {
  if (!Array.isArray(value)) fail(`${field} is not an array`);
  return value;
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
  // Removed with invert keeps the matches: the same for patterns that match everything
  const isolated = split.behavior === "Isolated" && split.invert !== true;
  if (!isolated && !(split.behavior === "Removed" && split.invert === true)) {
    fail(`the Split's behavior is ${JSON.stringify(split.behavior)}, expected "Isolated"`);
  }
  return resolvePattern(source).id;
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
 * A tokenizer's options from the text of a `tokenizer.json`.
 *
 * @throws naming the field that is wrong, or that asks for something else than byte-level BPE.
 */
export function parseHuggingFace(text: string): TokenizerOptions {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new TokenizerError(`tokenizer.json is not valid JSON, or cut short: ${(error as Error).message}`, {
      cause: error,
    });
  }
  const file = object(parsed, "it");
  const model = object(file.model, "model");
  if (model.type !== undefined && model.type !== "BPE")
    fail(`the model is ${JSON.stringify(model.type)}, expected "BPE"`);
  if (model.byte_fallback === true) fail("byte_fallback is true: this is not byte-level BPE");
  for (const field of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model[field] != null && model[field] !== "" && model[field] !== 0) fail(`model.${field} is not supported`);
  }
  const normalization = normalizationOf(file.normalizer);

  const vocab = new Map<number, Uint8Array>();
  const specialTokens: string[] = [];
  const normalizedSpecialTokens: string[] = [];
  const addedIds = new Set<number>();
  const checkId = (id: unknown, token: unknown): number => {
    if (typeof id !== "number" || !Number.isInteger(id) || id < 0) fail(`the id of ${JSON.stringify(token)} is ${id}`);
    return id;
  };
  for (const entry of list(file.added_tokens ?? [], "added_tokens")) {
    const token = object(entry, "an added token");
    const content = token.content;
    if (typeof content !== "string" || content === "") fail("an added token has no content");
    for (const flag of ["lstrip", "rstrip", "single_word"]) {
      if (token[flag] === true) fail(`added token ${JSON.stringify(content)}: ${flag} is not supported`);
    }
    const id = checkId(token.id, content);
    if (addedIds.has(id)) fail(`two added tokens have id ${id}, one is ${JSON.stringify(content)}`);
    addedIds.add(id);
    vocab.set(id, encodeUtf8(content));
    specialTokens.push(content);
    if (token.normalized === true) normalizedSpecialTokens.push(content);
  }
  for (const [token, value] of Object.entries(object(model.vocab, "model.vocab"))) {
    const id = checkId(value, token);
    if (addedIds.has(id)) continue;
    if (vocab.has(id)) fail(`two tokens have id ${id}, one is ${JSON.stringify(token)}`);
    vocab.set(id, readToken(token));
  }
  const merges = list(model.merges, "model.merges").map((entry, index): [Uint8Array, Uint8Array] => {
    const parts: unknown[] = typeof entry === "string" ? entry.split(" ") : list(entry, `model.merges[${index}]`);
    const [left, right] = parts;
    if (parts.length !== 2 || typeof left !== "string" || typeof right !== "string" || left === "" || right === "") {
      fail(`model.merges[${index}] is ${JSON.stringify(entry)}, expected two tokens`);
    }
    return [readToken(left), readToken(right)];
  });
  const pattern = patternOf(object(file.pre_tokenizer, "pre_tokenizer"));
  return { vocab, merges, specialTokens, pattern, normalization, normalizedSpecialTokens };
}

/** The text of a `tokenizer.json` that Hugging Face's tokenizers loads to give the same ids. */
export function toHuggingFace(tokenizer: Tokenizer): string {
  const special = new Map(Array.from(tokenizer.specialTokens, ([text, id]) => [id, text]));
  const byteLevel = (useRegex: boolean): Json => ({
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: useRegex,
  });
  const vocab = Array.from(tokenizer.vocab, ([id, bytes]) => {
    return `${JSON.stringify(special.get(id) ?? writeToken(bytes))}:${id}`;
  });
  const file = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: Array.from(special, ([id, content]) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: tokenizer.normalizedSpecialTokens.includes(content),
      special: true,
    })).sort((a, b) => a.id - b.id),
    normalizer: tokenizer.normalization === null ? null : { type: tokenizer.normalization },
    pre_tokenizer:
      tokenizer.pattern === "gpt2"
        ? byteLevel(true)
        : {
            type: "Sequence",
            pretokenizers: [
              {
                type: "Split",
                pattern: { Regex: resolvePattern(tokenizer.pattern).source },
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
