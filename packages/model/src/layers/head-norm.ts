/**
 * RMSNorm of every head of packed rows q | k | v, without a gain. All heads go through it, as they lie one after the other;
 * whoever uses it takes v from the rows as they were, and gives a gradient of 0 for the normalised v.
 */
import type { Activations } from "../activations.ts";
import { rmsnormBackward, rmsnormForward } from "../operations.ts";
import type { Tensor } from "../tensor.ts";

export class HeadNorm {
  #output: Tensor;
  #rstd: Tensor;
  #gradient: Tensor;
  #ones: Tensor;
  /** Where the gradient of the gain that there is not goes. */
  #unused: Tensor;

  constructor(
    readonly width: number,
    readonly headDim: number,
    readonly activations: Activations,
  ) {
    const { rows, device } = activations;
    const heads = (rows * width) / headDim;
    this.#output = activations.keep([rows, width]);
    this.#rstd = activations.keep([heads], "float32");
    this.#gradient = activations.scratch("dNormedHeads", [rows, width]);
    this.#ones = activations.keep([headDim]);
    this.#ones.upload(new Float32Array(headDim).fill(1));
    this.#unused = activations.keep([headDim], "float32");
    activations.reserve(device.size("mantou_rmsnorm_backward_workspace", heads, headDim));
  }

  /** packed [rows, width] → the same, every head with a root mean square of 1. */
  forward(packed: Tensor): Tensor {
    const output = this.#output.slice(0, packed.rows);
    const given = { input: this.#heads(packed), residual: null, gain: this.#ones, eps: HEAD_NORM_EPS };
    rmsnormForward({ output: this.#heads(output), sum: null, rstd: this.#rstdOf(packed) }, given);
    return output;
  }

  /** Room for the gradient of `rows` normalised rows. */
  gradient(rows: number): Tensor {
    return this.#gradient.slice(0, rows);
  }

  /** dPacked += the gradient through the norm. */
  backward(dPacked: Tensor, dNormed: Tensor, packed: Tensor): void {
    const dInput = this.#heads(dPacked);
    const [dOutput, x] = [this.#heads(dNormed), this.#heads(packed)];
    const { workspace } = this.activations;
    const given = { dOutput, x, gain: this.#ones, rstd: this.#rstdOf(packed), dResidual: dInput, workspace };
    rmsnormBackward({ dInput, dGain: this.#unused }, given);
  }

  #heads(rows: Tensor): Tensor {
    return rows.view([rows.count / this.headDim, this.headDim]);
  }

  #rstdOf(packed: Tensor): Tensor {
    return this.#rstd.view([packed.count / this.headDim]);
  }
}

/** ε of the norm of heads. */
export const HEAD_NORM_EPS = 1e-6;
