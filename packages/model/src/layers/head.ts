/**
 * The output projection with the loss: mean cross-entropy of x Wᵀ, and its gradient. Rows go through in chunks, so that
 * the logits of a whole batch never exist; a chunk's gradient is written over its logits.
 */
import type { Activations } from "../activations.ts";
import { type CrossEntropyOptions, crossEntropy, matmul, sum } from "../operations.ts";
import { ELEMENT_BYTES, Tensor } from "../tensor.ts";

/** About this many bytes of logits are alive at once, as caches hold. */
const CPU_BYTES = 16 << 20;

/**
 * A GPU wants large products; and every chunk reads and writes the gradient of W, which for 50,304 x 768 is 309 MB, as much
 * as 3,000 rows of bfloat16 logits.
 */
const GPU_LOGITS = 256 << 20;

/** Rows of a chunk on a GPU are a multiple of this: whole tiles of its products. */
const GPU_ROWS = 128;

/** Rows that go through together, of at most `rows`: chunks are about equal. */
function rowsOfChunk({ rows, device, type }: Activations, vocabulary: number): number {
  const isCpu = device.name === "cpu";
  const logits = isCpu ? CPU_BYTES / ELEMENT_BYTES[type] : GPU_LOGITS;
  const most = Math.max(64, Math.floor(logits / vocabulary));
  const even = rows / Math.ceil(rows / most);
  const multiple = isCpu ? 1 : GPU_ROWS;
  return Math.min(rows, Math.ceil(even / multiple) * multiple);
}

export class Head {
  #logits: Tensor;
  #losses: Tensor;
  #dInput: Tensor;
  #loss: Tensor;

  /**
   * @param weight [at least vocabSize, dModel]; rows past the vocabulary are zeros and get no gradient
   * @param loss vocabSize, soft cap and z-loss
   */
  constructor(
    readonly weight: Tensor,
    readonly dWeight: Tensor,
    readonly loss: CrossEntropyOptions,
    activations: Activations,
  ) {
    const rows = rowsOfChunk(activations, weight.rows);
    this.#logits = activations.keep([rows, weight.rows]);
    this.#losses = activations.keep([activations.rows], "float32");
    this.#dInput = activations.scratch("dHeadInput", [activations.rows, weight.columns]);
    this.#loss = activations.keep([1], "float32");
  }

  /**
   * x [rows, dModel], targets int32 [rows] → the mean loss, left in a tensor of one element.
   * @param gradientScale 0 for the loss alone; else dW += gradientScale · ∂loss/∂W, and `dx` is gradientScale · ∂loss/∂x
   */
  forward(x: Tensor, targets: Tensor, gradientScale: number): { loss: Tensor; dx: Tensor } {
    const rows = x.rows;
    const dx = this.#dInput.slice(0, rows);
    for (let first = 0; first < rows; first += this.#logits.rows) {
      const count = Math.min(this.#logits.rows, rows - first);
      const [chunk, logits] = [x.slice(first, count), this.#logits.slice(0, count)];
      matmul(logits, chunk, this.weight, { transposeB: true });
      const losses = this.#losses.view([count], first);
      crossEntropy(losses, logits, targets.view([count], first), gradientScale / rows, this.loss);
      if (gradientScale === 0) continue;
      matmul(dx.slice(first, count), logits, this.weight);
      matmul(this.dWeight, logits, chunk, { transposeA: true, accumulate: true });
    }
    sum(this.#loss, this.#losses.view([rows]), 1 / rows);
    return { loss: this.#loss, dx };
  }
}
