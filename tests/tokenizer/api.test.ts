/**
 * The rest of the Tokenizer's methods: special tokens that are allowed, refused or text; counts, limits, truncation,
 * offsets, batches and streams.
 */
import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { Tokenizer, TokenizerError } from "@mantou/tokenizer";

const corpus = "the cat sat on the mat, it's naïve. 말하다 말하고 😀😀 👨‍👩‍👧 end pad 2024\n".repeat(30);
const specialTokens = ["<|end|>", "<|end|><|end|>", "pad"];
const tokenizer = Tokenizer.train(corpus, { vocabSize: 340, specialTokens });
const [end, double, pad] = specialTokens.map((token) => tokenizer.specialTokens.get(token)!);
const plain = new Tokenizer({ vocab: tokenizer.vocab, merges: tokenizer.merges });

const unit = fc.oneof(
  fc.constantFrom(
    ..."theca s'lmon.\n 말하다😀é12",
    "the cat",
    " mat",
    "\ud83d",
    "\ude00",
    "👨‍👩‍👧",
    "<|end|>",
    "<|",
    "pad",
  ),
  fc.string({ unit: "binary", minLength: 1, maxLength: 1 }),
);
const text = fc.string({ unit, maxLength: 40 });

describe("special tokens", () => {
  test("are ids by default", () => {
    expect([...tokenizer.encode("<|end|><|end|>pad<|end|>")]).toEqual([double, pad, end]);
  });

  test("are ids where allowed, errors where disallowed, and text otherwise", () => {
    const sample = "the pad<|end|>";
    const only = (allowedSpecial: string[], disallowedSpecial: "all" | string[] = []) =>
      tokenizer.encode(sample, { allowedSpecial, disallowedSpecial });
    const special = (ids: Int32Array) => [...ids].filter((id) => id >= end);
    expect(special(only(["pad"]))).toEqual([pad]);
    expect(special(only(["<|end|>"]))).toEqual([end]);
    expect(special(only([]))).toEqual([]);
    for (const ids of [only(["pad"]), only(["<|end|>"]), only([])]) expect(tokenizer.decode(ids)).toBe(sample);
    expect(() => only(["pad"], "all")).toThrow('contains the special token "<|end|>", which is not allowed');
    expect(() => only(["<|end|>"], ["pad"])).toThrow('"pad"');
    expect(() => tokenizer.encode(sample, { allowedSpecial: [] })).toThrow("which is not allowed");
    expect(() => only(["<|x|>"])).toThrow('allowedSpecial: "<|x|>" is no special token');
    expect(tokenizer.encode("the cat", { allowedSpecial: [] })).toEqual(tokenizer.encode("the cat"));
    expect(special(only(["pad", "<|end|>", "<|end|><|end|>"]))).toEqual([pad, end]);
  });

  test("as text never become their ids, not even where a piece is one", () => {
    fc.assert(
      fc.property(text, (sample) => {
        const ids = tokenizer.encodeOrdinary(sample);
        expect(ids.every((id) => id < end)).toBe(true);
        expect(tokenizer.decode(ids)).toBe(sample.toWellFormed());
        expect(tokenizer.encode(sample, { allowedSpecial: [], disallowedSpecial: [] })).toEqual(ids);
      }),
      { numRuns: 500, interruptAfterTimeLimit: 2000 },
    );
    const bytes = new TextEncoder().encode("pad<|end|>");
    expect(tokenizer.encodeOrdinary(bytes)).toEqual(tokenizer.encodeOrdinary("pad<|end|>"));
    // one whose bytes a merge makes as well stays an ordinary token
    const made = new Tokenizer({ vocab: tokenizer.vocab, merges: tokenizer.merges, specialTokens: ["the"] });
    expect([...made.encodeOrdinary("the")]).toEqual([...made.encode("the")]);
  });
});

