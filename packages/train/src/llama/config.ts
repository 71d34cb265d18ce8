/** A Llama model's `config.json` as Hugging Face's transformers writes and reads it, to and from our config. */
import { type ModelConfig, type ResolvedModelConfig, resolveModelConfig } from "@mantou/model";
import { z } from "zod";
import { MODEL_USES } from "../config.ts";
import { UserError } from "../errors.ts";
import type { DocumentMark } from "../prompt.ts";

/** Settings that any Llama model may have; all others must be as here. */
const FREE: readonly string[] = [
  ...MODEL_USES,
  "vocabSize",
  "dModel",
  "numLayers",
  "numHeads",
  "numKeyValueHeads",
  "dFf",
  "rmsNormEps",
  "tieEmbeddings",
];

/**
 * Refuses a model that is no Llama: another norm, position encoding or feed-forward layer.
 * @throws UserError naming the setting
 */
export function checkLlama(config: ResolvedModelConfig): void {
  const sizes = { vocabSize: 1, contextLength: 1, dModel: 2, numLayers: 1, numHeads: 1, dFf: 1, ropeTheta: 10000 };
  const llama: Record<string, unknown> = { ...resolveModelConfig(sizes) };
  for (const [key, value] of Object.entries(config)) {
    if (FREE.includes(key) || value === llama[key]) continue;
    throw new UserError(
      `a model with ${key} ${JSON.stringify(value)} is no Llama model, which has ${JSON.stringify(llama[key])}`,
      { fix: "only models of the default architecture can leave the house" },
    );
  }
}

/** The content of `config.json`. @param dtype as transformers calls it */
export function toHuggingFaceConfig(
  config: ResolvedModelConfig,
  dtype: string,
  marks?: { begin: DocumentMark; end: DocumentMark },
): Record<string, unknown> {
  checkLlama(config);
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    vocab_size: config.vocabSize,
    max_position_embeddings: config.contextLength,
    hidden_size: config.dModel,
    intermediate_size: config.dFf,
    num_hidden_layers: config.numLayers,
    num_attention_heads: config.numHeads,
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.dModel / config.numHeads,
    hidden_act: "silu",
    attention_bias: false,
    attention_dropout: 0,
    mlp_bias: false,
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    rope_scaling: ropeScalingOf(config),
    tie_word_embeddings: config.tieEmbeddings,
    bos_token_id: marks?.begin.id ?? null,
    eos_token_id: marks?.end.id ?? null,
    pad_token_id: null,
    torch_dtype: dtype,
  };
}

function ropeScalingOf(config: ResolvedModelConfig): Record<string, unknown> | null {
  const { ropeScaling, ropeFactor } = config;
  if (ropeScaling === "none") return null;
  if (ropeScaling === "linear") return { rope_type: "linear", factor: ropeFactor };
  return {
    rope_type: "llama3",
    factor: ropeFactor,
    low_freq_factor: config.ropeLowFreqFactor,
    high_freq_factor: config.ropeHighFreqFactor,
    original_max_position_embeddings: config.ropeOriginalContext,
  };
}

const FETCH = "fetch the config.json that belongs to the weights";

const size = () => z.int().min(1);

const ropeSchema = z.looseObject({
  rope_type: z.string().optional(),
  /** An older name of rope_type. */
  type: z.string().optional(),
  rope_theta: z.number().optional(),
  factor: z.number().optional(),
  low_freq_factor: z.number().optional(),
  high_freq_factor: z.number().optional(),
  original_max_position_embeddings: z.number().optional(),
});

/** What we read of a `config.json`; the rest, such as dropout and token ids, does not change what the model computes. */
const configSchema = z.looseObject({
  model_type: z.string(),
  vocab_size: size(),
  max_position_embeddings: size().default(2048),
  hidden_size: size(),
  intermediate_size: size(),
  num_hidden_layers: size(),
  num_attention_heads: size(),
  num_key_value_heads: size().nullish(),
  head_dim: size().nullish(),
  hidden_act: z.string().default("silu"),
  attention_bias: z.boolean().nullish(),
  mlp_bias: z.boolean().nullish(),
  rms_norm_eps: z.number().gt(0).default(1e-6),
  rope_theta: z.number().gt(1).nullish(),
  rope_scaling: ropeSchema.nullish(),
  /** Both of the former, in transformers 5. */
  rope_parameters: ropeSchema.nullish(),
  tie_word_embeddings: z.boolean().default(false),
});

/**
 * Our config for a Hugging Face `config.json`.
 * @param label what the file is called in errors
 * @throws UserError naming what is wrong with it or what of it we do not have
 */
export function fromHuggingFaceConfig(content: unknown, label: string): ResolvedModelConfig {
  const modelType = (content as { model_type?: unknown } | null)?.model_type;
  if (modelType !== "llama") {
    throw new UserError(`${label} describes a model of type ${JSON.stringify(modelType) ?? "unknown"}, not "llama"`, {
      fix: "give a checkpoint of the Llama architecture",
    });
  }
  const parsed = configSchema.safeParse(content);
  if (!parsed.success) throw new UserError(`${label} is not valid: ${z.prettifyError(parsed.error)}`, { fix: FETCH });
  const given = parsed.data;
  const refuse = (what: string) =>
    new UserError(`${label} has ${what}, which is not supported`, { fix: "import a Llama checkpoint without it" });
  if (given.hidden_act !== "silu") throw refuse(`hidden_act ${JSON.stringify(given.hidden_act)}`);
  if (given.attention_bias) throw refuse("attention_bias");
  if (given.mlp_bias) throw refuse("mlp_bias");
  const headDim = given.hidden_size / given.num_attention_heads;
  if (given.head_dim != null && given.head_dim !== headDim) {
    throw refuse(`head_dim ${given.head_dim} where hidden_size / num_attention_heads is ${headDim}`);
  }
  const rope = { ...given.rope_scaling, ...given.rope_parameters };
  const type = rope.rope_type ?? rope.type ?? "default";
  const scalings: Record<string, ModelConfig["ropeScaling"]> = { default: "none", linear: "linear", llama3: "llama3" };
  const ropeScaling = Object.hasOwn(scalings, type) ? scalings[type] : undefined;
  if (ropeScaling === undefined) throw refuse(`rotary scaling of type ${JSON.stringify(type)}`);
  try {
    return resolveModelConfig({
      vocabSize: given.vocab_size,
      contextLength: given.max_position_embeddings,
      dModel: given.hidden_size,
      numLayers: given.num_hidden_layers,
      numHeads: given.num_attention_heads,
      numKeyValueHeads: given.num_key_value_heads ?? given.num_attention_heads,
      dFf: given.intermediate_size,
      rmsNormEps: given.rms_norm_eps,
      ropeTheta: rope.rope_theta ?? given.rope_theta ?? 10000,
      ropeScaling,
      ropeFactor: ropeScaling === "none" ? undefined : rope.factor,
      ropeLowFreqFactor: rope.low_freq_factor,
      ropeHighFreqFactor: rope.high_freq_factor,
      ropeOriginalContext: rope.original_max_position_embeddings,
      tieEmbeddings: given.tie_word_embeddings,
    });
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new UserError(`${label} does not describe a model that we can build: ${error.message}`, { fix: FETCH });
  }
}
