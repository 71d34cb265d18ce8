/**
 * Files and formats: our JSON, GPT-2's two files, training from and encoding of files, and what happens to bad ones.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Tokenizer, TokenizerError, type TokenizerJson } from "@mantou/tokenizer";
import {
  encodeFile,
  loadGpt2,
  loadTokenizer,
  saveTokenizer,
  trainFromFiles,
  trainFromFilesSync,
} from "@mantou/tokenizer/files";
import { parseGpt2 } from "@mantou/tokenizer/formats";

const directory = mkdtempSync(join(tmpdir(), "mantou-tokenizer-"));
afterAll(() => rmSync(directory, { recursive: true }));
const file = (name: string): string => join(directory, name);

const text = "the cat sat on the mat; it's naïve, 말하다 말하다 😀😀\n".repeat(20);
const options = { vocabSize: 320, specialTokens: ["<|end|>", "<|pad|>"] };
const tokenizer = Tokenizer.train(text, options);
const size = tokenizer.vocabSize;

/** The JSON of the tokenizer with something changed, and its hash made right where asked. */
function damaged(change: (json: TokenizerJson) => void): string {
  const json = structuredClone(tokenizer.toJSON() as TokenizerJson);
  change(json);
  return JSON.stringify(json);
}

describe("our JSON", () => {
  test("comes back the same, through text and through the value", () => {
    for (const copy of [Tokenizer.fromJSON(JSON.stringify(tokenizer)), Tokenizer.fromJSON(tokenizer.toJSON())]) {
      expect(copy.hash).toBe(tokenizer.hash);
      expect(copy.toJSON()).toEqual(tokenizer.toJSON());
      expect(copy.vocab).toEqual(tokenizer.vocab);
      expect(copy.merges).toEqual(tokenizer.merges);
      expect([...copy.specialTokens]).toEqual([...tokenizer.specialTokens]);
      expect(copy.encode(`${text}<|end|>`)).toEqual(tokenizer.encode(`${text}<|end|>`));
    }
  });

  test("keeps foreign ids, gaps, tokens without merges, odd special tokens and patterns", () => {
    const vocab = new Map<number, Uint8Array>();
    for (let byte = 0; byte < 256; byte++) vocab.set(1000 - byte, Uint8Array.of(byte));
    const encoder = new TextEncoder();
    const specialTokens = ["__proto__", "7", "ab"];
    ["ab", "__proto__", "7\u0000"].forEach((token, i) => vocab.set(i, encoder.encode(token)));
    vocab.set(500, Uint8Array.of(0xff, 0x00));
    const foreign = new Tokenizer({
      vocab,
      merges: [[encoder.encode("a"), encoder.encode("b")]],
      specialTokens,
      pattern: "\\p{L}+|[^]",
    });
    const copy = Tokenizer.fromJSON(JSON.stringify(foreign));
    expect(copy.hash).toBe(foreign.hash);
    expect(copy.vocab).toEqual(foreign.vocab);
    expect([...copy.specialTokens]).toEqual([
      ["__proto__", 1],
      ["7", 1000 - 55],
      ["ab", 0],
    ]);
    expect([...copy.encode("ab7__proto__a")]).toEqual([0, 945, 1, 903]);
    expect(copy.pattern).toBe("\\p{L}+|[^]");
  });

  test("the hash tells apart what encodes differently, and only that", () => {
    const { vocab, merges } = tokenizer;
    const hashOf = (change: object): string =>
      new Tokenizer({ vocab, merges, specialTokens: ["<|end|>", "<|pad|>"], ...change }).hash;
    expect(hashOf({})).toBe(tokenizer.hash);
    expect(hashOf({ specialTokens: ["<|pad|>", "<|end|>"] })).toBe(tokenizer.hash);
    expect(hashOf({ vocab: new Map([...vocab].reverse()) })).toBe(tokenizer.hash);
    const others = [
      { specialTokens: ["<|end|>"] },
      { pattern: "[^]" },
      { merges: merges.slice(0, -1) },
      { merges: [merges[1], merges[0], ...merges.slice(2)] },
      { vocab: new Map([...vocab, [400, Uint8Array.of(1, 2)]]) },
    ];
    expect(new Set([tokenizer.hash, ...others.map(hashOf)]).size).toBe(others.length + 1);
    expect(tokenizer.hash).toMatch(/^[0-9a-f]{16}$/);
  });

  const cases: [problem: string, json: string, message: string][] = [
    ["nothing", "", "cut short"],
    ["truncated", JSON.stringify(tokenizer).slice(0, -20), "cut short"],
    ["an array", "[]", "expected a JSON object"],
    ["another format", '{"model":{}}', '"format" is missing'],
    ["a later version", damaged((json) => Object.assign(json, { version: 3 })), "version 3"],
    ["no hash", damaged((json) => Object.assign(json, { hash: undefined })), "hash is missing, expected a string"],
    [
      "merges of a wrong type",
      damaged((json) => Object.assign(json, { merges: {} })),
      "merges is {}, expected an array",
    ],
    ["a merge too short", damaged((json) => json.merges[3].pop()), "merges[3] is ["],
    ["a merge of strings", damaged((json) => Object.assign(json.merges, { 1: ["a", "b", 3] })), 'merges[1] holds "a"'],
    ["a merge of an unknown id", damaged((json) => (json.merges[0][0] = 300)), "merges[0] uses id 300"],
    ["a byte too few", damaged((json) => json.bytes.pop()), "bytes has 255 ids"],
    ["a duplicate id", damaged((json) => (json.bytes[5] = 4)), 'bytes[5] gives id 4 to "\\u0005"; "\\u0004" has it'],
    ["a special token's id taken", damaged((json) => (json.specialTokens[1][1] = 260)), "gives id 260"],
    ["an empty special token", damaged((json) => (json.specialTokens[0][0] = "")), "specialTokens[0] is empty"],
    ["an id beyond the size", damaged((json) => json.vocabSize--), `is id ${size - 1}, but vocabSize is ${size - 1}`],
    ["a gap", damaged((json) => (json.vocabSize = 400)), `id ${size} is missing`],
    ["a used id called unused", damaged((json) => json.unusedIds.push(7)), "id 7 is listed as unused"],
    ["bad hexadecimal", damaged((json) => json.otherTokens.push([size, "0g"])), 'otherTokens[0] is "0g"'],
    ["merges in another order", damaged((json) => json.merges.reverse()), "corrupt tokenizer file"],
    ["a changed special token", damaged((json) => (json.specialTokens[0][0] = "<|End|>")), "hash"],
  ];
  for (const [problem, json, message] of cases) {
    test(`refuses ${problem}`, () => {
      expect(() => Tokenizer.fromJSON(json)).toThrow(message);
      expect(() => Tokenizer.fromJSON(json)).toThrow(TokenizerError);
    });
  }
});

