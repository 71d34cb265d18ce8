/**
 * Parts and workers: cutting where cuts.ts says changes nothing, many threads give what one gives, counts from several
 * machines give what one run gives, and what fails leaves nothing behind.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { mergeCounts, PATTERN_NAMES, type PretokenCounts, PretokenStream, Tokenizer } from "@mantou/tokenizer";
import {
  checkSameSplit,
  countFiles,
  countsFromFile,
  countsToFile,
  encodeFile,
  loadCounts,
  saveCounts,
  trainFromFiles,
} from "@mantou/tokenizer/files";
import { canCut, lastCut } from "../../packages/tokenizer/src/cuts.ts";
import { cloneTokenizer } from "../../packages/tokenizer/src/file-parts.ts";
import { resolvePattern } from "../../packages/tokenizer/src/patterns.ts";
import { WorkerPool } from "../../packages/tokenizer/src/worker-pool.ts";

const directory = mkdtempSync(join(tmpdir(), "mantou-workers-"));
afterAll(() => rmSync(directory, { recursive: true }));

let state = 7;
const random = (n: number): number => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * n);
};
const parts = [
  "the ",
  "cat",
  "'s",
  "\n",
  "\n\n",
  "\r\n",
  " \n",
  "!\n",
  "/",
  "9",
  "é\n",
  "말",
  "Ab",
  "😀",
  "\t",
  "<|e|>",
  "-\n",
];
const randomText = (length: number): string => Array.from({ length }, () => parts[random(parts.length)]).join("");

/** Pieces and their counts, as a plain map. */
function toMap({ bytes, offsets, counts }: PretokenCounts): Map<string, number> {
  return new Map(
    Array.from(counts, (count, i) => [String.fromCharCode(...bytes.subarray(offsets[i], offsets[i + 1])), count]),
  );
}

function counted(
  texts: (string | Uint8Array)[],
  pattern = "gpt2",
  specialTokens: string[] = ["<|e|>"],
): PretokenCounts {
  const stream = new PretokenStream({ pattern, specialTokens });
  for (const text of texts) {
    stream.push(text);
    stream.endText();
  }
  return stream.finish();
}

describe("cuts", () => {
  test.each(PATTERN_NAMES.map((name) => [name]))("change nothing for %s", (pattern) => {
    let cuts = 0;
    for (let round = 0; round < 300; round++) {
      const bytes = new TextEncoder().encode(randomText(40));
      const whole = toMap(counted([bytes], pattern));
      for (let cut = lastCut(bytes, bytes.length); cut > 0; cut = lastCut(bytes, cut - 1)) {
        cuts++;
        expect(toMap(counted([bytes.subarray(0, cut), bytes.subarray(cut)], pattern))).toEqual(whole);
      }
    }
    expect(cuts).toBeGreaterThan(300);
  });

  test("need a visible character, a line feed and a letter or digit", () => {
    const cut = (text: string) => lastCut(new TextEncoder().encode(text), Infinity);
    expect(["a\nb", "a!\n9", "a\n\nb", "a \nb", "a\n b", "a\n/b", "é\nb", "a\n", "\nb"].map(cut)).toEqual([
      2, 3, -1, -1, -1, -1, -1, -1, -1,
    ]);
  });

  test("are forbidden by custom patterns and by special tokens with line feeds", () => {
    expect(canCut(resolvePattern("gpt2"), ["<|e|>"])).toBe(true);
    expect(canCut(resolvePattern("gpt2"), ["a\nb"])).toBe(false);
    expect(canCut(resolvePattern("[^]+"), [])).toBe(false);
  });
});

