/** The thread of `CheckpointWriter`: hashes, writes, syncs and renames what it is sent, and gives the memory back. */
import { writeCheckpoint } from "./checkpoint-format.ts";
import type { Snapshot } from "./checkpoint.ts";

export interface WriteRequest {
  path: string;
  snapshot: Snapshot;
}

export type WriteReply = { values: Float32Array<ArrayBuffer>[]; error?: { message: string; code?: string } };

declare const self: Worker;

self.onmessage = ({ data: { path, snapshot } }: MessageEvent<WriteRequest>) => {
  const values = snapshot.tensors.map((tensor) => tensor.values);
  const reply: WriteReply = { values };
  try {
    const tensors = snapshot.tensors.map((tensor) => ({ ...tensor, data: () => tensor.values }));
    writeCheckpoint(path, { about: snapshot.about, tensors });
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    reply.error = { message, code };
  }
  self.postMessage(
    reply,
    values.map(({ buffer }) => buffer),
  );
};