describe("files of ours", () => {
  test("are written whole and read back", () => {
    const path = file("tokenizer.json");
    writeFileSync(path, "something older");
    saveTokenizer(tokenizer, path);
    expect(loadTokenizer(path).hash).toBe(tokenizer.hash);
    expect(readdirSync(directory).filter((name) => name.includes("tmp"))).toEqual([]);
  });

  test("that cannot be written or read are named, and nothing is left behind", () => {
    expect(() => saveTokenizer(tokenizer, file("no/where.json"))).toThrow(file("no/where.json"));
    expect(() => saveTokenizer(tokenizer, directory)).toThrow(`${directory}: it is no regular file`);
    writeFileSync(file("text"), "");
    expect(() => saveTokenizer(tokenizer, file("text/where.json"))).toThrow(/ENOTDIR.*text\/where\.json/);
    const pipe = file("pipe"); // replacing it would be a device's fate too: root may write beside /dev/null
    expect(Bun.spawnSync(["mkfifo", pipe]).success).toBe(true);
    expect(() => saveTokenizer(tokenizer, pipe)).toThrow(`${pipe}: it is no regular file`);
    expect(statSync(pipe).isFIFO()).toBe(true);
    expect(
      readdirSync(join(directory, "..")).filter((name) => name.includes("mantou") && name.endsWith("tmp")),
    ).toEqual([]);
    expect(() => loadTokenizer(file("none.json"))).toThrow(file("none.json"));
    expect(() => loadTokenizer(directory)).toThrow(directory);
    writeFileSync(file("half.json"), JSON.stringify(tokenizer).slice(0, 1000));
    expect(() => loadTokenizer(file("half.json"))).toThrow(
      `${file("half.json")}: not a tokenizer file, or one cut short`,
    );
  });
});

