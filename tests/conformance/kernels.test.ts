/**
 * Operations below the adapters: products in every orientation, backward passes, the loss with its gradient and the
 * optimizer, on shapes that fit no vector or tile, against float64. See workbench.ts for how each is run. Attention has
 * a file of its own.
 */
import { describe, expect, test } from "bun:test";
import { type Device, type Tensor, operations } from "@mantou/model";
import { rmsnormBackward, packedSwiglu, packedSwigluBackward, siluBackward } from "../reference/gradients.ts";
import * as ops from "../reference/ops.ts";
import { expectClose } from "../support/close.ts";
import { type FloatArray, floats, ints, randomInts, randomNormal, zeros } from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";
import { Workbench, verify } from "./workbench.ts";

const FLOAT32 = 0;
const BFLOAT16 = 1;

function plus(a: ArrayLike<number>, b: ArrayLike<number>): Float64Array {
  return Float64Array.from(a, (value, i) => value + b[i]);
}

/** op(A) · op(B) in float64: [m, k] · [k, n]. */
function product(m: number, n: number, k: number, at: (i: number, j: number) => number, bt: typeof at): Float64Array {
  const rows = Array.from({ length: m }, (_, i) => Float64Array.from({ length: k }, (_unused, l) => at(i, l)));
  const columns = Array.from({ length: n }, (_, j) => Float64Array.from({ length: k }, (_unused, l) => bt(l, j)));
  const result = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let l = 0; l < k; l++) sum += rows[i][l] * columns[j][l];
      result[i * n + j] = sum;
    }
  }
  return result;
}

