/**
 * The NFC normalizer of Qwen's tokenizers: the ids of `text.normalize("NFC")` however the text comes, special tokens found
 * before it, offsets in the text as it was. That Hugging Face's tokenizers gives the same ids is proven by oracles/compare.ts
 * and the interop suite.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { PATTERN_NAMES, Tokenizer } from "@mantou/tokenizer";
import { encodeFile, loadTokenizer, saveTokenizer, TOKENIZER_FORMATS } from "@mantou/tokenizer/files";
import { parseHuggingFace, toHuggingFace } from "@mantou/tokenizer/formats";
import { NFC, normalizeText } from "../../packages/tokenizer/src/nfc.ts";
import { NormalizingFeed } from "../../packages/tokenizer/src/normalizing-feed.ts";
import { resolvePattern } from "../../packages/tokenizer/src/patterns.ts";
import { compilePattern } from "../../packages/tokenizer/src/scan-regexp.ts";

const encoder = new TextEncoder();
const corpus = "việt nam, tiếng Việt; café naïve Å 말하다 각 한국어 क़ㅤ the cat's mat\n".repeat(20).normalize("NFC");
const specialTokens = ["<|end|>", "e\u0301<", "<x>", "<q\u0323\u0307>"];
const normalizedSpecialTokens = ["<x>", "<q\u0323\u0307>"];
const { vocab, merges } = Tokenizer.train(corpus, { vocabSize: 380, specialTokens, pattern: "qwen2" });
const plain = new Tokenizer({ vocab, merges, pattern: "qwen2" });
const tokenizer = new Tokenizer({
  vocab,
  merges,
  pattern: "qwen2",
  specialTokens,
  normalizedSpecialTokens,
  normalization: "NFC",
});
const [end, acute, x, dots] = specialTokens.map((token) => tokenizer.specialTokens.get(token)!);

/** Composing, decomposing, reordering, joining across: what normalization may meet. */
const unit = fc.oneof(
  fc.constantFrom(
    ..."aeqo <>c\n1",
    ..."\u0301\u0323\u0307\u0327\u0338\u0345\u0344\u0f73",
    ..."ㄱ\u1100\u1161\u11a8\uac00\u11a7\u1175",
    ..."\u0915\u093c\u0958\u212b\u00e9\u1ec7\u03a9\u2126\ufb2c",
    ..."\u09c7\u09be\u{1d15e}\u{1d157}\u{1d165}\u{16d67}\u3099か\u{2f800}😀",
  ),
  fc.string({ unit: "binary", minLength: 1, maxLength: 1 }),
);
const text = fc.string({ unit, maxLength: 30 });

test("cuts nothing that composes, and takes nothing for inert that changes", () => {
  const scanner = NFC.pieces.createScanner();
  const ends = new Int32Array(4);
  const cuts = (before: string, after: string): boolean => {
    const bytes = encoder.encode(before + after);
    scanner.begin(bytes, 0, bytes.length);
    const count = scanner.next(ends);
    return count === 2 && ends[0] >= encoder.encode(before).length;
  };
  let compositions = 0;
  for (let codePoint = 0x80; codePoint < 0x30000; codePoint++) {
    if (codePoint >= 0xd800 && codePoint < 0xe000) continue;
    const character = String.fromCodePoint(codePoint);
    const nfd = character.normalize("NFD");
    if (nfd !== character) {
      const bytes = encoder.encode(character);
      let normal = "";
      NFC.normalize(bytes, 0, bytes.length, 0, (part) => (normal += new TextDecoder().decode(part)));
      if (normal !== character.normalize("NFC")) throw new Error(`U+${codePoint.toString(16)}`);
      const parts = [...nfd];
      const last = parts.pop()!;
      const first = parts.join("").normalize("NFC");
      if ((first + last).normalize("NFC") !== first + last) {
        compositions++;
        if (cuts(first, last)) throw new Error(`cuts before the end of U+${codePoint.toString(16)}`);
      }
    }
    // what changes places with a mark of the greatest class, or joins one
    const moved = `\u0345${character}`;
    if (moved.normalize("NFC") !== `\u0345${character.normalize("NFC")}` && cuts("\u0345", character)) {
      throw new Error(`cuts before U+${codePoint.toString(16)}`);
    }
  }
  expect(compositions).toBeGreaterThan(11172); // of Hangul alone
});

