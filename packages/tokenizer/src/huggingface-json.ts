/** Reading a `tokenizer.json` of Hugging Face: what all families of tokenizers have in common. */
import { TokenizerError } from "./errors.ts";

export type Json = Record<string, unknown>;

export function fail(problem: string): never {
  throw new TokenizerError(`tokenizer.json: ${problem}`);
}

export function object(value: unknown, field: string): Json {
  if (typeof value !== "object" || value === null || Array.isArray(value)) fail(`${field} is not an object`);
  return value as Json;
}

export function list(value: unknown, field: string): unknown[] {
  if (!Array.isArray(value)) fail(`${field} is not an array`);
  return value;
}

export function parseFile(text: string): { file: Json; model: Json } {
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
  for (const field of ["dropout", "continuing_subword_prefix", "end_of_word_suffix"]) {
    if (model[field] != null && model[field] !== "" && model[field] !== 0) fail(`model.${field} is not supported`);
  }
  return { file, model };
}

export interface Tokens {
  /** Tokens of the model that are not added tokens, by id. */
  vocab: Map<number, string>;
  /** Added tokens, which are found as a whole. */
  added: Map<string, number>;
  /** Those that are found in normalized text. */
  normalized: string[];
  merges: [left: string, right: string][];
}

/** @throws naming the token or the merge that is damaged, or asks for what we do not do */
export function readTokens(file: Json, model: Json): Tokens {
  const added = new Map<string, number>();
  const normalized: string[] = [];
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
    added.set(content, id);
    if (token.normalized === true) normalized.push(content);
  }
  const vocab = new Map<number, string>();
  for (const [token, value] of Object.entries(object(model.vocab, "model.vocab"))) {
    const id = checkId(value, token);
    if (addedIds.has(id)) continue;
    if (vocab.has(id)) fail(`two tokens have id ${id}, one is ${JSON.stringify(token)}`);
    vocab.set(id, token);
  }
  const merges = list(model.merges, "model.merges").map((entry, index): [string, string] => {
    const parts: unknown[] = typeof entry === "string" ? entry.split(" ") : list(entry, `model.merges[${index}]`);
    const [left, right] = parts;
    if (parts.length !== 2 || typeof left !== "string" || typeof right !== "string" || left === "" || right === "") {
      fail(`model.merges[${index}] is ${JSON.stringify(entry)}, expected two tokens`);
    }
    return [left, right];
  });
  return { vocab, added, normalized, merges };
}

/**
 * Where nothing is normalized, ours finds all added tokens at once; Hugging Face's library, those with `normalized` after all
 * others even so.
 *
 * @throws naming two of them where that makes a difference
 */
export function checkOrder({ added, normalized }: Tokens): void {
  const first = [...added.keys()].filter((token) => !normalized.includes(token));
  for (const late of normalized) {
    const taken = first.find((early) => {
      for (let at = 0; at < late.length; at++) {
        const rest = late.slice(at);
        if (rest.startsWith(early) ? rest !== early || at > 0 : at > 0 && early.startsWith(rest)) return true;
      }
      return false;
    });
    if (taken !== undefined) {
      fail(
        `added tokens ${JSON.stringify(taken)} and ${JSON.stringify(late)} can overlap, and only the latter is ` +
          '"normalized", so that the former would come first: that is not supported',
      );
    }
  }
}

/** The entries of `added_tokens`, by id. */
export function writeAdded(added: ReadonlyMap<string, number>, normalized: readonly string[]): Json[] {
  return Array.from(added, ([content, id]) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: normalized.includes(content),
    special: true,
  })).sort((a, b) => a.id - b.id);
}
