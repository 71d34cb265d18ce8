/**
 * Operations below the adapters: products in every orientation, backward passes, the loss with its gradient and the
 * optimizer, on shapes that fit no vector or tile, against float64, in every type. See workbench.ts for how each is run.
 * Attention has a file of its own.
 */
import { describe, expect, test } from "bun:test";
import { type Device, type FloatType, Tensor, operations, ropeTable, toBfloat16 } from "@mantou/model";
import { rmsnormBackward, packedSwiglu, packedSwigluBackward, siluBackward } from "../reference/gradients.ts";
import * as ops from "../reference/ops.ts";
import { expectClose } from "../support/close.ts";
import { type FloatArray, floats, ints, randomInts, randomNormal, zeros } from "../support/ndarray.ts";
import { onEveryType } from "./backends.ts";
import { kept, roundToBfloat16 } from "./inputs.ts";
import { Workbench, sameBits, verify } from "./workbench.ts";

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

onEveryType((subject) => {
  const { device, type } = subject;
  const DTYPE = { float32: FLOAT32, bfloat16: BFLOAT16 }[type];
  /** Normal numbers that the type holds exactly. */
  const normal = (...args: Parameters<typeof randomNormal>) => kept(type, randomNormal(...args));

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
      [260, 390, 70],
      [300, 2, 257],
      [7, 515, 9],
      [33, 48, 1031],
      [5, 530, 801],
      [911, 17, 33],
      [40, 66, 2100],
    ];
    for (const [m, n, k] of sizes) {
      test(`[${m}, ${k}] · [${k}, ${n}], transposed or not, accumulated or not`, () => {
        for (const transposeA of [false, true]) {
          for (const transposeB of [false, true]) {
            const a = normal(transposeA ? [k, m] : [m, k], 1, 1 / Math.sqrt(k));
            const b = normal(transposeB ? [n, k] : [k, n], 2);
            const before = normal([m, n], 3);
            const at = (i: number, l: number) => a.data[transposeA ? l * m + i : i * k + l];
            const bt = (l: number, j: number) => b.data[transposeB ? j * k + l : l * n + j];
            const expected = product(m, n, k, at, bt);
            for (const accumulate of [false, true]) {
              const run = (bench: Workbench) => {
                const [A, B] = [bench.from(a), bench.from(b)];
                const into = (out: FloatType) => {
                  const c = accumulate ? bench.from(before, out) : bench.poisoned([m, n], out);
                  operations.matmul(c, A, B, { transposeA, transposeB, accumulate });
                  return c;
                };
                return { c: into(type), sum: into("float32") };
              };
              const c = accumulate ? plus(expected, before.data) : expected;
              verify(subject, run, { c, sum: c });
            }
          }
        }
      });
    }

    test("without terms: zeros, or what was there", () => {
      for (const accumulate of [0, 1]) {
        using bench = new Workbench(device, type);
        const [c, nothing] = [bench.poisoned([2, 3]), bench.poisoned([1])];
        if (accumulate) c.upload(new Float32Array(6).fill(7));
        device.run("mantou_matmul", 0, 0, 2, 3, 0, DTYPE, nothing, 1, nothing, 3, DTYPE, c, 3, accumulate);
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
        const a = normal(transposeA ? [k, m + 5] : [m, k + 5], 1);
        const b = normal(transposeB ? [n, k + 3] : [k, n + 3], 2);
        const before = normal([m, n + 7], 3);
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
          on.run("mantou_matmul", transposeA, transposeB, m, n, k, DTYPE, A, lda, B, ldb, DTYPE, c, ldc, 0);
          return { c };
        };
        verify(subject, run, { c: whole });
      }
    });
  });

  describe("elementwise", () => {
    for (const count of [1, 17, 4099, 100_003]) {
      test(`add of ${count}, in place too`, () => {
        const [a, b] = [normal([count], 1), normal([count], 2)];
        const run = (bench: Workbench) => {
          const [output, inPlace, other] = [bench.poisoned([count]), bench.from(a), bench.from(b)];
          operations.add(output, bench.from(a), other);
          operations.add(inPlace, inPlace, other);
          return { output, inPlace };
        };
        verify(subject, run, { output: plus(a.data, b.data), inPlace: plus(a.data, b.data) }, { absolute: 1e-6 });
      });

      test(`cast of ${count}, from and to either type`, () => {
        const a = normal([count], 1);
        const run = (bench: Workbench) => {
          const to = (out: FloatType) => {
            const copy = bench.poisoned([count], out);
            const [from, into] = [type, out].map((each) => (each === "float32" ? FLOAT32 : BFLOAT16));
            bench.device.run("mantou_cast", count, from!, bench.from(a), into!, copy);
            return copy;
          };
          return { float32: to("float32"), bfloat16: to("bfloat16") };
        };
        const { float32, bfloat16 } = verify(subject, run, {});
        sameBits(float32!, a.data, "as float32");
        sameBits(bfloat16!, roundToBfloat16(a.data), "as bfloat16");
      });

      test.if(type === "float32")(`scale and sum of ${count}`, () => {
        const a = normal([count], 1);
        const total = a.data.reduce((sum, value) => sum + value, 0);
        const run = (bench: Workbench) => {
          const scaled = bench.from(a);
          operations.scale(scaled, bench.from(floats([1], [-0.5])));
          const [sum, added] = [bench.poisoned([1]), bench.from(floats([1], [10]))];
          operations.sum(sum, bench.from(a), 1 / count);
          operations.sum(added, bench.from(a), 1 / count, true);
          return { scaled, sum, added };
        };
        const expected = {
          scaled: a.data.map((value) => value * -0.5),
          sum: [total / count],
          added: [10 + total / count],
        };
        verify(subject, run, expected, { absolute: 1e-6 });
      });

      test(`SiLU backward of ${count}, in place of either input too`, () => {
        const [x, d] = [normal([count], 1, 4), normal([count], 2)];
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
        verify(subject, run, { forward: ops.silu(x), dInput: data, overInput: data, overOutput: data });
      });
    }

    test.if(type === "bfloat16")(
      "casts round to nearest, ties to even, and keep NaN, infinities and subnormal numbers",
      () => {
        const bits = [
          0x3f800000, 0x3f808000, 0x3f808001, 0x3f818000, 0x3f817fff, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7f800001,
          0xffffffff, 0x00000001, 0x00008000, 0x00018000, 0x007fffff, 0x80000000, 0xbf808000, 0x00018001,
        ];
        const rounded = [
          0x3f80, 0x3f80, 0x3f81, 0x3f82, 0x3f81, 0x7f80, 0x7f80, 0xff80, 0x7fc0, 0x7fc0, 0, 0, 2, 0x0080, 0x8000,
          0xbf80, 0x0002,
        ];
        using bench = new Workbench(device);
        const [from, to] = [bench.poisoned([bits.length]), bench.poisoned([bits.length], "bfloat16")];
        device.run(
          "mantou_copy",
          from,
          Uint8Array.from(new Uint8Array(Uint32Array.from(bits).buffer)),
          bits.length * 4,
        );
        device.run("mantou_cast", bits.length, FLOAT32, from, BFLOAT16, to);
        const result = new Uint16Array(new ArrayBuffer(bits.length * 2));
        device.run("mantou_copy", result, to, result.byteLength);
        // Which NaN is the backend's own business.
        const canonical = (halves: Uint16Array) =>
          Array.from(halves, (half) => ((half & 0x7fff) > 0x7f80 ? 0x7fc0 : half));
        expect(canonical(result)).toEqual(rounded);
        expect(canonical(toBfloat16(new Float32Array(Uint32Array.from(bits).buffer)))).toEqual(rounded);
      },
    );

    test.if(type === "float32")("the sum of a million numbers keeps its digits", () => {
      const values = floats([1 << 20], new Float32Array(1 << 20).fill(0.1));
      const run = (bench: Workbench) => {
        const result = bench.poisoned([1]);
        operations.sum(result, bench.from(values));
        return { result };
      };
      verify(subject, run, { result: [Math.fround(0.1) * 2 ** 20] }, { relative: 1e-6 });
    });

    for (const [rows, dim] of [
      [1, 1],
      [3, 17],
      [65, 113],
      [7, 4099],
      [5, 64],
      [3, 1000],
    ]) {
      test(`SwiGLU of [${rows}, 2 · ${dim}], forward and backward`, () => {
        const [gateUp, d] = [normal([rows, 2 * dim], 1, 3), normal([rows, dim], 2)];
        const run = (bench: Workbench) => {
          const [output, input, dOutput] = [bench.poisoned([rows, dim]), bench.from(gateUp), bench.from(d)];
          const dGateUp = bench.poisoned([rows, 2 * dim]);
          operations.swigluForward(output, input);
          operations.swigluBackward(dGateUp, dOutput, input);
          operations.swigluBackward(input, dOutput, input);
          return { output, dGateUp, inPlace: input };
        };
        const backward = packedSwigluBackward(d, gateUp);
        verify(subject, run, { output: packedSwiglu(gateUp), dGateUp: backward, inPlace: backward });
      });
    }

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

    for (const headDim of [16, 10]) {
      test(`RoPE of heads of ${headDim} in wider rows, by place or by position, and back`, () => {
        const [rows, length, heads, theta] = [26, 13, 3, 100];
        const [width, inStride, outStride] = [heads * headDim, heads * headDim + 16, heads * headDim + 8];
        const input = normal([rows, inStride], 1);
        const positions = randomInts([rows], 2, 50);
        const rotated = (at: (row: number) => number, direction = 1) => {
          const result = new Float64Array(rows * width);
          for (let i = 0; i < result.length; i += 2) {
            const [row, column] = [Math.floor(i / width), i % width];
            const angle = direction * at(row) * theta ** (-(column % headDim) / headDim);
            const [x, y] = [0, 1].map((k) => input.data[row * inStride + column + k]!);
            result[i] = x! * Math.cos(angle) - y! * Math.sin(angle);
            result[i + 1] = y! * Math.cos(angle) + x! * Math.sin(angle);
          }
          return result;
        };
        // What lies between the rows of the output stays as it was, 7.
        const spread = (values: Float64Array) =>
          Float64Array.from({ length: rows * outStride }, (_, i) =>
            i % outStride < width ? values[Math.floor(i / outStride) * width + (i % outStride)]! : 7,
          );
        const run = (bench: Workbench) => {
          using table = ropeTable(bench.device, 50, headDim, { ropeTheta: theta });
          const [from, given] = [bench.from(input), bench.from(positions)];
          const turn = (to: Tensor, source: Tensor, stride: number, at: Tensor | null, inverse: number) => {
            const sizes = [rows, length, heads, headDim] as const;
            bench.device.run("mantou_rope", DTYPE, ...sizes, table, at, source, stride, to, outStride, inverse);
            return to;
          };
          const blank = () => bench.from(floats([rows, outStride], new Float32Array(rows * outStride).fill(7)));
          const byPlace = turn(blank(), from, inStride, null, 0);
          const byPosition = turn(blank(), from, inStride, given, 0);
          const back = turn(blank(), from, inStride, given, 1);
          return { byPlace, byPosition, back };
        };
        const position = (row: number) => positions.data[row]!;
        const expected = {
          byPlace: spread(rotated((row) => row % length)),
          byPosition: spread(rotated(position)),
          back: spread(rotated(position, -1)),
        };
        verify(subject, run, expected);
      });
    }

    test("tensors that begin at any element", () => {
      const [rows, dim] = [6, 40];
      const [x, d, gain] = [normal([rows, dim], 1), normal([rows, dim], 2), normal([dim], 3)];
      for (const offset of [1, 2, 4]) {
        const run = (bench: Workbench) => {
          const shifted = ({ shape, data }: FloatArray) => {
            const padded = floats([data.length + offset], [...new Float32Array(offset), ...data]);
            return bench.from(padded).view(shape, offset);
          };
          const blank = (shape: number[]) => shifted(zeros(shape));
          const [sum, silu, softmax] = [blank([rows, dim]), blank([rows, dim]), shifted(x)];
          operations.add(sum, shifted(x), shifted(d));
          operations.siluBackward(silu, shifted(d), shifted(x));
          operations.softmax(softmax, softmax, rows, dim, 1);
          const [output, rstd] = [blank([rows, dim]), bench.poisoned([rows], "float32")];
          operations.rmsnormForward(
            { output, sum: null, rstd },
            { input: shifted(x), residual: null, gain: shifted(gain), eps: 1e-5 },
          );
          const swiglu = blank([rows, dim / 2]);
          operations.swigluForward(swiglu, shifted(x));
          return { sum, silu, softmax, output, swiglu };
        };
        const expected = {
          sum: plus(x.data, d.data),
          silu: siluBackward(d, x),
          softmax: ops.softmax(x),
          output: ops.rmsnorm(gain, x, 1e-5),
          swiglu: packedSwiglu(x),
        };
        verify(subject, run, expected);
      }
    });
  });

  describe("embedding", () => {
    for (const [rows, vocabSize, dim] of [
      [1, 1, 1],
      [17, 3, 65],
      [203, 113, 17],
      [2000, 7, 33],
      [65, 4099, 3],
      [300, 7, 64],
      [40, 300, 1032],
    ]) {
      test(`${rows} rows of [${vocabSize}, ${dim}]; backward adds, repeated tokens too`, () => {
        const weights = normal([vocabSize, dim], 4);
        const [tokens, d] = [randomInts([rows], 1, vocabSize), normal([rows, dim], 2, 0.1)];
        const before = randomNormal([vocabSize, dim], 3);
        const expected = Float64Array.from(before.data);
        tokens.data.forEach((token, row) => {
          for (let i = 0; i < dim; i++) expected[token * dim + i] += d.data[row * dim + i];
        });
        const run = (bench: Workbench) => {
          const dWeight = bench.from(before, "float32");
          const bytes = bench.device.size("mantou_embedding_backward_workspace", rows, vocabSize, dim);
          operations.embeddingBackward(dWeight, bench.from(d), bench.from(tokens), bench.workspace(bytes));
          const [weight, output] = [bench.from(weights), bench.poisoned([rows, dim])];
          operations.embeddingForward(output, weight, bench.from(tokens));
          return { dWeight, output };
        };
        verify(subject, run, { dWeight: expected, output: ops.embedding(weights, tokens) });
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
      // Rows of whole vectors, as long as a GPU's warp or block keeps them in registers, and longer.
      [37, 64],
      [3, 320],
      [2, 1000],
      [2, 1032],
      [2, 8200],
    ]) {
      const [input, residual] = [normal([rows, dim], 1, 2), normal([rows, dim], 2)];
      const gain = kept(
        type,
        floats(
          [dim],
          normal([dim], 3, 0.2).data.map((value) => 1 + value),
        ),
      );

      test(`forward of [${rows}, ${dim}], with and without residual`, () => {
        const total = kept(type, floats([rows, dim], plus(input.data, residual.data)));
        const rstd = (x: FloatArray) =>
          Float64Array.from({ length: rows }, (_, row) => {
            const values = x.data.subarray(row * dim, (row + 1) * dim);
            return 1 / Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / dim + eps);
          });
        const run = (bench: Workbench) => {
          const g = bench.from(gain);
          const outputs = () => ({ output: bench.poisoned([rows, dim]), rstd: bench.poisoned([rows], "float32") });
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
        verify(subject, run, expected);
      });

      test(`backward of [${rows}, ${dim}], with and without the residual's gradient`, () => {
        const [d, dResidual, dGainBefore] = [4, 5, 6].map((seed) => normal([rows, dim], seed));
        const gainBefore = floats([dim], dGainBefore.data.subarray(0, dim));
        const { dX, dGain } = rmsnormBackward(d, gain, input, eps);
        const run = (bench: Workbench) => {
          const [x, g, rstd] = [bench.from(input), bench.from(gain), bench.poisoned([rows], "float32")];
          const forward = { output: bench.poisoned([rows, dim]), sum: null, rstd };
          operations.rmsnormForward(forward, { input: x, residual: null, gain: g, eps });
          const bytes = bench.device.size("mantou_rmsnorm_backward_workspace", rows, dim);
          const backward = (dInput: Tensor, dOutput: Tensor, residualGradient: Tensor | null) => {
            const outputs = { dInput, dGain: bench.from(gainBefore, "float32") };
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
        verify(subject, run, expected, { relative: 1e-4, absolute: 1e-5 * Math.sqrt(rows) });
      });
    }
  });

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

  describe("gradient norm", () => {
    for (const count of [1, 17, 4099, 300_007, 1_100_003]) {
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

    refuses("negative sizes", (on, t) => on.run("mantou_add", DTYPE, -1, t, t, t), /mantou_add.*-1/);
    refuses("null pointers", (on, t) => on.run("mantou_add", DTYPE, 4, t, null, t), /mantou_add.*null/);
    refuses("an unknown dtype", (on, t) => on.run("mantou_add", 7, 4, t, t, t), /mantou_add.*dtype.*7/);
    refuses(
      "row strides shorter than rows",
      (on, t) => {
        on.run("mantou_matmul", 0, 0, 2, 3, 4, DTYPE, t, 3, t, 3, DTYPE, t, 3, 0);
      },
      /mantou_matmul.*lda.*3/,
    );
    refuses(
      "a token outside the vocabulary, backward too",
      (on, t) => {
        using ids = Tensor.from(on, [3], Int32Array.of(0, 4, 1));
        using workspace = Tensor.zeros(on, [64]);
        using dOutput = Tensor.zeros(on, [64]);
        on.run("mantou_embedding_backward", DTYPE, 3, 4, 2, ids, dOutput, t, workspace);
        on.synchronize(); // a GPU says so when it has come to it
      },
      /mantou_embedding_backward.*4/,
    );
    refuses("a fill value that is no byte", (on, t) => on.run("mantou_fill", t, 256, 4), /mantou_fill.*256/);
    refuses(
      "key/value heads that do not divide the heads",
      (on, t) => {
        on.run("mantou_attention_forward", DTYPE, 1, 1, 3, 2, 2, 1, t, 6, t, t, 4, null, null, t, t);
      },
      /mantou_attention_forward.*(3.*2|2.*3)/,
    );
    refuses(
      "a cache that is full",
      (on, t) => {
        const sizes = [1, 4, 1, 1, 2, 1] as const;
        using starts = Tensor.from(on, [1], Int32Array.of(3));
        on.run("mantou_attention_cached", DTYPE, 1, 2, starts, null, ...sizes, t, 2, t, t, 2, null, t, t, t);
        on.synchronize();
      },
      /mantou_attention_cached.*4/,
    );
    refuses(
      "a slot that the cache does not have",
      (on, t) => {
        const sizes = [2, 4, 1, 1, 2, 1] as const;
        using starts = Tensor.from(on, [1], Int32Array.of(0));
        using slots = Tensor.from(on, [1], Int32Array.of(2));
        on.run("mantou_attention_cached", DTYPE, 1, 1, starts, slots, ...sizes, t, 2, t, t, 2, null, t, t, t);
        on.synchronize();
      },
      /mantou_attention_cached.*slot 2/,
    );
    refuses(
      "an update of bfloat16 weights without their float32 copy",
      (on, t) => {
        on.run("mantou_adamw", BFLOAT16, 4, t, null, t, t, t, t, null, 0.9, 0.9, 1e-8, 1, tokens([4, 0]), t);
      },
      /mantou_adamw.*master/,
    );
  });
});
