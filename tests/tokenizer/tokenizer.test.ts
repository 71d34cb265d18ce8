/**
 * The Tokenizer class: encoding equals the naive reference, streams equal the whole, special tokens, decoding, errors.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Tokenizer, TokenizerError, type TokenizerOptions } from "@mantou/tokenizer";
import { encodeText, splitSpecials, toBytes, trainText } from "../reference/bpe.ts";

const encoder = new TextEncoder();

const corpus =
  "the cat sat on the mat. it's the other cat's mat, isn't it? they'll say: 'llama' aaaa aaaaaaa\n\n  indented\n" +
  "naïve café, 말하다 말 말하고 말하지, 😀😀 😀👨‍👩‍👧, 2024 2025 12 ½, x=y+z;  return  0;\n".repeat(3) +
  "internationalisation internationally ".repeat(4);
const specialTokens = ["<|end|>", "<|end|><|end|>", "<|pad|>"];
const merges = trainText(corpus, 150);
const tokenizer = Tokenizer.train(corpus, { vocabSize: 256 + merges.length + specialTokens.length, specialTokens });

const unit = fc.oneof(
  { weight: 6, arbitrary: fc.constantFrom(..."theca s'lmon.\n 말하다😀é12") },
  {
    weight: 3,
    arbitrary: fc.constantFrom("the cat", " mat", "international", "말하", "aaaa", "  ", "'ll", "\ud83d", "\ude00"),
  },
  { weight: 2, arbitrary: fc.constantFrom(...specialTokens, "<|", "<|end", "|>") },
  { weight: 1, arbitrary: fc.string({ unit: "binary", minLength: 1, maxLength: 1 }) },
);
const text = fc.string({ unit, maxLength: 40 });

/** Tokens of ids as byte strings. */
function tokensOf(ids: Iterable<number>, of = tokenizer): string[] {
  return Array.from(ids, (id) => String.fromCharCode(...of.tokenBytes(id)));
}

function byteVocab(...more: string[]): Map<number, Uint8Array> {
  const tokens = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
  return new Map([...tokens, ...more.map((token) => encoder.encode(token))].map((token, id) => [id, token]));
}

function pairs(...list: [string, string][]): [Uint8Array, Uint8Array][] {
  return list.map(([left, right]) => [encoder.encode(left), encoder.encode(right)]);
}

