/** What the tokenizer's subcommands share: checks of paths, reading, printing, interruption and progress. */
import { accessSync, constants, createReadStream, existsSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname } from "node:path";
import { PATTERN_NAMES, type StreamingEncoder } from "@mantou/tokenizer";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { ProgressBar } from "../terminal/progress.ts";

export const usage = "bun run tokenizer";

export const tokenizerFlag = z.string().meta({
  description: "a trained tokenizer, such as a run's; a tokenizer.json of Hugging Face or GPT-2's directory will do",
  placeholder: "FILE",
});

export const specialTokensFlag = z
  .array(z.string().min(1))
  .default(["<|endoftext|>"])
  .meta({ description: "texts that are one token each; repeat the flag for several, --special-tokens= for none" });

export const patternFlag = z
  .string()
  .default("gpt2")
  .meta({ description: `how text is split first: ${PATTERN_NAMES.join(", ")}, or a regular expression` });

export const workersFlag = z
  .union([z.int().min(1).max(256), z.literal("auto")])
  .default("auto")
  .meta({ description: "threads that read and split text, with the same result; auto: one a core, at most 8" });

export function threadsFor(workers: z.output<typeof workersFlag>): number {
  return workers === "auto" ? Math.min(8, availableParallelism()) : workers;
}

/** Refuses an input that cannot be read before anything is written. */
export function checkFile(path: string): void {
  if (!existsSync(path)) throw new UserError(`${path} does not exist`, { fix: "check the path" });
  if (statSync(path).isDirectory()) throw new UserError(`${path} is a directory`, { fix: "give a file" });
}

export function checkText(path: string): void {
  checkFile(path);
  const status = statSync(path);
  if (status.isFile() && status.size === 0) throw new UserError(`${path} is empty`, { fix: "give a file with text" });
}

/** Refuses an output that would fail after all the work. */
export function checkTarget(path: string): void {
  const kind = (each: string) => (existsSync(each) ? statSync(each) : undefined);
  if (kind(path)?.isDirectory()) {
    throw new UserError(`--out ${path} is a directory`, { fix: `give a file in it: --out ${path}/NAME` });
  }
  // it would be replaced: by root, even /dev/null
  if (kind(path)?.isFile() === false) throw new UserError(`--out ${path} is no regular file`, { fix: "give another" });
  if (!kind(dirname(path))?.isDirectory()) {
    throw new UserError(`--out ${path}: there is no directory ${dirname(path)}`, { fix: "make it first" });
  }
  try {
    accessSync(dirname(path), constants.W_OK);
  } catch {
    throw new UserError(`--out ${path}: ${dirname(path)} may not be written to`, { fix: "choose another directory" });
  }
}

/** Whether threads can share a file: pipes cannot be read at a place. */
export function isRegular(path: string): boolean {
  return statSync(path).isFile();
}

/** The bytes of a file, or of standard input. */
export function readInput(path: string | undefined): AsyncIterable<Uint8Array> {
  return path === undefined ? Bun.stdin.stream() : createReadStream(path, { highWaterMark: 1 << 20 });
}

/** Ids of one text, as they become certain. */
export async function* encodedChunks(
  encoder: StreamingEncoder,
  chunks: AsyncIterable<Uint8Array>,
): AsyncGenerator<Int32Array> {
  for await (const chunk of chunks) {
    const ids = encoder.push(chunk);
    if (ids.length > 0) yield ids;
  }
  const ids = encoder.finish();
  if (ids.length > 0) yield ids;
}

/** Passes chunks on and reports the length of each. */
export async function* counting(
  chunks: AsyncIterable<Uint8Array>,
  report: (length: number) => void,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    report(chunk.length);
    yield chunk;
  }
}

/** Work that Ctrl-C or SIGTERM ends in an orderly way: what it was writing is removed. */
export async function interruptible<T>(work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController();
  const onSignal = () =>
    stop.abort(new UserError("interrupted; nothing was written", { fix: "repeat the command", exitCode: 1 }));
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  try {
    return await work(stop.signal);
  } finally {
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

/** Lets signals be heard. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** A bar over bytes that shows MB/s beside the time left. */
export class ByteBar {
  readonly #bar: ProgressBar;
  readonly #startedAt = performance.now();

  constructor(label: string, total: number) {
    this.#bar = new ProgressBar({ total, label });
  }

  update(done: number): void {
    const seconds = (performance.now() - this.#startedAt) / 1000;
    this.#bar.update(done, { "MB/s": (done / 1e6 / Math.max(seconds, 1e-3)).toFixed(1) });
  }

  finish(): void {
    this.#bar.finish();
  }
}
