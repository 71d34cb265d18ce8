/** The one TextEncoder of the package. Lone surrogates become U+FFFD; a byte order mark is text like any other. */
const encoder = new TextEncoder();

export function encodeUtf8(text: string): Uint8Array<ArrayBuffer> {
  return encoder.encode(text);
}

/** Writes as much of `text` as fits; whole characters only. */
export function encodeUtf8Into(text: string, target: Uint8Array): { read: number; written: number } {
  return encoder.encodeInto(text, target);
}