describe("encoding", () => {
  test("equals the naive reference, and decodes to the text", () => {
    fc.assert(
      fc.property(text, (sample) => {
        const ids = tokenizer.encode(sample);
        expect(tokensOf(ids)).toEqual(encodeText(sample, merges, specialTokens));
        expect(tokenizer.decode(ids)).toBe(sample.toWellFormed());
        expect(tokenizer.encodeBytes(encoder.encode(sample))).toEqual(ids);
      }),
      { numRuns: 1500, interruptAfterTimeLimit: 4000 },
    );
  });

  test("of pieces of every length equals the naive reference, first and second time", () => {
    for (const letters of ["a", "ta", "internationally", "말하다"]) {
      for (let length = 1; length <= 220; length++) {
        const sample = letters.repeat(Math.ceil(length / letters.length)).slice(0, length);
        const expected = encodeText(sample, merges);
        expect(tokensOf(tokenizer.encode(sample))).toEqual(expected);
        expect(tokensOf(tokenizer.encode(sample))).toEqual(expected);
      }
    }
  });

  test("of long random pieces equals the naive reference", () => {
    const letters = fc.constantFrom("a", "t", "e", "h", "th", "the", "in", "nation", "말", "하");
    fc.assert(
      fc.property(fc.string({ unit: letters, minLength: 60, maxLength: 200 }), (sample) => {
        expect(tokensOf(tokenizer.encode(sample))).toEqual(encodeText(sample, merges));
      }),
      { numRuns: 300, interruptAfterTimeLimit: 3000 },
    );
  });

  test("of a long piece forgets a pair whose left token has gone", () => {
    // when "ab" has taken the b, "bc" must not touch the c's neighbours
    const rules = pairs(["a", "b"], ["b", "c"], ["d", "e"], ["c", "d"]);
    const ordered = new Tokenizer({ vocab: byteVocab("ab", "bc", "de", "cd"), merges: rules });
    expect(tokensOf(ordered.encode("abcde".repeat(40)), ordered).join(" ")).toBe("ab c de ".repeat(40).trim());
  });

  test("of thousands of pieces of 16 to 64 bytes equals the naive reference, first and second time", () => {
    const pieces = Array.from({ length: 6000 }, (_, i) => {
      const seed = (Math.imul(i, 2654435761) >>> 0).toString(2).padStart(32, "0");
      const letters = seed.replace(/0/g, i % 3 === 0 ? "q" : "th").replace(/1/g, i % 2 === 0 ? "z" : "e");
      return letters.slice(0, 16 + (i % 49));
    });
    const expected = pieces.map((piece) => encodeText(piece, merges));
    for (let round = 0; round < 2; round++) {
      pieces.forEach((piece, i) => {
        const tokens = tokensOf(tokenizer.encode(piece));
        if (tokens.join("|") !== expected[i].join("|")) expect(tokens).toEqual(expected[i]);
      });
    }
    expect(new Set(pieces).size).toBeGreaterThan(5000);
  });

  test("of more distinct pieces than the caches hold stays the same", () => {
    const words = Array.from({ length: 300_000 }, (_, i) => ` ${((i * 7919) % 300_007).toString(26)}`);
    const ids = tokenizer.encode(words.join(""));
    expect(tokenizer.decode(ids)).toBe(words.join(""));
    expect(tokenizer.encode(words.join(""))).toEqual(ids);
    for (let i = 0; i < words.length; i += 9973) {
      expect(tokensOf(tokenizer.encode(words[i]))).toEqual(encodeText(words[i], merges));
    }
  });

  test("keeps arbitrary bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
        expect(tokenizer.decodeBytes(tokenizer.encodeBytes(bytes))).toEqual(bytes);
      }),
      { numRuns: 2000, interruptAfterTimeLimit: 2000 },
    );
  });

  test("of anything but text is an error", () => {
    for (const value of [undefined, null, 7, [104, 105], new Int32Array(2)]) {
      expect(() => tokenizer.encode(value as unknown as string)).toThrow("use strings or Uint8Arrays");
      expect(() => tokenizer.count(value as unknown as string)).toThrow();
      expect(() => tokenizer.isWithinLimit(value as unknown as string, 9)).toThrow();
    }
    expect(tokenizer.decode(tokenizer.encode("still fine"))).toBe("still fine");
  });

  test("keeps a byte order mark, and takes lone surrogates as U+FFFD", () => {
    expect(tokenizer.decode(tokenizer.encode("\ufeffa"))).toBe("\ufeffa");
    expect(tokenizer.decode(tokenizer.encode("\ud800a\udc00"))).toBe("\ufffda\ufffd");
  });

  test("writes into arrays of the caller's", () => {
    const sample = "the cat<|end|>";
    const expected = [...tokenizer.encode(sample)];
    for (const target of [new Int32Array(20), new Uint32Array(20), new Uint16Array(20)]) {
      expect(tokenizer.encodeInto(sample, target)).toBe(expected.length);
      expect([...target.subarray(0, expected.length)]).toEqual(expected);
      expect([...target.subarray(expected.length)].every((id) => id === 0)).toBe(true);
    }
    expect(() => tokenizer.encodeInto(sample, new Int32Array(expected.length - 1))).toThrow(
      `the text has ${expected.length} tokens, the target has room for ${expected.length - 1}`,
    );
  });

  test("a piece that is a token is that token, even where merges lead elsewhere", () => {
    const options = { vocab: byteVocab("ab", "bc", "abc"), merges: pairs(["a", "b"]) };
    expect([...new Tokenizer(options).encode("abc abcc")]).toEqual([258, 32, 256, 99, 99]);
  });

  test("takes ids from the vocabulary as they are", () => {
    // special first, bytes from 1 in reverse order, merges numbered backwards, a gap
    const vocab = new Map<number, Uint8Array>([[0, encoder.encode("<s>")]]);
    for (let byte = 0; byte < 256; byte++) vocab.set(256 - byte, Uint8Array.of(byte));
    vocab.set(400, encoder.encode("ab"));
    vocab.set(300, encoder.encode("abab"));
    const imported = new Tokenizer({ vocab, merges: pairs(["a", "b"], ["ab", "ab"]), specialTokens: ["<s>"] });
    expect([...imported.encode("ababab<s>b")]).toEqual([300, 400, 0, 256 - 98]);
    expect(imported.decode([300, 400, 0, 158])).toBe("ababab<s>b");
    expect(imported.vocabSize).toBe(401);
    expect(() => imported.decode([299])).toThrow("unknown token id 299");
  });

  test("needs neither 16 bits nor fewer than a million tokens", () => {
    const vocab = byteVocab();
    for (let i = 0; i < 1_100_000; i++) vocab.set(256 + i, encoder.encode(`<${i}>`));
    const large = new Tokenizer({ vocab, merges: [], specialTokens: ["<1099999>", "<70000>"] });
    expect([...large.encode("a<1099999><70000>")]).toEqual([97, 1_100_255, 70_256]);
    expect(() => large.encodeInto("a", new Uint16Array(1))).toThrow("do not fit in a Uint16Array");
  });
});

