/**
 * Other projects' formats, written and read back: the same ids, and clear errors for what is damaged or does not fit.
 * That the real libraries load what is written here is proven by oracles/compare.ts.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PATTERN_NAMES, Tokenizer, TokenizerError } from "@mantou/tokenizer";
import { loadTokenizer, saveTokenizer, TOKENIZER_FORMATS } from "@mantou/tokenizer/files";
import { parseHuggingFace, parseTiktoken, toGpt2, toHuggingFace, toTiktoken } from "@mantou/tokenizer/formats";

const directory = mkdtempSync(join(tmpdir(), "mantou-exchange-"));
afterAll(() => rmSync(directory, { recursive: true }));

const text = "the cat sat on the mat; it's naïve, 말하다 말하다 😀😀 AbcDef 12345\r\n\n  x".repeat(20);
const trained = (pattern: string) =>
  Tokenizer.train(text, { vocabSize: 340, specialTokens: ["<|end|>", "<|pad|>"], pattern });
const tokenizer = trained("gpt2");
const sample = `${text}<|end|>other words, 말<|pad|>`;

describe.each(PATTERN_NAMES.map((pattern) => [pattern]))("a tokenizer with the pattern %s", (pattern) => {
  test.each(TOKENIZER_FORMATS.map((format) => [format]))("comes back from %s with the same ids", (format) => {
    const original = trained(pattern);
    const path = join(directory, `${format}.out`);
    saveTokenizer(original, path, format);
    const copy = loadTokenizer(path, { pattern, specialTokens: Object.fromEntries(original.specialTokens) });
    expect(copy.hash).toBe(original.hash);
    expect(copy.encode(sample)).toEqual(original.encode(sample));
    expect(readdirSync(directory).filter((name) => name.endsWith("tmp"))).toEqual([]);
    rmSync(path, { recursive: true });
  });
});

test.each(["mantou", "huggingface", "tiktoken"] as const)("a byte order mark before %s is passed over", (format) => {
  const path = join(directory, "marked");
  saveTokenizer(tokenizer, path, format);
  writeFileSync(path, `\ufeff${readFileSync(path, "utf8")}`);
  expect(loadTokenizer(path, { specialTokens: Object.fromEntries(tokenizer.specialTokens) }).hash).toBe(tokenizer.hash);
});

test("a custom pattern survives a tokenizer.json", () => {
  const custom = Tokenizer.train(text, { vocabSize: 300, pattern: "\\p{L}+|[^.\\p{L}]" });
  expect(new Tokenizer(parseHuggingFace(toHuggingFace(custom))).hash).toBe(custom.hash);
});

test.each([
  ["\\d+", "\\d"],
  ["[\\w-]+", "\\w"],
  ["\\bthe\\b", "\\b"],
  [".+", "."],
  ["[^.]$", "$"],
  ["^[a-z]+", "^"],
  ["[[:alpha:]]+", "[:"],
  ["\\p{L}+|[^]", "[^]"],
])("a pattern that Oniguruma reads differently is neither written nor read: %s", (pattern, part) => {
  const message = `has ${part}, which Oniguruma and JavaScript read differently`;
  const custom = Tokenizer.train(text, { vocabSize: 260, pattern });
  expect(() => toHuggingFace(custom)).toThrow(message);
  const file = JSON.parse(toHuggingFace(trained("cl100k")));
  file.pre_tokenizer.pretokenizers[0].pattern.Regex = pattern;
  expect(() => parseHuggingFace(JSON.stringify(file))).toThrow(message);
});

test("a Split that drops what its pattern leaves unmatched is refused", () => {
  const file = JSON.parse(toHuggingFace(trained("cl100k")));
  const [split] = file.pre_tokenizer.pretokenizers;
  Object.assign(split, { behavior: "Removed", invert: true });
  expect(parseHuggingFace(JSON.stringify(file)).pattern).toBe("cl100k"); // it leaves nothing
  split.pattern.Regex = "\\p{L}+";
  expect(() => parseHuggingFace(JSON.stringify(file))).toThrow('behavior is "Removed", expected "Isolated"');
});

test("added tokens that would be found in another order are refused", () => {
  const read = (...tokens: [content: string, normalized: boolean][]) => {
    const file = JSON.parse(toHuggingFace(Tokenizer.train(text, { vocabSize: 300 })));
    file.added_tokens = tokens.map(([content, normalized], i) => ({ id: 300 + i, content, normalized }));
    return [...new Tokenizer(parseHuggingFace(JSON.stringify(file))).specialTokens.keys()];
  };
  for (const [early, late] of [
    ["<|a|>", "<|a|>b"],
    ["<|a|>", "b<|a|>"],
    ["<|a|>", "b<|"],
    ["<|a|>", "b<|a|>b"],
  ]) {
    const message = `"${early}" and "${late}" can overlap`;
    expect(() => read([early, false], [late, true])).toThrow(message);
    expect(() => read([late, true], [early, false])).toThrow(message);
    expect(read([early, true], [late, false])).toHaveLength(2);
    expect(read([early, true], [late, true])).toHaveLength(2);
  }
  // the later one begins where the earlier one ends, or is its beginning
  expect(read(["<|a|>", false], ["|>b", true], ["<|", true], ["a|", true])).toHaveLength(4);
});

test("a vocabulary with tokens that its merges do not make needs ignore_merges, unless they are no pieces", () => {
  const read = (change: (model: Record<string, any>) => void) => {
    const file = JSON.parse(toHuggingFace(trained("gpt2")));
    change(file.model);
    return new Tokenizer(parseHuggingFace(JSON.stringify(file)));
  };
  const apart = (token: string) => (model: Record<string, any>) => {
    model.ignore_merges = false;
    model.vocab[token] = 900;
  };
  expect(() => read(apart("other"))).toThrow('the merges do not make token 900 ("other")');
  expect(() =>
    read((model) => {
      apart("he")(model);
      model.merges.unshift(["h", "e"]); // from now on "the" is "t" and "he"
    }),
  ).toThrow(/the merges do not make token \d+ \("the"\)/);
  expect(read((model) => Object.assign(model, { ignore_merges: false })).hash).toBe(trained("gpt2").hash);
  expect(read((model) => (model.vocab.other = 900)).encode("other")).toEqual(Int32Array.of(900));
  expect(read(apart("madeupword0000")).count("madeupword0000")).toBeGreaterThan(1);
});

test("tokens that look like numbers or like properties of objects keep their ids", () => {
  const odd = Tokenizer.train("1111 1111 __proto__ __proto__ ", { vocabSize: 280, specialTokens: ["__proto__", "77"] });
  const { vocabJson, mergesTxt } = toGpt2(odd);
  expect(vocabJson.indexOf('"a"')).toBeLessThan(vocabJson.indexOf('"11"'));
  expect(mergesTxt).toContain("1 1\n");
  const copy = new Tokenizer(parseHuggingFace(toHuggingFace(odd)));
  expect(copy.hash).toBe(odd.hash);
});

describe("what is damaged is refused:", () => {
  const ranks = toTiktoken(tokenizer);
  const cases: [problem: string, text: string, message: string][] = [
    ["a line cut short", ranks.slice(0, -5), "expected a token in base64 and its rank"],
    ["no base64", `${ranks}%%% 900\n`, "expected a token in base64"],
    ["a rank twice", `${ranks}YWJjZGVm 300\n`, "rank 300 is there twice"],
    ["a token twice", `${ranks}YQ== 900\n`, '"a" has rank 97 already'],
    ["a token of unknown parts", `${ranks}cXFxcXE= 900\n`, '"qqqqq" (rank 900) is not made of two tokens'],
    ["nothing", "", "it is empty"],
  ];
  for (const [problem, damaged, message] of cases) {
    test(`tiktoken ranks with ${problem}`, () => {
      expect(() => parseTiktoken(damaged)).toThrow(message);
      expect(() => parseTiktoken(damaged)).toThrow(TokenizerError);
    });
  }

  test("tiktoken ranks without a byte, or with a special token's id taken", () => {
    const lines = ranks.split("\n");
    expect(() => new Tokenizer(parseTiktoken(lines.slice(1).join("\n")))).toThrow(/0x00|\\u0000/);
    expect(() => parseTiktoken(ranks, { "<|end|>": 97 })).toThrow('special token "<|end|>": id 97 is "a" already');
  });

  const json = (change: (file: Record<string, any>) => void): string => {
    const file = JSON.parse(toHuggingFace(tokenizer));
    change(file);
    return JSON.stringify(file);
  };
  const files: [problem: string, text: string, message: string][] = [
    ["cut short", toHuggingFace(tokenizer).slice(0, -50), "not valid JSON, or cut short"],
    ["an array", "[]", "it is not an object"],
    ["another model", json((file) => (file.model.type = "Unigram")), 'the model is "Unigram", expected "BPE"'],
    ["byte fallback", json((file) => (file.model.byte_fallback = true)), "byte_fallback is true"],
    [
      "an unknown normalizer",
      json((file) => (file.normalizer = { type: "Lowercase" })),
      '"Lowercase" is not supported',
    ],
    ["another pre-tokenizer", json((file) => (file.pre_tokenizer = { type: "Whitespace" })), '"Whitespace"'],
    ["a blank in front", json((file) => (file.pre_tokenizer.add_prefix_space = true)), "add_prefix_space"],
    ["an id of a wrong type", json((file) => (file.model.vocab.a = "7")), 'the id of "a" is 7'],
    ["an id twice", json((file) => (file.model.vocab.a = 98)), "two tokens have id 98"],
    ["a merge of three", json((file) => file.model.merges.push(["a", "b", "c"])), "expected two tokens"],
    ["merges missing", json((file) => delete file.model.merges), "model.merges is not an array"],
    ["stripping tokens", json((file) => (file.added_tokens[0].lstrip = true)), "lstrip is not supported"],
    [
      "an added id twice",
      json((file) => (file.added_tokens[0].id = file.added_tokens[1].id)),
      "two added tokens have id",
    ],
  ];
  for (const [problem, damaged, message] of files) {
    test(`tokenizer.json with ${problem}`, () => {
      expect(() => parseHuggingFace(damaged)).toThrow(message);
      expect(() => parseHuggingFace(damaged)).toThrow(TokenizerError);
    });
  }

  test("a file is named", () => {
    const path = join(directory, "broken.json");
    writeFileSync(path, '{"model": {"type": "WordPiece"}}');
    expect(() => loadTokenizer(path)).toThrow(`${path}: tokenizer.json: the model is "WordPiece"`);
  });
});

test.each(["é", "§", "Ġthe", "Ã¯", " the", " "])(
  "a special token %p that files in GPT-2's alphabet cannot hold is refused",
  (token) => {
    const { merges } = tokenizer;
    const vocab = new Map(tokenizer.vocab);
    const bytes = new TextEncoder().encode(token);
    if (![...vocab.values()].map(String).includes(String(bytes))) vocab.set(400, bytes);
    const other = new Tokenizer({ vocab, merges, specialTokens: [token] });
    for (const write of [toGpt2, toHuggingFace]) {
      expect(() => write(other)).toThrow(`special token ${JSON.stringify(token)} cannot be told from an ordinary one`);
    }
  },
);

test("what tiktoken cannot hold is refused", () => {
  const vocab = new Map(tokenizer.vocab);
  vocab.set(400, Uint8Array.of(1, 2, 3));
  const unmade = new Tokenizer({ vocab, merges: tokenizer.merges });
  expect(() => toTiktoken(unmade)).toThrow("is made by no merge");
  const reversed = new Map(Array.from(tokenizer.vocab, ([id, bytes]) => [id < 256 ? id : 1000 - id, bytes]));
  for (const id of tokenizer.specialTokens.values()) reversed.delete(1000 - id);
  expect(() => toTiktoken(new Tokenizer({ vocab: reversed, merges: tokenizer.merges }))).toThrow("merged before one");
});

test("merges in the old form, one string each, are read", () => {
  const file = JSON.parse(toHuggingFace(tokenizer));
  file.model.merges = file.model.merges.map((pair: string[]) => pair.join(" "));
  expect(new Tokenizer(parseHuggingFace(JSON.stringify(file))).hash).toBe(tokenizer.hash);
});