test("ids are those of the normalized text, for strings, bytes, and chunks cut anywhere", () => {
  fc.assert(
    fc.property(text, (sample) => {
      const expected = plain.encode(sample.toWellFormed().normalize("NFC"));
      const bytes = encoder.encode(sample);
      expect(tokenizer.encodeOrdinary(sample)).toEqual(expected);
      expect(tokenizer.encodeOrdinary(bytes)).toEqual(expected);
      const target = new Uint32Array(3 * bytes.length + 4);
      const options = { allowedSpecial: [], disallowedSpecial: [] };
      expect(tokenizer.count(sample, options)).toBe(expected.length);
      const whole = tokenizer.encode(sample);
      expect(target.subarray(0, tokenizer.encodeInto(sample, target))).toEqual(Uint32Array.from(whole));
      expect(tokenizer.encodeBytes(bytes)).toEqual(whole);
      const streamed = tokenizer.createEncoder();
      for (let cut = 0; cut <= sample.length; cut++) {
        const parts = [streamed.push(sample.slice(0, cut)), streamed.push(sample.slice(cut)), streamed.finish()];
        expect(parts.flatMap((ids) => [...ids])).toEqual([...whole]);
      }
      for (let cut = 0; cut <= bytes.length; cut++) {
        const parts = [streamed.push(bytes.slice(0, cut)), streamed.push(bytes.slice(cut)), streamed.finish()];
        expect(parts.flatMap((ids) => [...ids])).toEqual([...whole]);
      }
    }),
    { numRuns: 300 },
  );
});

test("every pattern, in buffers that are always full", () => {
  const sample = `${corpus.slice(0, 300).normalize("NFD")} ${"e\u0301".repeat(40)}${"\u0301\u0323".repeat(40)}`;
  const bytes = encoder.encode(sample);
  for (const name of PATTERN_NAMES) {
    const pieces: string[] = [];
    const sink = {
      pieces: (part: Uint8Array, _view: DataView, start: number, ends: Int32Array, count: number) => {
        for (let i = 0; i < count; start = ends[i++])
          pieces.push(new TextDecoder().decode(part.subarray(start, ends[i])));
      },
      special: () => undefined,
    };
    const feed = new NormalizingFeed(NFC, resolvePattern(name), null, null, sink, 16);
    for (let i = 0; i < bytes.length; i += 3) feed.push(bytes.subarray(i, i + 3));
    feed.finish();
    const expected: string[] = [];
    const regexp = compilePattern(resolvePattern(name).source);
    for (const [match] of sample.normalize("NFC").matchAll(regexp)) expected.push(match);
    expect(pieces).toEqual(expected);
  }
});

test("malformed bytes stay as they are and part what is beside them", () => {
  const parts = fc.array(
    fc.oneof(text, fc.constantFrom([0xff], [0x80], [0xc0], [0x80, 0x80, 0x80, 0x80], [0xed, 0xff])),
  );
  fc.assert(
    fc.property(parts, (list) => {
      const expected: number[] = [];
      let wellFormed = "";
      const bytes: number[] = [];
      for (const part of [...list, []]) {
        if (typeof part === "string") {
          bytes.push(...encoder.encode(part));
          wellFormed += part.toWellFormed();
        } else {
          bytes.push(...part);
          expected.push(...encoder.encode(wellFormed.normalize("NFC")), ...part);
          wellFormed = "";
        }
      }
      expect([...tokenizer.decodeBytes(tokenizer.encodeOrdinary(Uint8Array.from(bytes)))]).toEqual(expected);
    }),
    { numRuns: 300 },
  );
});

describe("special tokens", () => {
  test("are found in the text as it is, or in the normalized text where that is asked for", () => {
    const has = (sample: string) => [...tokenizer.encode(sample)].filter((id) => id >= end);
    expect(has("u\u0301<|end|>\u0301")).toEqual([end]);
    expect(has("e\u0301< é<")).toEqual([acute]); // the composed form is another text
    expect(has("<x>a <x>\u0338 <x\u0323>")).toEqual([x]); // ">\u0338" is another character
    expect(has("<q\u0307\u0323> <q\u0323\u0307>")).toEqual([dots, dots]);
    const parted = tokenizer.encode("a<|end|>\u0301"); // nothing composes across a special token
    expect([...parted].filter((id) => id < end)).toEqual([...plain.encode("a"), ...plain.encode("\u0301")]);
  });

  test("are refused where they are disallowed", () => {
    expect(() => tokenizer.encode("<q\u0307\u0323>", { allowedSpecial: [] })).toThrow("is not allowed");
    expect(() => new Tokenizer({ vocab, merges, normalization: "NFC", normalizedSpecialTokens: ["<x>"] })).toThrow(
      'normalizedSpecialTokens: "<x>" is no special token',
    );
    expect(() => new Tokenizer({ vocab, merges, normalization: "NFD" as "NFC" })).toThrow('normalization is "NFD"');
  });
});