describe("training from files", () => {
  const [first, second] = [file("first.txt"), file("second.txt")];
  writeFileSync(first, `${text}in the`);
  writeFileSync(second, `re is <|end|>${text}`);

  test("equals training on the texts, and no token goes from file to file", async () => {
    const expected = Tokenizer.train([`${text}in the<|end|>re is <|end|>${text}`], options);
    expect((await trainFromFiles([first, second], options)).hash).toBe(expected.hash);
    expect(trainFromFilesSync([first, second], options).hash).toBe(expected.hash);
    expect(Tokenizer.train(`${text}in there is <|end|>${text}`, options).hash).not.toBe(expected.hash);
  });

  test("equals training on the text when the file is longer than a chunk", async () => {
    const long = file("long.txt");
    const content = `${text}x`.repeat(1500);
    expect(content.length).toBeGreaterThan(2 ** 20);
    writeFileSync(long, content);
    const seen: number[] = [];
    const trained = await trainFromFiles(long, {
      ...options,
      onProgress: ({ phase, done, total }) => phase === "count" && seen.push(done / total!),
    });
    expect(trained.hash).toBe(Tokenizer.train(content, options).hash);
    expect(seen.length).toBeGreaterThan(1);
    expect(seen[seen.length - 1]).toBe(1);
  });

  test("names the file that cannot be read, before reading any", async () => {
    const none = file("none.txt");
    let read = false;
    const watch = { ...options, onProgress: () => (read = true) };
    await expect(trainFromFiles([first, none], watch)).rejects.toThrow(none);
    await expect(trainFromFiles([first, directory], watch)).rejects.toThrow(`${directory}: it is a directory`);
    expect(() => trainFromFilesSync([none], watch)).toThrow(none);
    expect(() => trainFromFilesSync([], watch)).toThrow("no files given");
    expect(read).toBe(false);
  });

  test("stops when aborted", async () => {
    const controller = new AbortController();
    const reason = new Error("enough");
    const training = trainFromFiles([first], {
      ...options,
      signal: controller.signal,
      onProgress: () => controller.abort(reason),
    });
    await expect(training).rejects.toThrow(reason);
  });

  test("an empty file gives the bytes", () => {
    writeFileSync(file("empty.txt"), "");
    expect(trainFromFilesSync(file("empty.txt"), { vocabSize: 300 }).vocabSize).toBe(256);
  });
});

describe("encoding a file", () => {
  test("hands out the ids of the text", async () => {
    const path = file("encode.txt");
    const content = `${text}<|end|>`.repeat(1200);
    writeFileSync(path, content);
    const ids: number[] = [];
    let last = { done: 0, total: 0, tokens: 0 };
    const result = await encodeFile(
      tokenizer,
      path,
      async (part) => {
        await Promise.resolve();
        for (const id of part) ids.push(id);
      },
      { onProgress: (progress) => (last = progress) },
    );
    expect(ids.join()).toBe(tokenizer.encode(content).join());
    const bytes = readFileSync(path).length;
    expect(bytes).toBeGreaterThan(2 ** 20);
    expect(result).toEqual({ bytes, tokens: ids.length });
    expect(last).toEqual({ done: bytes, total: bytes, tokens: ids.length });
  });

  test("names a file that cannot be read, and stops when aborted", async () => {
    await expect(encodeFile(tokenizer, file("none.txt"), () => undefined)).rejects.toThrow(file("none.txt"));
    const reason = new Error("enough");
    const signal = AbortSignal.abort(reason);
    await expect(encodeFile(tokenizer, file("encode.txt"), () => undefined, { signal })).rejects.toThrow(reason);
  });
});

