/** A scanner made of a function. */
import type { Scanner } from "./patterns.ts";

/** Writes the ends of the pieces of `bytes[start, end)` to `ends`, as many as there is room for; returns how many. */
export type ScanPieces = (bytes: Uint8Array, start: number, end: number, ends: Int32Array) => number;

export class FunctionScanner implements Scanner {
  readonly #scan: ScanPieces;
  #bytes: Uint8Array = new Uint8Array(0);
  #position = 0;
  #end = 0;

  constructor(scan: ScanPieces) {
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
