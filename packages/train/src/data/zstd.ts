/** Whether a zstd file is whole, which the decompressor does not tell: it takes any end for the end. */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";

/** Walks over the frames and their blocks, as RFC 8878 lays them out, to see whether the file ends where the last one does. */
export function isWholeZstd(path: string): boolean {
  const file = openSync(path, "r");
  try {
    const { size } = fstatSync(file);
    const bytes = Buffer.alloc(4);
    let at = 0;
    /** The number in the next bytes; past the end NaN, with which the walk ends behind the file. */
    const next = (count: number): number => {
      const got = readSync(file, bytes, 0, count, at);
      at += count;
      return got < count ? Number.NaN : bytes.readUIntLE(0, count);
    };
    while (at < size) {
      const magic = next(4);
      if (magic >>> 4 === 0x184d2a5) {
        const length = next(4); // a frame to be skipped
        at += length;
        continue;
      }
      if (magic !== 0xfd2fb528) return false;
      const descriptor = next(1);
      const isSingleSegment = (descriptor & 0x20) !== 0;
      at += isSingleSegment ? 0 : 1;
      at += [0, 1, 2, 4][descriptor & 3];
      at += [isSingleSegment ? 1 : 0, 2, 4, 8][descriptor >> 6];
      for (let isLast = false; !isLast;) {
        const header = next(3);
        if (Number.isNaN(header)) return false;
        isLast = (header & 1) === 1;
        const isRepeated = ((header >> 1) & 3) === 1; // one byte stands for all
        at += isRepeated ? 1 : header >> 3;
      }
      if ((descriptor & 4) !== 0) at += 4; // the checksum
    }
    return at === size;
  } finally {
    closeSync(file);
  }
}
