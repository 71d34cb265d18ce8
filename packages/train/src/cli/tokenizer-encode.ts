/**
 * `bun run tokenizer encode`: text to token files, on several threads where the input is a file, or to ids as text.
 */
import { rmSync, statSync } from "node:fs";
import { extname } from "node:path";
import type { Tokenizer } from "@mantou/tokenizer";
import { encodeFile } from "@mantou/tokenizer/files";
import { z } from "zod";
import { sidecarPath, TokenWriter } from "../dataset.ts";
import { UserError } from "../errors.ts";
import { formatCount } from "../terminal/format.ts";
import { readTokenizer } from "../tokenizer-file.ts";
import { print } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";
import {
  ByteBar,
  checkTarget,
  checkText,
  counting,
  encodedChunks,
  interruptible,
  isRegular,
  readInput,
  tokenizerFlag,
  usage,
  threadsFor,
  workersFlag,
} from "./tokenizer-input.ts";

const encodeOptions = z.strictObject({
  tokenizer: tokenizerFlag,
  out: z.string().optional().meta({
    description: "token file to write, ending in .bin, with a .json beside it; default: ids as text on standard output",
    placeholder: "FILE.bin",
  }),
  shardTokens: z
    .int()
    .min(1)
    .optional()
    .meta({ description: "begin a new file after so many tokens: FILE-00000.bin, FILE-00001.bin, …" }),
  workers: workersFlag,
});

export const encodeCommand: Command<typeof encodeOptions> = {
  usage: `${usage} encode`,
  summary: "Turns text into token ids",
  options: encodeOptions,
  positionals: [
    {
      name: "INPUT",
      description: "UTF-8 texts, one after the other; default: standard input",
      optional: true,
      variadic: true,
    },
  ],
  examples: [
    `${usage} encode --tokenizer tokenizer.json books.txt --out books.bin`,
    `${usage} encode --tokenizer tokenizer.json part-*.txt --out all.bin --shard-tokens 100000000`,
    `echo "Once upon a time" | ${usage} encode --tokenizer tokenizer.json`,
  ],
};

export async function encode(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(encodeCommand, argv);
  const { out, shardTokens, workers } = options;
  positionals.forEach(checkText);
  if (out !== undefined && extname(out) !== ".bin") {
    throw new UserError(`--out ${out} does not end in .bin`, {
      fix: `use --out ${out}.bin: it is known as tokens by it`,
    });
  }
  if (out === undefined && shardTokens !== undefined) {
    throw new UserError("--shard-tokens needs --out", { fix: "add --out FILE.bin" });
  }
  if (out !== undefined) checkTarget(out);
  const tokenizer = readTokenizer(options.tokenizer);
  const inputs = positionals.length === 0 ? [undefined] : positionals;
  if (out === undefined) {
    let separator = "";
    for (const input of inputs) {
      for await (const ids of encodedChunks(tokenizer.createEncoder(), readInput(input))) {
        await print(separator + ids.join(" "));
        separator = " ";
      }
    }
    await print("\n");
    return;
  }
  const total = positionals.reduce((sum, path) => sum + statSync(path).size, 0);
  const bar = new ByteBar("encoding", Math.max(total, 1));
  let bytes = 0;
  const { count, dtype, paths } = await interruptible(async (signal) => {
    using writer = new ShardWriter(out, tokenizer, shardTokens);
    for (const input of inputs) {
      const before = bytes;
      if (input !== undefined && isRegular(input)) {
        const onProgress = ({ done }: { done: number }): void => {
          bytes = before + done;
          bar.update(bytes);
        };
        await encodeFile(tokenizer, input, (ids) => writer.append(ids), {
          ids: tokenizer.vocabSize <= 0x1_0000 ? "uint16" : "int32", // as they are written
          workers: threadsFor(workers),
          signal,
          onProgress,
        });
        continue;
      }
      const counted = counting(readInput(input), (length) => {
        signal.throwIfAborted();
        bytes += length;
      });
      for await (const ids of encodedChunks(tokenizer.createEncoder(), counted)) writer.append(ids);
    }
    signal.throwIfAborted();
    return writer.finish();
  });
  bar.finish();
  const perToken = count === 0 ? "" : ` (${(bytes / count).toFixed(2)} bytes a token)`;
  const files = paths.length === 1 ? paths[0] : `${paths[0]} … ${paths[paths.length - 1]}`;
  console.log(`${files}: ${formatCount(count)} tokens of ${formatCount(bytes)} bytes${perToken}, ${dtype}`);
}

/** One token file, or several of equal length; where it is disposed of before `finish`, none of them. */
class ShardWriter implements Disposable {
  #writer: TokenWriter;
  #room: number;
  readonly #paths: string[] = [];
  #count = 0;
  #finished = false;

  constructor(
    readonly out: string,
    readonly tokenizer: Tokenizer,
    readonly shardTokens: number | undefined,
  ) {
    this.#room = shardTokens ?? Infinity;
    this.#writer = this.#open();
  }

  append(ids: Int32Array | Uint16Array): void {
    while (ids.length > 0) {
      if (this.#room === 0) {
        this.#close();
        this.#writer = this.#open();
        this.#room = this.shardTokens!;
      }
      const part = ids.subarray(0, Math.min(this.#room, ids.length));
      this.#writer.append(part);
      this.#room -= part.length;
      ids = ids.subarray(part.length);
    }
  }

  finish(): { count: number; dtype: string; paths: string[] } {
    const { dtype } = this.#close();
    this.#finished = true;
    return { count: this.#count, dtype, paths: this.#paths };
  }

  [Symbol.dispose](): void {
    this.#writer[Symbol.dispose]();
    if (this.#finished) return;
    for (const path of this.#paths) for (const name of [path, sidecarPath(path)]) rmSync(name, { force: true });
  }

  #open(): TokenWriter {
    const number = String(this.#paths.length).padStart(5, "0");
    const path = this.shardTokens === undefined ? this.out : this.out.replace(/\.bin$/, `-${number}.bin`);
    return new TokenWriter(path, { vocabSize: this.tokenizer.vocabSize, tokenizerHash: this.tokenizer.hash });
  }

  #close(): { dtype: string } {
    const sidecar = this.#writer.finish();
    this.#paths.push(this.#writer.path);
    this.#count += sidecar.count;
    return sidecar;
  }
}
