/** What a worker of worker-pool.ts runs. */
import { parentPort, workerData } from "node:worker_threads";
import { cloneTokenizer, countPart, encodePart, type FilePart, type IdType } from "./file-parts.ts";
import { PretokenStream } from "./pretokens.ts";
import type { TokenizerTables } from "./tokenizer.ts";

export type WorkerSetup =
  | { kind: "count"; specialTokens: readonly string[]; pattern: string }
  | { kind: "encode"; tables: TokenizerTables; type: IdType };

export type WorkerRequest = FilePart | "finish";

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
    countPart(stream, request);
    port.postMessage(null);
  });
} else {
  const encoder = cloneTokenizer(setup.tables).createEncoder();
  port.on("message", (request: FilePart) => {
    const ids = encodePart(encoder, request, setup.type);
    port.postMessage(ids, [ids.buffer as ArrayBuffer]);
  });
}