describe("GPT-2's files", () => {
  // the alphabet in the order of the bytes, as encoder.py's bytes_to_unicode has it
  const alphabet = Array.from({ length: 256 }, (_, byte) => byte);
  const printable = alphabet.filter((b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174);
  const characters = alphabet.map((byte) =>
    printable.includes(byte)
      ? String.fromCharCode(byte)
      : String.fromCharCode(256 + alphabet.filter((b) => b < byte && !printable.includes(b)).length),
  );
  const tokens = [...characters, "th", "the", "Ġthe", "Ã©", "<|endoftext|>", "한 글"];
  const vocabJson = JSON.stringify(Object.fromEntries(tokens.map((token, id) => [token, id])));
  const mergesTxt = "#version: 0.2\nt h\nth e\nĠ the\nÃ ©\n";

  test("are read", () => {
    const gpt2 = new Tokenizer({ ...parseGpt2(vocabJson, mergesTxt), specialTokens: ["<|endoftext|>", "한 글"] });
    expect([...gpt2.encode("the the é<|endoftext|>한 글th")]).toEqual([257, 258, 32, 259, 260, 261, 256]);
    expect(gpt2.decode(Array.from({ length: 256 }, (_, id) => id))).toBe(
      new TextDecoder().decode(Uint8Array.from({ length: 256 }, (_, byte) => byte)),
    );
    writeFileSync(file("vocab.json"), vocabJson);
    writeFileSync(file("merges.txt"), mergesTxt.replaceAll("\n", "\r\n"));
    expect(loadGpt2(file("vocab.json"), file("merges.txt"), { specialTokens: ["<|endoftext|>", "한 글"] }).hash).toBe(
      gpt2.hash,
    );
  });

  test("that are damaged are refused", () => {
    expect(() => parseGpt2(vocabJson.slice(0, -5), mergesTxt)).toThrow("vocab.json is not valid JSON, or cut short");
    expect(() => parseGpt2("[]", mergesTxt)).toThrow("vocab.json is not an object");
    expect(() => parseGpt2('{"a":"b"}', mergesTxt)).toThrow('the id of "a" is not a number');
    expect(() => parseGpt2('{"a":1,"b":1}', mergesTxt)).toThrow("two tokens have id 1");
    expect(() => parseGpt2(vocabJson, "t h\nthe")).toThrow('merges.txt, line 2: expected two tokens, found "the"');
    expect(() => new Tokenizer(parseGpt2(vocabJson, "t h e"))).toThrow("line 1");
    expect(() => new Tokenizer(parseGpt2(vocabJson, "t e"))).toThrow('"te" is not in the vocabulary');
    expect(() => loadGpt2(file("none.json"), file("merges.txt"))).toThrow(file("none.json"));
  });

  const published = join(import.meta.dir, "../../../shared/gpt2");
  test.skipIf(!existsSync(published))("as published encode as GPT-2 does", () => {
    const gpt2 = loadGpt2(join(published, "vocab.json"), join(published, "merges.txt"), {
      specialTokens: ["<|endoftext|>"],
    });
    expect([...gpt2.encode("Hello world<|endoftext|>")]).toEqual([15496, 995, 50256]);
    expect([...gpt2.encode("Hello, I'm a language model,")]).toEqual([15496, 11, 314, 1101, 257, 3303, 2746, 11]);
  });
});
