/** Tokenizers that Hugging Face's library makes and loads, beyond the byte-level ones of huggingface.interop.ts. */
import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer, saveTokenizer } from "@mantou/tokenizer/files";
import { toHuggingFace } from "@mantou/tokenizer/formats";
import { mixedText } from "../tokenizer/oracles/texts.ts";
import { folder, python, texts } from "./python.ts";

interface Encoded {
  ids: number[];
  /** Where each token starts, in UTF-16 code units. */
  starts: number[];
  decoded: string;
}

/** What the library does with a tokenizer.json and texts. */
const encode = (path: string, samples: readonly string[]) => python<Encoded[]>("encode.py", { path, texts: samples });

describe("a tokenizer with the NFC normalizer, as Qwen2 has it", () => {
  const corpus = mixedText(100_000, 7) + "việt nam, tiếng Việt, 말하다 각 क़ॐ".repeat(50).normalize("NFC");
  const { vocab, merges } = Tokenizer.train(corpus, {
    vocabSize: 1500,
    specialTokens: ["<|endoftext|>", "<tool>", "<q\u0323\u0307>"],
    pattern: "qwen2",
  });
  const tokenizer = new Tokenizer({
    vocab,
    merges,
    pattern: "qwen2",
    specialTokens: ["<|endoftext|>", "<tool>", "<q\u0323\u0307>"],
    normalizedSpecialTokens: ["<tool>", "<q\u0323\u0307>"],
    normalization: "NFC",
  });
  const samples = [
    ...texts,
    "tiếng Việt, café naïve".normalize("NFD"),
    "한국어 각 말하다".normalize("NFD"),
    "\u1100\u1161\u11a8\u1100\u1161 \u11a8\uac00\u11a8",
    "a\u0301\u0323\u0327\u0345 \u0344 \u0f73\u0f71 \u0958\u0915\u093c",
    "\u212b\u2126\u{2f800}\ufb2c\u09c7\u09be か\u3099",
    "<|endoftext|>\u0338<tool>\u0338 <tool>x <q\u0307\u0323><q\u0323\u0307>e<|endoftext|>\u0301",
    mixedText(20_000, 8),
    mixedText(20_000, 9).normalize("NFD"),
  ];

  test("has the library's ids, and its offsets where nothing changes", async () => {
    const path = join(folder, "nfc.json");
    writeFileSync(path, toHuggingFace(tokenizer));
    const theirs = await encode(path, samples);
    samples.forEach((sample, i) => {
      const { ids, utf16 } = tokenizer.offsets(sample);
      expect([...ids]).toEqual(theirs[i].ids);
      expect(tokenizer.decode(ids)).toBe(theirs[i].decoded);
      // within what has changed they tell more characters apart
      const starts = [...utf16.subarray(0, -1)];
      if (sample === sample.normalize("NFC")) expect(starts).toEqual(theirs[i].starts);
      else starts.forEach((start, k) => expect(start).toBeLessThanOrEqual(theirs[i].starts[k]));
    });
  });

  test("comes back through our file with the same ids", () => {
    const path = join(folder, "nfc.mantou.json");
    saveTokenizer(tokenizer, path);
    expect(JSON.parse(readFileSync(path, "utf8"))).toMatchObject({ version: 2 });
    const copy = loadTokenizer(path);
    for (const sample of samples) expect(copy.encode(sample)).toEqual(tokenizer.encode(sample));
  });
});

describe("tokenizers of SentencePiece's family, as TinyLlama has them", () => {
  const samples = [
    ...texts,
    "Once upon a time, there was a cat.",
    " leading",
    "  two leading",
    "trailing  ",
    " ",
    "   ",
    "a  b   c    d",
    "\n",
    "\n\n a\tb",
    "▁ ▁▁a ▁",
    "a▁b",
    "<s>Hello</s>",
    "<s> Hello </s> world<s>",
    "<unk>x<unk>",
    "x<s>",
    "<s>",
    " <s>",
    "<s",
    "<0x41><0x0A>",
    "한국어 말하다 각 é à ㄱ",
    "数字 with unknown 鑫 and 𐍈 and 🤷🏽‍♀️",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\u0000\u0001\ufeff\u0085\u200b",
    mixedText(15_000, 11),
    `${"<s>"}${mixedText(3_000, 12)}`.replaceAll("\n", "</s>"),
    "the ".repeat(3000),
    "the".repeat(3000),
    " ".repeat(3000),
  ];
  const text = `${mixedText(30_000, 10)}\n${"the cat sat on the mat. It's been there, I say, all the time.\n".repeat(40)}`;

  test("have the library's ids and texts, and come back the same", async () => {
    const names = await python<string[]>("make_sentencepiece.py", { text, folder });
    expect(names).toHaveLength(16);
    for (const name of names) {
      const path = join(folder, `${name}.json`);
      const tokenizer = loadTokenizer(path);
      const theirs = await encode(path, samples);
      samples.forEach((sample, i) => {
        const ids = tokenizer.encode(sample);
        if (JSON.stringify([...ids]) !== JSON.stringify(theirs[i].ids)) {
          throw new Error(`${name}: ${JSON.stringify(sample.slice(0, 60))}: ${ids} instead of ${theirs[i].ids}`);
        }
        const decoder = tokenizer.createDecoder();
        const decoded = tokenizer.decode(ids);
        expect(Array.from(ids, (id) => decoder.push(id)).join("") + decoder.finish()).toBe(decoded);
        // they decode such a special token with the blank that was in front of it when it was found
        if (name !== "normalized" || !/<s>|<unk>/.test(sample)) expect(decoded).toBe(theirs[i].decoded);
      });
      const copy = join(folder, `${name}.copy.json`);
      saveTokenizer(tokenizer, copy);
      expect(loadTokenizer(copy).hash).toBe(tokenizer.hash);
      expect((await encode(copy, samples)).map(({ ids }) => ids)).toEqual(theirs.map(({ ids }) => ids));
    }
  });
});

describe("training with ties as others decide them", () => {
  // few letters, short words: most pairs have the count of many others
  let state = 5;
  const random = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const word = (letters: string) =>
    Array.from({ length: 1 + random(9) }, () => letters[random(letters.length)]).join("");
  const corpora = {
    id: Array.from({ length: 3000 }, () => word("abcdxyz")).join("\n"),
    huggingface: Array.from({ length: 3000 }, () => word("abz éß말!0")).join(" ") + mixedText(200_000, 13),
  };

  test.each(["id", "huggingface"] as const)("%s: the merges of their BpeTrainer", async (ties) => {
    const size = 2000;
    const { merges } = await python<{ merges: [string, string][] }>("train_bpe.py", { text: corpora[ties], size });
    const ours = Tokenizer.train(corpora[ties], { vocabSize: size, ties });
    expect(merges.length).toBeGreaterThan(1000);
    expect(JSON.parse(toHuggingFace(ours)).model.merges).toEqual(merges);
  });
});