describe("workers", () => {
  // several parts of half a MiB, and a file without any place to cut
  const [long, flat] = [join(directory, "long.txt"), join(directory, "flat.txt")];
  const unit = Array.from({ length: 400 }, () => randomText(120)).join("");
  const text = unit.repeat(Math.ceil(3_000_000 / new TextEncoder().encode(unit).length));
  writeFileSync(long, text);
  writeFileSync(flat, "word ".repeat(300_000));
  const options = { vocabSize: 400, specialTokens: ["<|e|>"] };

  test("count, train and encode as one thread does", async () => {
    const seen: number[] = [];
    const counts = await countFiles([long, flat], {
      specialTokens: ["<|e|>"],
      workers: 3,
      onProgress: (done, total) => seen.push(done / total),
    });
    expect(toMap(counts)).toEqual(toMap(counted([text, "word ".repeat(300_000)])));
    expect(seen.length).toBeGreaterThan(3);
    expect(seen.at(-1)).toBe(1);
    const tokenizer = await trainFromFiles([long], { ...options, workers: 2 });
    expect(tokenizer.hash).toBe((await trainFromFiles([long], options)).hash);
    // the same options for a text in memory, which one thread counts
    expect(tokenizer.hash).toBe(Tokenizer.train(text, { ...options, workers: 2 }).hash);
    const encode = async (workers: number): Promise<Int32Array> => {
      const ids: Int32Array[] = [];
      const { bytes, tokens } = await encodeFile(tokenizer, long, (part) => void ids.push(part), { workers });
      const all = Int32Array.from(ids.flatMap((part) => [...part]));
      expect([bytes, tokens]).toEqual([readFileSync(long).length, all.length]);
      return all;
    };
    const expected = tokenizer.encode(text);
    for (const workers of [1, 2]) {
      const ids = await encode(workers);
      expect(ids.length).toBe(expected.length);
      expect(ids.every((id, i) => id === expected[i])).toBe(true);
      const narrow: Uint16Array[] = [];
      await encodeFile(tokenizer, long, (part) => void narrow.push(part), { ids: "uint16", workers });
      expect(Buffer.concat(narrow.map((part) => new Uint8Array(part.buffer)))).toEqual(
        Buffer.from(Uint16Array.from(expected).buffer),
      );
    }
  }, 60_000);

  test("ids that do not fit in 16 bits are refused before anything is read", async () => {
    const { vocab, merges } = Tokenizer.train("", { vocabSize: 256 });
    const large = new Tokenizer({ vocab: new Map([...vocab, [65_536, new TextEncoder().encode("<|e|>")]]), merges });
    const missing = join(directory, "none.txt");
    const use = () => undefined;
    await expect(encodeFile(large, missing, use, { ids: "uint16" })).rejects.toThrow("65537 ids do not fit");
    const ids = "float32" as "int32";
    await expect(encodeFile(large, missing, use, { ids })).rejects.toThrow('ids is float32: it is "int32" or "uint16"');
  });

  test("get the tokenizer as a clone of its tables", () => {
    const tokenizer = Tokenizer.train(unit, { ...options, pattern: "o200k" });
    const clone = cloneTokenizer(structuredClone(tokenizer.tables));
    expect(clone.hash).toBe(tokenizer.hash);
    expect(clone.pattern).toBe("o200k");
    expect(clone.encode(unit)).toEqual(tokenizer.encode(unit));
    expect(clone.decode(clone.encode("a<|e|>말"))).toBe("a<|e|>말");
  });

  test("a lost worker, a vanished file, an aborted signal and an error of the caller's end the work", async () => {
    const setup = { kind: "count", specialTokens: [], pattern: "gpt2" } as const;
    const missing = { path: join(directory, "none.txt"), start: 0, end: 10 };
    {
      using pool = new WorkerPool(2, setup);
      const here = () => undefined;
      await expect(pool.run([missing], here, () => undefined)).rejects.toThrow("a worker failed");
      await expect(pool.finish()).rejects.toThrow("a worker failed");
    }
    {
      const broken = { vocabulary: {}, pattern: "none", normalization: null, normalizedSpecialTokens: [] };
      using pool = new WorkerPool(1, { kind: "encode", tables: broken, type: "int32" });
      const here = () => [];
      await expect(pool.run([{ path: long, start: 0, end: 10 }], here, () => undefined)).rejects.toThrow(
        "a worker failed",
      );
    }
    const reason = new Error("enough");
    const controller = new AbortController();
    const aborted = countFiles(long, {
      workers: 2,
      signal: controller.signal,
      onProgress: () => controller.abort(reason),
    });
    await expect(aborted).rejects.toThrow(reason);
    const tokenizer = Tokenizer.train("ab", { vocabSize: 256 });
    const fail = () => {
      throw reason;
    };
    await expect(encodeFile(tokenizer, long, fail, { workers: 2 })).rejects.toThrow(reason);
    await expect(countFiles(long, { workers: 0 })).rejects.toThrow("workers is 0: it must be a whole number");
    await expect(countFiles(missing.path, { workers: 2 })).rejects.toThrow(missing.path);
  }, 60_000);
});

