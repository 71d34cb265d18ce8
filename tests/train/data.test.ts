/** `bun run data prepare`: every format comes to the same tokens; stopped and damaged preparations; what is refused. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { constants, zstdCompressSync } from "node:zlib";
import { openDevice } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer, saveTokenizer } from "@mantou/tokenizer/files";
import { type Piece, documentsOf, formatOf } from "../../packages/train/src/data/documents.ts";
import { cutIntoPieces, listFiles } from "../../packages/train/src/data/pieces.ts";
import { prepareDataset } from "../../packages/train/src/data/preparation.ts";
import { isWholeZstd } from "../../packages/train/src/data/zstd.ts";
import { UserError } from "../../packages/train/src/errors.ts";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { type DatasetManifest, openPart, readManifest } from "../../packages/train/src/shards.ts";
import { generateStories } from "../../packages/train/src/stories.ts";
import { Workplace, flags, smallFlags, temporariesIn, until } from "./support/workplace.ts";

const place = new Workplace();
const device = openDevice("cpu", { threads: 1 });
afterAll(() => {
  place[Symbol.dispose]();
  device[Symbol.dispose]();
});

const stories = [...generateStories({ seed: 4, bytes: 300_000 })].map((story, i) =>
  i % 7 === 0 ? `${story} 馒头 🥟` : story,
);
const asText = stories.join("<|endoftext|>");
const asJson = (field: string) => stories.map((story, id) => `${JSON.stringify({ id, [field]: story })}\n`).join("");
let tokenizerPath: string;
let tokenizer: Tokenizer;

beforeAll(() => {
  tokenizer = Tokenizer.train(asText, { vocabSize: 400, specialTokens: ["<|endoftext|>"] });
  tokenizerPath = place.path("tokenizer.json");
  saveTokenizer(tokenizer, tokenizerPath);
});

const options = (sources: string[], out: string) => ({
  sources: sources.map((name) => place.path(name)),
  out: place.path(out),
  tokenizer: tokenizerPath,
  vocabSize: 400,
  specialTokens: ["<|endoftext|>"],
  tokenizerBytes: 1e6,
  field: "text",
  heldOut: 0.1,
  threads: 2,
});

/** All documents of a prepared part, decoded, in order. */
function documentsIn(out: string, part: "train" | "val"): string[] {
  const directory = place.path(out);
  const ours = loadTokenizer(join(directory, "tokenizer.json"));
  using source = openPart(device, directory, part, { vocabSize: ours.vocabSize, tokenizerHash: ours.hash });
  const ids = new Int32Array(source.count);
  source.gather(Float64Array.of(0), ids.length, ids);
  const texts = ours.decode(ids).split("<|endoftext|>");
  expect(texts.pop()).toBe("");
  return texts;
}

function check(out: string, manifest: DatasetManifest): void {
  expect(readManifest(place.path(out))).toEqual(manifest);
  const found = (["train", "val"] as const).flatMap((part) => {
    const documents = documentsIn(out, part);
    expect(documents).toHaveLength(manifest[part].documents);
    expect(Buffer.byteLength(documents.join(""))).toBe(manifest[part].bytes);
    for (const { file, sha256 } of manifest[part].shards) {
      expect(
        createHash("sha256")
          .update(readFileSync(place.path(out, file)))
          .digest("hex"),
      ).toBe(sha256);
    }
    return documents;
  });
  expect(found.toSorted()).toEqual(stories.toSorted());
  expect(Math.abs(manifest.val.documents / stories.length - 0.1)).toBeLessThan(0.03);
  expect(existsSync(place.path(out, "unfinished"))).toBe(false);
  expect(temporariesIn(place.path(out))).toEqual([]);
}