describe("special tokens", () => {
  const make = (tokens: string[]): Tokenizer =>
    new Tokenizer({ vocab: byteVocab(...new Set(tokens)), merges: [], specialTokens: tokens });

  test("match leftmost first, longest first, wherever they stand", () => {
    const tokens = ["<a>", "<a><a>", "<a>b", "><", "b<a>c"];
    for (const sample of [
      "<a>",
      "x<a>y",
      "<a><a>",
      "<a><a><a>",
      "<a>bb<a>",
      "<<a>>",
      "b<a>c",
      "b<a>b<a>c",
      "<a",
      "><>",
    ]) {
      const expected = splitSpecials(sample, tokens).flatMap((part) => (part.special ? [part.text] : [...part.text]));
      const overlapping = make(tokens);
      expect(tokensOf(overlapping.encode(sample), overlapping)).toEqual(expected);
    }
  });

  test("may share their first byte, or not", () => {
    const two = make(["<x>", "[x]"]);
    expect([...two.encode("a[x]<x>[x")]).toEqual([97, 257, 256, 91, 120]);
  });

  test("of the vocabulary count as text unless named", () => {
    const plain = new Tokenizer({ vocab: byteVocab("<s>"), merges: [] });
    expect([...plain.encode("<s>")]).toEqual([60, 115, 62]);
    expect(plain.decode([256])).toBe("<s>");
  });

  test("given twice count once; those that are empty, missing or the same bytes are errors", () => {
    expect([...make(["<s>", "<s>"]).specialTokens]).toEqual([["<s>", 256]]);
    expect(() => make([""])).toThrow(TokenizerError);
    const vocab = byteVocab("\ufffd\ufffd");
    expect(() => new Tokenizer({ vocab, merges: [], specialTokens: ["<s>"] })).toThrow(
      'special token "<s>" is not in the vocabulary',
    );
    expect(() => new Tokenizer({ vocab, merges: [], specialTokens: ["\ud800\ud800", "\udbff\udbff"] })).toThrow(
      "are the same bytes",
    );
  });
});

describe("streams", () => {
  const sample = "I'll  say the<|end|><|end|><|pad|> 말하다 😀😀\n\n  end<|end|><|end";

  test("encodeIterable gives the ids of the whole, cut anywhere", () => {
    const expected = [...tokenizer.encode(sample)];
    for (let i = 0; i <= sample.length; i++) {
      for (let j = i; j <= sample.length; j++) {
        const chunks = [sample.slice(0, i), sample.slice(i, j), "", sample.slice(j)];
        expect([...tokenizer.encodeIterable(chunks)]).toEqual(expected);
      }
    }
    expect([...tokenizer.encodeIterable(sample.split(""))]).toEqual(expected);
  });

  test("random texts, strings and bytes, give the ids of the whole", () => {
    fc.assert(
      fc.property(fc.array(text, { maxLength: 6 }), fc.nat(), (list, cut) => {
        const whole = list.join("");
        const expected = [...tokenizer.encode(whole)];
        expect([...tokenizer.encodeIterable(list)]).toEqual(expected);
        const bytes = encoder.encode(whole);
        const middle = cut % (bytes.length + 1);
        const chunks = [bytes.subarray(0, middle), bytes.subarray(middle)];
        expect([...tokenizer.encodeChunks(chunks)].flatMap((ids) => [...ids])).toEqual(expected);
      }),
      { numRuns: 1000, interruptAfterTimeLimit: 3000 },
    );
  });

  test("an endless stream yields ids while it lasts, and streams do not disturb each other", () => {
    function* endless(word: string): Generator<string> {
      for (;;) yield word;
    }
    const first = tokenizer.encodeIterable(endless("the cat sat "));
    const second = tokenizer.encodeIterable(endless("말하다 "));
    const expected = [...tokenizer.encode("the cat sat ".repeat(50))];
    const other = [...tokenizer.encode("말하다 ".repeat(50))];
    for (let i = 0; i < 30; i++) {
      expect(first.next().value ?? -1).toBe(expected[i]);
      expect(second.next().value ?? -1).toBe(other[i]);
    }
  });

  test("ids come one at a time as text of whole characters", () => {
    const bytes = new Tokenizer({ vocab: byteVocab(), merges: [] });
    const decoder = bytes.createDecoder();
    const parts = Array.from(encoder.encode("é말😀a"), (id) => decoder.push(id));
    expect(parts).toEqual(["", "é", "", "", "말", "", "", "", "😀", "a"]);
    expect(decoder.push(0xf0)).toBe("");
    expect(decoder.finish()).toBe("\ufffd");
    expect(decoder.push(0xe9) + decoder.push(0x41)).toBe("\ufffdA"); // nothing of the last text is left
    expect(() => decoder.push(256)).toThrow("unknown token id 256");
  });
});

