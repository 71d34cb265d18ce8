/**
 * Causal multi-head self-attention with rotary position embedding (Vaswani et al. 2017, Su et al. 2021), grouped-query:
 * q | k | v = x [Wq; Wk; Wv]ᵀ in one product, output = softmax(q kᵀ / √headDim) v Woᵀ. With `qkNorm`, every head of q and
 * k is brought to a root mean square of 1 first, which bounds the scores (Henry et al. 2020, "Query-key normalization";
 * here without gains).
 */
import type { Activations } from "../activations.ts";
import type { ResolvedModelConfig } from "../config.ts";
import { type AttentionShape, attentionBackward, attentionForward, rotatePacked, rotatesFirst } from "../operations.ts";
import type { ParameterStore } from "../parameters.ts";
import type { Tensor } from "../tensor.ts";
import { HeadNorm } from "./head-norm.ts";
import { Linear } from "./linear.ts";

/** The sizes of a model's attention, without batch and length. */
export function headShape(config: ResolvedModelConfig): Pick<AttentionShape, "heads" | "kvHeads" | "headDim"> {
  const { dModel, numHeads, numKeyValueHeads } = config;
  return { heads: numHeads, kvHeads: numKeyValueHeads, headDim: dModel / numHeads };
}

export class Attention {
  #qkv: Linear;
  #out: Linear;
  #attended: Tensor;
  #lse: Tensor;
  #dQkv: Tensor;
  #packed: Tensor | undefined;
  #headNorm: HeadNorm | null;
  /** The packed rows with q and k normalised. */
  #normed: Tensor | undefined;
  /** Whether its q and k have been rotated. */
  #rotated = false;

  constructor(
    store: ParameterStore,
    prefix: string,
    readonly config: ResolvedModelConfig,
    readonly rope: Tensor | null,
    readonly activations: Activations,
  ) {
    const qkv = store.stacked(["q", "k", "v"].map((part) => `${prefix}.${part}_proj.weight`));
    const out = store.get(`${prefix}.output_proj.weight`);
    this.#qkv = new Linear(qkv.weight, qkv.dWeight, activations, "dAttentionInput");
    this.#out = new Linear(out.weight, out.grad, activations, "dAttended");
    const { rows, batchSize, contextLength } = activations;
    this.#attended = activations.keep([rows, config.dModel]);
    this.#lse = activations.keep([config.numHeads, rows], "float32");
    this.#dQkv = activations.scratch("dQkv", [rows, qkv.weight.rows]);
    const { heads, kvHeads, headDim } = headShape(config);
    const sizes = [batchSize, contextLength, heads, kvHeads, headDim] as const;
    activations.reserve(store.device.size("mantou_attention_backward_workspace", ...sizes));
    this.#headNorm = config.qkNorm ? new HeadNorm(qkv.weight.rows, headDim, activations) : null;
  }

  /** x [batch·length, dModel] → the same shape. */
  forward(x: Tensor, length: number): Tensor {
    this.#packed = this.#qkv.forward(x);
    const attended = this.#attended.slice(0, x.rows);
    this.#normed = this.#headNorm?.forward(this.#packed) ?? this.#packed;
    const shape = this.#shape(x.rows, length);
    this.#rotated = rotatesFirst(x.device, shape);
    if (this.#rotated) rotatePacked(this.#normed, shape);
    const left = this.#rotated ? { ...shape, rope: null } : shape;
    attentionForward(attended, this.#lseOf(x.rows), this.#normed, left, this.#packed);
    return this.#out.forward(attended);
  }

  /** Adds to the gradients of the four projections; returns dx. */
  backward(dy: Tensor, length: number): Tensor {
    const rows = dy.rows;
    const dOutput = this.#out.backward(dy);
    const [dQkv, output] = [this.#dQkv.slice(0, rows), this.#attended.slice(0, rows)];
    const { workspace } = this.activations;
    const inputs = { qkv: this.#normed!, values: this.#packed!, rotated: this.#rotated };
    const given = { ...inputs, dOutput, output, lse: this.#lseOf(rows), workspace };
    if (this.#headNorm === null) {
      attentionBackward(dQkv, given, this.#shape(rows, length));
    } else {
      // v does not pass through the norm: its gradient goes around it.
      const dNormed = this.#headNorm.gradient(rows);
      dQkv.zero();
      dNormed.zero();
      attentionBackward(dNormed, { ...given, dValues: dQkv }, this.#shape(rows, length));
      this.#headNorm.backward(dQkv, dNormed, this.#packed!);
    }
    return this.#qkv.backward(dQkv);
  }

  #lseOf(rows: number): Tensor {
    return this.#lse.view([this.config.numHeads, rows]);
  }

  #shape(rows: number, length: number): AttentionShape {
    return { batch: rows / length, length, ...headShape(this.config), rope: this.rope };
  }
}
