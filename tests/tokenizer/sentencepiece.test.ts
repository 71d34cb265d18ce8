/**
 * Tokenizers of SentencePiece's family, by hand. That the ids are Hugging Face's is proven by the interop suite; here they
 * are held against a plain reference, and whatever way a text comes, they are the same.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { TokenizerError } from "@mantou/tokenizer";
import { encodeFile, loadTokenizer, saveTokenizer } from "@mantou/tokenizer/files";
import {
  type BlankInFront,
  fromHuggingFace,
  SentencePieceTokenizer,
  toGpt2,
  toHuggingFace,
  toTiktoken,
} from "@mantou/tokenizer/formats";

const merges: [string, string][] = [
  ["▁", "▁"],
  ["▁", "t"],
  ["h", "e"],
  ["▁t", "he"],
  ["▁▁", "▁▁"],
  ["a", "a"],
  ["é", "a"],
  ["c", "a"],
  ["e", "▁"], // goes across a blank
  ["ca", "t"],
  ["aa", "aa"],
  ["말", "하"],
];
const texts = ["<unk>", "<s>", "</s>", ...Array.from({ length: 256 }, (_, b) => byteText(b))];
texts.push(..."▁theacés.말하말".slice(0, -1), ...merges.map((pair) => pair.join("")));
const ids = new Map(texts.map((text, id) => [text, id]));

function byteText(byte: number): string {
  return `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
}

function make(blankInFront: BlankInFront, splitsAtBlanks = false): SentencePieceTokenizer {
  const specials = ["<unk>", "<s>", "</s>"];
  return new SentencePieceTokenizer({
    vocab: new Map(texts.filter((text) => !specials.includes(text)).map((text) => [ids.get(text)!, text])),
    merges,
    specialTokens: new Map(specials.map((text) => [text, ids.get(text)!])),
    blankInFront,
    stripsBlank: blankInFront !== "never",
    splitsAtBlanks,
  });
}

/** Ids of a stretch without special tokens, by the definition: the lowest merge, leftmost, again and again. */
function reference(text: string, splits: boolean): number[] {
  const words = splits ? text.split(/(?=▁)/u) : [text];
  return words.flatMap((word) => {
    const parts = [...word].flatMap((c) => (ids.has(c) ? [c] : Array.from(new TextEncoder().encode(c), byteText)));
    for (;;) {
      const rank = merges.findIndex(([a, b]) => parts.some((part, i) => part === a && parts[i + 1] === b));
      if (rank < 0) return parts.map((part) => ids.get(part)!);
      const at = parts.findIndex((part, i) => part === merges[rank][0] && parts[i + 1] === merges[rank][1]);
      parts.splice(at, 2, merges[rank].join(""));
    }
  });
}

const tokenizer = make("stretches");
const encoder = new TextEncoder();
const unit = fc.constantFrom(..."  theacés.말하\n▁x", "<s>", "</s>", " the", "😀", "\ud83d", "aaaa");
const text = fc.string({ unit, maxLength: 24 });

test("ids are those of the definition, blanks in front as asked for", () => {
  const inFront: [BlankInFront, (stretch: string, i: number) => boolean][] = [
    ["stretches", () => true],
    ["unlessBlank", (stretch) => !stretch.startsWith("▁")],
    ["text", (stretch, i) => i === 0 && !stretch.startsWith("▁")],
    ["never", () => false],
  ];
  for (const [blankInFront, isDue] of inFront) {
    for (const splits of [false, true]) {
      const own = make(blankInFront, splits);
      fc.assert(
        fc.property(text, (sample) => {
          const expected = sample
            .toWellFormed()
            .split(/(<s>|<\/s>)/)
            .flatMap((part, i) => {
              if (i % 2 === 1) return [ids.get(part)!];
              const stretch = part.replaceAll(" ", "▁");
              return stretch === "" ? [] : reference((isDue(stretch, i) ? "▁" : "") + stretch, splits);
            });
          expect([...own.encode(sample)]).toEqual(expected);
        }),
        { numRuns: 100 },
      );
    }
  }
});

test("the same however the text comes, and back again", () => {
  fc.assert(
    fc.property(text, (sample) => {
      const whole = [...tokenizer.encode(sample)];
      const bytes = encoder.encode(sample);
      expect([...tokenizer.encodeBytes(bytes)]).toEqual(whole);
      expect(tokenizer.count(sample)).toBe(whole.length);
      const streamed = tokenizer.createEncoder();
      for (let cut = 0; cut <= bytes.length; cut++) {
        const parts = [streamed.push(bytes.slice(0, cut)), streamed.push(bytes.slice(cut)), streamed.finish()];
        expect(parts.flatMap((part) => [...part])).toEqual(whole);
      }
      const decoder = tokenizer.createDecoder();
      const decoded = tokenizer.decode(whole);
      expect(whole.map((id) => decoder.push(id)).join("") + decoder.finish()).toBe(decoded);
      if (!/<\/?s>|▁/.test(sample)) expect(decoded).toBe(sample.toWellFormed());
    }),
    { numRuns: 200 },
  );
});

test("bytes that are no text survive", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 20 }), (bytes) => {
      const blanks = Buffer.from(Buffer.from(bytes).toString("latin1").replaceAll("\u00e2\u0096\u0081", " "), "latin1");
      expect(Buffer.from(tokenizer.decodeBytes(tokenizer.encodeBytes(bytes)))).toEqual(blanks);
    }),
  );
});

