/**
 * Training: equal to the naive reference on corpora made to have ties and overlapping repeats, and its errors.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type PretokenCounts, PretokenStream, Tokenizer, trainBpe } from "@mantou/tokenizer";
import { toByteString, toBytes, trainText, trainWords } from "../reference/bpe.ts";

/** Merges as strings of one character per byte. */
function readable(merges: readonly (readonly [Uint8Array, Uint8Array])[]): [string, string][] {
  const text = (bytes: Uint8Array): string => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return merges.map(([left, right]) => [text(left), text(right)]);
}

function countsOf(words: Map<string, number>): PretokenCounts {
  const offsets = Int32Array.from([0, ...words.keys()].map((_, i, all) => all.slice(1, i + 1).join("").length));
  return { bytes: toBytes([...words.keys()].join("")), offsets, counts: Float64Array.from(words.values()) };
}

describe("merges equal those of the naive reference", () => {
  test("on words over tiny alphabets, where ties and repeats abound", () => {
    const word = fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 12 });
    const words = fc.array(fc.tuple(word, fc.integer({ min: 1, max: 4 })), { minLength: 1, maxLength: 25 });
    fc.assert(
      fc.property(words, (list) => {
        const map = new Map(list);
        for (const ties of ["bytes", "id"] as const) {
          const { merges } = trainBpe(countsOf(map), { numMerges: 60, ties });
          expect(readable(merges)).toEqual(trainWords(map, 60, 1, ties));
        }
      }),
      { numRuns: 300, interruptAfterTimeLimit: 3000 },
    );
  });

  test("on long runs of one letter", () => {
    for (let length = 1; length <= 40; length++) {
      const words = new Map([
        ["a".repeat(length), 1],
        [`${"a".repeat(length % 7)}b`, 2],
      ]);
      const { merges } = trainBpe(countsOf(words), { numMerges: 50 });
      expect(readable(merges)).toEqual(trainWords(words, 50));
    }
  });

  test("on bytes of all values, which compare as unsigned", () => {
    const word = fc.string({ unit: fc.constantFrom("\x00", "\x7f", "\x80", "\xff", "a"), minLength: 1, maxLength: 10 });
    fc.assert(
      fc.property(fc.array(word, { minLength: 1, maxLength: 12 }), (list) => {
        const map = new Map(list.map((entry) => [entry, 1]));
        const { merges } = trainBpe(countsOf(map), { numMerges: 60 });
        expect(readable(merges)).toEqual(trainWords(map, 60));
      }),
      { numRuns: 100, interruptAfterTimeLimit: 2000 },
    );
  });

  test("on texts with special tokens, in chunks", () => {
    const unit = fc.constantFrom(
      "the ",
      "cat",
      "s ",
      " sat",
      "'ll",
      "\n",
      "  ",
      "é",
      "말",
      "😀",
      "<|end|>",
      "<|",
      "12 ",
    );
    const chunks = fc.array(fc.string({ unit, maxLength: 30 }), { maxLength: 6 });
    fc.assert(
      fc.property(chunks, (list) => {
        const tokenizer = Tokenizer.train(list, { vocabSize: 256 + 40 + 1, specialTokens: ["<|end|>"] });
        expect(readable(tokenizer.merges)).toEqual(trainText(list.join(""), 40, ["<|end|>"]));
      }),
      { numRuns: 100, interruptAfterTimeLimit: 3000 },
    );
  });

  test("with a least frequency", () => {
    const words = new Map([
      ["abcabd", 2],
      ["abe", 1],
      ["cabd", 1],
    ]);
    const { merges } = trainBpe(countsOf(words), { numMerges: 50, minFrequency: 3 });
    expect(readable(merges)).toEqual(trainWords(words, 50, 3));
    expect(merges.length).toBeLessThan(trainWords(words, 50).length);
  });
});

test("ties by id take the lower ids, those of Hugging Face by the order of its alphabet", () => {
  const words = new Map([
    [" !", 1],
    ["ab", 1],
    ["ba", 1],
  ]);
  const first = (ties: "bytes" | "id" | "huggingface") =>
    readable(trainBpe(countsOf(words), { numMerges: 3, ties }).merges).map((pair) => pair.join(""));
  expect(first("bytes")).toEqual(["ba", "ab", " !"]);
  expect(first("id")).toEqual([" !", "ab", "ba"]);
  expect(first("huggingface")).toEqual(["ab", "ba", " !"]); // a blank is U+0120 there
  expect(() => Tokenizer.train("a", { vocabSize: 256, ties: "ids" as "id" })).toThrow("ties is ids: it is one of");
});

