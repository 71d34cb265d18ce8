/**
 * `bun run tokenizer` as a process: pipes, several inputs, shards, counting, converting, and a corpus that is counted in
 * four parts.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { root, storyText, succeeded, Workplace } from "./support/workplace.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const command = join(root, "packages/train/src/cli/tokenizer.ts");

/** `bun run tokenizer` with something on its standard input. */
const pipe = async (input: Uint8Array, ...argv: string[]) =>
  succeeded(await place.startProgram([process.execPath, command, ...argv], { input }).ended);

const texts = Array.from({ length: 4 }, (_, i) => storyText(20_000, i + 1));
const files = texts.map((text, i) => place.file(`part-${i}.txt`, text));
const bytes = (text: string) => new TextEncoder().encode(text);
const idsOf = (path: string) => [...new Uint16Array(readFileSync(place.path(path)).buffer)];
const tokenizer = await (async () => {
  await place.succeed("tokenizer", "train", ...files, "--vocab-size", "400", "--out", "t.json");
  return loadTokenizer(place.path("t.json"));
})();
const whole = texts.flatMap((text) => [...tokenizer.encode(text)]);

test("four machines' counts train as one run over everything does", async () => {
  for (let i = 0; i < 4; i++) {
    const { stdout } = await place.succeed("tokenizer", "count-shard", files[i], "--out", `${i}.counts`);
    expect(stdout).toMatch(/^\d\.counts: .* words, .* distinct$/m);
  }
  await place.succeed("tokenizer", "merge-counts", "3.counts", "1.counts", "--out", "some.counts");
  const all = ["some.counts", "0.counts", "2.counts"];
  await place.succeed("tokenizer", "train", ...all, "--vocab-size", "400", "--out", "merged.json");
  expect(loadTokenizer(place.path("merged.json")).hash).toBe(tokenizer.hash);
  await place.succeed("tokenizer", "count-shard", files[0], "--pattern", "o200k", "--out", "other.counts");
  const { code, stderr } = await place.run(
    "tokenizer",
    "merge-counts",
    "0.counts",
    "other.counts",
    "--out",
    "x.counts",
  );
  expect(code).toBe(2);
  expect(stderr).toContain('other.counts: counts by the pattern "o200k" cannot join those by "gpt2"');
  expect(existsSync(place.path("x.counts"))).toBe(false);
  for (const [flags, message] of [
    [["--pattern", "o200k"], '--pattern is "o200k", but the words were counted with "gpt2"'],
    [["--special-tokens="], '--special-tokens is [], but the words were counted with ["<|endoftext|>"]'],
    [["--pattern", "gpt2", "--special-tokens", "<|endoftext|>"], undefined],
  ] as const) {
    const trained = await place.run(
      "tokenizer",
      "train",
      ...all,
      ...flags,
      "--vocab-size",
      "400",
      "--out",
      "again.json",
    );
    expect(trained.code).toBe(message === undefined ? 0 : 2);
    expect(trained.stderr).toContain(message ?? "");
    expect(existsSync(place.path("again.json"))).toBe(message === undefined);
  }
}, 60_000);

test("a file whose name begins like a flag is named with its folder", async () => {
  place.file("-dash.txt", "text");
  const { code, stderr } = await place.run("tokenizer", "count", "--tokenizer", "t.json", "-dash.txt");
  expect(stderr).toBe("error: unknown flag -dash.txt\n  fix: if you mean the file of that name, write ./-dash.txt\n");
  expect(code).toBe(2);
  const { stdout } = await place.succeed("tokenizer", "count", "--tokenizer", "t.json", "./-dash.txt");
  expect(stdout).toContain("4 ");
});

