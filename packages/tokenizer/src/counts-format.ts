/**
 * Files of pre-token counts: what one machine found in its share of a corpus. Merging them and training gives the merges
 * of one run over everything. A line of JSON, then the end of every piece (uint32), its count (float64), and the pieces'
 * bytes, all little-endian.
 */
import { TokenizerError } from "./errors.ts";
import { ContentHash } from "./hash.ts";
import type { PretokenCounts } from "./pretokens.ts";

const FORMAT = "mantou-counts";
const VERSION = 1;

/** How the text was split; counts can only be merged where it is the same. */
export interface CountsAbout {
  pattern: string;
  specialTokens: readonly string[];
}

const LITTLE_ENDIAN = new Uint8Array(Uint16Array.of(1).buffer)[0] === 1;

function swapIfBig(bytes: Uint8Array, width: number): Uint8Array {
  if (!LITTLE_ENDIAN) for (let i = 0; i < bytes.length; i += width) bytes.subarray(i, i + width).reverse();
  return bytes;
}

function hashOf(parts: Uint8Array[]): string {
  const hash = new ContentHash();
  for (const part of parts) hash.bytes(part);
  return hash.digest();
}

/** The parts of a file, in order. */
export function countsToFile({ bytes, offsets, counts }: PretokenCounts, about: CountsAbout): Uint8Array[] {
  const copy = (array: Int32Array | Float64Array, width: number): Uint8Array =>
    swapIfBig(new Uint8Array(array.slice().buffer), width);
  const body = [copy(offsets.subarray(1), 4), copy(counts, 8), bytes];
  const header = {
    format: FORMAT,
    version: VERSION,
    pattern: about.pattern,
    specialTokens: [...about.specialTokens],
    pieces: counts.length,
    bytes: bytes.length,
    hash: hashOf(body),
  };
  return [new TextEncoder().encode(`${JSON.stringify(header)}\n`), ...body];
}

/** @throws saying what is wrong with the file */
export function countsFromFile(file: Uint8Array): { counts: PretokenCounts; about: CountsAbout } {
  const lineEnd = file.indexOf(0x0a);
  let header: Record<string, unknown>;
  try {
    header = JSON.parse(new TextDecoder().decode(file.subarray(0, lineEnd))) as Record<string, unknown>;
  } catch (cause) {
    throw new TokenizerError("not a file of counts", { cause });
  }
  if (header?.format !== FORMAT) throw new TokenizerError("not a file of counts");
  if (header.version !== VERSION) {
    throw new TokenizerError(`counts of version ${String(header.version)}: this program reads version ${VERSION}`);
  }
  const { pattern, specialTokens, pieces, bytes: size, hash } = header;
  const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
  if (typeof pattern !== "string" || !Array.isArray(specialTokens) || !isCount(pieces) || !isCount(size)) {
    throw new TokenizerError("corrupt file of counts: its first line is incomplete");
  }
  const body = file.slice(lineEnd + 1);
  const expected = 12 * pieces + size;
  if (body.length !== expected) {
    throw new TokenizerError(
      `corrupt file of counts: ${body.length} bytes follow the first line, expected ${expected}`,
    );
  }
  const parts = [body.subarray(0, 4 * pieces), body.subarray(4 * pieces, 12 * pieces), body.subarray(12 * pieces)];
  if (hashOf(parts) !== hash) throw new TokenizerError("corrupt file of counts: its content does not match its hash");
  const offsets = new Int32Array(pieces + 1);
  new Uint8Array(offsets.buffer).set(swapIfBig(parts[0], 4), 4);
  const counts = new Float64Array(pieces);
  new Uint8Array(counts.buffer).set(swapIfBig(parts[1], 8));
  return { counts: { bytes: parts[2], offsets, counts }, about: { pattern, specialTokens: specialTokens.map(String) } };
}

/** @throws where the texts were split differently */
export function checkSameSplit(a: CountsAbout, b: CountsAbout): void {
  if (a.pattern !== b.pattern) {
    throw new TokenizerError(
      `counts by the pattern ${JSON.stringify(b.pattern)} cannot join those by ${JSON.stringify(a.pattern)}`,
    );
  }
  const [first, second] = [a, b].map(({ specialTokens }) => JSON.stringify([...new Set(specialTokens)].sort()));
  if (first !== second) {
    throw new TokenizerError(`counts with the special tokens ${second} cannot join those with ${first}`);
  }
}
