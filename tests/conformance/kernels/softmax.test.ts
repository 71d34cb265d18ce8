/** Softmax, and cross-entropy with its gradient. See ../workbench.ts. */
import { describe, expect, test } from "bun:test";
import { Tensor, operations } from "@mantou/model";
import * as ops from "../../reference/ops.ts";
import { floats, ints, randomInts } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { normalIn } from "../inputs.ts";
import { DTYPES, type Workbench, verify } from "../workbench.ts";

onEveryType((subject) => {
  const { device, type } = subject;
  const DTYPE = DTYPES[type];
  const normal = normalIn(type);

  describe("softmax", () => {
    for (const [outer, dim, inner] of [
      [65, 203, 3],
      [7, 64, 1],
      [3, 1000, 1],
      [2, 2051, 1],
    ]) {
      test(`softmax over the middle of [${outer}, ${dim}, ${inner}], in place`, () => {
        const x = normal([outer, dim, inner], 1, 3);
        const run = (bench: Workbench) => {
          const tensor = bench.from(x);
          operations.softmax(tensor, tensor, outer, dim, inner);
          return { tensor };
        };
        verify(subject, run, { tensor: ops.softmax(x, 1) });
      });
    }

    test.each([
      [2, 1025, 1],
      [2, 9, 3],
    ])("softmax of [%d, %d, %d] whose last score is far above the others", (outer, dim, inner) => {
      const scores = normal([outer, dim, inner], 1);
      const probabilities = new Float64Array(scores.data.length);
      for (let i = 0; i < outer * inner; i++) {
        const last = Math.floor(i / inner) * dim * inner + (dim - 1) * inner + (i % inner);
        scores.data[last] = 300;
        probabilities[last] = 1;
      }
      const run = (bench: Workbench) => {
        const output = bench.poisoned([outer, dim, inner]);
        bench.device.run("mantou_softmax", DTYPE, outer, dim, inner, bench.from(scores), output);
        return { output };
      };
      verify(subject, run, { output: probabilities });
    });
  });

  describe("cross-entropy", () => {
    for (const [rows, vocabSize, stride] of [
      [1, 1, 1],
      [3, 17, 17],
      [65, 113, 128],
      [17, 4099, 4100],
      // Rows of whole vectors, for 128 to 768 threads of a GPU, and longer.
      [5, 60, 64],
      [2, 1999, 2048],
      [2, 10_000, 10_112],
      [2, 20_007, 20_096],
      [2, 33_000, 33_024],
      [1, 60_001, 60_032],
    ]) {
      test(`[${rows}, ${vocabSize}] in rows of ${stride}: losses, and gradients over the logits`, () => {
        const [logits, targets] = [normal([rows, stride], 1, 3), randomInts([rows], 2, vocabSize)];
        // Columns past the vocabulary have no place in the sum, whatever they hold.
        for (let row = 0; row < rows; row++) logits.data.fill(50, row * stride + vocabSize, (row + 1) * stride);
        const losses = new Float64Array(rows);
        const gradient = new Float64Array(rows * stride);
        for (let row = 0; row < rows; row++) {
          const own = floats([1, vocabSize], logits.data.subarray(row * stride, row * stride + vocabSize));
          losses[row] = ops.crossEntropy(own, ints([1], [targets.data[row]]));
          ops.softmax(own).data.forEach((p, i) => {
            gradient[row * stride + i] = 0.25 * (p - Number(i === targets.data[row]));
          });
        }
        const run = (bench: Workbench) => {
          const [alone, overwritten, ids] = [bench.from(logits), bench.from(logits), bench.from(targets)];
          const [only, both] = [bench.poisoned([rows], "float32"), bench.poisoned([rows], "float32")];
          const call = (tensor: Tensor, scale: number, result: Tensor) =>
            bench.device.run("mantou_cross_entropy", DTYPE, rows, vocabSize, tensor, stride, ids, 0, 0, scale, result);
          call(alone, 0, only);
          call(overwritten, 0.25, both);
          return { only, both, untouched: alone, gradient: overwritten };
        };
        verify(
          subject,
          run,
          { only: losses, both: losses, untouched: logits, gradient },
          { relative: 1e-5, absolute: 1e-6 },
        );
      });
    }

    test.each([0, 10])("the largest logit comes last in a long row, far above a soft cap of %d", (cap) => {
      const [vocabSize, stride, target] = [2101, 2103, 7];
      const logits = normal([1, stride], 1);
      logits.data[vocabSize - 1] = 300;
      logits.data.fill(1e30, vocabSize);
      const z = Float64Array.from(logits.data.subarray(0, vocabSize), (x) => (cap ? cap * Math.tanh(x / cap) : x));
      const most = Math.max(...z);
      const logSum = most + Math.log(z.reduce((sum, x) => sum + Math.exp(x - most), 0));
      const gradient = Float64Array.from({ length: stride }, (_, i) => {
        if (i >= vocabSize) return 0;
        const slope = cap ? 1 - (z[i]! / cap) ** 2 : 1;
        return slope * (Math.exp(z[i]! - logSum) - Number(i === target));
      });
      const run = (bench: Workbench) => {
        const [overwritten, losses] = [bench.from(logits), bench.poisoned([1], "float32")];
        const ids = bench.from(ints([1], [target]));
        bench.device.run("mantou_cross_entropy", DTYPE, 1, vocabSize, overwritten, stride, ids, cap, 0, 1, losses);
        return { losses, gradient: overwritten };
      };
      verify(subject, run, { losses: [logSum - z[target]!], gradient }, { relative: 1e-5, absolute: 1e-5 });
    });

    // By definition: d(loss + zLoss log²Z) / dz = p (1 + 2 zLoss log Z) - onehot, and dz / dlogit = 1 - (z / cap)².
    for (const [rows, vocabSize, stride, softCap, zLoss] of [
      [3, 17, 17, 4, 0],
      [65, 113, 128, 0, 0.01],
      [5, 60, 64, 30, 0.01],
      [3, 10_003, 10_112, 2, 1e-4],
      [1, 60_001, 60_032, 4, 1e-4],
    ] as const) {
      test(`[${rows}, ${vocabSize}] with a soft cap of ${softCap} and ${zLoss} times log²Z`, () => {
        const [logits, targets] = [normal([rows, stride], 1, 3), randomInts([rows], 2, vocabSize)];
        for (let row = 0; row < rows; row++) logits.data.fill(50, row * stride + vocabSize, (row + 1) * stride);
        const losses = new Float64Array(rows);
        const gradient = new Float64Array(rows * stride);
        for (let row = 0; row < rows; row++) {
          const given = floats([1, vocabSize], logits.data.subarray(row * stride, row * stride + vocabSize));
          const own = softCap > 0 ? ops.softCap(given, softCap) : given;
          const target = targets.data[row];
          losses[row] = ops.crossEntropy(own, ints([1], [target]));
          const logZ = losses[row]! + own.data[target]!;
          ops.softmax(own).data.forEach((p, i) => {
            const slope = softCap > 0 ? 1 - (own.data[i]! / softCap) ** 2 : 1;
            gradient[row * stride + i] = 0.25 * (p * (1 + 2 * zLoss * logZ) - Number(i === target)) * slope;
          });
        }
        const run = (bench: Workbench) => {
          const [alone, overwritten] = [bench.from(logits), bench.from(logits)];
          const [only, both] = [bench.poisoned([rows], "float32"), bench.poisoned([rows], "float32")];
          const options = { vocabSize, softCap, zLoss };
          operations.crossEntropy(only, alone, bench.from(targets), 0, options);
          operations.crossEntropy(both, overwritten, bench.from(targets), 0.25, options);
          return { only, both, untouched: alone, gradient: overwritten };
        };
        const tolerance = { relative: 1e-5, absolute: 1e-6 };
        verify(subject, run, { only: losses, both: losses, untouched: logits, gradient }, tolerance);
      });
    }

    test("refuses a negative soft cap and a negative z-loss", () => {
      const run = (options: object) => {
        using losses = Tensor.zeros(device, [1]);
        using logits = Tensor.zeros(device, [1, 4]);
        using targets = Tensor.zeros(device, [1], "int32");
        operations.crossEntropy(losses, logits, targets, 1, options);
      };
      expect(() => run({ softCap: -1 })).toThrow("soft_cap is -1; it must not be negative");
      expect(() => run({ zLoss: -0.5 })).toThrow("z_loss is -0.5; it must not be negative");
    });

    test("gradients of logits of ±9,984", () => {
      const most = 9984; // a bfloat16
      const [logits, targets] = [floats([2, 3], [most, -most, 0, most, most, -most]), ints([2], [0, 2])];
      const run = (bench: Workbench) => {
        const [tensor, losses] = [bench.from(logits), bench.poisoned([2], "float32")];
        operations.crossEntropy(losses, tensor, bench.from(targets), 1);
        return { losses, gradient: tensor };
      };
      verify(subject, run, { losses: [0, 2 * most + Math.LN2], gradient: [0, 0, 0, 0.5, 0.5, -1] });
    });
  });
});