describe("counting", () => {
  test("counts what encode gives", () => {
    fc.assert(
      fc.property(text, fc.nat(20), (sample, limit) => {
        const { length } = tokenizer.encode(sample);
        expect(tokenizer.count(sample)).toBe(length);
        expect(tokenizer.count(new TextEncoder().encode(sample))).toBe(length);
        expect(tokenizer.isWithinLimit(sample, limit)).toBe(length <= limit && length);
        expect(tokenizer.count(sample, { allowedSpecial: [], disallowedSpecial: [] })).toBe(
          tokenizer.encodeOrdinary(sample).length,
        );
      }),
      { numRuns: 500, interruptAfterTimeLimit: 2000 },
    );
    const long = corpus.repeat(300);
    expect(tokenizer.count(long)).toBe(tokenizer.encode(long).length);
  });

  test("stops early, and leaves nothing behind", () => {
    const long = "the cat ".repeat(2_000_000);
    tokenizer.isWithinLimit(long, 10);
    const started = performance.now();
    for (let i = 0; i < 20; i++) expect(tokenizer.isWithinLimit(long, 10)).toBe(false);
    const early = performance.now() - started;
    tokenizer.count(long);
    expect(early / 20).toBeLessThan((performance.now() - started - early) / 4);
    expect(tokenizer.decode(tokenizer.encode("still fine"))).toBe("still fine");
  });

  test("0 tokens is within every limit", () => {
    expect(tokenizer.isWithinLimit("", 0)).toBe(0);
    expect(tokenizer.isWithinLimit("a", 0)).toBe(false);
  });
});

describe("truncating", () => {
  test("gives a beginning of the text with no more tokens than asked for, and nearly as many", () => {
    fc.assert(
      fc.property(text, fc.nat(25), (sample, most) => {
        const cut = tokenizer.truncate(sample, most);
        expect(sample.startsWith(cut)).toBe(true);
        expect(tokenizer.count(cut)).toBeLessThanOrEqual(most);
        if (tokenizer.count(sample) <= most) expect(cut).toBe(sample);
        expect(cut.toWellFormed()).toBe(sample.toWellFormed().slice(0, cut.length));
      }),
      { numRuns: 1000, interruptAfterTimeLimit: 3000 },
    );
    expect(tokenizer.count(tokenizer.truncate(corpus, 100))).toBe(100);
    expect(tokenizer.count(tokenizer.truncate(corpus.repeat(500), 20_000))).toBe(20_000);
    expect(tokenizer.truncate("the cat", 0)).toBe("");
  });

  test("never cuts a character", () => {
    const emoji = new Tokenizer({
      vocab: new Map(Array.from({ length: 256 }, (_, byte) => [byte, Uint8Array.of(byte)])),
      merges: [],
    });
    expect([3, 4, 7, 8].map((most) => emoji.truncate("😀😀", most))).toEqual(["", "😀", "😀", "😀😀"]);
  });

  test("refuses what is no number of tokens", () => {
    for (const most of [-1, 1.5, NaN]) expect(() => tokenizer.truncate("a", most)).toThrow(`maxTokens is ${most}`);
  });
});

describe("offsets", () => {
  test("say where each token is, in bytes and in UTF-16", () => {
    fc.assert(
      fc.property(text, (sample) => {
        const { ids, utf16, bytes } = tokenizer.offsets(sample);
        const utf8 = new TextEncoder().encode(sample);
        expect(ids).toEqual(tokenizer.encode(sample));
        expect([utf16.length, bytes.length]).toEqual([ids.length + 1, ids.length + 1]);
        expect([utf16[ids.length], bytes[ids.length]]).toEqual([sample.length, utf8.length]);
        ids.forEach((id, i) => {
          expect(utf8.slice(bytes[i], bytes[i + 1])).toEqual(tokenizer.tokenBytes(id));
          const before = new TextEncoder().encode(sample.slice(0, utf16[i])).length;
          expect(before).toBeLessThanOrEqual(bytes[i]);
          expect(before).toBeGreaterThan(bytes[i] - 4);
          // on the boundary of a character the two agree
          if ((utf8[bytes[i]] & 0xc0) !== 0x80) expect(before).toBe(bytes[i]);
        });
      }),
      { numRuns: 500, interruptAfterTimeLimit: 3000 },
    );
  });
});

test("a batch is the texts one by one", () => {
  const texts = ["the cat", "", "말하다 pad"];
  expect(tokenizer.encodeBatch(texts)).toEqual(texts.map((sample) => tokenizer.encode(sample)));
});

