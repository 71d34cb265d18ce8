/** Token embedding: row `token` of W [vocabSize, dModel]. */
import type { Activations } from "../activations.ts";
import { embeddingBackward, embeddingForward } from "../operations.ts";
import type { Parameter } from "../parameters.ts";
import type { Tensor } from "../tensor.ts";

export class Embedding {
  #output: Tensor;

  constructor(
    readonly weight: Parameter,
    readonly activations: Activations,
  ) {
    const [vocab, dModel] = [weight.value.rows, weight.value.columns];
    this.#output = activations.keep([activations.rows, dModel]);
    const sizes = [activations.rows, vocab, dModel] as const;
    activations.reserve(weight.value.device.size("mantou_embedding_backward_workspace", ...sizes));
  }

  /** tokens int32 [rows] → [rows, dModel]. */
  forward(tokens: Tensor): Tensor {
    const output = this.#output.slice(0, tokens.count);
    embeddingForward(output, this.weight.weight, tokens);
    return output;
  }

  /** dW[tokens] += d. */
  backward(d: Tensor, tokens: Tensor): void {
    embeddingBackward(this.weight.grad, d, tokens, this.activations.workspace);
  }
}
