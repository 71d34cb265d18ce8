/**
 * Our own file format: JSON, versioned, with ids instead of bytes wherever the bytes follow from the merges, and a hash
 * over the content that finds damage.
 */
import { TokenizerError } from "./errors.ts";
import { encodeUtf8 } from "./utf8.ts";
import { showToken, toHex, type TokenizerOptions, type Vocabulary } from "./vocabulary.ts";

const FORMAT = "mantou-tokenizer";

export interface TokenizerJson {
  format: typeof FORMAT;
  /** Version 2 is 1 with a normalization; what has none is written as 1, which older programs read too. */
  version: number;
  /** Name of the pattern, or its regular expression. */
  pattern: string;
  /** From version 2 on: "NFC". */
  normalization?: string;
  /** From version 2 on: the special tokens that are found in normalized text. */
  normalizedSpecialTokens?: readonly string[];
  /** Greatest id + 1. */
  vocabSize: number;
  /** Id of each of the 256 bytes. */
  bytes: number[];
  /** Left id, right id and the id of their concatenation, in order. */
  merges: [left: number, right: number, id: number][];
  specialTokens: [text: string, id: number][];
  /** Tokens that are none of the above: id and bytes in hexadecimal. */
  otherTokens: [id: number, hex: string][];
  /** Ids below vocabSize that no token has. */
  unusedIds: number[];
  /** `Tokenizer.hash` of the content. */
  hash: string;
}

/** How text is split before the merges. */
interface SplitOptions {
  pattern: string;
  normalization: "NFC" | null;
  normalizedSpecialTokens: readonly string[];
}

export function vocabularyToJson(
  vocabulary: Vocabulary,
  { pattern, normalization, normalizedSpecialTokens }: SplitOptions,
  hash: string,
): TokenizerJson {
  const known = new Uint8Array(vocabulary.size);
  const bytes = Array.from(vocabulary.byteIds);
  const merges: TokenizerJson["merges"] = [];
  for (let i = 0; i < vocabulary.merges.length; i += 3) {
    merges.push([vocabulary.merges[i], vocabulary.merges[i + 1], vocabulary.merges[i + 2]]);
  }
  const specialTokens = [...vocabulary.specialTokens];
  for (const id of bytes) known[id] = 1;
  for (const [, , id] of merges) known[id] = 1;
  for (const [, id] of specialTokens) known[id] = 1;
  const otherTokens: TokenizerJson["otherTokens"] = [];
  const unusedIds: number[] = [];
  for (let id = 0; id < vocabulary.size; id++) {
    if (known[id] === 1) continue;
    if (vocabulary.has(id)) otherTokens.push([id, toHex(vocabulary.tokenBytes(id))]);
    else unusedIds.push(id);
  }
  return {
    format: FORMAT,
    version: normalization === null ? 1 : 2,
    pattern,
    ...(normalization !== null && { normalization, normalizedSpecialTokens }),
    vocabSize: vocabulary.size,
    bytes,
    merges,
    specialTokens,
    otherTokens,
    unusedIds,
    hash,
  };
}

/**
 * The options of the tokenizer that a JSON value describes, and the hash that it claims.
 *
 * @throws naming the field and the value that are wrong.
 */
