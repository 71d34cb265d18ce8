/**
 * Where a text may be cut into parts that are worked on apart. Cutting at lines or blank lines is wrong in general: the
 * white space around them is one piece or another depending on its neighbours. The rule here holds for every built-in
 * pattern: behind a line feed that follows a visible ASCII character and precedes an ASCII letter or digit. There the
 * white space is that one character, or it ends a run of punctuation, and a piece ends behind it whether or not the text
 * goes on. Special tokens that contain a line feed forbid it (`canCut`).
 */
import type { Pattern } from "./patterns.ts";

const LF = 0x0a;

/** Whether texts may be cut at all by the rule. */
export function canCut(pattern: Pattern, specialTokens: Iterable<string>): boolean {
  return pattern.unsettled !== Infinity && ![...specialTokens].some((token) => token.includes("\n"));
}

/** The last place in `bytes[1, end]` where a cut is safe, or -1; needs the bytes on both sides of it. */
export function lastCut(bytes: Uint8Array, end: number): number {
  for (let p = Math.min(end, bytes.length - 1); p >= 2; p--) {
    if (bytes[p - 1] !== LF) continue;
    const before = bytes[p - 2];
    const after = bytes[p] | 0x20;
    const visible = before > 0x20 && before < 0x7f;
    const word = (after >= 0x61 && after <= 0x7a) || (bytes[p] >= 0x30 && bytes[p] <= 0x39);
    if (visible && word) return p;
  }
  return -1;
}