describe("decoding", () => {
  test("replaces malformed UTF-8 as TextDecoder does, and keeps the bytes in decodeBytes", () => {
    const bytes = new Tokenizer({ vocab: byteVocab(), merges: [] });
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 20 }), (sample) => {
        expect(bytes.decode(sample)).toBe(new TextDecoder("utf-8", { ignoreBOM: true }).decode(sample));
        expect(bytes.decodeBytes([...sample])).toEqual(sample);
        expect(bytes.decodeBytes(new Set(sample))).toEqual(Uint8Array.from(new Set(sample)));
      }),
      { numRuns: 500 },
    );
  });

  test("names an unknown id", () => {
    for (const id of [-1, tokenizer.vocabSize, 1.5, NaN, 2 ** 32, "7" as unknown as number]) {
      expect(() => tokenizer.decode([97, id])).toThrow(`unknown token id ${id}`);
      expect(() => tokenizer.tokenBytes(id)).toThrow(`unknown token id ${id}`);
    }
    expect(tokenizer.decode([])).toBe("");
  });

  test("of an id that is not in a list is an error, not an empty text", () => {
    for (const ids of [97, undefined, null, {}] as unknown as number[][]) {
      expect(() => tokenizer.decode(ids)).toThrow();
      expect(() => tokenizer.decodeBytes(ids)).toThrow();
    }
  });
});

describe("hostile input is quick", () => {
  const length = 100_000;
  let state = 1;
  const random = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const inputs: Record<string, string> = {
    "one letter": "a".repeat(length),
    "random letters": Array.from({ length }, () => "aelnrst"[random(7)]).join(""),
    spaces: " ".repeat(length),
    emoji: "😀".repeat(length / 2),
    apostrophes: "'".repeat(length),
    "a special token's beginning": "<|end".repeat(length / 5),
  };
  for (const [name, sample] of Object.entries(inputs)) {
    test(`100,000 times ${name}`, () => {
      const started = performance.now();
      const ids = tokenizer.encode(sample);
      expect(performance.now() - started).toBeLessThan(1000);
      expect(tokenizer.decode(ids)).toBe(sample);
      expect([...tokenizer.encodeIterable([sample.slice(0, 77_777), sample.slice(77_777)])].join()).toBe(ids.join());
    });
  }
});

describe("vocabularies that do not fit are refused:", () => {
  const cases: [problem: string, options: TokenizerOptions, message: string][] = [
    ["a byte is missing", { vocab: new Map([...byteVocab()].slice(1)), merges: [] }, "no token for the byte 0x00"],
    ["two ids for one token", { vocab: byteVocab("ab", "ab"), merges: [] }, 'token "ab" has two ids, 256 and 257'],
    ["an empty token", { vocab: byteVocab(""), merges: [] }, "token 256 is empty"],
    ["a negative id", { vocab: new Map([...byteVocab(), [-1, toBytes("ab")]]), merges: [] }, "token id -1"],
    ["a broken id", { vocab: new Map([...byteVocab(), [256.5, toBytes("ab")]]), merges: [] }, "token id 256.5"],
    [
      "a token that is no bytes",
      { vocab: new Map([...byteVocab(), [256, "ab" as unknown as Uint8Array]]), merges: [] },
      "token 256 is not a Uint8Array",
    ],
    ["a merge's result is missing", { vocab: byteVocab(), merges: pairs(["a", "b"]) }, '"ab" is not in the vocabulary'],
    ["a merge's part is missing", { vocab: byteVocab("abc"), merges: pairs(["ab", "c"]) }, '"ab" is not in the vocab'],
    ["a merge twice", { vocab: byteVocab("ab"), merges: pairs(["a", "b"], ["a", "b"]) }, "merges 0 and 1 are the same"],
    ["an unknown pattern", { vocab: byteVocab(), merges: [], pattern: "gpt5" }, 'unknown pattern "gpt5"'],
  ];
  for (const [problem, options, message] of cases) {
    test(problem, () => {
      expect(() => new Tokenizer(options)).toThrow(message);
      expect(() => new Tokenizer(options)).toThrow(TokenizerError);
    });
  }
});

test("what the tokenizer gives out can be changed without changing the tokenizer", () => {
  const before = tokenizer.encode("the cat");
  tokenizer.tokenBytes(before[0]).fill(0);
  tokenizer.vocab.get(before[0])?.fill(0);
  expect(tokenizer.decode(before)).toBe("the cat");
  expect(tokenizer.encode("the cat")).toEqual(before);
});
