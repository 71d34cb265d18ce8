/**
 * One transformer block, in the three forms that CS336 compares:
 *
 *   pre   a = x + Attention(RMSNorm(x))      y = a + FeedForward(RMSNorm(a))
 *   post  a = RMSNorm(x + Attention(x))      y = RMSNorm(a + FeedForward(a))
 *   none  a = x + Attention(x)               y = a + FeedForward(a)
 *
 * A norm does the residual addition in front of it in the same pass. So a pre-norm block leaves its last addition to
 * the next norm and hands on both terms: its value is `stream + update`.
 */
import type { Activations } from "../activations.ts";
import type { ResolvedModelConfig } from "../config.ts";
import { add } from "../operations.ts";
import type { ParameterStore } from "../parameters.ts";
import type { Tensor } from "../tensor.ts";
import { Attention } from "./attention.ts";
import { FeedForward } from "./feedforward.ts";
import { RMSNorm } from "./rmsnorm.ts";

/** The value stream + update; update null stands for zero. */
export interface Residual {
  stream: Tensor;
  update: Tensor | null;
}

export interface Block {
  forward(x: Residual, length: number): Residual;
  /** d: gradient of the block's value (overwritten); returns the gradient of its input's value. */
  backward(d: Tensor, length: number): Tensor;
}

export function createBlock(
  store: ParameterStore,
  index: number,
  config: ResolvedModelConfig,
  rope: Tensor | null,
  activations: Activations,
): Block {
  const prefix = `layers.${index}`;
  const attention = new Attention(store, `${prefix}.attn`, config, rope, activations);
  const feedForward = new FeedForward(store, `${prefix}.ffn`, config, activations);
  if (config.norm === "none") return new BareBlock(attention, feedForward, activations, config.dModel);
  const norm = (name: string) => new RMSNorm(store.get(`${prefix}.${name}.weight`), activations, config.rmsNormEps);
  const [ln1, ln2] = [norm("ln1"), norm("ln2")];
  return config.norm === "pre"
    ? new PreNormBlock(attention, feedForward, ln1, ln2)
    : new PostNormBlock(attention, feedForward, ln1, ln2);
}

class PreNormBlock implements Block {
  constructor(
    readonly attention: Attention,
    readonly feedForward: FeedForward,
    readonly ln1: RMSNorm,
    readonly ln2: RMSNorm,
  ) {}

  forward({ stream, update }: Residual, length: number): Residual {
    const first = this.ln1.forward(stream, update);
    const second = this.ln2.forward(first.x, this.attention.forward(first.output, length));
    return { stream: second.x, update: this.feedForward.forward(second.output) };
  }

  backward(d: Tensor, length: number): Tensor {
    const dMiddle = this.ln2.backward(this.feedForward.backward(d), d);
    return this.ln1.backward(this.attention.backward(dMiddle, length), dMiddle);
  }
}

class PostNormBlock implements Block {
  constructor(
    readonly attention: Attention,
    readonly feedForward: FeedForward,
    readonly ln1: RMSNorm,
    readonly ln2: RMSNorm,
  ) {}

  forward({ stream: x }: Residual, length: number): Residual {
    const a = this.ln1.forward(x, this.attention.forward(x, length)).output;
    return { stream: this.ln2.forward(a, this.feedForward.forward(a)).output, update: null };
  }

  backward(d: Tensor, length: number): Tensor {
    const dSecond = this.ln2.backward(d, null);
    const dA = this.feedForward.backward(dSecond);
    add(dA, dA, dSecond);
    const dFirst = this.ln1.backward(dA, null);
    const dX = this.attention.backward(dFirst, length);
    add(dX, dX, dFirst);
    return dX;
  }
}

class BareBlock implements Block {
  #a: Tensor;
  #y: Tensor;

  constructor(
    readonly attention: Attention,
    readonly feedForward: FeedForward,
    activations: Activations,
    dModel: number,
  ) {
    this.#a = activations.keep([activations.rows, dModel]);
    this.#y = activations.keep([activations.rows, dModel]);
  }

  forward({ stream: x }: Residual, length: number): Residual {
    const [a, y] = [this.#a.slice(0, x.rows), this.#y.slice(0, x.rows)];
    add(a, x, this.attention.forward(x, length));
    add(y, a, this.feedForward.forward(a));
    return { stream: y, update: null };
  }

  backward(d: Tensor, length: number): Tensor {
    const dA = this.feedForward.backward(d);
    add(dA, dA, d);
    const dX = this.attention.backward(dA, length);
    add(dX, dX, dA);
    return dX;
  }
}