test("offsets are of the text, and what continues a text keeps its blank", () => {
  const sample = "the <s>the▁cat";
  const offsets = tokenizer.offsets(sample);
  const tokens = Array.from(offsets.ids, (id, i) => [texts[id], sample.slice(offsets.utf16[i], offsets.utf16[i + 1])]);
  expect(tokens).toEqual([
    ["▁the", "the"],
    ["▁", " "],
    ["<s>", "<s>"],
    ["▁the", "the"],
    ["▁", "▁"],
    ["cat", "cat"],
  ]);
  expect(tokenizer.truncate("the cat cat", 3)).toBe("the cat");
  const after = tokenizer.createDecoder({ continues: true });
  expect(after.push(ids.get("▁the")!)).toBe(" the");
  const bytes = tokenizer.decodeBytes([ids.get("▁the")!], { continues: true });
  expect(new TextDecoder().decode(bytes)).toBe(" the");
  expect(tokenizer.createDecoder().push(ids.get("▁the")!)).toBe("the");
  expect(tokenizer.tokenBytes(ids.get("<0x0A>")!)).toEqual(Uint8Array.of(10));
});

test("long pieces and long texts take about linear time", () => {
  const long = "a".repeat(200_000);
  expect(tokenizer.encode(long)).toHaveLength(50_001);
  expect(tokenizer.encode(" ".repeat(100_000)).length).toBe(25_001);
  expect(tokenizer.count("the cat ".repeat(50_000))).toBeGreaterThan(100_000);
});

describe("files", () => {
  const directory = mkdtempSync(join(tmpdir(), "mantou-sentencepiece-"));
  afterAll(() => rmSync(directory, { recursive: true }));

  test("come back from a tokenizer.json, which is how they are saved", async () => {
    for (const blankInFront of ["stretches", "unlessBlank", "text", "never"] as const) {
      for (const splits of [false, true]) {
        if (blankInFront === "stretches" && splits) continue; // no file has both
        const path = join(directory, "tokenizer.json");
        const own = make(blankInFront, splits);
        saveTokenizer(own, path);
        const copy = loadTokenizer(path);
        expect(copy).toBeInstanceOf(SentencePieceTokenizer);
        expect([copy.hash, copy.vocabSize]).toEqual([own.hash, texts.length]);
        expect(toHuggingFace(copy)).toBe(toHuggingFace(own));
      }
    }
    const path = join(directory, "text.txt");
    writeFileSync(path, "the cat\n".repeat(1000));
    const found: number[] = [];
    await encodeFile(tokenizer, path, (part) => void found.push(...part), { workers: 2 });
    expect(found).toEqual([...tokenizer.encode("the cat\n".repeat(1000))]);
  });

  test("of other shapes are refused by what they have", () => {
    const damaged = (change: (file: Record<string, any>) => void) => () => {
      const file = JSON.parse(toHuggingFace(tokenizer));
      change(file);
      fromHuggingFace(JSON.stringify(file));
    };
    const cases: [(file: Record<string, any>) => void, string][] = [
      [(file) => file.normalizer.normalizers.unshift({ type: "NFKC" }), 'the normalizer {"type":"NFKC"}'],
      [(file) => (file.normalizer.normalizers[0].prepend = "x"), '"prepend":"x"'],
      [(file) => (file.normalizer = null), "the pre_tokenizer null"],
      [(file) => (file.pre_tokenizer = { type: "Whitespace" }), 'the pre_tokenizer {"type":"Whitespace"}'],
      [(file) => (file.decoder.decoders[3].start = 2), "the decoder"],
      [(file) => (file.decoder = null), "the decoder null"],
      [(file) => delete file.model.vocab["<0x0A>"], "has no <0x0A>: byte fallback needs all 256 bytes"],
      [(file) => file.model.merges.push(["<0x0A>", "a"]), "a merge of <0x0A>"],
      [(file) => file.model.merges.push(["t", "a"]), '"ta" is not in the vocabulary'],
      [(file) => (file.model.vocab["a b"] = 999), 'token "a b" has a blank'],
      [(file) => (file.model.ignore_merges = true), "ignore_merges"],
      [(file) => (file.model.vocab.t = 5), "two tokens have id 5"],
      [(file) => delete file.model.vocab["▁"], "the vocabulary has no ▁, which blanks become"],
      [
        (file) => file.added_tokens.push({ id: 999, content: "é", normalized: true }),
        'added token "é" is one character and "normalized"',
      ],
      [
        (file) => {
          Object.assign(file, { normalizer: null, pre_tokenizer: { type: "Metaspace", replacement: "▁" } });
          file.added_tokens.push({ id: 998, content: "<s>", normalized: false });
          file.added_tokens.push({ id: 999, content: "<s>x", normalized: true });
        },
        'added tokens "<s>" and "<s>x" can overlap',
      ],
    ];
    for (const [change, message] of cases) {
      expect(damaged(change)).toThrow(message);
      expect(damaged(change)).toThrow(TokenizerError);
    }
    expect(() => toTiktoken(tokenizer)).toThrow("cannot hold a tokenizer of SentencePiece's");
    expect(() => toGpt2(tokenizer)).toThrow("cannot hold a tokenizer of SentencePiece's");
  });
});
