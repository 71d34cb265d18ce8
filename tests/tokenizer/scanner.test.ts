/**
 * The byte scanner equals its regular expression, and cutting the text changes nothing. Uses the package's inner modules:
 * what is proven here is what everything else stands on.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { type Sink, TextFeed } from "../../packages/tokenizer/src/feed.ts";
import { type Pattern, PATTERN_NAMES, resolvePattern } from "../../packages/tokenizer/src/patterns.ts";
import { compilePattern, RegExpScanner } from "../../packages/tokenizer/src/scan-regexp.ts";
import { SpecialMatcher } from "../../packages/tokenizer/src/special.ts";
import { charAt, CLASSES, completeEnd, decodedLength } from "../../packages/tokenizer/src/unicode.ts";
import { GPT2_PATTERN, pretokens, toByteString } from "../reference/bpe.ts";

const encoder = new TextEncoder();

/** Pieces and special tokens (in brackets) that a feed hands on, as byte strings. */
function piecesOf(
  pattern: Pattern,
  chunks: (string | Uint8Array)[],
  specials?: Map<string, number>,
  capacity?: number,
): string[] {
  const pieces: string[] = [];
  const sink: Sink = {
    pieces(bytes, _view, start, ends, count) {
      for (let i = 0; i < count; i++) {
        pieces.push(String.fromCharCode(...bytes.subarray(start, ends[i])));
        start = ends[i];
      }
    },
    special(id) {
      pieces.push(`[${id}]`);
    },
  };
  const feed = new TextFeed(pattern, specials ? new SpecialMatcher(specials) : null, sink, capacity);
  for (const chunk of chunks) feed.push(chunk);
  feed.finish();
  return pieces;
}

/** A feed that is used again for text after text, as byte strings with bars between the pieces; quick. */
function collector(pattern: Pattern): (sample: string) => string {
  let pieces: string[] = [];
  const feed = new TextFeed(pattern, null, {
    pieces(bytes, _view, start, ends, count) {
      for (let i = 0; i < count; i++) {
        pieces.push(String.fromCharCode(...bytes.subarray(start, ends[i])));
        start = ends[i];
      }
    },
    special: () => undefined,
  });
  return (sample) => {
    pieces = [];
    feed.push(sample);
    feed.finish();
    return pieces.join("|");
  };
}

/** Everything that the pattern treats in a way of its own, and arbitrary characters. */
const unit = fc.oneof(
  { weight: 8, arbitrary: fc.constantFrom(..."stmdlvreaZ'é말漢ßʰ") },
  { weight: 4, arbitrary: fc.constantFrom(..." \n\t\r\u0085\u00a0\u2028\u3000\u1680") },
  { weight: 3, arbitrary: fc.constantFrom(..."09٣Ⅷ²!.-_’\u0301\u200b\u200d\ufeff\ufffd\u180e", "😀", "𝔸", "𝟘", "👨‍👩‍👧") },
  { weight: 1, arbitrary: fc.string({ unit: "binary", minLength: 1, maxLength: 1 }) },
);
const text = fc.string({ unit, maxLength: 40 });

const gpt2 = resolvePattern("gpt2");

/** Pieces by the pattern's regular expression, as byte strings; GPT-2's by the reference's own spelling. */
function expected(pattern: Pattern, regexp: RegExp, sample: string): string[] {
  if (pattern.id === "gpt2") return pretokens(sample);
  return Array.from(sample.toWellFormed().matchAll(regexp), ([piece]) => toByteString(piece));
}

