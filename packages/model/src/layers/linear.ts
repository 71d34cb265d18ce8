/** y = x Wᵀ, without a bias: W [dOut, dIn]. */
import type { Activations } from "../activations.ts";
import { matmul } from "../operations.ts";
import type { Tensor } from "../tensor.ts";

export class Linear {
  #input: Tensor | undefined;
  #output: Tensor;
  #dInput: Tensor;

  /**
   * @param scratchName the buffer in which `backward` leaves its result, overwritten by layers that name the same
   */
  constructor(
    readonly weight: Tensor,
    readonly dWeight: Tensor,
    activations: Activations,
    scratchName: string,
  ) {
    const [dOut, dIn] = [weight.rows, weight.columns];
    this.#output = activations.keep([activations.rows, dOut]);
    this.#dInput = activations.scratch(scratchName, [activations.rows, dIn]);
  }

  /** x [rows, dIn] → [rows, dOut]. x must stay as it is until `backward`. */
  forward(x: Tensor): Tensor {
    this.#input = x;
    const y = this.#output.slice(0, x.rows);
    matmul(y, x, this.weight, { transposeB: true });
    return y;
  }

  /** dW += dyᵀ x; returns dx = dy W. */
  backward(dy: Tensor): Tensor {
    const dx = this.#dInput.slice(0, dy.rows);
    matmul(this.dWeight, dy, this.#input!, { transposeA: true, accumulate: true });
    matmul(dx, dy, this.weight);
    return dx;
  }
}