test("offsets and truncation are of the text as it was", () => {
  const sample = "e\u0301\u0323 <|end|>Ω\u2126<q\u0307\u0323>\u1100\u1161\u11a8x\ud800";
  const { ids, utf16, bytes } = tokenizer.offsets(sample);
  expect(utf16[ids.length]).toBe(sample.length);
  expect(bytes[ids.length]).toBe(encoder.encode(sample).length);
  expect(utf16[ids.indexOf(end)]).toBe(4);
  expect(utf16[ids.indexOf(end) + 1]).toBe(11);
  expect(utf16[ids.indexOf(dots)]).toBe(sample.indexOf("<q"));
  expect(utf16[ids.indexOf(dots) + 1]).toBe(sample.indexOf("\u1100"));
  fc.assert(
    fc.property(text, fc.nat(12), (any, most) => {
      const offsets = tokenizer.offsets(any);
      expect(offsets.utf16[offsets.ids.length]).toBe(any.length);
      offsets.utf16.forEach((at, i) => expect(at).toBeGreaterThanOrEqual(i === 0 ? 0 : offsets.utf16[i - 1]));
      const start = tokenizer.truncate(any, most);
      expect(any.startsWith(start)).toBe(true);
      expect(tokenizer.count(start)).toBeLessThanOrEqual(most);
      if (offsets.ids.length <= most) expect(start).toBe(any);
    }),
    { numRuns: 300 },
  );
});

test("text without anything to normalize has the offsets of a tokenizer without it", () => {
  fc.assert(
    fc.property(text, (any) => {
      const sample = any.toWellFormed().normalize("NFC");
      const options = { allowedSpecial: [], disallowedSpecial: [] };
      expect(tokenizer.offsets(sample, options)).toEqual(plain.offsets(sample));
    }),
    { numRuns: 300 },
  );
});

test("a hundred thousand marks in a row take no time to speak of", () => {
  const marks = "a" + "\u0301\u0323\u0f73\u0903".repeat(30_000) + "\u0301\u0323".repeat(30_000);
  const short = "a" + "\u0301\u0323\u0f73\u0903\u0345\u0344\u0301\u05b0".repeat(200) + "e\u0301";
  expect(normalizeText(short)).toBe(short.normalize("NFC"));
  expect(tokenizer.decode(tokenizer.encode(marks))).toHaveLength(normalizeText(marks).length);
});

describe("files", () => {
  const directory = mkdtempSync(join(tmpdir(), "mantou-nfc-"));
  afterAll(() => rmSync(directory, { recursive: true }));

  test.each(TOKENIZER_FORMATS.map((format) => [format]))("%s brings it back, or is told", (format) => {
    const path = join(directory, format === "tiktoken" ? "ranks.tiktoken" : `${format}.out`);
    const original = new Tokenizer({ vocab, merges, pattern: "qwen2", specialTokens, normalization: "NFC" });
    saveTokenizer(original, path, format);
    const copy = loadTokenizer(path, {
      pattern: "qwen2",
      normalization: "NFC",
      specialTokens: Object.fromEntries(original.specialTokens),
    });
    expect(copy.hash).toBe(original.hash);
    expect(copy.encode("e\u0301")).toEqual(original.encode("é"));
  });

  test("ours is of version 2 only where there is a normalization, and knows it for damaged", () => {
    expect(plain.toJSON()).toMatchObject({ version: 1 });
    const json = tokenizer.toJSON();
    expect(json).toMatchObject({ version: 2, normalization: "NFC", normalizedSpecialTokens });
    const copy = Tokenizer.fromJSON(JSON.stringify(json));
    expect([copy.hash, copy.normalizedSpecialTokens]).toEqual([tokenizer.hash, normalizedSpecialTokens]);
    expect(() => Tokenizer.fromJSON({ ...json, normalization: "NFKC" })).toThrow('normalization is "NFKC"');
    expect(() => Tokenizer.fromJSON({ ...json, normalizedSpecialTokens: ["<|end|>"] })).toThrow("has the hash");
    expect(() => Tokenizer.fromJSON({ ...json, version: 3 })).toThrow("reads versions 1 and 2");
  });

  test("a tokenizer.json of Hugging Face keeps which tokens are found when", () => {
    const copy = new Tokenizer(parseHuggingFace(toHuggingFace(tokenizer)));
    expect([copy.hash, copy.normalizedSpecialTokens]).toEqual([tokenizer.hash, normalizedSpecialTokens]);
    const file = JSON.parse(toHuggingFace(tokenizer));
    file.normalizer = { type: "Sequence", normalizers: [{ type: "NFC" }] };
    expect(parseHuggingFace(JSON.stringify(file)).normalization).toBe("NFC");
    file.normalizer.normalizers.push({ type: "Lowercase" });
    expect(() => parseHuggingFace(JSON.stringify(file))).toThrow("a sequence of several");
  });

  test("workers give the same ids", async () => {
    const path = join(directory, "text.txt");
    const sample = corpus.normalize("NFD").repeat(2500);
    writeFileSync(path, sample);
    const expected = plain.encode(sample.normalize("NFC"));
    const ids = new Int32Array(expected.length);
    let length = 0;
    const { tokens } = await encodeFile(
      tokenizer,
      path,
      (part) => {
        ids.set(part, length);
        length += part.length;
      },
      { workers: 2 },
    );
    expect(tokens).toBe(expected.length);
    expect(Buffer.from(ids.buffer).equals(Buffer.from(expected.buffer))).toBe(true);
  });
});
