/** The one TextEncoder of the package. Lone surrogates become U+FFFD; a byte order mark is text like any other. */
const encoder = new TextEncoder();

export function encodeUtf8(text: string): Uint8Array<ArrayBuffer> {
  return encoder.encode(text);
}

/** Writes as much of `text` as fits; whole characters only. */
export function encodeUtf8Into(text: string, target: Uint8Array): { read: number; written: number } {
  return encoder.encodeInto(text, target);
}

/** For each of the ascending byte offsets into a text's UTF-8: that of the character it is in, in UTF-16 code units. */
export function utf16Offsets(text: string, bytes: ArrayLike<number>): Int32Array<ArrayBuffer> {
  const offsets = new Int32Array(bytes.length);
  let index = 0;
  let end = 0; // bytes before text[index]
  for (let i = 0; i < bytes.length; i++) {
    while (index < text.length) {
      const codePoint = text.codePointAt(index)!;
      const size = codePoint < 0x80 ? 1 : codePoint < 0x800 ? 2 : codePoint < 0x10000 ? 3 : 4;
      if (end + size > bytes[i]) break;
      end += size;
      index += size === 4 ? 2 : 1;
    }
    offsets[i] = index;
  }
  return offsets;
}
