/** The counter-based generator: uniform, without memory, with streams that know nothing of one another. */
import { describe, expect, test } from "bun:test";
import { Random, deriveSeed, uniform } from "@mantou/model";
import { threefry } from "../../packages/model/src/random.ts";

/** χ² of counts against equal ones. */
function chiSquare(counts: Float64Array): number {
  const expected = counts.reduce((a, b) => a + b) / counts.length;
  return counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
}

const DRAWS = 100_000;
// Of 255 degrees of freedom: the 99.99th percentile is 347.
const LIMIT = 347;

test("Threefry-2x32-20 gives the known answers of its authors' library", () => {
  expect(threefry(0, 0, 0, 0)).toEqual([0x6b200159, 0x99ba4efe]);
  expect(threefry(-1, -1, -1, -1)).toEqual([0x1cb996fc, 0xbb002be7]);
  expect(threefry(0x13198a2e, 0x03707344, 0x243f6a88, 0x85a308d3)).toEqual([0xc4923a9c, 0x483df7a0]);
});

describe("uniform", () => {
  const streams: Record<string, (i: number) => number> = {
    "neighbouring counters": (i) => uniform(1, i),
    "neighbouring seeds": (i) => uniform(i, 0),
    "seeds and counters past 2³²": (i) => uniform(2 ** 33 + 5, 2 ** 40 + i),
    "counters that differ in their upper half only": (i) => uniform(3, i * 2 ** 32),
    "seeds that differ in their upper half only": (i) => uniform(i * 2 ** 32, 3),
    "every 64th counter": (i) => uniform(7, 64 * i),
  };
  for (const [name, at] of Object.entries(streams)) {
    const values = Float64Array.from({ length: DRAWS }, (_, i) => at(i));

    test(`${name}: equally likely in its first and in its last bits`, () => {
      expect(values.every((value) => value >= 0 && value < 1)).toBe(true);
      const [high, middle, low] = [0, 1, 2].map(() => new Float64Array(256));
      for (const value of values) {
        high[Math.floor(value * 2 ** 8)]++;
        middle[Math.floor(value * 2 ** 30) % 256]++;
        low[(value * 2 ** 53) % 256]++;
      }
      for (const counts of [high, middle, low]) expect(chiSquare(counts)).toBeLessThan(LIMIT);
    });

    test(`${name}: pairs are independent, and values do not repeat`, () => {
      for (const lag of [1, 2, 64]) {
        const counts = new Float64Array(256);
        for (let i = 0; i + lag < DRAWS; i++)
          counts[Math.floor(values[i] * 16) * 16 + Math.floor(values[i + lag] * 16)]++;
        expect(chiSquare(counts)).toBeLessThan(LIMIT);
      }
      // Of 53 bits, 10⁵ draws give a collision with a probability of 6 · 10⁻⁷.
      expect(new Set(values).size).toBe(DRAWS);
    });
  }

  test("two streams are independent", () => {
    for (const [a, b] of [
      [1, 2],
      [0, 2 ** 32],
      [5, deriveSeed(5, "data")],
    ]) {
      const counts = new Float64Array(256);
      for (let i = 0; i < DRAWS; i++) counts[Math.floor(uniform(a, i) * 16) * 16 + Math.floor(uniform(b, i) * 16)]++;
      expect(chiSquare(counts)).toBeLessThan(LIMIT);
    }
  });

  test("is a pure function of seed and counter", () => {
    const forwards = Array.from({ length: 100 }, (_, i) => uniform(9, i));
    const backwards = Array.from({ length: 100 }, (_, i) => uniform(9, 99 - i)).reverse();
    expect(backwards).toEqual(forwards);
    const random = new Random(9);
    expect(Array.from({ length: 100 }, () => random.next())).toEqual(forwards);
  });
});

describe("Random", () => {
  test("refuses what is no seed", () => {
    for (const seed of [-1, 0.5, Number.NaN, 2 ** 53]) expect(() => new Random(seed)).toThrow(`not ${seed}`);
  });

  test("truncatedNormal: symmetric, within ±3σ, of the right shape, for odd lengths too", () => {
    const values = new Float32Array(DRAWS + 1);
    new Random(3).truncatedNormal(values, 0.5);
    expect(values.every((value) => Math.abs(value) <= 1.5 && value !== 0)).toBe(true);
    // Beyond 2.97σ lie 29 of these numbers on average.
    expect(values.some((value) => value > 0.5 * 2.97) && values.some((value) => value < -0.5 * 2.97)).toBe(true);
    // Twelve parts of a normal distribution between −3σ and 3σ, by the error function's values at multiples of σ/2.
    const inner = [0.19146, 0.14988, 0.09185, 0.04406, 0.01654, 0.00486];
    const mass = 2 * inner.reduce((a, b) => a + b);
    const parts = [...inner.toReversed(), ...inner].map((part) => (part / mass) * values.length);
    const counts = new Float64Array(12);
    for (const value of values) counts[Math.min(11, Math.floor((value / 0.5 + 3) * 2))]++;
    const found = counts.reduce((sum, count, i) => sum + (count - parts[i]) ** 2 / parts[i], 0);
    // 11 degrees of freedom: the 99.99th percentile is 37.4.
    expect(found).toBeLessThan(37.4);
  });
});

test("deriveSeed tells seeds and names apart and gives seeds", () => {
  const names = ["data", "atad", "init", "sample", "", "a", "b"];
  const seeds = [0, 1, 2, 2 ** 32, 2 ** 32 + 1].flatMap((seed) => names.map((name) => deriveSeed(seed, name)));
  expect(new Set(seeds).size).toBe(seeds.length);
  for (const seed of seeds) expect(() => new Random(seed)).not.toThrow();
  expect(deriveSeed(1, "data")).toBe(deriveSeed(1, "data"));
});
