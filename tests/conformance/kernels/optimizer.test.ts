/** The norm of gradients, and AdamW. See ../workbench.ts. */
import { describe, test } from "bun:test";
import { operations } from "@mantou/model";
import { type FloatArray, floats, randomNormal, zeros } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { normalIn, roundToBfloat16 } from "../inputs.ts";
import { DTYPES, type Workbench, sameBits, verify } from "../workbench.ts";

onEveryType((subject) => {
  const { type } = subject;
  const DTYPE = DTYPES[type];
  const normal = normalIn(type);

  describe("gradient norm", () => {
    for (const count of [1, 17, 4099, 300_007, 4_300_003]) {
      test.if(type === "float32")(`of ${count}, above and below the limit and without one`, () => {
        const gradients = normal([count], 1);
        const norm = Math.sqrt(gradients.data.reduce((sum, value) => sum + value * value, 0));
        const run = (bench: Workbench) => {
          const values = bench.from(gradients);
          const bytes = bench.device.size("mantou_gradient_norm_workspace", count);
          const limited = (limit: number) => {
            const result = bench.poisoned([2]);
            operations.gradientNorm(result, values, limit, bench.workspace(bytes));
            return result;
          };
          return { above: limited(norm / 3), below: limited(norm * 3), none: limited(0) };
        };
        const expected = { above: [norm, norm / 3 / (norm + 1e-6)], below: [norm, 1], none: [norm, 1] };
        verify(subject, run, expected, { relative: 1e-6 });
      });
    }
  });

  describe("AdamW", () => {
    test("ranges decay on their own, gradients are scaled as they are read", () => {
      const count = 40_009;
      const [ends, decays] = [
        [1, 20_000, 20_017, count],
        [0.5, 0, 0.1, 0.3],
      ];
      const [beta1, beta2, eps, lr, steps, factor] = [0.9, 0.95, 1e-6, 0.01, 3, 0.7];
      const gradients = Array.from({ length: steps }, (_, step) => randomNormal([count], 10 + step));
      const initial = randomNormal([count], 1);
      const [w, m, v] = [Float64Array.from(initial.data), new Float64Array(count), new Float64Array(count)];
      for (let step = 0; step < steps; step++) {
        for (let i = 0; i < count; i++) {
          const g = gradients[step].data[i] * factor;
          w[i] -= lr * decays[ends.findIndex((end) => i < end)] * w[i];
          m[i] = beta1 * m[i] + (1 - beta1) * g;
          v[i] = beta2 * v[i] + (1 - beta2) * g * g;
          const [c1, c2] = [1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)];
          w[i] -= (lr * (m[i] / c1)) / (Math.sqrt(v[i] / c2) + eps);
        }
      }
      const run = (bench: Workbench) => {
        const on = bench.device;
        const float32 = (array: FloatArray) => bench.from(array, "float32");
        const [weights, first, second] = [bench.from(initial), float32(zeros([count])), float32(zeros([count]))];
        const master = type === "float32" ? null : float32(initial);
        const rates = float32(floats([4], decays));
        const factors = float32(floats([1], [factor]));
        using memory = on.allocate(32);
        const rangeEnds = { memory, byteOffset: 0 };
        on.run("mantou_copy", rangeEnds, BigInt64Array.from(ends, BigInt), 32);
        for (let step = 0; step < steps; step++) {
          const scalars = float32(floats([3], [lr, 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)]));
          const state = [float32(gradients[step]), first, second, scalars, factors] as const;
          on.run("mantou_adamw", DTYPE, count, weights, master, ...state, beta1, beta2, eps, 4, rangeEnds, rates);
        }
        return { weights, ...(master && { master }), first, second };
      };
      const expected = { weights: w, master: w, first: m, second: v };
      const { weights, master } = verify(subject, run, expected, { relative: 1e-5, absolute: 1e-6 });
      if (master) sameBits(weights!, roundToBfloat16(master), "weights beside their float32 copy");
    });
  });
});
