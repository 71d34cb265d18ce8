/** The thread that turns one piece after the other into shards: encodes its documents, writes, hashes, records. */
import { createHash } from "node:crypto";
import { createReadStream, existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { deriveSeed, uniform, writeAtomically } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { TokenWriter, sidecarPath } from "../dataset.ts";
import { UserError } from "../errors.ts";
import { documentMarks } from "../prompt.ts";
import { type Piece, documentsOf } from "./documents.ts";
import { type PieceRecord, recordPath, shardName } from "./records.ts";

export interface WorkRequest {
  directory: string;
  index: number;
  piece: Piece;
  field: string;
  heldOut: number;
}

export type WorkReply =
  | { kind: "progress"; index: number; bytes: number }
  | { kind: "done"; index: number }
  | { kind: "failed"; message: string; fix?: string; code?: string };

declare const self: Worker;

let tokenizer: Tokenizer | undefined;

self.onmessage = async ({ data: request }: MessageEvent<WorkRequest>) => {
  let reply: WorkReply;
  try {
    await prepare(request);
    reply = { kind: "done", index: request.index };
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    reply = { kind: "failed", message, code, fix: error instanceof UserError ? error.fix : undefined };
  }
  self.postMessage(reply);
};

async function prepare({ directory, index, piece, field, heldOut }: WorkRequest): Promise<void> {
  tokenizer ??= loadTokenizer(join(directory, "tokenizer.json"));
  const about = { vocabSize: tokenizer.vocabSize, tokenizerHash: tokenizer.hash };
  const marks = documentMarks(tokenizer);
  const paths = { train: join(directory, shardName("train", index)), val: join(directory, shardName("val", index)) };
  const counts = { train: { documents: 0, bytes: 0 }, val: { documents: 0, bytes: 0 } };
  using train = new TokenWriter(paths.train, about);
  using val = new TokenWriter(paths.val, about);
  // Every 1 / heldOut-th document, beginning at another one in each piece.
  const phase = index === 0 ? 1 - heldOut : uniform(deriveSeed(0, "held out"), index);
  let count = 0;
  const onProgress = (bytes: number) => self.postMessage({ kind: "progress", index, bytes } satisfies WorkReply);
  for await (const document of documentsOf(piece, { field, onProgress })) {
    if (document.trim() === "") continue;
    const part = Math.floor((count + 1) * heldOut + phase) > Math.floor(count * heldOut + phase) ? "val" : "train";
    count++;
    const ids = tokenizer.encode(document);
    const writer = part === "val" ? val : train;
    // Where one token does for both, a document begins after the end of another.
    if (marks !== undefined && marks.begin.id !== marks.end.id) writer.append(Int32Array.of(marks.begin.id));
    writer.append(ids);
    if (marks !== undefined) writer.append(Int32Array.of(marks.end.id));
    counts[part].documents++;
    counts[part].bytes += Buffer.byteLength(document);
  }
  const record: Partial<PieceRecord> = {};
  for (const [part, writer] of [
    ["train", train],
    ["val", val],
  ] as const) {
    const path = paths[part];
    const { count: tokens } = writer.finish();
    // A shard without tokens is none.
    if (tokens > 0)
      record[part] = { file: shardName(part, index), tokens, ...counts[part], sha256: await hashOf(path) };
    else for (const file of [path, sidecarPath(path)]) if (existsSync(file)) rmSync(file);
  }
  writeAtomically(recordPath(directory, index), [new TextEncoder().encode(JSON.stringify(record))]);
}

async function hashOf(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Uint8Array);
  return hash.digest("hex");
}
