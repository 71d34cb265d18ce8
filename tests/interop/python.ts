/** What the interop tests share: a folder that goes away, and Python programs that answer in JSON. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { NdArray } from "@mantou/model";

export const folder = mkdtempSync(join(tmpdir(), "mantou-interop-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));

/** Runs one of the programs of this directory with an argument; both ways JSON. */
export async function python<T>(program: string, request: unknown): Promise<T> {
  const path = process.env.MANTOU_PYTHON;
  if (path === undefined) throw new Error("run these tests with `bun run test:interop`");
  const child = Bun.spawn([path, join(import.meta.dir, program)], {
    stdin: new TextEncoder().encode(JSON.stringify(request)),
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, TRANSFORMERS_VERBOSITY: "error", HF_HUB_OFFLINE: "1", TOKENIZERS_PARALLELISM: "false" },
  });
  const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) !== 0) throw new Error(`${program} failed:\n${errors}`);
  return JSON.parse(output) as T;
}

/** The largest difference of two arrays of the same length. */
export function difference(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) throw new Error(`${actual.length} numbers, not ${expected.length}`);
  let most = 0;
  for (let i = 0; i < actual.length; i++) {
    const by = Math.abs(actual[i] - expected[i]);
    if (!(by <= most)) most = by;
  }
  return most;
}

/** Prompts of random ids, int32 [length] each. */
export function prompts(vocabSize: number, lengths: number[], seed: number): NdArray[] {
  let state = seed * 2654435761 + 1;
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabSize);
  };
  return lengths.map((length) => ({ shape: [length], data: Int32Array.from({ length }, next) }));
}

/** Texts that tokenizers differ on if they differ on anything. */
export const texts = [
  "",
  "Hello, world! It's we'll they've I'M",
  "  two  spaces\n\n\nlines\r\n\ttabs   ",
  "数字123と漢字、emoji 👩‍👩‍👧 ẞ ﬁ İ",
  "1234567 3.14 x² ½ ٣",
  "<|endoftext|>between<|endoftext|><|endoftext|>",
  "a\u00a0b\u2003c\u0085d\ufeffe",
  "don’t — “quotes” …",
  "def f(x):\n    return x  # comment\n",
];