describe.each(PATTERN_NAMES.map((name) => [name]))("%s", (name) => {
  const pattern = resolvePattern(name);
  const regexp = compilePattern(pattern.source);

  /** The regular expression agrees on a sample; `toEqual` only where it does not, as it is slow. */
  const check = (sample: string): void => {
    const [found, wanted] = [piecesOf(pattern, [sample]), expected(pattern, regexp, sample)];
    if (found.join("|") !== wanted.join("|")) expect({ sample, pieces: found }).toEqual({ sample, pieces: wanted });
  };

  test("equals the regular expression on 100,000 random texts", () => {
    let state = 20_260_101;
    const random = (n: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.floor((state / 2 ** 32) * n);
    };
    const special = [
      ..."stmdlvreSLVRZaBe''' \n\t\r\u0085\u00a0\u2028\u3000é말漢ßʰ\u01c5\u017fÀ09٣Ⅷ²!./-_’\u0301\u0903\u200b\u200d\ufeff\ufffd",
      "😀",
      "𝔸",
      "𝟘",
      "𐐨",
      "👨‍👩‍👧",
      "'ll",
      "'RE",
      "'\u017f",
      "\r\n",
      "  ",
    ];
    const feed = collector(pattern);
    for (let checked = 0; checked < 100_000; checked++) {
      let sample = "";
      for (let length = 1 + random(14); length > 0; length--) {
        sample += random(12) > 0 ? special[random(special.length)] : String.fromCodePoint(random(0x110000));
      }
      const [found, wanted] = [feed(sample), expected(pattern, regexp, sample).join("|")];
      if (found !== wanted) expect({ sample, pieces: found }).toEqual({ sample, pieces: wanted });
    }
  });

  test("equals the regular expression on all short strings over the characters that matter", () => {
    const characters = [
      "'",
      "l",
      "S",
      "9",
      " ",
      "\n",
      "!",
      "é",
      "\u3000",
      "😀",
      ...(name === "o200k" ? "\u0301ʰ" : ""),
    ];
    const feed = collector(pattern);
    let strings = [""];
    for (let length = 1; length <= 4; length++) {
      strings = strings.flatMap((prefix) => characters.map((character) => prefix + character));
      for (const sample of strings) {
        const [found, wanted] = [feed(sample), expected(pattern, regexp, sample).join("|")];
        if (found !== wanted) expect({ sample, pieces: found }).toEqual({ sample, pieces: wanted });
      }
    }
    expect(strings.length).toBe(characters.length ** 4);
  });

  test("equals the regular expression on texts longer than a batch and the buffer", () => {
    for (const sample of ["a ", "it's 12  \n", "말 ", "😀😀 x", " ".repeat(3001), "x".repeat(70_001), "'", "\n \n"]) {
      check(sample.repeat(Math.ceil(150_000 / sample.length)));
    }
  });

  test("cut anywhere and through buffers of all sizes gives the pieces of the whole", () => {
    const samples = [
      "I'LL  say 'l it's\n\n  we've're'll 'v end'",
      "ʰAAb ʰAA'll e\u0301E\u0301AB'sx !\r\n/\n /x 12345 ",
      "a\u3000 \u00a0 b말하다 \n \n 😀x 😀😀😀  \n ",
    ];
    for (const sample of samples) {
      const whole = piecesOf(pattern, [sample]);
      for (let capacity = 16; capacity < 40; capacity += 3) {
        expect(piecesOf(pattern, sample.split(""), undefined, capacity)).toEqual(whole);
        for (let i = 0; i <= sample.length; i++) {
          expect(piecesOf(pattern, [sample.slice(0, i), sample.slice(i)], undefined, capacity)).toEqual(whole);
        }
      }
    }
    fc.assert(
      fc.property(fc.array(text, { maxLength: 6 }), fc.integer({ min: 16, max: 50 }), (list, capacity) => {
        expect(piecesOf(pattern, list, undefined, capacity)).toEqual(piecesOf(pattern, [list.join("")]));
      }),
      { numRuns: 1000, interruptAfterTimeLimit: 2000 },
    );
  });

  test("keeps every byte of malformed UTF-8", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 30 }), (bytes) => {
        const joined = piecesOf(pattern, [bytes]).join("");
        expect(joined).toBe(String.fromCharCode(...bytes));
      }),
      { numRuns: 3000, interruptAfterTimeLimit: 2000 },
    );
  });
});

test("known spellings of a regular expression get its scanner", () => {
  const names = [
    String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
    String.raw`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s`,
    ...["llama3", "qwen2", "o200k"].map((name) => resolvePattern(name).source),
  ].map((source) => resolvePattern(source).id);
  expect(names).toEqual(["gpt2", "cl100k", "llama3", "qwen2", "o200k"]);
});

