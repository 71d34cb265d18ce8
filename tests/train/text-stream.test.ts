/** Text as its tokens come: however it is cut, the same text, and nothing from the first stop string on. */
import { describe, expect, test } from "bun:test";
import { Tokenizer } from "@mantou/tokenizer";
import fc from "fast-check";
import { TextStream } from "../../packages/train/src/text-stream.ts";

const bytes = Tokenizer.train("", { vocabSize: 256, specialTokens: [] });

/** The pieces that a text comes out in, byte by byte; the last is what `finish` gives. */
function pieces(text: string | Uint8Array, stop: string[], tokenizer = bytes): string[] {
  const stream = new TextStream(tokenizer, stop);
  const ids = typeof text === "string" ? tokenizer.encode(text) : tokenizer.encodeBytes(text);
  return [...Array.from(ids, (id) => stream.push(id)), stream.finish()];
}

/** What must remain: up to the stop string that is complete first. */
function cut(text: string, stop: string[]): string {
  for (let end = 1; end <= text.length; end++) {
    const ends = stop.filter((each) => text.slice(0, end).endsWith(each)).map((each) => each.length);
    if (ends.length > 0) return text.slice(0, end - Math.max(...ends));
  }
  return text;
}

describe("TextStream", () => {
  test("without stop strings gives each character when it is whole", () => {
    expect(pieces("aß€", [])).toEqual(["a", "", "ß", "", "", "€", ""]);
    expect(pieces(Uint8Array.of(0x61, 0xe2, 0x82), [])).toEqual(["a", "", "", "\uFFFD"]);
  });

  test("takes ids that the tokenizer lacks for no text", () => {
    const stream = new TextStream(bytes);
    expect([97, 256, 98].map((id) => stream.push(id))).toEqual(["a", "", "b"]);
  });

  test("holds back what may become a stop string, and no more", () => {
    expect(pieces("a\n\nb", ["\n\n"])).toEqual(["a", "", "", "", ""]);
    expect(pieces("a\nb\n", ["\n\n"])).toEqual(["a", "", "\nb", "", "\n"]);
    expect(pieces("aaab", ["aab"])).toEqual(["", "", "a", "", ""]);
  });

  test("any text, any stop strings, any cut into tokens", () => {
    const letters = (maxLength: number, minLength = 0) =>
      fc
        .array(fc.constantFrom("a", "b", "€"), { minLength, maxLength })
        .map((characters: string[]) => characters.join(""));
    const merged = Tokenizer.train("ab€ab€aab€€bab".repeat(20), { vocabSize: 280, specialTokens: [] });
    fc.assert(
      fc.property(letters(30), fc.array(letters(4, 1), { maxLength: 3 }), (text, stop) => {
        for (const tokenizer of [bytes, merged]) {
          expect(pieces(text, stop, tokenizer).join("")).toBe(cut(text, stop));
        }
      }),
      { numRuns: 300 },
    );
  });
});
