/** RMSNorm (Zhang & Sennrich 2019): x / √(mean x² + ε) ⊙ gain, fused with the residual addition in front of it. */
import type { Activations } from "../activations.ts";
import { rmsnormBackward, rmsnormForward } from "../operations.ts";
import type { Parameter } from "../parameters.ts";
import type { Tensor } from "../tensor.ts";

export class RMSNorm {
  #sum: Tensor;
  #output: Tensor;
  #rstd: Tensor;
  #x: Tensor | undefined;

  constructor(
    readonly gain: Parameter,
    readonly activations: Activations,
    readonly eps: number,
  ) {
    const [rows, dModel] = [activations.rows, gain.value.count];
    this.#sum = activations.keep([rows, dModel]);
    this.#output = activations.keep([rows, dModel]);
    this.#rstd = activations.keep([rows], "float32");
    activations.reserve(gain.value.device.size("mantou_rmsnorm_backward_workspace", rows, dModel));
  }

  /** Returns x = input + residual (input itself without a residual) and its norm, both [rows, dModel]. */
  forward(input: Tensor, residual: Tensor | null): { x: Tensor; output: Tensor } {
    const rows = input.rows;
    const sum = residual ? this.#sum.slice(0, rows) : null;
    const output = this.#output.slice(0, rows);
    const rstd = this.#rstd.view([rows]);
    rmsnormForward({ output, sum, rstd }, { input, residual, gain: this.gain.weight, eps: this.eps });
    this.#x = sum ?? input;
    return { x: this.#x, output };
  }

  /** dGain += …; returns, in place of dOutput, the gradient of x: through the norm, plus dResidual. */
  backward(dOutput: Tensor, dResidual: Tensor | null): Tensor {
    const given = { x: this.#x!, gain: this.gain.weight, rstd: this.#rstd.view([dOutput.rows]) };
    const outputs = { dInput: dOutput, dGain: this.gain.grad };
    rmsnormBackward(outputs, { dOutput, ...given, dResidual, workspace: this.activations.workspace });
    return dOutput;
  }
}