onEveryBackend((backend, device) => {
  describe("matmul", () => {
    const sizes = [
      [1, 1, 1],
      [1, 3, 17],
      [3, 1, 65],
      [1, 203, 113],
      [17, 65, 3],
      [65, 17, 113],
      [113, 203, 65],
      [129, 130, 131],
      [300, 2, 257],
      [7, 515, 9],
      [33, 48, 1031],
    ];
    for (const [m, n, k] of sizes) {
      test(`[${m}, ${k}] · [${k}, ${n}], transposed or not, accumulated or not`, () => {
        for (const transposeA of [false, true]) {
          for (const transposeB of [false, true]) {
            const a = randomNormal(transposeA ? [k, m] : [m, k], 1, 1 / Math.sqrt(k));
            const b = randomNormal(transposeB ? [n, k] : [k, n], 2);
            const before = randomNormal([m, n], 3);
            const at = (i: number, l: number) => a.data[transposeA ? l * m + i : i * k + l];
            const bt = (l: number, j: number) => b.data[transposeB ? j * k + l : l * n + j];
            const expected = product(m, n, k, at, bt);
            for (const accumulate of [false, true]) {
              const run = (bench: Workbench) => {
                const c = accumulate ? bench.from(before) : bench.poisoned([m, n]);
                operations.matmul(c, bench.from(a), bench.from(b), { transposeA, transposeB, accumulate });
                return { c };
              };
              verify(backend, run, { c: accumulate ? plus(expected, before.data) : expected });
            }
          }
        }
      });
    }

    test("without terms: zeros, or what was there", () => {
      for (const accumulate of [0, 1]) {
        using bench = new Workbench(device);
        const [c, nothing] = [bench.poisoned([2, 3]), bench.poisoned([1])];
        if (accumulate) c.upload(new Float32Array(6).fill(7));
        device.run("mantou_matmul", 0, 0, 2, 3, 0, FLOAT32, nothing, 1, nothing, 3, FLOAT32, c, 3, accumulate);
        expect(Array.from(c.toFloat32Array())).toEqual(Array(6).fill(accumulate * 7));
      }
    });

    test("row strides: parts of larger matrices, whose other columns stay as they are", () => {
      const [m, n, k] = [19, 35, 21];
      for (const [transposeA, transposeB] of [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
      ]) {
        const a = randomNormal(transposeA ? [k, m + 5] : [m, k + 5], 1);
        const b = randomNormal(transposeB ? [n, k + 3] : [k, n + 3], 2);
        const before = randomNormal([m, n + 7], 3);
        const [lda, ldb, ldc] = [a.shape[1], b.shape[1], n + 7];
        const expected = product(
          m,
          n,
          k,
          (i, l) => a.data[transposeA ? l * lda + i : i * lda + l],
          (l, j) => b.data[transposeB ? j * ldb + l : l * ldb + j],
        );
        const whole = Float64Array.from(before.data, (value, i) =>
          i % ldc < n ? expected[Math.floor(i / ldc) * n + (i % ldc)] : value,
        );
        const run = (bench: Workbench) => {
          const [A, B, c] = [bench.from(a), bench.from(b), bench.from(before)];
          const { device: on } = bench;
          on.run("mantou_matmul", transposeA, transposeB, m, n, k, FLOAT32, A, lda, B, ldb, FLOAT32, c, ldc, 0);
          return { c };
        };
        verify(backend, run, { c: whole });
      }
    });
  });

  describe("elementwise", () => {
    for (const count of [1, 17, 4099, 100_003]) {
      test(`add, scale, sum and cast of ${count}`, () => {
        const [a, b] = [randomNormal([count], 1), randomNormal([count], 2)];
        const total = a.data.reduce((sum, value) => sum + value, 0);
        const run = (bench: Workbench) => {
          const [output, inPlace, other] = [bench.poisoned([count]), bench.from(a), bench.from(b)];
          operations.add(output, bench.from(a), other);
          operations.add(inPlace, inPlace, other);
          const scaled = bench.from(a);
          operations.scale(scaled, bench.from(floats([1], [-0.5])));
          const [sum, added] = [bench.poisoned([1]), bench.from(floats([1], [10]))];
          operations.sum(sum, bench.from(a), 1 / count);
          operations.sum(added, bench.from(a), 1 / count, true);
          const copy = bench.poisoned([count]);
          bench.device.run("mantou_cast", count, FLOAT32, bench.from(a), FLOAT32, copy);
          return { output, inPlace, scaled, sum, added, copy };
        };
        const expected = {
          output: plus(a.data, b.data),
          inPlace: plus(a.data, b.data),
          scaled: a.data.map((value) => value * -0.5),
          sum: [total / count],
          added: [10 + total / count],
          copy: a.data,
        };
        verify(backend, run, expected, { absolute: 1e-6 });
      });

      test(`SiLU backward of ${count}, in place of either input too`, () => {
        const [x, d] = [randomNormal([count], 1, 4), randomNormal([count], 2)];
        const run = (bench: Workbench) => {
          const [dInput, input, dOutput] = [bench.poisoned([count]), bench.from(x), bench.from(d)];
          const [forward, overInput] = [bench.from(x), bench.from(x)];
          operations.siluForward(forward, forward);
          operations.siluBackward(dInput, dOutput, input);
          operations.siluBackward(overInput, dOutput, overInput);
          operations.siluBackward(dOutput, dOutput, input);
          return { forward, dInput, overInput, overOutput: dOutput };
        };
        const { data } = siluBackward(d, x);
        verify(backend, run, { forward: ops.silu(x), dInput: data, overInput: data, overOutput: data });
      });
    }

    test("the sum of a million numbers keeps its digits", () => {
      const values = floats([1 << 20], new Float32Array(1 << 20).fill(0.1));
      const run = (bench: Workbench) => {
        const result = bench.poisoned([1]);
        operations.sum(result, bench.from(values));
        return { result };
      };
      verify(backend, run, { result: [Math.fround(0.1) * 2 ** 20] }, { relative: 1e-6 });
    });

    for (const [rows, dim] of [
      [1, 1],
      [3, 17],
      [65, 113],
      [7, 4099],
    ]) {
      test(`SwiGLU of [${rows}, 2 · ${dim}], forward and backward`, () => {
        const [gateUp, d] = [randomNormal([rows, 2 * dim], 1, 3), randomNormal([rows, dim], 2)];
        const run = (bench: Workbench) => {
          const [output, input, dOutput] = [bench.poisoned([rows, dim]), bench.from(gateUp), bench.from(d)];
          const dGateUp = bench.poisoned([rows, 2 * dim]);
          operations.swigluForward(output, input);
          operations.swigluBackward(dGateUp, dOutput, input);
          operations.swigluBackward(input, dOutput, input);
          return { output, dGateUp, inPlace: input };
        };
        const backward = packedSwigluBackward(d, gateUp);
        verify(backend, run, { output: packedSwiglu(gateUp), dGateUp: backward, inPlace: backward });
      });
    }

    test("softmax, in place", () => {
      const x = randomNormal([65, 203, 3], 1, 3);
      const run = (bench: Workbench) => {
        const tensor = bench.from(x);
        operations.softmax(tensor, tensor, 65, 203, 3);
        return { tensor };
      };
      verify(backend, run, { tensor: ops.softmax(x, 1) });
    });
  });

  describe("embedding backward", () => {
    for (const [rows, vocabSize, dim] of [
      [1, 1, 1],
      [17, 3, 65],
      [203, 113, 17],
      [2000, 7, 33],
      [65, 4099, 3],
    ]) {
      test(`${rows} rows into [${vocabSize}, ${dim}]: adds, repeated tokens too`, () => {
        const [tokens, d] = [randomInts([rows], 1, vocabSize), randomNormal([rows, dim], 2, 0.1)];
        const before = randomNormal([vocabSize, dim], 3);
        const expected = Float64Array.from(before.data);
        tokens.data.forEach((token, row) => {
          for (let i = 0; i < dim; i++) expected[token * dim + i] += d.data[row * dim + i];
        });
        const run = (bench: Workbench) => {
          const dWeight = bench.from(before);
          const bytes = bench.device.size("mantou_embedding_backward_workspace", rows, vocabSize, dim);
          operations.embeddingBackward(dWeight, bench.from(d), bench.from(tokens), bench.workspace(bytes));
          return { dWeight };
        };
        verify(backend, run, { dWeight: expected });
      });
    }
  });

  describe("RMSNorm", () => {
    const eps = 1e-5;
    for (const [rows, dim] of [
      [1, 1],
      [3, 17],
      [113, 203],
      [1031, 65],
      [5, 4099],
    ]) {
      const [input, residual] = [randomNormal([rows, dim], 1, 2), randomNormal([rows, dim], 2)];
      const gain = floats(
        [dim],
        randomNormal([dim], 3, 0.2).data.map((value) => 1 + value),
      );

      test(`forward of [${rows}, ${dim}], with and without residual`, () => {
        const total = floats([rows, dim], plus(input.data, residual.data));
        const rstd = (x: FloatArray) =>
          Float64Array.from({ length: rows }, (_, row) => {
            const values = x.data.subarray(row * dim, (row + 1) * dim);
            return 1 / Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / dim + eps);
          });
        const run = (bench: Workbench) => {
          const g = bench.from(gain);
          const outputs = () => ({ output: bench.poisoned([rows, dim]), rstd: bench.poisoned([rows]) });
          const plain = outputs();
          operations.rmsnormForward(
            { ...plain, sum: null },
            { input: bench.from(input), residual: null, gain: g, eps },
          );
          const added = { ...outputs(), sum: bench.poisoned([rows, dim]) };
          const inputs = { input: bench.from(input), residual: bench.from(residual), gain: g, eps };
          operations.rmsnormForward(added, inputs);
          // The sum may take the place of the input.
          const over = outputs();
          operations.rmsnormForward({ ...over, sum: inputs.input }, inputs);
          return {
            output: plain.output,
            rstd: plain.rstd,
            sum: added.sum,
            outputOfSum: added.output,
            rstdOfSum: added.rstd,
            sumInPlace: inputs.input,
            outputInPlace: over.output,
          };
        };
        const expected = {
          output: ops.rmsnorm(gain, input, eps),
          rstd: rstd(input),
          sum: total,
          outputOfSum: ops.rmsnorm(gain, total, eps),
          rstdOfSum: rstd(total),
          sumInPlace: total,
          outputInPlace: ops.rmsnorm(gain, total, eps),
        };
        verify(backend, run, expected);
      });

      test(`backward of [${rows}, ${dim}], with and without the residual's gradient`, () => {
        const [d, dResidual, dGainBefore] = [4, 5, 6].map((seed) => randomNormal([rows, dim], seed));
        const gainBefore = floats([dim], dGainBefore.data.subarray(0, dim));
        const { dX, dGain } = rmsnormBackward(d, gain, input, eps);
        const run = (bench: Workbench) => {
          const [x, g, rstd] = [bench.from(input), bench.from(gain), bench.poisoned([rows])];
          const forward = { output: bench.poisoned([rows, dim]), sum: null, rstd };
          operations.rmsnormForward(forward, { input: x, residual: null, gain: g, eps });
          const bytes = bench.device.size("mantou_rmsnorm_backward_workspace", rows, dim);
          const backward = (dInput: Tensor, dOutput: Tensor, residualGradient: Tensor | null) => {
            const outputs = { dInput, dGain: bench.from(gainBefore) };
            const given = { dOutput, x, gain: g, rstd, dResidual: residualGradient, workspace: bench.workspace(bytes) };
            operations.rmsnormBackward(outputs, given);
            return outputs;
          };
          const plain = backward(bench.poisoned([rows, dim]), bench.from(d), null);
          const [overOutput, overResidual] = [bench.from(d), bench.from(dResidual)];
          backward(overOutput, overOutput, bench.from(dResidual));
          backward(overResidual, bench.from(d), overResidual);
          return { dX: plain.dInput, dGain: plain.dGain, overOutput, overResidual };
        };
        const withResidual = plus(dX.data, dResidual.data);
        const expected = {
          dX,
          dGain: plus(dGain.data, gainBefore.data),
          overOutput: withResidual,
          overResidual: withResidual,
        };
        // Gradients of a gain are sums over all rows.
        verify(backend, run, expected, { relative: 1e-4, absolute: 1e-5 * Math.sqrt(rows) });
      });
    }
  });

  describe("cross-entropy", () => {
    for (const [rows, vocabSize, stride] of [
      [1, 1, 1],
      [3, 17, 17],
      [65, 113, 128],
      [17, 4099, 4100],
    ]) {
      test(`[${rows}, ${vocabSize}] in rows of ${stride}: losses, and gradients over the logits`, () => {
        const [logits, targets] = [randomNormal([rows, stride], 1, 3), randomInts([rows], 2, vocabSize)];
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
          const [only, both] = [bench.poisoned([rows]), bench.poisoned([rows])];
          const call = (tensor: Tensor, scale: number, result: Tensor) =>
            bench.device.run("mantou_cross_entropy", FLOAT32, rows, vocabSize, tensor, stride, ids, scale, result);
          call(alone, 0, only);
          call(overwritten, 0.25, both);
          return { only, both, untouched: alone, gradient: overwritten };
        };
        verify(
          backend,
          run,
          { only: losses, both: losses, untouched: logits, gradient },
          { relative: 1e-5, absolute: 1e-6 },
        );
      });
    }

    test("gradients of logits of ±1e4", () => {
      const [logits, targets] = [floats([2, 3], [1e4, -1e4, 0, 1e4, 1e4, -1e4]), ints([2], [0, 2])];
      const run = (bench: Workbench) => {
        const [tensor, losses] = [bench.from(logits), bench.poisoned([2])];
        operations.crossEntropy(losses, tensor, bench.from(targets), 1);
        return { losses, gradient: tensor };
      };
      verify(backend, run, { losses: [0, 2e4 + Math.LN2], gradient: [0, 0, 0, 0.5, 0.5, -1] });
    });
  });

  describe("gradient norm", () => {
    for (const count of [1, 17, 4099, 300_007]) {
      test(`of ${count}, above and below the limit and without one`, () => {
        const gradients = randomNormal([count], 1);
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
        verify(backend, run, expected, { relative: 1e-6 });
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
        const [weights, first, second] = [bench.from(initial), bench.from(zeros([count])), bench.from(zeros([count]))];
        const rates = bench.from(floats([4], decays));
        const factors = bench.from(floats([1], [factor]));
        using memory = on.allocate(32);
        const rangeEnds = { memory, byteOffset: 0 };
        on.run("mantou_copy", rangeEnds, BigInt64Array.from(ends, BigInt), 32);
        for (let step = 0; step < steps; step++) {
          const scalars = bench.from(floats([3], [lr, 1 - beta1 ** (step + 1), 1 - beta2 ** (step + 1)]));
          const state = [bench.from(gradients[step]), first, second, scalars, factors] as const;
          on.run("mantou_adamw", FLOAT32, count, weights, null, ...state, beta1, beta2, eps, 4, rangeEnds, rates);
        }
        return { weights, first, second };
      };
      verify(backend, run, { weights: w, first: m, second: v }, { relative: 1e-5, absolute: 1e-6 });
    });
  });

  describe("refuses", () => {
    const refuses = (name: string, call: (on: Device, tensor: Tensor) => void, text: RegExp) => {
      test(name, () => {
        using bench = new Workbench(device);
        const tensor = bench.from(zeros([64]));
        expect(() => call(device, tensor)).toThrow(text);
        expectClose(tensor.toFloat32Array(), new Float32Array(64), { absolute: 0 }, "memory after a refused call");
      });
    };
    const tokens = (values: number[]) => Int32Array.from(values);

    refuses("negative sizes", (on, t) => on.run("mantou_add", FLOAT32, -1, t, t, t), /mantou_add.*-1/);
    refuses("null pointers", (on, t) => on.run("mantou_add", FLOAT32, 4, t, null, t), /mantou_add.*null/);
    refuses("an unknown dtype", (on, t) => on.run("mantou_add", 7, 4, t, t, t), /mantou_add.*dtype.*7/);
    refuses(
      "row strides shorter than rows",
      (on, t) => {
        on.run("mantou_matmul", 0, 0, 2, 3, 4, FLOAT32, t, 3, t, 3, FLOAT32, t, 3, 0);
      },
      /mantou_matmul.*lda.*3/,
    );
    refuses(
      "a token outside the vocabulary, backward too",
      (on, t) => {
        on.run("mantou_embedding_backward", FLOAT32, 3, 4, 2, tokens([0, 4, 1]), t, t, t);
      },
      /mantou_embedding_backward.*4/,
    );
    refuses("a fill value that is no byte", (on, t) => on.run("mantou_fill", t, 256, 4), /mantou_fill.*256/);
    refuses(
      "key/value heads that do not divide the heads",
      (on, t) => {
        on.run("mantou_attention_forward", FLOAT32, 1, 1, 3, 2, 2, 1, t, 6, t, t, 4, null, null, t, t);
      },
      /mantou_attention_forward.*(3.*2|2.*3)/,
    );
    refuses(
      "a cache that is full",
      (on, t) => {
        const sizes = [1, 4, 1, 1, 2, 1] as const;
        on.run("mantou_attention_cached", FLOAT32, 1, 2, tokens([3]), null, ...sizes, t, 2, t, t, 2, null, t, t, t);
      },
      /mantou_attention_cached.*4/,
    );
    refuses(
      "a slot that the cache does not have",
      (on, t) => {
        const sizes = [2, 4, 1, 1, 2, 1] as const;
        const [starts, slots] = [tokens([0]), tokens([2])];
        on.run("mantou_attention_cached", FLOAT32, 1, 1, starts, slots, ...sizes, t, 2, t, t, 2, null, t, t, t);
      },
      /mantou_attention_cached.*slot 2/,
    );
    if (backend === "cpu") {
      refuses(
        "bfloat16, which the CPU does not have",
        (on, t) => on.run("mantou_add", BFLOAT16, 4, t, t, t),
        /bfloat16/,
      );
    }
  });
});