describe("every format gives the documents, with an end each", () => {
  test.each([
    ["text.txt", () => asText],
    ["text.txt.gz", () => Bun.gzipSync(asText)],
    ["text.txt.zst", () => Bun.zstdCompressSync(asText)],
    ["lines.jsonl", () => asJson("text")],
    ["lines.jsonl.gz", () => Bun.gzipSync(asJson("text"))],
    ["lines.jsonl.zst", () => Bun.zstdCompressSync(asJson("text"))],
  ] as [string, () => string | Uint8Array][])("%s", async (name, content) => {
    place.file(name, content());
    const out = `out-${name}`;
    const { manifest, resumed } = await prepareDataset({ ...options([name], out), pieceBytes: 40_000 });
    expect(resumed).toBe(0);
    check(out, manifest);
    expect(manifest.train.shards.length > 4).toBe(!/gz|zst/.test(name));
    expect(manifest.endOfDocument).toBe(tokenizer.specialTokens.get("<|endoftext|>")!);
  });

  test("Parquet files, as pyarrow wrote them with and without compression", async () => {
    const folder = join(import.meta.dir, "fixtures");
    for (const name of ["plain.parquet", "snappy.parquet", "zstd.parquet"]) {
      const piece = (await cutIntoPieces([join(folder, name)], 1))[0];
      expect(piece.format).toBe("parquet");
      const pieces = await cutIntoPieces([join(folder, name)], 1);
      expect(pieces).toHaveLength(3); // row groups
      const texts: string[] = [];
      for (const each of pieces) for await (const text of documentsOf(each, { field: "body" })) texts.push(text);
      expect(texts).toEqual(Array.from({ length: 25 }, (_, i) => `document ${i}: ${"馒头 ".repeat(i % 5)}`));
    }
    const piece = (await cutIntoPieces([join(folder, "plain.parquet")]))[0];
    await expect(collect(piece, "text")).rejects.toThrow('has no field "text", but id, body');
    await expect(collect(piece, "id")).rejects.toThrow('"id" is no text but');
  });

  test("a small text without ends has a part to hold out, and most to train on, compressed or not", async () => {
    const book = "A line of a book that nobody divided.\n".repeat(5000);
    place.file("book.txt", book);
    place.file("book.txt.gz", Bun.gzipSync(Buffer.from(book)));
    for (const [name, out] of [
      ["book.txt", "book"],
      ["book.txt.gz", "book-gz"],
    ]) {
      const { manifest } = await prepareDataset(options([name], out));
      const { train, val } = manifest;
      expect(val.documents).toBeGreaterThan(0);
      expect(train.bytes + val.bytes).toBe(5000 * 38);
      expect(val.bytes).toBeLessThan(0.15 * train.bytes);
    }
    const [plain, compressed] = ["book", "book-gz"].map((out) => documentsIn(out, "train"));
    expect(compressed).toEqual(plain);
  });

  test("a text without ends is cut at the ends of lines and loses nothing", async () => {
    const text = Array.from({ length: 60_000 }, (_, i) => `line ${i} of a long text, 馒头 and more of it\n`).join("");
    place.file("endless.txt", text);
    const { manifest } = await prepareDataset({ ...options(["endless.txt"], "out-endless"), pieceBytes: 700_000 });
    const all = [...documentsIn("out-endless", "train"), ...documentsIn("out-endless", "val")];
    expect(all.join("").length).toBe(text.length);
    for (const each of all) expect(each.endsWith("\n")).toBe(true);
    expect(manifest.train.documents + manifest.val.documents).toBe(all.length);
    const single = place.file("one-line.txt", "🥟".repeat(900_000));
    const pieces = await cutIntoPieces([single], 1 << 30);
    let joined = "";
    for await (const part of documentsOf(pieces[0], { field: "" })) joined += part;
    expect(joined.length).toBe(1_800_000);
    expect(joined.includes("\ufffd")).toBe(false);
  });

  test("names say the format", () => {
    expect(formatOf("a/b.JSONL.zst")).toEqual({ format: "jsonl", compression: "zstd" });
    expect(formatOf("x.parquet")).toEqual({ format: "parquet", compression: "none" });
    expect(formatOf("x.parquet.gz")).toBeUndefined();
    expect(formatOf("README")).toBeUndefined();
  });

  test("a directory stands for its known files", () => {
    mkdirSync(place.path("many"));
    for (const name of ["b.txt", "a.jsonl", "c.png"]) place.file(join("many", name), "x");
    expect(listFiles([place.path("many")])).toEqual([place.path("many/a.jsonl"), place.path("many/b.txt")]);
    mkdirSync(place.path("none"));
    expect(() => listFiles([place.path("none")])).toThrow("has no file of text");
  });
});

async function collect(piece: Piece, field: string): Promise<string[]> {
  return Array.fromAsync(documentsOf(piece, { field }));
}

