/** The README's recipes for many machines, run as they are written, with four parts at a time on this one. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { loadTokenizer, trainFromFilesSync } from "@mantou/tokenizer/files";
import { mixedText } from "./oracles/texts.ts";

const root = join(import.meta.dir, "../..");
const readme = readFileSync(join(root, "packages/tokenizer/README.md"), "utf8");
const directory = mkdtempSync(join(tmpdir(), "mantou-recipes-"));
afterAll(() => rmSync(directory, { recursive: true }));

/** The block of the README that contains a text. */
function recipe(part: string): string {
  const found = Array.from(readme.matchAll(/```sh\n([^]*?)```/g), ([, block]) => block).filter((b) => b.includes(part));
  if (found.length !== 1) throw new Error(`${found.length} blocks contain ${part}`);
  return found[0];
}

async function sh(script: string, env: Record<string, string> = {}): Promise<void> {
  const child = Bun.spawn(["sh", "-ec", script], {
    cwd: directory,
    env: { ...process.env, ...env, PATH: `${join(directory, "bin")}:${process.env.PATH}` },
    stdout: "ignore",
    stderr: "pipe",
  });
  const errors = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(`${script}\n${errors}`);
}

const files = [0, 1, 2, 3].map((i) => join(directory, `corpus/0000${i}.txt`));
const trained = () => loadTokenizer(join(directory, "tokenizer.json")).hash;
let expected: string;

beforeAll(() => {
  // a folder in which `bun run tokenizer` is what it is in the repository
  mkdirSync(join(directory, "bin"));
  writeFileSync(join(directory, "bin/bun"), `#!/bin/sh\nexec "${process.execPath}" "$@"\n`);
  chmodSync(join(directory, "bin/bun"), 0o755);
  const command = `${process.execPath} ${join(root, "packages/train/src/cli/tokenizer.ts")}`;
  writeFileSync(join(directory, "package.json"), JSON.stringify({ scripts: { tokenizer: command } }));
  mkdirSync(join(directory, "corpus"));
  files.forEach((path, i) => writeFileSync(path, mixedText(20_000, i + 1)));
  const options = { vocabSize: 65536, specialTokens: ["<|endoftext|>"], pattern: "o200k" };
  expected = trainFromFilesSync(files, options).hash;
});

test("an array of Slurm's, and a job that merges: the merges of one run", async () => {
  mkdirSync(join(directory, "counts"));
  const count = recipe("# count.sh");
  await Promise.all([0, 1, 2, 3].map((id) => sh(count, { SLURM_ARRAY_TASK_ID: String(id) })));
  await sh(recipe("# merge.sh"));
  expect(trained()).toBe(expected);
  for (const name of ["counts", "tokenizer.json"]) rmSync(join(directory, name), { recursive: true });
}, 60_000);

test.skipIf(Bun.which("parallel") === null)(
  "GNU parallel: the merges of one run",
  async () => {
    writeFileSync(join(directory, "hosts"), "4/:\n"); // four at a time on this machine, without ssh
    await sh(recipe("| parallel"));
    expect(trained()).toBe(expected);
  },
  60_000,
);