describe("streams", () => {
  function streamOf<T>(parts: Iterable<T>): ReadableStream<T> {
    return new ReadableStream({
      start(controller) {
        for (const part of parts) controller.enqueue(part);
        controller.close();
      },
    });
  }

  async function collect<T>(stream: ReadableStream<T>): Promise<T[]> {
    const parts: T[] = [];
    for await (const part of stream) parts.push(part);
    return parts;
  }

  test("encode strings cut anywhere, and decode without half a character", async () => {
    const sample = `${corpus}<|end|>😀 말`;
    const chunks = Array.from({ length: Math.ceil(sample.length / 7) }, (_, i) => sample.slice(7 * i, 7 * i + 7));
    const ids = await collect(streamOf(chunks).pipeThrough(tokenizer.encoderStream()));
    expect(ids.flatMap((part) => [...part])).toEqual([...tokenizer.encode(sample)]);
    const each = [...tokenizer.encode(sample)];
    const parts = await collect(streamOf<number | Iterable<number>>(each).pipeThrough(tokenizer.decoderStream()));
    expect(parts.join("")).toBe(sample);
    expect(parts.every((part) => part.isWellFormed())).toBe(true);
    const lists = await collect(streamOf<number | Iterable<number>>(ids).pipeThrough(tokenizer.decoderStream()));
    expect(lists.join("")).toBe(sample);
  });

  test("end with U+FFFD where a character was left incomplete", async () => {
    const cut = [...new TextEncoder().encode("a😀")].slice(0, 4).map((byte) => [byte]);
    const parts = await collect(streamOf<number | Iterable<number>>(cut).pipeThrough(plain.decoderStream()));
    expect(parts.join("")).toBe("a\ufffd");
  });
});

test("decoding long lists of ids passes every boundary of its buffer", () => {
  const sample = "ab말😀\n".repeat(60_000);
  const ids = tokenizer.encode(sample);
  expect(tokenizer.decode(ids)).toBe(sample);
  expect(tokenizer.decodeBytes(ids)).toEqual(new TextEncoder().encode(sample));
  expect(tokenizer.decode(ids.subarray(1)).length).toBe(sample.length - tokenizer.decode(ids.subarray(0, 1)).length);
});

test("a text's ids go straight into a target that is large enough, and overflow is an error that leaves no trace", () => {
  const sample = corpus.repeat(200);
  const ids = tokenizer.encode(sample);
  for (const make of [Int32Array, Uint32Array, Uint16Array]) {
    for (const room of [ids.length, ids.length + 3, 2 * ids.length + 50_000]) {
      const target = new make(room);
      expect(tokenizer.encodeInto(sample, target)).toBe(ids.length);
      expect(target.subarray(0, ids.length).every((id, i) => id === ids[i])).toBe(true);
      expect(target.subarray(ids.length + 3).every((id) => id === 0)).toBe(true);
    }
    expect(() => tokenizer.encodeInto(sample, new make(ids.length - 1))).toThrow("has room for");
    expect(tokenizer.encode("the cat")).toEqual(plain.encode("the cat"));
  }
});

describe("long pieces", () => {
  test("take time that grows little faster than their length", () => {
    const time = (length: number): number => {
      const sample = "a".repeat(length);
      const started = performance.now();
      tokenizer.encode(sample);
      return performance.now() - started;
    };
    time(100_000);
    // quadratic time would make this a factor of 64; the limit leaves room for a busy machine
    expect(time(1_600_000)).toBeLessThan(24 * Math.max(5, time(200_000)));
  });

  test("are merged right even where a merge makes a pair of a lower rank", () => {
    // "bc" comes after "abc", which no training would do
    const bytes = (token: string) => new TextEncoder().encode(token);
    const vocab = new Map(Array.from({ length: 256 }, (_, byte) => [byte, Uint8Array.of(byte)]));
    for (const token of ["abc", "bc", "abcabc", "cabc"]) vocab.set(vocab.size, bytes(token));
    const odd = new Tokenizer({
      vocab,
      merges: [
        [bytes("a"), bytes("bc")],
        [bytes("c"), bytes("abc")],
        [bytes("b"), bytes("c")],
        [bytes("abc"), bytes("abc")],
      ],
    });
    const short = odd.encode("abcabcabc");
    expect(Array.from(short, (id) => odd.decode([id]))).toEqual(["abcabc", "abc"]);
    expect(Array.from(odd.encode("abc".repeat(301)), (id) => odd.decode([id]))).toEqual([
      ...Array<string>(150).fill("abcabc"),
      "abc",
    ]);
  });
});

test("what is no text is refused in streams too, instead of passed over", () => {
  const chunks = [new ArrayBuffer(3), 7, {}] as unknown as string[];
  for (const chunk of chunks) {
    expect(() => [...tokenizer.encodeIterable(["a", chunk])]).toThrow(TypeError);
    expect(() => tokenizer.createEncoder().push(chunk)).toThrow(TokenizerError);
  }
  expect([...tokenizer.encodeIterable(["", "a", ""])]).toEqual([97]);
});