describe("a preparation that was stopped", () => {
  test("goes on with the missing pieces and comes to the same, also after kills", async () => {
    place.file("text.txt", asText);
    const { manifest } = await prepareDataset({ ...options(["text.txt"], "whole"), pieceBytes: 20_000 });
    const stop = new AbortController();
    const onProgress = (label: string, done: number, total: number) => {
      if (label === "encoding" && done > total / 3) stop.abort(new UserError("stopped"));
    };
    const again = { ...options(["text.txt"], "stopped"), pieceBytes: 20_000 };
    await expect(prepareDataset({ ...again, signal: stop.signal, onProgress })).rejects.toThrow("stopped");
    expect(existsSync(place.path("stopped/manifest.json"))).toBe(false);
    // What a kill leaves: half a shard under a temporary name, a shard without a record.
    place.file("stopped/train-00014.bin.tmp-999999", "half");
    place.file("stopped/train-00015.bin", "not recorded");
    const second = await prepareDataset(again);
    expect(second.resumed).toBeGreaterThan(0);
    expect(second.manifest).toEqual(manifest);
    check("stopped", second.manifest);
  });

  test("another preparation in the same place is refused, and so is a finished one", async () => {
    place.file("text.txt", asText);
    const stop = AbortSignal.abort(new UserError("stopped"));
    await expect(prepareDataset({ ...options(["text.txt"], "busy"), signal: stop })).rejects.toThrow("stopped");
    const other = { ...options(["text.txt"], "busy"), heldOut: 0.2 };
    await expect(prepareDataset(other)).rejects.toThrow("holds an unfinished preparation of other sources or settings");
    await prepareDataset(options(["text.txt"], "busy"));
    await expect(prepareDataset(options(["text.txt"], "busy"))).rejects.toThrow("holds a finished data set");
  });
});

test("a file in the place of the directory is refused", async () => {
  const text = place.file("some.txt", asText);
  const { code, stderr } = await place.run("data", "prepare", text, "--out", text);
  expect(stderr).toMatch(/^error: .*some\.txt.*\n {2}fix: choose another path/m);
  expect(code).toBe(1);
});

