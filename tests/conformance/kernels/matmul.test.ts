/** Matrix products in every orientation and of parts of larger matrices, on sizes that fit no tile. See ../workbench.ts. */
import { describe, expect, test } from "bun:test";
import { type FloatType, operations } from "@mantou/model";
import { onEveryType } from "../backends.ts";
import { normalIn, plus } from "../inputs.ts";
import { DTYPES, Workbench, verify } from "../workbench.ts";

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
  const DTYPE = DTYPES[type];
  const normal = normalIn(type);

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
      [40, 66, 2100],
      [45, 65, 128],
      [20, 33, 1024],
    ];
    // More rows than a thread keeps sums for.
    if (subject.backend === "cpu" && type === "bfloat16") sizes.push([1640, 3, 801]);
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
      const [m, n, k] = [19, 35, 22];
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
});