describe("chunks", () => {
  const specials = new Map([
    ["<|a|>", 1],
    ["<|a|><|b|>", 2],
    ["😀😀", 3],
    ["'s", 4],
  ]);
  const samples = [
    "I'll  say 'l it's\n\n  we've're'll 'v end'",
    "a\u3000 \u00a0 b말하다 😀x 😀😀😀 ",
    "x<|a|><|b|><|a|>y<|a|><|b <|",
    "\u0085\r\n \t're'v'r' ",
    "\ufeffbom \ud83d lone \ude00\ud83d",
  ];
  /** Buffers so small that their end comes at every place of the samples once. */
  const capacities = Array.from({ length: 40 }, (_, i) => 16 + i);

  test("cut anywhere give the pieces of the whole, strings and bytes alike", () => {
    for (const sample of samples) {
      for (const set of [undefined, specials]) {
        const whole = piecesOf(gpt2, [sample], set);
        expect(whole.length).toBeGreaterThan(4);
        const bytes = encoder.encode(sample);
        for (const capacity of capacities) {
          expect(piecesOf(gpt2, sample.split(""), set, capacity)).toEqual(whole);
          for (let i = 0; i <= sample.length; i++) {
            expect(piecesOf(gpt2, [sample.slice(0, i), sample.slice(i)], set, capacity)).toEqual(whole);
          }
          for (let i = 0; i <= bytes.length; i += 3) {
            expect(piecesOf(gpt2, [bytes.subarray(0, i), bytes.subarray(i)], set, capacity)).toEqual(whole);
          }
        }
      }
    }
  });

  test("of random text and bytes give the pieces of the whole through a buffer of any size", () => {
    const special = fc.constantFrom("<|a|>", "<|a|><|b|>", "<|a", "😀", "'s", "'l", "'");
    const chunk = fc.string({ unit: fc.oneof({ weight: 5, arbitrary: unit }, { weight: 1, arbitrary: special }) });
    const utf8 = chunk.map((part) => encoder.encode(part));
    const chunks = fc.array(fc.oneof(chunk, utf8, fc.uint8Array({ maxLength: 5 })), { maxLength: 8 });
    fc.assert(
      fc.property(chunks, fc.constantFrom(...capacities), (list, capacity) => {
        const whole = piecesOf(gpt2, list, specials);
        expect(piecesOf(gpt2, list, specials, capacity)).toEqual(whole);
        if (list.every((part) => typeof part === "string")) {
          expect(piecesOf(gpt2, [list.join("")], undefined, capacity)).toEqual(pretokens(list.join("")));
        }
      }),
      { numRuns: 10_000, interruptAfterTimeLimit: 3000 },
    );
  });

  test("longer than a batch of pieces, through the real buffer, give the pieces of the whole", () => {
    const sample = samples.join(" y ").toWellFormed();
    for (let filler = 0; filler < 300; filler += 7) {
      const long = "x".repeat(filler) + sample.repeat(200) + " z".repeat(9000);
      expect(piecesOf(gpt2, [long]).join("|") === pretokens(long).join("|")).toBe(true);
    }
  });

  test("a piece far longer than the buffer, in tiny chunks, stays whole and quick", () => {
    const chunks = Array.from({ length: 60_000 }, () => "wörd");
    const started = performance.now();
    const pieces: number[] = [];
    const feed = new TextFeed(gpt2, null, {
      pieces: (_bytes, _view, start, ends, count) => {
        for (let i = 0; i < count; i++) {
          pieces.push(ends[i] - start);
          start = ends[i];
        }
      },
      special: () => undefined,
    });
    for (const chunk of chunks) feed.push(chunk);
    feed.finish();
    expect(pieces).toEqual([300_000]);
    expect(performance.now() - started).toBeLessThan(2000);
  });
});

