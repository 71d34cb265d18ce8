/**
 * Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"): the momentum of a matrix is
 * brought near to the orthogonal matrix closest to it, by five steps of a Newton–Schulz iteration, and taken as the
 * update. Embeddings, the output projection and gains go on with AdamW. Updates are scaled to the size of AdamW's (Liu et
 * al. 2025, "Muon is scalable for LLM training", §2.2), so one learning rate serves both.
 *
 * It is made of the ABI's products and elementwise operations, in float32, and runs wherever they do.
 */
import { AdamW, type AdamWOptions } from "./adamw.ts";
import { add, gradientNorm, matmul, scale } from "./operations.ts";
import type { Parameter } from "./parameters.ts";
import { MANTOU_DTYPES, Tensor } from "./tensor.ts";

export interface MuonOptions extends Omit<AdamWOptions, "leaves"> {
  /** Decay rate of the momentum of matrices; Nesterov's form. Default 0.95. */
  momentum?: number;
}

/** Coefficients of x ← a x + b x³ + c x⁵ on the singular values: steep at 0, and near 1 in the end. */
const [A, B, C] = [3.4445, -4.775, 2.0315];
const ITERATIONS = 5;

/** Root mean square of an update of AdamW, roughly. */
const UPDATE_RMS = 0.2;

/** A norm is divided out by way of a limit that every norm exceeds: `gradientNorm` only ever shrinks. */
const TINY = 1e-20;

/** Hidden matrices: all but the embedding and the output projection, whose rows belong to single tokens. */
function isHiddenMatrix({ name, shape }: { name: string; shape: readonly number[] }): boolean {
  return shape.length === 2 && name !== "token_embeddings.weight" && name !== "lm_head.weight";
}

export class Muon extends AdamW {
  #matrices: Parameter[];
  /** momentum, A, B, C, 1 / TINY, −weightDecay, and for each matrix the size of its update at learning rate 1. */
  #constants: Tensor;
  #norm: Tensor;
  #workspace: Tensor;
  /** The matrix at work and a product, as large as the largest one; two squares of its shorter side. */
  #buffers: [Tensor, Tensor, Tensor, Tensor];

  /** @throws RangeError as AdamW, and for a momentum outside [0, 1) */
  constructor(parameters: Map<string, Parameter>, options: MuonOptions = {}) {
    const { momentum = 0.95, ...others } = options;
    if (!(momentum >= 0 && momentum < 1)) throw new RangeError(`momentum must lie in [0, 1), not ${momentum}`);
    super(parameters, { ...others, leaves: isHiddenMatrix });
    const { device } = this.store;
    this.#matrices = [...parameters.values()].filter(isHiddenMatrix);
    const largest = Math.max(1, ...this.#matrices.map(({ value }) => value.count));
    const square = Math.max(1, ...this.#matrices.map(({ value }) => Math.min(value.rows, value.columns) ** 2));
    const sizes = this.#matrices.map(({ value }) => -UPDATE_RMS * Math.sqrt(Math.max(value.rows, value.columns)));
    const constants = Float32Array.of(momentum, A, B, C, 1 / TINY, -this.weightDecay, ...sizes);
    this.#constants = Tensor.from(device, [constants.length], constants);
    this.#norm = Tensor.zeros(device, [2]);
    const bytes = device.size("mantou_gradient_norm_workspace", largest);
    this.#workspace = Tensor.zeros(device, [Math.ceil(bytes / 4)], "float32", "workspace");
    const flat = (count: number) => Tensor.zeros(device, [count], "float32", "workspace");
    this.#buffers = [flat(largest), flat(largest), flat(square), flat(square)];
  }

  protected override updateOthers(factor: Tensor | null): void {
    const lr = this.scalars.view([1]);
    this.#matrices.forEach((parameter, i) => {
      const { value, weight } = parameter;
      const update = this.#direction(parameter, factor);
      scale(update, this.#constant(6 + i));
      scale(update, lr);
      const decay = this.#buffers[1].view(value.shape);
      decay.copyFrom(value);
      scale(decay, this.#constant(5));
      scale(decay, lr);
      add(value, value, decay);
      add(value, value, update);
      if (weight === value) return;
      const { device, dtype } = this.store;
      device.run("mantou_cast", value.count, MANTOU_DTYPES.float32, value, dtype, weight);
    });
  }

  override [Symbol.dispose](): void {
    super[Symbol.dispose]();
    for (const tensor of [this.#constants, this.#norm, this.#workspace, ...this.#buffers]) {
      tensor[Symbol.dispose]();
    }
  }

  /** Takes the gradient into the momentum, which lies where AdamW has its first moment, and orthogonalises the result. */
  #direction({ value, grad, offset }: Parameter, factor: Tensor | null): Tensor {
    const { shape, rows, columns } = value;
    const [x, product] = [this.#buffers[0].view(shape), this.#buffers[1].view(shape)];
    const moment = this.firstMoments.view(shape, offset);
    const constant = (index: number) => this.#constant(index);
    x.copyFrom(grad);
    if (factor !== null) scale(x, factor);
    scale(moment, constant(0));
    add(moment, moment, x);
    product.copyFrom(moment);
    scale(product, constant(0));
    add(x, x, product);

    gradientNorm(this.#norm, x, TINY, this.#workspace);
    scale(x, this.#norm.view([1], 1));
    scale(x, constant(4));
    const isWide = rows <= columns;
    const side = Math.min(rows, columns);
    const [gram, square] = [this.#buffers[2].view([side, side]), this.#buffers[3].view([side, side])];
    for (let i = 0; i < ITERATIONS; i++) {
      matmul(gram, x, x, isWide ? { transposeB: true } : { transposeA: true });
      matmul(square, gram, gram);
      scale(gram, constant(2));
      scale(square, constant(3));
      add(gram, gram, square);
      if (isWide) matmul(product, gram, x);
      else matmul(product, x, gram);
      scale(x, constant(1));
      add(x, x, product);
    }
    return x;
  }

  #constant(index: number): Tensor {
    return this.#constants.view([1], index);
  }
}