describe("encode", () => {
  test("takes several inputs and writes shards of equal length", async () => {
    const flags = ["--out", "all.bin", "--shard-tokens", "7000"];
    const { stdout } = await place.succeed("tokenizer", "encode", "--tokenizer", "t.json", ...files, ...flags);
    const names = readdirSync(place.folder).filter((name) => /^all-\d+\.bin$/.test(name));
    expect(names.sort()[0]).toBe("all-00000.bin");
    expect(names.length).toBe(Math.ceil(whole.length / 7000));
    expect(names.flatMap(idsOf)).toEqual(whole);
    expect(idsOf(names[0]).length).toBe(7000);
    expect(stdout).toContain(`all-00000.bin … ${names.at(-1)}`);
    const sidecar = JSON.parse(readFileSync(place.path("all-00000.bin.json"), "utf8"));
    expect(sidecar).toMatchObject({ count: 7000, tokenizerHash: tokenizer.hash });
  }, 60_000);

  test("reads and writes pipes", async () => {
    const { stdout } = await pipe(bytes(texts[0]), "encode", "--tokenizer", "t.json");
    expect(stdout.trim().split(" ").map(Number)).toEqual([...tokenizer.encode(texts[0])]);
    const decoded = await pipe(bytes(stdout), "decode", "--tokenizer", "t.json");
    expect(decoded.stdout).toBe(texts[0]);
    const counted = await pipe(bytes(texts[0]), "count", "--tokenizer", "t.json");
    expect(counted.stdout).toBe(`${tokenizer.count(texts[0])}\n`);
    const flags = ["--vocab-size", "300", "--out", "piped.json"];
    await pipe(bytes(texts[0]), "train", ...flags);
    expect(loadTokenizer(place.path("piped.json")).vocabSize).toBe(300);
  }, 60_000);

  test("refuses shards without a file to name them after", async () => {
    const { code, stderr } = await place.run(
      "tokenizer",
      "encode",
      "--tokenizer",
      "t.json",
      files[0],
      "--shard-tokens",
      "9",
    );
    expect(code).not.toBe(0);
    expect(stderr).toContain("--shard-tokens needs --out");
  }, 60_000);
});

test("count gives tokens and bytes of each file and of all", async () => {
  const { stdout } = await place.succeed("tokenizer", "count", "--tokenizer", "t.json", files[0], files[1]);
  const counts = [texts[0], texts[1]].map((text) => tokenizer.encode(text).length);
  expect(stdout).toMatch(new RegExp(`part-0\\.txt +${counts[0]} +${bytes(texts[0]).length} `));
  expect(stdout).toMatch(new RegExp(`^all +${counts[0] + counts[1]} `, "m"));
}, 60_000);

test("convert goes through every format and back", async () => {
  const specials = [...tokenizer.specialTokens].flatMap(([text, id]) => ["--special-tokens", `${text}=${id}`]);
  await place.succeed("tokenizer", "convert", "t.json", "--to", "huggingface", "--out", "hf.json");
  await place.succeed("tokenizer", "convert", "hf.json", "--to", "gpt2", "--out", "gpt2");
  await place.succeed("tokenizer", "convert", "gpt2", ...specials, "--to", "tiktoken", "--out", "ranks.tiktoken");
  await place.succeed("tokenizer", "convert", "ranks.tiktoken", ...specials, "--to", "mantou", "--out", "back.json");
  expect(loadTokenizer(place.path("back.json")).hash).toBe(tokenizer.hash);
  const { code, stderr } = await place.run("tokenizer", "convert", files[0], "--to", "gpt2", "--out", "nothing");
  expect(code).toBe(1);
  expect(stderr).toContain("not a tokenizer file");
  expect(existsSync(place.path("nothing"))).toBe(false);
  const flags = ["--special-tokens", "<|endoftext|>", "--to", "mantou", "--out", "nothing"];
  expect((await place.run("tokenizer", "convert", "ranks.tiktoken", ...flags)).stderr).toContain(
    '--special-tokens is ["<|endoftext|>"]; it must be TEXT=ID, such as "<|endoftext|>=100257"',
  );
}, 60_000);

test("an --out that could not be written is refused before any work", async () => {
  expect(Bun.spawnSync(["mkfifo", place.path("pipe")]).success).toBe(true);
  for (const [out, message] of [
    ["pipe", "--out pipe is no regular file"],
    [".", "--out . is a directory"],
    ["none/t.json", "there is no directory none"],
    ["t.json/t.json", "there is no directory t.json"],
  ]) {
    const { code, stderr } = await place.run("tokenizer", "train", files[0], "--out", out);
    expect(code).toBe(2);
    expect(stderr).toContain(message);
    expect(stderr).not.toContain("counting");
  }
  expect(statSync(place.path("pipe")).isFIFO()).toBe(true);
}, 60_000);