test("counts beyond 32 bits decide exactly", () => {
  const words = new Map([
    ["ab", 2 ** 31 + 1],
    ["cd", 2 ** 31],
    ["ef", 2 ** 40],
    ["gh", 2 ** 40 + 1],
    ["ij", 2 ** 32],
  ]);
  const { merges } = trainBpe(countsOf(words), { numMerges: 10 });
  expect(readable(merges).map(([left]) => left)).toEqual(["g", "e", "i", "a", "c"]);
});

describe("ids", () => {
  test("are bytes, merges, then special tokens in the order given, each once", () => {
    const specialTokens = ["<z>", "<a>", "<z>"];
    const tokenizer = Tokenizer.train("low lower lowest", { vocabSize: 261, specialTokens });
    expect(tokenizer.vocabSize).toBe(261);
    expect([...tokenizer.specialTokens]).toEqual([
      ["<z>", 259],
      ["<a>", 260],
    ]);
    for (let byte = 0; byte < 256; byte++) expect(tokenizer.tokenBytes(byte)).toEqual(Uint8Array.of(byte));
    const [left, right] = tokenizer.merges[0];
    expect([...tokenizer.tokenBytes(256)]).toEqual([...left, ...right]);
    expect([...tokenizer.tokenBytes(259)]).toEqual([...toBytes("<z>")]);
  });

  test("of a text too small for the vocabulary follow on without a gap", () => {
    const tokenizer = Tokenizer.train("aa", { vocabSize: 1000, specialTokens: ["<e>"] });
    expect(tokenizer.vocabSize).toBe(258);
    expect(tokenizer.specialTokens.get("<e>")).toBe(257);
  });

  test("of nothing at all are the bytes", () => {
    expect(Tokenizer.train("", { vocabSize: 300 }).vocabSize).toBe(256);
    expect(Tokenizer.train([], { vocabSize: 300 }).vocabSize).toBe(256);
  });
});

describe("sources", () => {
  const text = "one two two three three three\n".repeat(50) + "naïve café 말하다 말하다 😀😀";
  const options = { vocabSize: 300 };
  const expected = Tokenizer.train(text, options).hash;

  test("bytes, chunks and async chunks give what the string gives", async () => {
    const bytes = new TextEncoder().encode(text);
    const parts = Array.from({ length: Math.ceil(bytes.length / 7) }, (_, i) => bytes.subarray(7 * i, 7 * i + 7));
    expect(Tokenizer.train(bytes, options).hash).toBe(expected);
    expect(Tokenizer.train(parts, options).hash).toBe(expected);
    expect(Tokenizer.train([text.slice(0, -1), text.slice(-1)], options).hash).toBe(expected); // within a pair
    async function* generate(): AsyncGenerator<Uint8Array> {
      yield* parts;
    }
    expect((await Tokenizer.train(generate(), options)).hash).toBe(expected);
  });

  test("a custom pattern that splits nothing lets merges cross words", () => {
    const tokenizer = Tokenizer.train("ab ab ab ab", { vocabSize: 258, pattern: "[^]+" });
    expect(readable(tokenizer.merges)).toEqual([
      ["a", "b"],
      ["ab", " "],
    ]);
  });
});

test("a pre-token of any length is counted whole", () => {
  for (const length of [1, 3, 4, 5, 8, 11, 12, 13, 100, 40_000]) {
    const stream = new PretokenStream();
    const word = "abcdefghij".repeat(4000).slice(0, length);
    stream.push(`${word}\n${word}\n${word}`);
    const { bytes, offsets, counts } = stream.finish();
    const found = new Map(Array.from(counts, (count, i) => [toText(bytes, offsets[i], offsets[i + 1]), count]));
    expect(found).toEqual(
      new Map([
        [word, 3],
        ["\n", 2],
      ]),
    );
  }
});

