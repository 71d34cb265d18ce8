/** Addition, casts, sums, SiLU and SwiGLU, forward and backward, of any size and anywhere. See ../workbench.ts. */
import { describe, expect, test } from "bun:test";
import { type FloatType, operations, toBfloat16 } from "@mantou/model";
import { packedSwiglu, packedSwigluBackward, siluBackward } from "../../reference/gradients.ts";
import * as ops from "../../reference/ops.ts";
import { type FloatArray, floats, zeros } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { normalIn, plus, roundToBfloat16 } from "../inputs.ts";
import { DTYPES, Workbench, sameBits, verify } from "../workbench.ts";

onEveryType((subject) => {
  const { device, type } = subject;
  const normal = normalIn(type);

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
            const [from, into] = [type, out].map((each) => (each === "float32" ? DTYPES.float32 : DTYPES.bfloat16));
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
        device.run("mantou_cast", bits.length, DTYPES.float32, from, DTYPES.bfloat16, to);
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
});
