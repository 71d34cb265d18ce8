/** RMSNorm with and without a residual, forward and backward. See ../workbench.ts. */
import { describe, test } from "bun:test";
import { type Tensor, operations } from "@mantou/model";
import { rmsnormBackward } from "../../reference/gradients.ts";
import * as ops from "../../reference/ops.ts";
import { type FloatArray, floats } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { kept, normalIn, plus } from "../inputs.ts";
import { type Workbench, verify } from "../workbench.ts";

onEveryType((subject) => {
  const { type } = subject;
  const normal = normalIn(type);

  describe("RMSNorm", () => {
    const eps = 1e-5;
    for (const [rows, dim] of [
      [1, 1],
      [3, 17],
      [113, 203],
      [1101, 65],
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
});