describe("custom patterns", () => {
  test("as regular expression, GPT-2's gives what the scanner gives, on any bytes", () => {
    const custom: Pattern = {
      id: "custom",
      source: GPT2_PATTERN.source,
      unsettled: Infinity,
      createScanner: () => new RegExpScanner(new RegExp(GPT2_PATTERN)),
    };
    fc.assert(
      fc.property(text, (sample) => expect(piecesOf(custom, [sample])).toEqual(piecesOf(gpt2, [sample]))),
      { numRuns: 5000, interruptAfterTimeLimit: 2000 },
    );
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 30 }), (bytes) => {
        expect(piecesOf(custom, [bytes]).join("")).toBe(String.fromCharCode(...bytes));
      }),
      { numRuns: 3000, interruptAfterTimeLimit: 1000 },
    );
  });

  test("use look-around, keep what they leave unmatched, and cut at empty matches as Hugging Face's library does", () => {
    const split = (pattern: string, sample: string): string[] => piecesOf(resolvePattern(pattern), [sample]);
    expect(split(String.raw`(?<=a)b|\d+`, "ab12bbé")).toEqual(["a", "b", "12", toByteString("bbé")]);
    expect(split(String.raw`(?<=a)b|\d*`, "ab12b😀é")).toEqual(["a", "b", "12", "b", "😀", "é"].map(toByteString));
    expect(split("(?=[A-Z])", "camelCaseHTTPx")).toEqual(["camel", "Case", "H", "T", "T", "Px"]);
    expect(split("(?=😀)", "😀a😀😀")).toEqual(["😀a", "😀", "😀"].map(toByteString));
    expect(split(String.raw`[^\S\n]+|\n|\S+`, "a\u0085\ufeffb\n c")).toEqual(
      ["a", "\u0085", "\ufeffb", "\n", " ", "c"].map(toByteString),
    );
    expect(split("(?i:the)", "The the")).toEqual(["The", " ", "the"]);
  });

  test("are cut at special tokens only, wherever the chunks end", () => {
    const pattern = resolvePattern("a+(?=.*z)|.");
    const whole = piecesOf(pattern, ["aab<s>aaz"], new Map([["<s>", 0]]));
    expect(whole).toEqual(["a", "a", "b", "[0]", "aa", "z"]);
    for (let i = 0; i < 9; i++) {
      const chunks = ["aab<s>aaz".slice(0, i), "aab<s>aaz".slice(i)];
      expect(piecesOf(pattern, chunks, new Map([["<s>", 0]]))).toEqual(whole);
    }
  });
});

describe("bytes", () => {
  test("every code point has the class that the regular expressions give it", () => {
    const wrong: string[] = [];
    for (let codePoint = 0; codePoint < 0x110000; codePoint++) {
      const character = String.fromCodePoint(codePoint);
      const expected = /\p{L}/u.test(character)
        ? 1
        : /\p{N}/u.test(character)
          ? 2
          : /\p{White_Space}/u.test(character)
            ? 3
            : 0;
      if (CLASSES[codePoint] !== expected) wrong.push(codePoint.toString(16));
    }
    expect(wrong).toEqual([]);
    expect(CLASSES[0x85]).toBe(3);
    expect(CLASSES[0xfeff]).toBe(0);
  });

  test("characters have the length that TextDecoder finds", () => {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const strict = new TextDecoder("utf-8", { ignoreBOM: true, fatal: true });
    const isWhole = (bytes: Uint8Array): boolean => {
      try {
        return strict.decode(bytes).length > 0;
      } catch {
        return false;
      }
    };
    const byte = fc.oneof(
      fc.constantFrom(0x20, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0, 0xc2, 0xdf, 0xe0, 0xe1, 0xed, 0xef),
      fc.constantFrom(0xf0, 0xf1, 0xf4, 0xf5, 0xff),
      fc.integer({ min: 0, max: 255 }),
    );
    fc.assert(
      fc.property(fc.array(byte, { minLength: 1, maxLength: 6 }), (list) => {
        const bytes = Uint8Array.from(list);
        let whole = 1;
        while (whole <= 4 && !isWhole(bytes.subarray(0, whole))) whole++;
        const length = charAt(bytes, 0, bytes.length) >> 3;
        expect(length).toBe(whole <= Math.min(4, bytes.length) ? whole : 1);
        let characters = 0;
        for (let p = 0; p < bytes.length; p += decodedLength(bytes, p, bytes.length)) characters++;
        expect(characters).toBe([...decoder.decode(bytes)].length);
      }),
      { numRuns: 20_000, interruptAfterTimeLimit: 2000 },
    );
  });

  test("an unfinished character at the end is found", () => {
    const bytes = encoder.encode("a😀");
    expect([1, 2, 3, 4, 5].map((end) => completeEnd(bytes, 0, end))).toEqual([1, 1, 1, 1, 5]);
  });
});
