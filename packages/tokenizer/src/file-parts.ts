/** Counting and encoding parts of files, in any thread: each reads its parts itself, so that no text passes between them. */
import { closeSync, openSync, readSync } from "node:fs";
import type { PretokenStream } from "./pretokens.ts";
import type { StreamingEncoder } from "./streaming-encoder.ts";
import { Tokenizer, type TokenizerTables } from "./tokenizer.ts";
import { Vocabulary } from "./vocabulary.ts";

/** Bytes `start` … `end - 1` of a file. */
export interface FilePart {
  path: string;
  start: number;
  end: number;
}

/** Little enough that what is read is still in the processor's cache when it is worked on. */
const buffer = new Uint8Array(1 << 17);

function forChunks({ path, start, end }: FilePart, use: (chunk: Uint8Array) => void): void {
  const file = openSync(path, "r");
  try {
    for (let position = start; position < end;) {
      const length = readSync(file, buffer, 0, Math.min(buffer.length, end - position), position);
      if (length === 0) throw new Error(`${path} has become shorter while it was read`);
      use(buffer.subarray(0, length));
      position += length;
    }
  } finally {
    closeSync(file);
  }
}

/**
 * The tokenizer of these tables, or of their structured clone, for a thread of its own; nothing is built again. In the
 * thread that has the vocabulary it is that one: a copy would be of another shape to the compiler, and all compiled anew.
 */
export function cloneTokenizer(tables: TokenizerTables): Tokenizer {
  const given = tables.vocabulary;
  const vocabulary =
    given instanceof Vocabulary ? given : Object.assign(Object.create(Vocabulary.prototype) as Vocabulary, given);
  return new Tokenizer({ ...tables, vocab: new Map(), merges: [] }, { vocabulary, touch: true });
}

export function countPart(stream: PretokenStream, part: FilePart): void {
  forChunks(part, (chunk) => stream.push(chunk));
  stream.endText();
}

/** Arrays that ids can be handed out in. */
export const ID_ARRAYS = { int32: Int32Array, uint16: Uint16Array };

export type IdType = keyof typeof ID_ARRAYS;
export type Ids<Type extends IdType> = InstanceType<(typeof ID_ARRAYS)[Type]>;

/** The part's ids. */
export function encodePart(encoder: StreamingEncoder, part: FilePart, type: IdType): Ids<IdType> {
  forChunks(part, (chunk) => encoder.write(chunk));
  return encoder.finish<Ids<IdType>>(ID_ARRAYS[type]);
}
