/**
 * Blocks that keep only their input and compute their interior again in the backward pass (Chen et al. 2016, "Training
 * deep nets with sublinear memory cost", §4): all of them share the interior's buffers. The gradients have the same
 * bits, for a third more arithmetic.
 */
import { type Activations, SharedActivations } from "../activations.ts";
import { add } from "../operations.ts";
import type { Tensor } from "../tensor.ts";
import type { Block, Residual } from "./block.ts";

class RecomputedBlock implements Block {
  #input: Tensor;

  constructor(
    readonly block: Block,
    activations: Activations,
    dModel: number,
    /** Whose interior lies in the shared buffers, whole. */
    readonly interior: { owner: Block | undefined },
  ) {
    this.#input = activations.keep([activations.rows, dModel]);
  }

  forward({ stream, update }: Residual, length: number): Residual {
    const input = this.#input.slice(0, stream.rows);
    // The sum is rounded as the norm that would have taken it rounds it.
    if (update) add(input, stream, update);
    else input.copyFrom(stream);
    return this.#compute(stream.rows, length);
  }

  backward(d: Tensor, length: number): Tensor {
    if (this.interior.owner !== this) this.#compute(d.rows, length);
    // The backward pass writes over some of it.
    this.interior.owner = undefined;
    return this.block.backward(d, length);
  }

  #compute(rows: number, length: number): Residual {
    this.interior.owner = this;
    return this.block.forward({ stream: this.#input.slice(0, rows), update: null }, length);
  }
}

/** @param create builds block `index` with the activations it is to use */
export function recomputedBlocks(
  count: number,
  activations: Activations,
  dModel: number,
  create: (index: number, activations: Activations) => Block,
): Block[] {
  const pool: Tensor[] = [];
  const interior = { owner: undefined };
  return Array.from({ length: count }, (_, index) => {
    const block = create(index, new SharedActivations(activations, pool));
    return new RecomputedBlock(block, activations, dModel, interior);
  });
}
