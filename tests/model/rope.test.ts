/** Rotary frequencies against the reference, which reckons with wavelengths, and against values worked out by hand. */
import { expect, test } from "bun:test";
import { ropeFrequencies } from "@mantou/model";
import { scaleFrequency } from "../reference/transformer.ts";
import { expectClose } from "../support/close.ts";

test("plain and linear", () => {
  expectClose(ropeFrequencies(8, { ropeTheta: 1e4 }), [1, 0.1, 0.01, 0.001], { relative: 1e-14 });
  const scaled = ropeFrequencies(8, { ropeTheta: 1e4, ropeScaling: "linear", ropeFactor: 4 });
  expectClose(scaled, [0.25, 0.025, 0.0025, 0.00025], { relative: 1e-14 });
});

test("llama3 keeps short wavelengths, stretches long ones and blends between, as Llama 3.1 and 3.2 set it", () => {
  for (const ropeFactor of [8, 32]) {
    for (const headDim of [64, 128]) {
      const settings = { ropeTheta: 500_000, ropeScaling: "llama3" as const, ropeFactor };
      const plain = ropeFrequencies(headDim, { ropeTheta: 500_000 });
      const scaled = ropeFrequencies(headDim, settings);
      const expected = plain.map((frequency) => scaleFrequency({ numHeads: 1, ...settings }, frequency));
      expectClose(scaled, expected, { relative: 1e-12 });
      const ratios = Array.from(scaled, (frequency, i) => plain[i] / frequency);
      expect(ratios[0]).toBe(1);
      expect(ratios.at(-1)).toBeCloseTo(ropeFactor, 10);
      expect(ratios.some((ratio) => ratio > 1.01 && ratio < ropeFactor - 0.01)).toBe(true);
    }
  }
});