describe("counts from several machines", () => {
  const texts = Array.from({ length: 4 }, () => randomText(3000));
  const about = { pattern: "gpt2", specialTokens: ["<|e|>"] };
  const options = { vocabSize: 320, specialTokens: ["<|e|>"] };
  const paths = texts.map((_, i) => join(directory, `${i}.counts`));

  test("merge to those of one run, whatever their order, and train alike", () => {
    texts.forEach((text, i) => saveCounts(counted([text]), about, paths[i]));
    const loaded = paths.map((path) => loadCounts(path));
    for (const { about: other } of loaded) checkSameSplit(about, other);
    const merged = mergeCounts(loaded.map(({ counts }) => counts));
    expect(toMap(merged)).toEqual(toMap(counted(texts)));
    const backwards = mergeCounts(loaded.map(({ counts }) => counts).reverse());
    const whole = Tokenizer.trainFromCounts(counted(texts), options);
    expect(Tokenizer.trainFromCounts(merged, options).hash).toBe(whole.hash);
    expect(Tokenizer.trainFromCounts(backwards, options).hash).toBe(whole.hash);
    expect(Tokenizer.train(texts.join("<|e|>"), options).hash).toBe(whole.hash);
  });

  test("stay exact beyond 2³¹, for short and long pieces", () => {
    const counts = (factor: number): PretokenCounts => {
      const once = counted(["ab averyveryverylongpiece"]);
      return { ...once, counts: once.counts.map(() => factor) };
    };
    const factors = [2 ** 30, 2 ** 31 + 1, 2 ** 40 + 3, 1, 2 ** 30 - 1];
    const merged = mergeCounts(factors.map(counts));
    const sum = factors.reduce((a, b) => a + b);
    expect([...toMap(merged).values()]).toEqual([sum, sum]);
    const file = Buffer.concat(countsToFile(merged, about));
    expect([...countsFromFile(file).counts.counts]).toEqual([sum, sum]);
    // As tables, which is how threads hand them over.
    const streams = factors.map((factor) => {
      const stream = new PretokenStream();
      stream.add(counts(factor));
      return stream;
    });
    const all = new PretokenStream();
    for (const stream of streams) all.counter.addTables(structuredClone(stream.counter.tables()));
    expect([...toMap(all.finish()).values()]).toEqual([sum, sum]);
  });

  test("may hold a piece more than once", () => {
    const [once, twice] = [
      ["the cat sat", "the cats"],
      ["the cat", " sat", "the cats"],
    ].map((parts) => {
      const all = parts.map((part) => counted([part]));
      const bytes = Buffer.concat(all.map((part) => part.bytes));
      let end = 0;
      const ends = all.flatMap(({ bytes, offsets }) => {
        const moved = Array.from(offsets.subarray(1), (offset) => end + offset);
        end += bytes.length;
        return moved;
      });
      return { bytes, offsets: Int32Array.of(0, ...ends), counts: new Float64Array(ends.length).fill(1) };
    });
    const hashes = [once, twice, mergeCounts([once])].map((counts) => {
      return Tokenizer.trainFromCounts(counts, options).hash;
    });
    expect(new Set(hashes).size).toBe(1);
  });

  test("that were split differently do not join", () => {
    expect(() => checkSameSplit(about, { ...about, pattern: "o200k" })).toThrow('by the pattern "o200k"');
    expect(() => checkSameSplit(about, { ...about, specialTokens: [] })).toThrow("with the special tokens []");
  });

  test("in damaged files are refused, and named", () => {
    const whole = Buffer.concat(countsToFile(counted(["the cat"]), about));
    const changed = Buffer.from(whole);
    changed[changed.length - 1] ^= 1;
    const cases: [Uint8Array, string][] = [
      [new Uint8Array(0), "not a file of counts"],
      [Buffer.from("{}\n"), "not a file of counts"],
      [whole.subarray(0, 30), "not a file of counts"],
      [whole.subarray(0, -1), "bytes follow the first line"],
      [changed, "does not match its hash"],
      [Buffer.from(whole.toString("latin1").replace('"version":1', '"version":2'), "latin1"), "counts of version 2"],
      [Buffer.from(whole.toString("latin1").replace('"pieces":2,', ""), "latin1"), "first line is incomplete"],
    ];
    for (const [file, message] of cases) expect(() => countsFromFile(file)).toThrow(message);
    writeFileSync(join(directory, "bad.counts"), changed);
    expect(() => loadCounts(join(directory, "bad.counts"))).toThrow(join(directory, "bad.counts"));
    expect(readdirSync(directory).filter((name) => name.endsWith("tmp"))).toEqual([]);
  });
});