export function optionsFromJson(value: unknown): { options: TokenizerOptions; hash: string } {
  const file = record(value);
  if (file.format !== FORMAT) {
    throw new TokenizerError(`not a tokenizer file: "format" is ${show(file.format)}, expected "${FORMAT}"`);
  }
  if (file.version !== 1 && file.version !== 2) {
    throw new TokenizerError(`tokenizer file of version ${show(file.version)}: this program reads versions 1 and 2`);
  }
  const pattern = string(file.pattern, "pattern");
  const hash = string(file.hash, "hash");
  const vocabSize = wholeNumber(file.vocabSize, "vocabSize");
  const bytes = array(file.bytes, "bytes");
  if (bytes.length !== 256) throw invalid("bytes", `has ${bytes.length} ids, expected 256`);

  const vocab = new Map<number, Uint8Array>();
  const add = (id: number, token: Uint8Array, field: string): void => {
    if (id >= vocabSize) throw invalid(field, `is id ${id}, but vocabSize is ${vocabSize}`);
    const other = vocab.get(id);
    if (other !== undefined) throw invalid(field, `gives id ${id} to ${showToken(token)}; ${showToken(other)} has it`);
    vocab.set(id, token);
  };
  bytes.forEach((id, byte) => add(wholeNumber(id, `bytes[${byte}]`), Uint8Array.of(byte), `bytes[${byte}]`));
  const merges = array(file.merges, "merges").map((entry, i): [Uint8Array, Uint8Array] => {
    const field = `merges[${i}]`;
    const [left, right, id] = tuple(entry, 3, field).map((part) => {
      const id = wholeNumber(part, field);
      return { id, token: vocab.get(id) };
    });
    if (!left.token || !right.token) {
      throw invalid(field, `uses id ${left.token ? right.id : left.id}, which no byte or earlier merge has`);
    }
    const joined = new Uint8Array(left.token.length + right.token.length);
    joined.set(left.token);
    joined.set(right.token, left.token.length);
    add(id.id, joined, field);
    return [left.token, right.token];
  });
  const specialTokens = array(file.specialTokens, "specialTokens").map((entry, i) => {
    const field = `specialTokens[${i}]`;
    const [text, id] = tuple(entry, 2, field);
    const token = string(text, field);
    if (token === "") throw invalid(field, "is empty");
    const special = wholeNumber(id, field);
    const bytes = encodeUtf8(token);
    const known = vocab.get(special);
    // a special token may also be what a merge or a byte makes
    if (known === undefined || toHex(known) !== toHex(bytes)) add(special, bytes, field);
    return token;
  });
  array(file.otherTokens, "otherTokens").forEach((entry, i) => {
    const field = `otherTokens[${i}]`;
    const [id, hex] = tuple(entry, 2, field);
    add(wholeNumber(id, field), fromHex(string(hex, field), field), field);
  });
  const unused = new Set(array(file.unusedIds, "unusedIds").map((id, i) => wholeNumber(id, `unusedIds[${i}]`)));
  for (let id = 0; id < vocabSize; id++) {
    if (vocab.has(id) === unused.has(id)) {
      throw invalid(
        "vocabSize",
        vocab.has(id) ? `: id ${id} is listed as unused` : `is ${vocabSize}: id ${id} is missing`,
      );
    }
  }
  const options: TokenizerOptions = { vocab, merges, specialTokens, pattern };
  if (file.version === 1) return { options, hash };
  const normalizedSpecialTokens = array(file.normalizedSpecialTokens, "normalizedSpecialTokens").map((token, i) =>
    string(token, `normalizedSpecialTokens[${i}]`),
  );
  // the tokenizer itself checks which normalization it is
  return { options: { ...options, normalization: file.normalization as "NFC", normalizedSpecialTokens }, hash };
}

/** Parses the text of a file in our format. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new TokenizerError(`not a tokenizer file, or one cut short: ${(error as Error).message}`, { cause: error });
  }
}

function invalid(field: string, problem: string): TokenizerError {
  return new TokenizerError(`corrupt tokenizer file: ${field} ${problem}`);
}

function show(value: unknown): string {
  return value === undefined ? "missing" : JSON.stringify(value).slice(0, 40);
}

function record(value: unknown): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new TokenizerError(`not a tokenizer file: expected a JSON object, found ${show(value)}`);
  }
  return value as Record<string, unknown>;
}

function array(value: unknown, field: string): unknown[] {
  if (!Array.isArray(value)) throw invalid(field, `is ${show(value)}, expected an array`);
  return value;
}

function tuple(value: unknown, length: number, field: string): unknown[] {
  if (!Array.isArray(value) || value.length !== length) {
    throw invalid(field, `is ${show(value)}, expected ${length} values`);
  }
  return value;
}

function string(value: unknown, field: string): string {
  if (typeof value !== "string") throw invalid(field, `is ${show(value)}, expected a string`);
  return value;
}

function wholeNumber(value: unknown, field: string): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0) {
    throw invalid(field, `holds ${show(value)}, expected a whole number`);
  }
  return value;
}

function fromHex(hex: string, field: string): Uint8Array {
  if (!/^(?:[0-9a-f]{2})+$/.test(hex)) throw invalid(field, `is ${show(hex)}, expected bytes in hexadecimal`);
  return Uint8Array.from(hex.match(/../g)!, (digits) => parseInt(digits, 16));
}