test("more distinct pre-tokens than the tables start with are all counted", () => {
  const words = Array.from({ length: 60_000 }, (_, i) =>
    i % 2 === 0 ? `${i}` : `averyverylongword${"x".repeat(i % 97)}`,
  );
  const stream = new PretokenStream();
  const expected = new Map<string, number>();
  for (const word of words) expected.set(word, (expected.get(word) ?? 0) + 1);
  stream.push(words.join("\n"));
  const { bytes, offsets, counts } = stream.finish();
  const found = new Map(Array.from(counts, (count, i) => [toText(bytes, offsets[i], offsets[i + 1]), count]));
  expect(found.get("\n")).toBe(words.length - 1);
  found.delete("\n");
  expect(found.size).toBe(expected.size);
  for (const [word, count] of expected) expect(found.get(word) ?? word).toBe(count);
});

function toText(bytes: Uint8Array, start: number, end: number): string {
  return new TextDecoder().decode(bytes.subarray(start, end));
}

describe("errors", () => {
  test("name what is wrong and are thrown before the source is touched", () => {
    const untouched: Iterable<string> = {
      [Symbol.iterator]() {
        throw new Error("the source was read");
      },
    };
    const train = (options: Parameters<typeof Tokenizer.train>[1]) => () => Tokenizer.train(untouched, options);
    expect(train({ vocabSize: 255 })).toThrow("vocabSize is 255: it must be a whole number of at least 256");
    expect(train({ vocabSize: 257, specialTokens: ["<a>", "<b>"] })).toThrow("at least 258");
    expect(train({ vocabSize: 300.5 })).toThrow("vocabSize is 300.5");
    expect(train({ vocabSize: NaN })).toThrow("vocabSize is NaN");
    expect(train({ vocabSize: 1e12 })).toThrow("at most 16777216");
    expect(train({ vocabSize: 300, specialTokens: [""] })).toThrow("a special token is empty");
    expect(train({ vocabSize: 300, specialTokens: ["a"] })).toThrow('special token "a" is a single byte');
    expect(train({ vocabSize: 300, specialTokens: ["\ud800", "\udbff"] })).toThrow("are the same bytes");
    expect(train({ vocabSize: 300, minFrequency: 0 })).toThrow("minFrequency is 0");
    expect(train({ vocabSize: 300, pattern: "gpt3" })).toThrow('unknown pattern "gpt3": use gpt2');
    expect(train({ vocabSize: 300, pattern: "(" })).toThrow("nor a valid regular expression");
    expect(() => Tokenizer.train([7 as unknown as string], { vocabSize: 300 })).toThrow(
      "text is number: use strings or Uint8Arrays",
    );
  });

  test("an aborted signal stops counting and merging", async () => {
    const reason = new Error("enough");
    expect(() => Tokenizer.train("text", { vocabSize: 300, signal: AbortSignal.abort(reason) })).toThrow(reason);
    const controller = new AbortController();
    const words = Array.from({ length: 3000 }, (_, i) => (i * 7919).toString(36)).join(" ");
    async function* once(): AsyncGenerator<string> {
      yield words;
      controller.abort(reason);
    }
    const training = Tokenizer.train(once(), { vocabSize: 5000, signal: controller.signal });
    expect(training).rejects.toThrow(reason);
    await training.catch(() => undefined);
  });

  test("progress tells the phase and ends at the total", () => {
    const seen: string[] = [];
    Tokenizer.train(["abc abc", " abc"], {
      vocabSize: 258,
      onProgress: ({ phase, done, total }) => seen.push(`${phase} ${done}/${total}`),
    });
    expect(seen).toEqual(["count 7/undefined", "count 11/undefined", "merge 2/2"]);
  });
});

test("the reference itself merges as worked out by hand", () => {
  // Sennrich et al.'s example: "newest" and "widest" give "es" and "st" equally often; the greater bytes win
  const words = new Map([
    ["low", 5],
    ["lower", 2],
    ["widest", 3],
    ["newest", 6],
  ]);
  expect(trainWords(words, 4)).toEqual([
    ["s", "t"],
    ["e", "st"],
    ["o", "w"],
    ["l", "ow"],
  ]);
  expect(toByteString("é")).toBe("\xc3\xa9");
});
