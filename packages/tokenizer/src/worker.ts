/**
 * What a worker of worker-pool.ts runs: counts the pre-tokens of parts of files, or encodes them. Every worker reads its
 * parts itself, so that no text passes between threads.
 */
import { closeSync, openSync, readSync } from "node:fs";
import { parentPort, workerData } from "node:worker_threads";
import { PretokenStream } from "./pretokens.ts";
import { Tokenizer } from "./tokenizer.ts";

/** Bytes `start` … `end - 1` of a file. */
export interface FilePart {
  path: string;
  start: number;
  end: number;
}

export type WorkerSetup =
  | { kind: "count"; specialTokens: readonly string[]; pattern: string }
  /** The tokenizer's JSON. */
  | { kind: "encode"; tokenizer: string };

export type WorkerRequest = FilePart | "finish";

const CHUNK = 1 << 18;

function forChunks({ path, start, end }: FilePart, use: (chunk: Uint8Array) => void): void {
  const file = openSync(path, "r");
  try {
    const buffer = new Uint8Array(Math.min(CHUNK, end - start));
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

const setup = workerData as WorkerSetup;
const port = parentPort!;

if (setup.kind === "count") {
  const stream = new PretokenStream(setup);
  port.on("message", (request: WorkerRequest) => {
    if (request === "finish") {
      const counts = stream.finish();
      port.postMessage(counts, [counts.bytes.buffer, counts.offsets.buffer, counts.counts.buffer] as ArrayBuffer[]);
      return;
    }
    forChunks(request, (chunk) => stream.push(chunk));
    stream.endText();
    port.postMessage(null);
  });
} else {
  const tokenizer = Tokenizer.fromJSON(setup.tokenizer);
  const encoder = tokenizer.createEncoder();
  port.on("message", (request: FilePart) => {
    const parts: Int32Array[] = [];
    let length = 0;
    const keep = (ids: Int32Array): void => {
      parts.push(ids);
      length += ids.length;
    };
    forChunks(request, (chunk) => keep(encoder.push(chunk)));
    keep(encoder.finish());
    const ids = new Int32Array(length);
    let end = 0;
    for (const part of parts) {
      ids.set(part, end);
      end += part.length;
    }
    port.postMessage(ids, [ids.buffer]);
  });
}
