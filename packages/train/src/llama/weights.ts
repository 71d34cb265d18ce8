/**
 * The parameters of a Llama model under the three names that they have: ours, Hugging Face's and llama.cpp's; and the two
 * orders of the rows of its query and key projections.
 *
 * A rotary embedding turns pairs of a head's values. We, as Llama's first release and llama.cpp, pair neighbours (2i,
 * 2i + 1); Hugging Face pairs i with i + headDim / 2. The same model has the rows of every head of q and k in another
 * order there.
 */
import { type ResolvedModelConfig, parameterGroups } from "@mantou/model";

export interface LlamaTensor {
  /** Our name. */
  name: string;
  huggingFace: string;
  gguf: string;
  shape: number[];
  /** Heads whose rows are in pairs to be turned: of q and k alone. */
  rotaryHeads?: number;
}

const INSIDE: Record<string, { huggingFace: string; gguf: string }> = {
  ln1: { huggingFace: "input_layernorm", gguf: "attn_norm" },
  "attn.q_proj": { huggingFace: "self_attn.q_proj", gguf: "attn_q" },
  "attn.k_proj": { huggingFace: "self_attn.k_proj", gguf: "attn_k" },
  "attn.v_proj": { huggingFace: "self_attn.v_proj", gguf: "attn_v" },
  "attn.output_proj": { huggingFace: "self_attn.o_proj", gguf: "attn_output" },
  ln2: { huggingFace: "post_attention_layernorm", gguf: "ffn_norm" },
  "ffn.w1": { huggingFace: "mlp.gate_proj", gguf: "ffn_gate" },
  "ffn.w3": { huggingFace: "mlp.up_proj", gguf: "ffn_up" },
  "ffn.w2": { huggingFace: "mlp.down_proj", gguf: "ffn_down" },
};

const OUTSIDE: Record<string, { huggingFace: string; gguf: string }> = {
  token_embeddings: { huggingFace: "model.embed_tokens", gguf: "token_embd" },
  ln_final: { huggingFace: "model.norm", gguf: "output_norm" },
  lm_head: { huggingFace: "lm_head", gguf: "output" },
};

/** All the parameters of a model, in the order of the forward pass. The model must be a Llama: see `checkLlama`. */
export function llamaTensors(config: ResolvedModelConfig): LlamaTensor[] {
  return parameterGroups(config)
    .flat()
    .map(({ name, shape }) => {
      const [, layer, part] = /^(?:layers\.(\d+)\.)?(.+)\.weight$/.exec(name) ?? [];
      const names = layer === undefined ? OUTSIDE[part ?? ""] : INSIDE[part ?? ""];
      if (names === undefined) throw new Error(`a Llama model has no parameter ${name}`);
      const [before, block] = layer === undefined ? ["", ""] : [`model.layers.${layer}.`, `blk.${layer}.`];
      const tensor = {
        name,
        huggingFace: `${before}${names.huggingFace}.weight`,
        gguf: `${block}${names.gguf}.weight`,
        shape,
      };
      if (part === "attn.q_proj") return { ...tensor, rotaryHeads: config.numHeads };
      if (part === "attn.k_proj") return { ...tensor, rotaryHeads: config.numKeyValueHeads };
      return tensor;
    });
}

/** Rows [heads · headDim, columns] of neighbouring pairs, put as Hugging Face pairs them. */
export function toHalfSplit(rows: Float32Array, heads: number, columns: number): Float32Array {
  return reorder(rows, heads, columns, (row, half) => (row < half ? 2 * row : 2 * (row - half) + 1));
}

/** The inverse of `toHalfSplit`. */
export function toNeighbours(rows: Float32Array, heads: number, columns: number): Float32Array {
  return reorder(rows, heads, columns, (row, half) => (row % 2 === 0 ? row / 2 : half + (row - 1) / 2));
}

/** Row `row` of each head comes from row `from(row, headDim / 2)` of it. */
function reorder(
  rows: Float32Array,
  heads: number,
  columns: number,
  from: (row: number, half: number) => number,
): Float32Array {
  const headDim = rows.length / columns / heads;
  const result = new Float32Array(rows.length);
  for (let head = 0; head < heads; head++) {
    for (let row = 0; row < headDim; row++) {
      const source = (head * headDim + from(row, headDim / 2)) * columns;
      result.set(rows.subarray(source, source + columns), (head * headDim + row) * columns);
    }
  }
  return result;
}
