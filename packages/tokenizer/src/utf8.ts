/**
 * The one TextEncoder and TextDecoder of the package. Lone surrogates become U+FFFD, a byte order mark is text like any
 * other, and malformed bytes decode to U+FFFD.
 */
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

export function encodeUtf8(text: string): Uint8Array<ArrayBuffer> {
  return encoder.encode(text);
}

/** Writes as much of `text` as fits; whole characters only. */
export function encodeUtf8Into(text: string, target: Uint8Array): { read: number; written: number } {
  return encoder.encodeInto(text, target);
}

export function decodeUtf8(bytes: Uint8Array): string {
  return decoder.decode(bytes);
}
