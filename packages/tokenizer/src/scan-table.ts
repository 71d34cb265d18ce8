/**
 * Scanning by automaton: a table gives, for each state and each byte of ASCII, the next state and whether pieces end there.
 * A text has a piece every four bytes or so, of a kind and a length that no processor guesses; the loop here has no branch
 * that depends on them. What the table leaves open, any other character above all, the pattern's ScanFunction decides.
 */
import type { Scanner } from "./patterns.ts";
import { FunctionScanner } from "./scan-function.ts";

/**
 * End of the piece that starts at `bytes[p]`, where `bytes[p, end)` is a whole text from the start of a piece on, p < end.
 * `end` is a hard limit: nothing beyond it is looked at.
 */
export type ScanFunction = (bytes: Uint8Array, p: number, end: number) => number;

/** An automaton as one reads it; see `makeTable`. */
export interface Automaton {
  /** Kinds of bytes: a class of unicode.ts (of ASCII_CLASS or ASCII_FINE), or characters that are apart from their class. */
  columns: readonly (string | number)[];
  /**
   * A row for each state, at most 16; that in which a piece starts goes first. Its words are the state's letter, and then,
   * for each kind of byte, the letter of the next state. A mark in front of that says where pieces end: "|" before the
   * byte, "<" one byte earlier, "#" at both places. A word "?" leaves it to the ScanFunction.
   */
  rows: readonly string[];
  classes: Uint8Array;
}

/** Marks are numbers in the table: 0 for none, then these. */
const MARKS = "<|#?";
const UNKNOWN = 4;

/** At (state << 4) | kind the next state << 4; from 256 on, in the same order, its mark; from 512 on the kind of each byte. */
function makeTable({ columns, rows, classes }: Automaton): Uint8Array {
  const table = new Uint8Array(768).fill(UNKNOWN, 256, 512);
  table.set(classes, 512);
  const states = rows.map((row) => row[0]);
  columns.forEach((column, index) => {
    const kind = typeof column === "number" ? column : 8 + index; // there are eight classes
    if (typeof column === "string") for (const character of column) table[512 | character.charCodeAt(0)] = kind;
    rows.forEach((row, state) => {
      const cell = row.split(" ")[index + 1];
      table[(state << 4) | kind] = states.indexOf(cell.slice(-1)) << 4;
      table[256 | (state << 4) | kind] = MARKS.indexOf(cell[0]) + 1;
    });
  });
  return table;
}

export function tableScanner(automaton: Automaton, scan: ScanFunction): Scanner {
  const table = makeTable(automaton);
  return new FunctionScanner((bytes, start, end, ends) => {
    const limit = ends.length - 1; // a step writes two
    let position = start;
    let n = 0;
    while (position < end && n < limit) {
      let state = 0;
      for (let p = position; p < end && n < limit; p++) {
        const at = state | table[512 | bytes[p]];
        const mark = table[256 | at];
        if (mark === UNKNOWN) break;
        // both ends are written, and stay if they are some
        ends[n] = p - 1;
        n += mark & 1;
        ends[n] = p;
        n += mark >> 1;
        state = table[at];
      }
      if (n > 0) position = ends[n - 1];
      if (n >= limit) break;
      position = scan(bytes, position, end);
      ends[n++] = position;
    }
    return n;
  });
}