test("a zstd file is whole when its last frame is, and not when anything is missing or behind it", () => {
  const noise = Buffer.from(Uint32Array.from({ length: 50_000 }, (_, i) => Math.imul(i, 2654435761)).buffer);
  const compress = (data: Buffer, flag: number) => zstdCompressSync(data, { params: { [flag]: 1 } });
  const { ZSTD_c_checksumFlag: checksum, ZSTD_c_contentSizeFlag: size } = constants;
  const skippable = Buffer.from([0x5f, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
  const frames = [
    ...["", "a", "馒头".repeat(200), asText].map((text) => zstdCompressSync(text)),
    compress(Buffer.alloc(300_000), checksum),
    compress(noise, size),
    zstdCompressSync(noise, { params: { [size]: 0, [checksum]: 1 } }),
    skippable,
  ];
  const isWhole = (bytes: Uint8Array) => isWholeZstd(place.file("frames.zst", bytes));
  for (const file of [...frames, Buffer.concat(frames), Buffer.concat(frames.toReversed())]) {
    expect(isWhole(file)).toBe(true);
    expect(isWhole(Buffer.concat([file, Buffer.from("x")]))).toBe(false);
    expect(isWhole(file.subarray(0, -1))).toBe(false);
  }
  for (const frame of frames) {
    for (let length = 1; length < frame.length; length += Math.ceil(frame.length / 500)) {
      expect(isWhole(frame.subarray(0, length))).toBe(false);
    }
  }
});

describe("what is refused names file and place", () => {
  const cases: [name: string, content: string | Uint8Array, message: string][] = [
    ["broken.jsonl", '{"text":"a"}\n{"text":', "line 2 of"],
    ["other.jsonl", '{"body":"a"}\n', 'has no field "text", but body'],
    ["number.jsonl", '{"text":7}\n', '"text" is no text but 7'],
    ["list.jsonl", "[1]\n", 'has no field "text"'],
    ["cut.txt.gz", Bun.gzipSync(asText).subarray(0, 9000), "is no whole gzip file"],
    ["not.jsonl.zst", "plain", "is no whole zstd file"],
    ["cut.txt.zst", Bun.zstdCompressSync(asText).subarray(0, -1), "is no whole zstd file"],
    ["stories.gz", Bun.gzipSync(asText), "is a gzip file, not text"],
    ["stories.txt", Bun.zstdCompressSync(asText), "is a zstd file, not text"],
    ["rows.pq", "PAR1", "is a Parquet file, not text"],
    ["not.parquet", "PAR1 but not really PAR1", "is no whole Parquet file"],
    ["single.txt", "only one document", "the sources have 1 document, which went into the validation part"],
    ["blank.jsonl", "\n\n", "the sources have no documents"],
  ];
  test.each(cases)("%s", async (name, content, message) => {
    const path = place.file(name, content);
    const error = await prepareDataset(options([name], `refused-${name}`)).then(
      () => undefined,
      (thrown: UserError) => thrown,
    );
    expect(error).toBeInstanceOf(UserError);
    expect(error!.message).toContain(message);
    if (!error!.message.startsWith("the sources")) expect(error!.message).toContain(path);
    expect(error!.fix).toBeString();
    // Nothing is left that would stand in the way of another try.
    expect(existsSync(place.path(`refused-${name}`))).toBe(false);
  });

  test("sources of which nothing is held out, until more is asked for", async () => {
    place.file("first.txt", " ");
    place.file("second.txt", ["one", "two", "three"].join("<|endoftext|>"));
    const few = { ...options(["first.txt", "second.txt"], "few"), heldOut: 0.01 };
    await expect(prepareDataset(few)).rejects.toThrow(
      "the sources have 3 documents, none of which went into the validation part",
    );
    const { manifest } = await prepareDataset({ ...few, heldOut: 0.5 });
    expect(manifest.train.documents + manifest.val.documents).toBe(3);
    expect(manifest.val.documents).toBeGreaterThan(0);
  });
});

test("the command: trains a tokenizer, survives SIGKILL, and what it made can be trained and evaluated on", async () => {
  const text = place.file("corpus.txt", asText);
  const argv = ["prepare", text, "--out", "prepared", "--vocab-size", "350", "--held-out", "0.1", "--threads", "1"];
  const running = place.start("data", ...argv);
  await until(() => existsSync(place.path("prepared/tokenizer.json")), running);
  running.kill("SIGKILL");
  await running.ended;
  const { stdout } = await place.succeed("data", ...argv);
  expect(stdout).toContain("bun run train --data prepared");
  check("prepared", readManifest(place.path("prepared")));
  expect(readManifest(place.path("prepared")).vocabSize).toBe(350);
  expect((await place.run("data", ...argv)).stderr).toContain("holds a finished data set");

  const run = { data: "prepared", "tokenizer.vocabSize": 350, steps: 12, order: "shuffled" };
  await place.succeed("train", ...smallFlags, ...flags(run));
  expect(readMetrics(place.path("runs/prepared/metrics.jsonl"))).toHaveLength(12);
  expect(readdirSync(place.path("runs/prepared"))).not.toContain("data");
  const evaluated = await place.succeed("eval", "--run", "runs/prepared", "--threads", "1");
  expect(evaluated.stdout).toContain("bits per byte");
  const given = await place.succeed("eval", "--run", "runs/prepared", "--data", "prepared", "--threads", "1");
  expect(given.stdout).toContain("the validation part of prepared: ");
  const results = (stdout: string) => stdout.match(/^(loss|perplexity|bits per byte) .*|\d+ tokens, .*/gm);
  expect(results(evaluated.stdout)).toHaveLength(4);
  expect(results(given.stdout)).toEqual(results(evaluated.stdout));
  const refused = await place.run("train", ...smallFlags, "--data", "prepared", "--val", text);
  expect(refused.stderr).toContain("which brings its own");
  // A run to start from must have the tokenizer of the data.
  const on = { init: "runs/prepared", data: "prepared", name: "on", steps: 1, "model.contextLength": 16, batchSize: 2 };
  await place.succeed("train", ...flags({ ...on, precision: "fp32", threads: 1, evalBatches: 1 }));
  saveTokenizer(Tokenizer.train("abc abc abc", { vocabSize: 257 }), place.path("other.json"));
  const other = await place.run("train", ...smallFlags, "--data", "prepared", "--tokenizer.path", "other.json");
  expect(other.stderr).toContain("--data prepared was prepared with another tokenizer than other.json");
  // A shard that was changed is noticed.
  writeFileSync(place.path("prepared/train-00000.bin"), "short");
  expect((await place.run("train", ...smallFlags, ...flags({ ...run, name: "changed" }))).stderr).toContain("sidecar");
});

test("CS336's files: a .npy and a raw uint16 file as --data and --val", async () => {
  const ids = Uint16Array.from(tokenizer.encode(asText.slice(0, 20_000)));
  const raw = place.file("tokens.bin", new Uint8Array(ids.buffer));
  const header = `{'descr': '<u2', 'fortran_order': False, 'shape': (${ids.length},), }`.padEnd(117) + "\n";
  const magic = Buffer.from([0x93, 78, 85, 77, 80, 89, 1, 0, 118, 0]);
  const npy = place.file("tokens.npy", Buffer.concat([magic, Buffer.from(header), Buffer.from(ids.buffer)]));
  const argv = [...smallFlags, "--tokenizer.path", tokenizerPath, "--tokenizer.vocabSize", "400"];
  await place.succeed("train", ...argv, ...flags({ data: raw, val: npy, name: "raw" }));
  await place.succeed("train", ...argv, ...flags({ data: npy, val: raw, name: "npy" }));
  const [a, b] = ["raw", "npy"].map((name) => readMetrics(place.path("runs", name, "metrics.jsonl")));
  expect(a.map(({ loss }) => loss)).toEqual(b.map(({ loss }) => loss));
});
