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
      stream.endText();
      const tables = stream.counter.tables();
      const arrays = tables.filter((part) => ArrayBuffer.isView(part));
      port.postMessage(
        tables,
        arrays.map(({ buffer }) => buffer),
      );
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
