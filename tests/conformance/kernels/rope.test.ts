/** Rotary embedding of rows within wider rows, by place and by position, and back. See ../workbench.ts. */
import { test } from "bun:test";
import { type Tensor, ropeTable } from "@mantou/model";
import { floats, randomInts } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { normalIn } from "../inputs.ts";
import { DTYPES, type Workbench, verify } from "../workbench.ts";

onEveryType((subject) => {
  const { type } = subject;
  const DTYPE = DTYPES[type];
  const normal = normalIn(type);

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
});
