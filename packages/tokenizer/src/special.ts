/**
 * Finds special tokens in bytes: leftmost first, and the longest where several start at the same place. A trie over the
 * tokens' bytes; in texts that come in parts it also says from where on a match is still possible.
 */
import { encodeUtf8 } from "./utf8.ts";

interface Node {
  /** Id of the special token that ends here, or -1. */
  id: number;
  children: Map<number, Node>;
}

/** Result of `SpecialMatcher.find`: no token. */
export const NOTHING = 0;
/** A token: `start`, `end` and `id` are set. */
export const TOKEN = 1;
/** From `start` on, the bytes may become a token, or a longer one, when more bytes come. */
export const UNDECIDED = 2;

export class SpecialMatcher {
  /** Where the last `find` found something. */
  start = 0;
  end = 0;
  id = -1;
  readonly #root: Node = { id: -1, children: new Map() };
  /** 1 for every byte that starts a special token. */
  readonly #starts = new Uint8Array(256);
  /** The only such byte, if there is one only. */
  readonly #onlyStart: number;

  /** @param tokens special tokens (not empty) and their ids. */
  constructor(tokens: ReadonlyMap<string, number>) {
    for (const [token, id] of tokens) {
      const bytes = encodeUtf8(token);
      this.#starts[bytes[0]] = 1;
      let node = this.#root;
      for (const byte of bytes) {
        let child = node.children.get(byte);
        if (child === undefined) {
          child = { id: -1, children: new Map() };
          node.children.set(byte, child);
        }
        node = child;
      }
      node.id = id;
    }
    const count = this.#starts.reduce((sum, flag) => sum + flag, 0);
    this.#onlyStart = count === 1 ? this.#starts.indexOf(1) : -1;
  }

  /** Searches `bytes[from, end)`; with `final`, nothing follows. */
  find(bytes: Uint8Array, from: number, end: number, final: boolean): number {
    for (let p = this.#candidate(bytes, from, end); p < end; p = this.#candidate(bytes, p + 1, end)) {
      let node = this.#root;
      let q = p;
      this.id = -1;
      for (;;) {
        if (node.id >= 0) {
          this.id = node.id;
          this.end = q;
        }
        if (q === end) break;
        const child = node.children.get(bytes[q]);
        if (child === undefined) break;
        node = child;
        q++;
      }
      this.start = p;
      if (q === end && !final && node.children.size > 0) return UNDECIDED;
      if (this.id >= 0) return TOKEN;
    }
    return NOTHING;
  }

  #candidate(bytes: Uint8Array, p: number, end: number): number {
    const starts = this.#starts;
    if (this.#onlyStart >= 0) {
      p = bytes.indexOf(this.#onlyStart, p);
      return p < 0 || p > end ? end : p;
    }
    while (p < end && starts[bytes[p]] === 0) p++;
    return p;
  }
}
