/**
 * The position-wise feed-forward layer: SwiGLU, w2(SiLU(w1 x) ⊙ w3 x) (Shazeer 2020), with w1 and w3 as one product, or
 * w2(SiLU(w1 x)) for the ablation.
 */
import type { Activations } from "../activations.ts";
import type { ResolvedModelConfig } from "../config.ts";
import { siluBackward, siluForward, swigluBackward, swigluForward } from "../operations.ts";
import type { ParameterStore } from "../parameters.ts";
import type { Tensor } from "../tensor.ts";
import { Linear } from "./linear.ts";

export class FeedForward {
  #up: Linear;
  #down: Linear;
  #hidden: Tensor;
  #preActivation: Tensor | undefined;
  #gated: boolean;

  constructor(store: ParameterStore, prefix: string, config: ResolvedModelConfig, activations: Activations) {
    this.#gated = config.ffn === "swiglu";
    const names = this.#gated ? ["w1", "w3"] : ["w1"];
    const up = store.stacked(names.map((name) => `${prefix}.${name}.weight`));
    const down = store.get(`${prefix}.w2.weight`);
    this.#up = new Linear(up.weight, up.dWeight, activations, "dFeedForwardInput");
    this.#down = new Linear(down.weight, down.grad, activations, "dHidden");
    this.#hidden = activations.keep([activations.rows, config.dFf]);
  }

  /** x [rows, dModel] → [rows, dModel]. */
  forward(x: Tensor): Tensor {
    const hidden = this.#hidden.slice(0, x.rows);
    this.#preActivation = this.#up.forward(x);
    if (this.#gated) swigluForward(hidden, this.#preActivation);
    else siluForward(hidden, this.#preActivation);
    return this.#down.forward(hidden);
  }

  /** Adds to the gradients of the matrices; returns dx. Overwrites the pre-activations by their gradient. */
  backward(dy: Tensor): Tensor {
    const dHidden = this.#down.backward(dy);
    const dUp = this.#preActivation!;
    if (this.#gated) swigluBackward(dUp, dHidden, dUp);
    else siluBackward(dUp, dHidden, dUp);
    return this.#up.backward(dUp);
  }
}
