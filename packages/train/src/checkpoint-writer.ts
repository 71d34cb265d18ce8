/**
 * Saves checkpoints beside the training: the caller waits for a copy in memory (and for the checkpoint before, if that
 * is still being written); hashing, writing, syncing and renaming happen on another thread.
 */
import type { AdamW, TransformerLM } from "@mantou/model";
import { takeSnapshot } from "./checkpoint.ts";
import type { WriteReply, WriteRequest } from "./checkpoint-worker.ts";

export class CheckpointWriter implements AsyncDisposable {
  #worker: Worker | undefined;
  #writing: Promise<void> | undefined;
  /** Memory of the last snapshot, for the next one. */
  #spare: Float32Array<ArrayBuffer>[] | undefined;

  /**
   * Takes the copy and returns; `onWritten` is called once the file is there.
   * @param before files that must be on the disk before it: without that, a power cut could leave it and not what they got
   * @throws what went wrong with the checkpoint before
   */
  async save(
    path: string,
    trained: { model: TransformerLM; optimizer: AdamW; iteration: number },
    onWritten: () => void,
    before: string[] = [],
  ): Promise<void> {
    await this.finish();
    const snapshot = takeSnapshot(trained, this.#spare);
    this.#writing = this.#write({ path, snapshot, before }).then(onWritten);
    // Whoever saves next, or finishes, hears of it.
    this.#writing.catch(() => {});
  }

  /** Waits for what is being written. @throws what went wrong with it */
  async finish(): Promise<void> {
    const writing = this.#writing;
    this.#writing = undefined;
    await writing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#writing?.catch(() => {});
    this.#worker?.terminate();
  }

  #write(request: WriteRequest): Promise<void> {
    this.#worker ??= new Worker(new URL("./checkpoint-worker.ts", import.meta.url));
    const worker = this.#worker;
    return new Promise((resolve, reject) => {
      worker.onmessage = ({ data: { values, error } }: MessageEvent<WriteReply>) => {
        this.#spare = values;
        if (error === undefined) resolve();
        else reject(Object.assign(new Error(error.message), { code: error.code }));
      };
      worker.onerror = ({ message }) => reject(new Error(`the checkpoint writer failed: ${message}`));
      worker.postMessage(
        request,
        request.snapshot.tensors.map(({ values }) => values.buffer),
      );
    });
  }
}
