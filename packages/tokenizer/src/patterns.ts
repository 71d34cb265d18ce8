/**
 * Pre-tokenisation patterns by name. A text is first split into pieces (pre-tokens) by a pattern; merges never cross
 * pieces. Built-in patterns have a byte scanner each; anything else is taken as a regular expression.
 *
 * To add a pattern: write its ScanFunction in scan-<name>.ts, prove it equal to its
 * regular expression as tests/tokenizer/scanner.test.ts does, and list it in BUILT_IN with its `unsettled`.
 */
import { TokenizerError } from "./errors.ts";
import { compilePattern, RegExpScanner } from "./scan-regexp.ts";
import { scanCl100k, scanLlama3, scanQwen2 } from "./scan-cl100k.ts";
import { scanGpt2 } from "./scan-gpt2.ts";
import { scanO200k } from "./scan-o200k.ts";

/**
 * Splits `bytes[start, end)`, taken as a whole text, into pieces: writes the end of each piece to `ends` until the text
 * or `ends` is used up, and returns how many it wrote. To go on, call again from the last end. `end` is a hard limit:
 * nothing beyond it is looked at.
 */
export type ScanFunction = (bytes: Uint8Array, start: number, end: number, ends: Int32Array) => number;

/** A scan in progress: `begin` once per stretch of text, then `next` until it returns 0. */
export interface Scanner {
  begin(bytes: Uint8Array, start: number, end: number): void;
  next(ends: Int32Array): number;
}

export interface Pattern {
  /** Name of a built-in pattern, otherwise the source. Equal ids mean equal splits. */
  readonly id: string;
  /** The regular expression. */
  readonly source: string;
  /**
   * How many pieces at the end of a text may still change when more text follows, provided the text does not stop
   * within a character; Infinity where nothing is known.
   */
  readonly unsettled: number;
  createScanner(): Scanner;
}

class TableScanner implements Scanner {
  readonly #scan: ScanFunction;
  #bytes: Uint8Array = new Uint8Array(0);
  #position = 0;
  #end = 0;

  constructor(scan: ScanFunction) {
    this.#scan = scan;
  }

  begin(bytes: Uint8Array, start: number, end: number): void {
    this.#bytes = bytes;
    this.#position = start;
    this.#end = end;
  }

  next(ends: Int32Array): number {
    const count = this.#scan(this.#bytes, this.#position, this.#end, ends);
    if (count > 0) this.#position = ends[count - 1];
    return count;
  }
}

interface BuiltIn {
  name: string;
  /** Spellings of the same language; the first is the one we write. */
  sources: string[];
  scan: ScanFunction;
  unsettled: number;
}

const BUILT_IN: BuiltIn[] = [
  {
    name: "gpt2",
    sources: [
      String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
      String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`,
      String.raw`'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s`,
    ],
    scan: scanGpt2,
    // A run may grow; and an apostrophe followed by a single l, r or v at the end may become a contraction.
    unsettled: 2,
  },
  {
    name: "cl100k",
    sources: [
      String.raw`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?![\s\S])|\s*[\r\n]|\s+(?!\S)|\s`,
      String.raw`'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s`,
    ],
    scan: scanCl100k,
    // A run of white space is two pieces at most: up to its last line break, and the rest.
    unsettled: 2,
  },
  {
    name: "o200k",
    sources: [
      String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    ],
    scan: scanO200k,
    // White space as above; a word and what may become its contraction; upper case letters that leave a word before them.
    unsettled: 2,
  },
  {
    name: "llama3",
    sources: [
      String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    ],
    scan: scanLlama3,
    unsettled: 2,
  },
  {
    name: "qwen2",
    sources: [
      String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    ],
    scan: scanQwen2,
    unsettled: 2,
  },
];

/** Names of the built-in patterns. */
export const PATTERN_NAMES: readonly string[] = BUILT_IN.map(({ name }) => name);

/**
 * The pattern of that name, or the regular expression `nameOrSource` (the known spellings of a built-in pattern get its
 * scanner).
 *
 * @throws if it is neither a name nor a valid regular expression.
 */
export function resolvePattern(nameOrSource: string): Pattern {
  const builtIn = BUILT_IN.find(({ name, sources }) => name === nameOrSource || sources.includes(nameOrSource));
  if (builtIn) {
    const { name, sources, scan, unsettled } = builtIn;
    return { id: name, source: sources[0], unsettled, createScanner: () => new TableScanner(scan) };
  }
  if (/^[a-z][a-z0-9_-]*$/i.test(nameOrSource)) {
    throw new TokenizerError(
      `unknown pattern "${nameOrSource}": use ${PATTERN_NAMES.join(", ")} or a regular expression`,
    );
  }
  if (nameOrSource === "") throw new TokenizerError("the pattern is empty: leave it out for gpt2");
  compilePattern(nameOrSource); // fail now, not at the first text
  return {
    id: nameOrSource,
    source: nameOrSource,
    unsettled: Infinity,
    createScanner: () => new RegExpScanner(compilePattern(nameOrSource)),
  };
}
