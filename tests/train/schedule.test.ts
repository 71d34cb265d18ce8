/** Learning rate schedules. */
import { describe, expect, test } from "bun:test";
import { type ScheduleSettings, cosineLearningRate, learningRate } from "../../packages/train/src/schedule.ts";

const base = { lr: 1, minLr: 0.1, warmupSteps: 10, decaySteps: 20, steps: 110 };
const at = (schedule: ScheduleSettings["schedule"], it: number, more: Partial<ScheduleSettings> = {}) =>
  learningRate(it, { ...base, schedule, ...more });

describe("all schedules", () => {
  test.each(["cosine", "linear", "wsd", "constant"] as const)(
    "%s warms up, and never leaves its bounds",
    (schedule) => {
      expect(at(schedule, 1)).toBeCloseTo(0.1, 12);
      expect(at(schedule, 10)).toBe(1);
      for (let it = 1; it <= 110; it++) expect(at(schedule, it)).toBeLessThanOrEqual(1);
      for (let it = 11; it <= 110; it++) {
        expect(at(schedule, it)).toBeGreaterThanOrEqual(0.1);
        expect(at(schedule, it)).toBeLessThanOrEqual(at(schedule, it - 1));
      }
      expect(at(schedule, 110)).toBe(schedule === "constant" ? 1 : 0.1);
    },
  );

  test.each(["cosine", "linear", "wsd", "constant"] as const)(
    "%s does without warmup and in a single step",
    (schedule) => {
      const rate = at(schedule, 1, { warmupSteps: 0, steps: 1, decaySteps: 1 });
      expect(rate === 1 || rate === 0.1).toBe(true);
    },
  );
});

test("cosine is the handout's", () => {
  const handout = { maxLearningRate: 1, minLearningRate: 0.1, warmupIters: 10, cosineCycleIters: 110 };
  for (let it = 1; it <= 110; it++) expect(at("cosine", it)).toBe(cosineLearningRate(it, handout));
});

test("linear is half way in the middle", () => {
  expect(at("linear", 60)).toBeCloseTo(0.55, 12);
});

test("wsd stays until its decay begins", () => {
  expect(at("wsd", 90)).toBe(1);
  expect(at("wsd", 91)).toBeLessThan(1);
  expect(at("wsd", 100)).toBeCloseTo(0.55, 12);
  // A decay as long as the run begins after the warmup.
  expect(at("wsd", 11, { decaySteps: 500 })).toBeLessThan(1);
});
