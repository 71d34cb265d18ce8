/** Sampling: temperature, top-k, top-p, the repetition penalty. */
import { describe, expect, test } from "bun:test";
import { Random, type SamplingOptions, sampleToken } from "@mantou/model";

describe("sampleToken", () => {
  const logits = Float32Array.of(0.5, 2, -1, 1, 2.5, -3);

  /** Counts of 20,000 draws. */
  function draw(options: SamplingOptions): Float64Array {
    const [counts, random] = [new Float64Array(logits.length), new Random(11)];
    for (let i = 0; i < 20_000; i++) counts[sampleToken(logits, options, random.next())]++;
    return counts;
  }

  /** Softmax at a temperature, cut to the topK most likely, of those to the fewest that reach topP, and to minP. */
  function distribution({ temperature = 1, topK = 0, topP = 1, minP = 0 }: SamplingOptions): Float64Array {
    const weights = Float64Array.from(logits, (logit) => Math.exp(logit / temperature));
    const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]).slice(0, topK || undefined);
    const total = order.reduce((sum, token) => sum + weights[token], 0);
    const result = new Float64Array(weights.length);
    let reached = 0;
    for (const token of order) {
      if (reached >= topP * total) break;
      reached += result[token] = weights[token];
    }
    const likely = result.map((weight) => (weight < minP * Math.max(...weights) ? 0 : weight));
    const sum = likely.reduce((a, b) => a + b);
    return likely.map((weight) => weight / sum);
  }

  for (const options of [
    {},
    { temperature: 0.5 },
    { temperature: 3 },
    { topP: 0.9 },
    { topP: 0.5 },
    { topP: 0.01 },
    { temperature: 2, topP: 0.8 },
    { topK: 1 },
    { topK: 3 },
    { topK: 99 },
    { topK: 4, topP: 0.9, temperature: 2 },
    { minP: 0.1 },
    { minP: 0.25, temperature: 2 },
    { minP: 1 },
    // The first two tokens have 0.80 of all, but 0.88 of what min-p would leave if it came first.
    { topP: 0.82, minP: 0.15 },
    { topK: 5, topP: 0.99, minP: 0.05, temperature: 1.5 },
  ]) {
    test(`follows the distribution: ${JSON.stringify(options)}`, () => {
      const expected = distribution(options).map((p) => p * 20_000);
      let chiSquare = 0;
      draw(options).forEach((count, token) => {
        if (expected[token] === 0) expect(count).toBe(0);
        else chiSquare += (count - expected[token]) ** 2 / expected[token];
      });
      // At most 5 degrees of freedom: the 99.9th percentile is 20.5.
      expect(chiSquare).toBeLessThan(20.5);
    });
  }

  test("top-p draws from the fewest of many tokens that reach it", () => {
    const many = new Float32Array(500).map((_, i) => 3 * Math.sin(i * i));
    for (const topP of [0.05, 0.5, 0.9, 0.999]) {
      const weights = Float64Array.from(many, Math.exp);
      const goal = topP * weights.reduce((a, b) => a + b);
      let reached = 0;
      const kept = [...weights.keys()]
        .sort((a, b) => weights[b] - weights[a])
        .filter((token) => {
          if (reached >= goal) return false;
          reached += weights[token];
          return true;
        });
      const drawn = new Set(Array.from({ length: 40_000 }, (_, i) => sampleToken(many, { topP }, i / 40_000)));
      expect([...drawn].sort((a, b) => a - b)).toEqual(kept.sort((a, b) => a - b));
    }
  });

  test("temperature 0 is the argmax, the first of equals", () => {
    for (const u of [0, 0.5, 1 - 2 ** -53]) {
      expect(sampleToken(logits, { temperature: 0, topP: 0.5 }, u)).toBe(4);
      expect(sampleToken(Float32Array.of(1, 3, 3), { temperature: 0 }, u)).toBe(1);
    }
  });

  test("of equals at the edge the first are kept", () => {
    const equal = Float32Array.of(1, 2, 2, 0, 2, 1);
    const drawn = (options: SamplingOptions) => {
      return [...new Set(Array.from({ length: 200 }, (_, i) => sampleToken(equal, options, i / 200)))];
    };
    expect(drawn({ topK: 2 })).toEqual([1, 2]);
    expect(drawn({ topK: 4 })).toEqual([0, 1, 2, 4]);
    expect(drawn({ topP: 0.5 })).toEqual([1, 2]);
    expect(drawn({ minP: 0.5 })).toEqual([1, 2, 4]);
  });

  test("the repetition penalty divides positive logits and multiplies negative ones, once a token", () => {
    const options = { temperature: 0, repetitionPenalty: 2 };
    const at = (values: number[], seen: number[]) => sampleToken(Float32Array.from(values), options, 0, seen);
    expect(at([3, 2, 1], [])).toBe(0);
    expect(at([3, 2, 1], [0, 0, 0])).toBe(1);
    expect(at([3, 1.4, 1], [0, 0, 0])).toBe(0);
    expect(at([-3, -2, -3.9], [1])).toBe(0);
    expect(at([-3, -2, -4.1], [0, 1])).toBe(1);
    const kept = Float32Array.of(3, 2);
    sampleToken(kept, options, 0, [0, 1]);
    expect([...kept]).toEqual([3, 2]);
  });

  test("the ends of u give the ends of the vocabulary, and huge logits stay finite", () => {
    expect(sampleToken(logits, {}, 0)).toBe(0);
    expect(sampleToken(logits, {}, 1 - 2 ** -53)).toBe(5);
    expect(sampleToken(Float32Array.of(-1e4, 1e4, 0), {}, 0.999)).toBe(1);
    expect(sampleToken(Float32Array.of(3e38, -3e38), { temperature: 1e-3 }, 0.999)).toBe(0);
    expect(sampleToken(Float32Array.of(-7), { topP: 0.3 }, 0.5)).toBe(0);
  });
});
