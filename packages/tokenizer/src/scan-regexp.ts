/**
 * Scanning with a regular expression of the user's: exact, and several times slower than the built-in scanners. The
 * expression sees a stretch of text between special tokens as one string, so that look-around works; what it leaves
 * unmatched becomes pieces of its own, so that nothing is lost; an empty match cuts there.
 */
import { TokenizerError } from "./errors.ts";
import type { Scanner } from "./patterns.ts";
import { decodedLength } from "./unicode.ts";

/**
 * Compiles a pattern with the `v` flag, or `u` where `v` refuses it. `\s` and `\S` mean Unicode White_Space, as in the
 * engines that such patterns are written for (JavaScript's own `\s` has U+FEFF and lacks U+0085).
 *
 * @throws if neither flag accepts the source.
 */
export function compilePattern(source: string): RegExp {
  const unicodeSource = source.replace(/\\([^])/g, (escape, letter: string) =>
    letter === "s" ? "\\p{White_Space}" : letter === "S" ? "\\P{White_Space}" : escape,
  );
  try {
    return new RegExp(unicodeSource, "gv");
  } catch {
    try {
      return new RegExp(unicodeSource, "gu");
    } catch (error) {
      throw new TokenizerError(
        `the pattern ${JSON.stringify(source)} is neither a built-in name nor a valid regular expression: ` +
          (error as Error).message,
        { cause: error },
      );
    }
  }
}

export class RegExpScanner implements Scanner {
  readonly #regexp: RegExp;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #bytes: Uint8Array = new Uint8Array(0);
  #end = 0;
  /** Where the next piece starts, in bytes and in UTF-16 code units. */
  #position = 0;
  #index = 0;
  #text = "";
  /** End of a match in code units that has still to be handed out after the gap before it, or -1. */
  #matchEnd = -1;

  constructor(regexp: RegExp) {
    this.#regexp = regexp;
  }

  begin(bytes: Uint8Array, start: number, end: number): void {
    this.#bytes = bytes;
    this.#position = start;
    this.#end = end;
    this.#text = this.#decoder.decode(bytes.subarray(start, end));
    this.#index = 0;
    this.#matchEnd = -1;
    this.#regexp.lastIndex = 0;
  }

  next(ends: Int32Array): number {
    let n = 0;
    while (n < ends.length && this.#index < this.#text.length) {
      if (this.#matchEnd < 0) {
        const match = this.#regexp.exec(this.#text);
        if (match === null) {
          this.#advance(this.#text.length);
          ends[n++] = this.#position;
          break;
        }
        const { length } = match[0];
        if (length > 0) this.#matchEnd = match.index + length;
        else this.#regexp.lastIndex = match.index + (this.#text.codePointAt(match.index)! > 0xffff ? 2 : 1);
        if (match.index > this.#index) {
          this.#advance(match.index);
          ends[n++] = this.#position;
          continue;
        }
        if (length === 0) continue;
      }
      this.#advance(this.#matchEnd);
      this.#matchEnd = -1;
      ends[n++] = this.#position;
    }
    if (this.#index >= this.#text.length) this.#text = "";
    return n;
  }

  #advance(index: number): void {
    for (let i = this.#index; i < index; i++) {
      const unit = this.#text.charCodeAt(i);
      if (unit < 0x80) this.#position += 1;
      else if (unit < 0x800) this.#position += 2;
      else if (unit === 0xfffd) this.#position += decodedLength(this.#bytes, this.#position, this.#end);
      else this.#position += unit >= 0xd800 && unit < 0xe000 ? 2 : 3; // half of a pair: four bytes for both
    }
    this.#index = index;
  }
}
