/** Orders of a data set, many shards as one, raw files. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { uniform } from "@mantou/model";
import { ArrayTokens, BatchReader, TokenFile, writeTokens } from "../../packages/train/src/dataset.ts";
import { permute, startOf } from "../../packages/train/src/order.ts";
import { ShardedTokens, readManifest } from "../../packages/train/src/shards.ts";
import { device, smallConfig, trainSmall } from "./support/training.ts";

const folder = mkdtempSync(join(tmpdir(), "mantou-shards-"));
afterAll(() => rmSync(folder, { recursive: true }));

describe("the shuffled order", () => {
  test("a permutation for every size and seed", () => {
    for (const count of [1, 2, 3, 5, 16, 17, 63, 64, 65, 1000]) {
      for (const seed of [0, 1, 2 ** 40 + 3]) {
        const places = Array.from({ length: count }, (_, i) => permute(seed, count, i));
        expect(new Set(places).size).toBe(count);
        for (const place of places) expect(place >= 0 && place < count).toBe(true);
      }
    }
    // Of billions of windows: in range, and far from the identity.
    for (let i = 0; i < 100; i++) expect(permute(5, 3e9, i * 1e7)).toBeLessThan(3e9);
  });

  test("spreads: the mean distance of neighbours is that of random places", () => {
    const count = 10_000;
    let distance = 0;
    for (let i = 1; i < count; i++) distance += Math.abs(permute(9, count, i) - permute(9, count, i - 1));
    expect(Math.abs(distance / count / (count / 3) - 1)).toBeLessThan(0.03);
  });

  test("sees every window once an epoch, in another order each, whatever the batch", () => {
    const data = new ArrayTokens(Uint16Array.from({ length: 101 }, (_, i) => i));
    const seen = (batchSize: number, batches: number) => {
      const reader = new BatchReader(data, batchSize, 5);
      return Array.from({ length: batches }, (_, step) => [...reader.at("shuffled", 3, step).inputs])
        .flat()
        .filter((_, i) => i % 5 === 0);
    };
    const starts = seen(8, 10); // 80 samples of 20 windows: four epochs
    for (let epoch = 0; epoch < 4; epoch++) {
      const each = starts.slice(epoch * 20, epoch * 20 + 20);
      expect(each.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i * 5));
      expect(each).not.toEqual(starts.slice(0, 20).toReversed());
      if (epoch > 0) expect(each).not.toEqual(starts.slice(0, 20));
    }
    expect(seen(2, 40)).toEqual(starts);
    expect(startOf("random", 3, 7, 101, 5)).toBe(Math.floor(uniform(3, 7) * 96));
  });

  test("a run in it goes on to the last bit after a stop", async () => {
    const config = smallConfig({ order: "shuffled", microBatchSize: 4 });
    const reference = await trainSmall({ config });
    const { run } = await trainSmall({
      config,
      events: (_, stop) => ({ onStep: ({ step }) => void (step === 8 && stop.abort()) }),
    });
    expect((await trainSmall({ config, directory: run })).weights).toEqual(reference.weights);
  });
});

describe("many shards", () => {
  test("a run on them goes on to the last bit after a stop, and is the run on one file", async () => {
    const tokens = Int32Array.from({ length: 4000 }, (_, i) => 97 + ((i * 7 + (i >> 3)) % 11));
    const about = { vocabSize: 257, tokenizerHash: "0" };
    const shards = () =>
      new ShardedTokens(
        [0, 1300, 1301, 2900].map((begin, i, begins) => {
          const path = join(folder, `run-${i}.bin`);
          writeTokens(path, [tokens.subarray(begin, begins[i + 1] ?? tokens.length)], about);
          return new TokenFile(device, path, about);
        }),
      );
    for (const order of ["random", "shuffled"]) {
      const config = smallConfig({ order, microBatchSize: 2 });
      const whole = await trainSmall({ config, data: new ArrayTokens(Uint16Array.from(tokens)) });
      using first = shards();
      const events = (_: unknown, stop: AbortController) => ({
        onStep: ({ step }: { step: number }) => void (step === 7 && stop.abort()),
      });
      const { run, step } = await trainSmall({ config, data: first, events });
      expect(step).toBe(7);
      using second = shards();
      const { weights } = await trainSmall({ config, data: second, directory: run });
      expect(weights).toEqual(whole.weights);
    }
  });

  const all = Uint16Array.from({ length: 5000 }, (_, i) => (i * i + 7 * i) % 900);
  const about = { vocabSize: 900, tokenizerHash: "0" };

  test("read as one stream, across their borders, empty and tiny ones among them", () => {
    const sizes = [1000, 0, 3, 1, 0, 2996, 1000];
    let begin = 0;
    const files = sizes.map((size, i) => {
      const path = join(folder, `shard-${i}.bin`);
      writeTokens(path, [Int32Array.from(all.subarray(begin, begin + size))], about);
      begin += size;
      return new TokenFile(device, path, about);
    });
    using shards = new ShardedTokens(files);
    expect(shards.count).toBe(5000);
    const whole = new ArrayTokens(all);
    for (const length of [1, 5, 300, 3000, 5000]) {
      const starts = [0, 1, 700, 999, 1000, 1003, 3999, 4000, 5000 - length].filter((at) => at + length <= 5000);
      const [actual, expected] = [0, 1].map(() => new Int32Array(starts.length * length));
      shards.gather(Float64Array.from(starts), length, actual);
      whole.gather(Float64Array.from(starts), length, expected);
      expect(actual).toEqual(expected);
      shards.prefetch(Float64Array.from(starts), length);
    }
    expect(() => shards.gather(Float64Array.of(4990), 11, new Int32Array(11))).toThrow("outside a data set of 5000");
    expect(() => shards.prefetch(Float64Array.of(-1), 11)).toThrow("outside a data set of 5000");
  });

  test("a directory that is no data set is refused with the reason", () => {
    expect(() => readManifest(folder)).toThrow("without a manifest.json");
    for (const [text, reason] of [
      ["{", "does not describe a data set"],
      ['{"format":"mantou-dataset"}', "version"],
      [
        JSON.stringify({ format: "mantou-dataset", version: 1, train: { shards: [{ file: "../../etc/passwd" }] } }),
        "file",
      ],
    ]) {
      writeFileSync(join(folder, "manifest.json"), text);
      expect(() => readManifest(folder)).toThrow(reason);
    }
  });
});

test("a file of raw tokens is read by the size of the vocabulary", () => {
  const path = join(folder, "raw.u16");
  writeFileSync(path, new Uint8Array(Uint16Array.of(1, 300, 2, 65535).buffer));
  const read = (vocabSize: number) => {
    using file = new TokenFile(device, path, { vocabSize });
    const tokens = new Int32Array(file.count);
    file.gather(Float64Array.of(0), file.count, tokens);
    return [...tokens];
  };
  expect(read(65536)).toEqual([1, 300, 2, 65535]);
  using wide = new TokenFile(device, path, { vocabSize: 65537 });
  expect(wide.count).toBe(2);
  expect(() => read(1000)).toThrow("token 65535 at position 3");
  writeFileSync(path, new Uint8Array(5));
  expect(() => read(1000)).toThrow("5 bytes, which are no whole number of uint16 tokens");
});
