/** A file that is written piece by piece and appears under its name only when it is complete. */
import { closeSync, fsyncSync, openSync, renameSync, rmSync, writeSync } from "node:fs";

/** Disposed of before `finish`, it leaves nothing; what was there under its name before stays until then. */
export class OutputFile implements Disposable {
  #file: number | undefined;
  #temporary: string;

  /** @throws the system's error, naming the path, here as in the methods */
  constructor(readonly path: string) {
    this.#temporary = `${path}.tmp-${process.pid}`;
    this.#file = openSync(this.#temporary, "w");
  }

  append(bytes: Uint8Array): void {
    this.#naming((file) => {
      for (let done = 0; done < bytes.length;) done += writeSync(file, bytes, done, bytes.length - done);
    });
  }

  /** @param beforeRename what must be done while neither the old nor the new file counts */
  finish(beforeRename: () => void = () => {}): void {
    this.#naming((file) => {
      fsyncSync(file);
      this.#file = undefined;
      closeSync(file);
      beforeRename();
      renameSync(this.#temporary, this.path);
    });
  }

  [Symbol.dispose](): void {
    if (this.#file !== undefined) closeSync(this.#file);
    this.#file = undefined;
    rmSync(this.#temporary, { force: true });
  }

  /** The system's errors on writing do not say which file. */
  #naming(write: (file: number) => void): void {
    if (this.#file === undefined) throw new Error(`${this.path} is closed already`);
    try {
      write(this.#file);
    } catch (error) {
      if (error instanceof Error && !error.message.includes(this.path)) {
        error.message = `${this.path}: ${error.message}`;
      }
      throw error;
    }
  }
}
