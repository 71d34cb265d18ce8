/**
 * SentencePiece's BPE with byte fallback, as Llama 2, TinyLlama and Mistral have it: blanks are characters of the text ("▁"
 * in the vocabulary), merges begin with characters instead of bytes, a character that the vocabulary lacks becomes the
 * tokens of its bytes ("<0x0A>"), and a blank is put in front of a text, which decoding takes away again.
 *
 * There is no pattern: merges may go across the whole text. What no merge joins is told by the two characters at the seam,
 * so text is cut there, and all else is as in a byte-level tokenizer: streams, caches, offsets. Inside this package a blank
 * is a blank; "▁" is read as one, in texts too, which is what it becomes when it is decoded.
 */
import { StreamingDecoder } from "./decoder.ts";
import type { PieceMerge } from "./encoder.ts";
import { TokenizerError } from "./errors.ts";
import { ContentHash } from "./hash.ts";
import { LongMerger } from "./merge-long.ts";
import { GOES_ON, type Normalizer, TEXT_BEGINS } from "./normalizing-feed.ts";
import type { Pattern } from "./patterns.ts";
import { FunctionScanner, type ScanPieces } from "./scan-function.ts";
import { sentencePieceToJson } from "./sentencepiece-format.ts";
import { type DecodeOptions, Tokenizer } from "./tokenizer.ts";
import { charAt } from "./unicode.ts";
import { encodeUtf8 } from "./utf8.ts";
import { NO_RANK, Vocabulary } from "./vocabulary.ts";

/** The blank of the vocabulary, U+2581. */
const LOW_LINE = "▁";
const BLANK = 0x20;

/**
 * Before which texts a blank is put: "stretches", the text and what follows each special token; "unlessBlank", the same
 * where they do not begin with a blank themselves; "text", the same of the beginning of the text alone; "never".
 */
export type BlankInFront = "stretches" | "unlessBlank" | "text" | "never";

export interface SentencePieceOptions {
  /** Texts of the tokens by id: "▁the", "<0x0A>". All 256 bytes must be there. */
  vocab: ReadonlyMap<number, string>;
  /** Pairs of tokens in the order in which they are merged; both and their concatenation are in the vocabulary. */
  merges: readonly (readonly [left: string, right: string])[];
  /** Tokens that are found as a whole, before anything else, and their ids. */
  specialTokens: ReadonlyMap<string, number>;
  /** Those of them that are found where the blank is in front already. */
  normalizedSpecialTokens?: readonly string[];
  blankInFront: BlankInFront;
  /** Whether decoding takes away a blank at the beginning. */
  stripsBlank: boolean;
  /** Whether no merge goes across the beginning of a blank, whatever the vocabulary says. */
  splitsAtBlanks: boolean;
}

export class SentencePieceTokenizer extends Tokenizer {
  readonly options: Readonly<SentencePieceOptions>;
  readonly #byteTokens: readonly number[];

  /** @throws naming the token, the merge or the byte that is missing */
  constructor(options: SentencePieceOptions) {
    const byteTokens = bytesOf(options.vocab);
    const isByte = new Set(byteTokens);
    const { normalizedSpecialTokens } = options;
    const specialTokens = [...options.specialTokens.keys()];
    const specialIds = new Set(options.specialTokens.values());
    const vocab = new Map(Array.from(options.specialTokens, ([text, id]) => [id, encodeUtf8(text)]));
    const characters = new Map<string, number>();
    for (const [id, text] of options.vocab) {
      const isCharacter = text.length === (text.codePointAt(0)! > 0xffff ? 2 : 1);
      if (isCharacter) characters.set(withBlanks(text), id);
      if (specialIds.has(id)) continue;
      if (text.includes(" ")) {
        throw new TokenizerError(`token ${JSON.stringify(text)} has a blank: in such a vocabulary blanks are "▁"`);
      }
      vocab.set(id, isByte.has(id) ? Uint8Array.of(byteTokens.indexOf(id)) : encodeUtf8(withBlanks(text)));
    }
    if (!characters.has(" ")) throw new TokenizerError(`the vocabulary has no ${LOW_LINE}, which blanks become`);
    for (const pair of options.merges) {
      const byte = pair.find((text) => /^<0x[0-9A-F]{2}>$/.test(text));
      if (byte !== undefined) throw new TokenizerError(`a merge of ${byte}: bytes that are merged are not supported`);
    }
    const merges = options.merges.map(([left, right]): [Uint8Array, Uint8Array] => [
      encodeUtf8(withBlanks(left)),
      encodeUtf8(withBlanks(right)),
    ]);
    const vocabulary = new Vocabulary({ vocab, merges, specialTokens }, byteTokens);
    super(
      { vocab, merges, specialTokens, normalizedSpecialTokens },
      {
        vocabulary,
        pattern: seams(options),
        normalizer: blanks(options.blankInFront),
        merge: mergeCharacters(vocabulary, characters),
      },
    );
    this.options = options;
    this.#byteTokens = byteTokens;
  }

