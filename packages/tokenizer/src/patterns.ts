/**
 * Pre-tokenisation patterns by name. A text is first split into pieces (pre-tokens) by a pattern; merges never cross
 * pieces. Built-in patterns have a byte scanner each; anything else is taken as a regular expression.
 *
 * To add a pattern: write its ScanFunction and its automaton in scan-<name>.ts (see scan-table.ts), prove them equal to its
 * regular expression as tests/tokenizer/scanner.test.ts does, and list it in BUILT_IN with its `unsettled`.
 */
import { TokenizerError } from "./errors.ts";
import { compilePattern, RegExpScanner } from "./scan-regexp.ts";
import { AUTOMATON_CL100K, AUTOMATON_QWEN2, scanCl100k, scanLlama3, scanQwen2 } from "./scan-cl100k.ts";
import { AUTOMATON_GPT2, scanGpt2 } from "./scan-gpt2.ts";
import { AUTOMATON_O200K, scanO200k } from "./scan-o200k.ts";
import { type Automaton, type ScanFunction, tableScanner } from "./scan-table.ts";

/** A scan in progress: `begin` once per stretch of text, then `next` until it returns 0. */
export interface Scanner {
  /** `bytes[start, end)` is a whole text. */
  begin(bytes: Uint8Array, start: number, end: number): void;
  /** Writes the ends of the next pieces to `ends`, until the text or `ends` is used up, and returns how many. */
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

interface BuiltIn {
  name: string;
  /** Spellings of the same language; the first is the one we write. */
  sources: string[];
  scan: ScanFunction;
  automaton: Automaton;
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
    automaton: AUTOMATON_GPT2,
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
    automaton: AUTOMATON_CL100K,
    // A run of white space is two pieces at most: up to its last line break, and the rest.
    unsettled: 2,
  },
  {
    name: "o200k",
    sources: [
      String.raw`[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    ],
    scan: scanO200k,
    automaton: AUTOMATON_O200K,
    // White space as above; a word and what may become its contraction; upper case letters that leave a word before them.
    unsettled: 2,
  },
  {
    name: "llama3",
    sources: [
      String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    ],
    scan: scanLlama3,
    automaton: AUTOMATON_CL100K,
    unsettled: 2,
  },
  {
    name: "qwen2",
    sources: [
      String.raw`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
    ],
    scan: scanQwen2,
    automaton: AUTOMATON_QWEN2,
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
    const { name, sources, scan, automaton, unsettled } = builtIn;
    return { id: name, source: sources[0], unsettled, createScanner: () => tableScanner(automaton, scan) };
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
