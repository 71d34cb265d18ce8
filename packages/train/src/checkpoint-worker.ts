/** The thread of `CheckpointWriter`: hashes, writes, syncs and renames what it is sent, and gives the memory back. */
import { closeSync, existsSync, fsyncSync, openSync } from "node:fs";
import { writeCheckpoint } from "./checkpoint-format.ts";
import type { Snapshot } from "./checkpoint.ts";

export interface WriteRequest {
  path: string;
  snapshot: Snapshot;
  /** Files that must be on the disk before the checkpoint is. */
  before: string[];
}

export type WriteReply = { values: Float32Array<ArrayBuffer>[]; error?: { message: string; code?: string } };

declare const self: Worker;

function sync(path: string): void {
  const file = openSync(path, "r");
  try {
    fsyncSync(file);
  } catch (error) {
    if (error instanceof Error) error.message = `${path}: ${error.message}`;
    throw error;
  } finally {
    closeSync(file);
  }
}

self.onmessage = ({ data: { path, snapshot, before } }: MessageEvent<WriteRequest>) => {
  const values = snapshot.tensors.map((tensor) => tensor.values);
  const reply: WriteReply = { values };
  try {
    for (const file of before) if (existsSync(file)) sync(file);
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