  override get hash(): string {
    const hash = new ContentHash();
    hash.text(super.hash);
    const { blankInFront, stripsBlank, splitsAtBlanks } = this.options;
    hash.text(JSON.stringify([blankInFront, stripsBlank, splitsAtBlanks, this.normalizedSpecialTokens]));
    for (const id of this.#byteTokens) hash.number(id);
    return hash.digest();
  }

  /** The content of a `tokenizer.json` of Hugging Face, which is the format of such tokenizers. */
  override toJSON(): object {
    return sentencePieceToJson(this.options);
  }

  override decode(ids: Iterable<number>): string {
    const text = super.decode(ids);
    return this.options.stripsBlank && text.startsWith(" ") ? text.slice(1) : text;
  }

  override decodeBytes(ids: Iterable<number>, { continues = false }: DecodeOptions = {}): Uint8Array<ArrayBuffer> {
    const bytes = super.decodeBytes(ids);
    return this.options.stripsBlank && !continues && bytes[0] === BLANK ? bytes.subarray(1) : bytes;
  }

  override createDecoder({ continues = false }: DecodeOptions = {}): StreamingDecoder {
    return this.options.stripsBlank && !continues ? new StrippingDecoder(this) : super.createDecoder();
  }
}

/** @throws if a format of byte-level tokenizers cannot hold the tokenizer */
export function checkByteLevel(tokenizer: Tokenizer, format: string): void {
  if (!(tokenizer instanceof SentencePieceTokenizer)) return;
  throw new TokenizerError(`${format} cannot hold a tokenizer of SentencePiece's: use Hugging Face's tokenizer.json`);
}

/** Takes away the blank at the beginning. */
class StrippingDecoder extends StreamingDecoder {
  #begins = true;

  override push(id: number): string {
    return this.#strip(super.push(id));
  }

  override finish(): string {
    const text = this.#strip(super.finish());
    this.#begins = true;
    return text;
  }

  #strip(text: string): string {
    if (!this.#begins || text === "") return text;
    this.#begins = false;
    return text.startsWith(" ") ? text.slice(1) : text;
  }
}

function withBlanks(text: string): string {
  return text.replaceAll(LOW_LINE, " ");
}

/** Ids of the tokens "<0x00>" to "<0xFF>". */
function bytesOf(vocab: ReadonlyMap<number, string>): number[] {
  const ids = new Map(Array.from(vocab, ([id, text]) => [text, id]));
  return Array.from({ length: 256 }, (_, byte) => {
    const text = `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
    const id = ids.get(text);
    if (id === undefined) throw new TokenizerError(`the vocabulary has no ${text}: byte fallback needs all 256 bytes`);
    return id;
  });
}

/** A code point of `bytes[p]` and the `length - 1` bytes behind it, or a number of its own for a malformed byte. */
function codeAt(bytes: Uint8Array, p: number, length: number): number {
  const b0 = bytes[p];
  if (length === 1) return b0 < 0x80 ? b0 : 0x110000 + b0;
  if (length === 2) return ((b0 & 0x1f) << 6) | (bytes[p + 1] & 0x3f);
  if (length === 3) return ((b0 & 0x0f) << 12) | ((bytes[p + 1] & 0x3f) << 6) | (bytes[p + 2] & 0x3f);
  return ((b0 & 0x07) << 18) | ((bytes[p + 1] & 0x3f) << 12) | ((bytes[p + 2] & 0x3f) << 6) | (bytes[p + 3] & 0x3f);
}

/** Cuts wherever no merge joins the two characters. */
function seams({ merges, splitsAtBlanks }: SentencePieceOptions): Pattern {
  const PAIR = 2 ** 21;
  const joined = new Set<number>();
  for (const [left, right] of merges) {
    const last = [...withBlanks(left)].at(-1)!.codePointAt(0)!;
    joined.add(last * PAIR + withBlanks(right).codePointAt(0)!);
  }
  // most characters are ASCII
  const ascii = Uint8Array.from({ length: 1 << 14 }, (_, pair) =>
    Number(joined.has((pair >> 7) * PAIR + (pair & 127))),
  );
  const joins = (a: number, b: number): boolean =>
    (a | b) < 128 ? ascii[(a << 7) | b] === 1 : joined.has(a * PAIR + b);
  const scan: ScanPieces = (bytes, start, end, ends) => {
    let count = 0;
    let before = -1;
    for (let p = start; p < end;) {
      const length = bytes[p] < 0x80 ? 1 : charAt(bytes, p, end) >> 3;
      const code = codeAt(bytes, p, length);
      if (before >= 0 && (!joins(before, code) || (splitsAtBlanks && code === BLANK))) {
        ends[count++] = p;
        if (count === ends.length) return count;
      }
      before = code;
      p += length;
    }
    if (start < end) ends[count++] = end;
    return count;
  };
  // the last piece may go on
  return { id: "sentencepiece", source: "", unsettled: 1, createScanner: () => new FunctionScanner(scan) };
}

const LOW_LINE_BYTES = encodeUtf8(LOW_LINE);
const ONE_BLANK = Uint8Array.of(BLANK);

/** Reads "▁" as a blank and puts one in front. */
function blanks(blankInFront: BlankInFront): Normalizer {
  const isLowLine = (bytes: Uint8Array, p: number): boolean => LOW_LINE_BYTES.every((byte, i) => bytes[p + i] === byte);
  const wholly: ScanPieces = (_bytes, start, end, ends) => {
    ends[0] = end;
    return start < end ? 1 : 0;
  };
  return {
    pieces: { id: "blanks", source: "", unsettled: 0, createScanner: () => new FunctionScanner(wholly) },

    normalize(bytes, start, end, where, push, onChange) {
      const begins =
        where !== GOES_ON && blankInFront !== "never" && (blankInFront !== "text" || where === TEXT_BEGINS);
      const isBlank = bytes[start] === BLANK || isLowLine(bytes, start);
      if (begins && (blankInFront === "stretches" || !isBlank)) {
        push(ONE_BLANK);
        onChange?.({ start, end: start, length: 1 });
      }
      let done = start;
      for (let p = bytes.indexOf(LOW_LINE_BYTES[0], start); p >= 0 && p + 3 <= end;) {
        if (isLowLine(bytes, p)) {
          push(bytes.subarray(done, p));
          push(ONE_BLANK);
          done = p + 3;
          onChange?.({ start: p, end: done, length: 1 });
        }
        p = bytes.indexOf(LOW_LINE_BYTES[0], p + 1);
      }
      push(bytes.subarray(done, end));
    },

    // Hugging Face puts the blank in front of such special tokens only where it puts it in front of everything
    text: (text) => (blankInFront === "stretches" ? " " : "") + withBlanks(text),
  };
}

/** Merges from characters on, and from bytes where a character is not in the vocabulary. */
function mergeCharacters(vocabulary: Vocabulary, characters: ReadonlyMap<string, number>): PieceMerge {
  const idOf = new Map(Array.from(characters, ([text, id]) => [text.codePointAt(0)!, id]));
  const merger = new LongMerger(vocabulary);
  return (bytes, start, end, out, n) => {
    const ids = new Int32Array(end - start);
    let count = 0;
    for (let p = start; p < end;) {
      const length = charAt(bytes, p, end) >> 3;
      const id = idOf.get(codeAt(bytes, p, length));
      if (id !== undefined) ids[count++] = id;
      else for (let i = p; i < p + length; i++) ids[count++] = vocabulary.byteIds[bytes[i]];
      p += length;
    }
    const ranks = new Int32Array(count).fill(NO_RANK);
    for (let i = 0; i + 1 < count; i++) ranks[i] = vocabulary.rankOf(ids[i], ids[i + 1]);
    return merger.mergeIds(ids.subarray(0, count), ranks, out, n);
  };
}
