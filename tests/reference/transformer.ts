/**
 * The language model and its loss in float64, with every ablation of the configuration: a pure function of the
 * configuration, the named weights and the tokens, made of the operations in `ops.ts`.
 *
 * norm "pre":  h = x + attn(ln1 x);   y = h + ffn(ln2 h)     (then ln_final before the head)
 * norm "post": h = ln1(x + attn x);   y = ln2(h + ffn h)     (ln_final is kept)
 * norm "none": h = x + attn x;        y = h + ffn h          (no ln1, ln2, ln_final at all)
 */
import {
  add,
  type Array64,
  crossEntropy,
  embedding,
  linear,
  multiHeadSelfAttention,
  type Numeric,
  rmsnorm,
  siluFeedForward,
  softCap,
  swiglu,
  toFloat64,
} from "./ops.ts";

/** The model's configuration; the optional fields default as in {@link withDefaults}. */
export interface ModelConfig {
  vocabSize: number;
  contextLength: number;
  dModel: number;
  numLayers: number;
  numHeads: number;
  /** Divides numHeads. */
  numKeyValueHeads?: number;
  dFf: number;
  rmsNormEps?: number;
  ropeTheta: number;
  ropeScaling?: "none" | "linear" | "llama3";
  ropeFactor?: number;
  ropeLowFreqFactor?: number;
  ropeHighFreqFactor?: number;
  ropeOriginalContext?: number;
  norm?: "pre" | "post" | "none";
  position?: "rope" | "none";
  ffn?: "swiglu" | "silu";
  qkNorm?: boolean;
  /** 0: none. */
  logitSoftCap?: number;
  /** The head is the embedding table; there is no `lm_head.weight`. */
  tieEmbeddings?: boolean;
}

/** Named weights, as the assignment names them. */
export type Weights = Record<string, Numeric>;

/** The configuration with nothing left out. */
function withDefaults(config: ModelConfig): Required<ModelConfig> {
  return {
    ...config,
    numKeyValueHeads: config.numKeyValueHeads ?? config.numHeads,
    rmsNormEps: config.rmsNormEps ?? 1e-5,
    ropeScaling: config.ropeScaling ?? "none",
    ropeFactor: config.ropeFactor ?? 1,
    ropeLowFreqFactor: config.ropeLowFreqFactor ?? 1,
    ropeHighFreqFactor: config.ropeHighFreqFactor ?? 4,
    ropeOriginalContext: config.ropeOriginalContext ?? 8192,
    norm: config.norm ?? "pre",
    position: config.position ?? "rope",
    ffn: config.ffn ?? "swiglu",
    qkNorm: config.qkNorm ?? false,
    logitSoftCap: config.logitSoftCap ?? 0,
    tieEmbeddings: config.tieEmbeddings ?? false,
  };
}

/** Name and shape of every parameter the configuration has. */
export function weightShapes(config: ModelConfig): Record<string, number[]> {
  const { vocabSize, dModel, numLayers, numHeads, numKeyValueHeads, dFf, norm, ffn, tieEmbeddings } =
    withDefaults(config);
  const dKeyValue = (dModel / numHeads) * numKeyValueHeads;
  const shapes: Record<string, number[]> = { "token_embeddings.weight": [vocabSize, dModel] };
  for (let i = 0; i < numLayers; i++) {
    const layer = `layers.${i}`;
    if (norm !== "none") shapes[`${layer}.ln1.weight`] = [dModel];
    shapes[`${layer}.attn.q_proj.weight`] = [dModel, dModel];
    shapes[`${layer}.attn.k_proj.weight`] = [dKeyValue, dModel];
    shapes[`${layer}.attn.v_proj.weight`] = [dKeyValue, dModel];
    shapes[`${layer}.attn.output_proj.weight`] = [dModel, dModel];
    if (norm !== "none") shapes[`${layer}.ln2.weight`] = [dModel];
    shapes[`${layer}.ffn.w1.weight`] = [dFf, dModel];
    shapes[`${layer}.ffn.w2.weight`] = [dModel, dFf];
    if (ffn === "swiglu") shapes[`${layer}.ffn.w3.weight`] = [dFf, dModel];
  }
  if (norm !== "none") shapes["ln_final.weight"] = [dModel];
  if (!tieEmbeddings) shapes["lm_head.weight"] = [vocabSize, dModel];
  return shapes;
}

/** Float64 copies of all weights, to be perturbed for finite differences. */
export function weightsInFloat64(weights: Weights): Record<string, Array64> {
  return Object.fromEntries(Object.entries(weights).map(([name, weight]) => [name, toFloat64(weight)]));
}

/** The fields of the configuration a block depends on. */
export type BlockConfig = Omit<
  ModelConfig,
  "vocabSize" | "contextLength" | "dModel" | "numLayers" | "dFf" | "tieEmbeddings"
>;

/** Rotary frequencies for a longer context, after their wavelengths, the positions of a whole turn (Llama 3.1). */
export function scaleFrequency(config: BlockConfig, frequency: number): number {
  const { ropeScaling = "none", ropeFactor = 1, ropeOriginalContext = 8192 } = config;
  const { ropeLowFreqFactor: low = 1, ropeHighFreqFactor: high = 4 } = config;
  if (ropeScaling === "none") return frequency;
  if (ropeScaling === "linear") return frequency / ropeFactor;
  const wavelength = (2 * Math.PI) / frequency;
  if (wavelength < ropeOriginalContext / high) return frequency;
  if (wavelength > ropeOriginalContext / low) return frequency / ropeFactor;
  const smooth = (ropeOriginalContext / wavelength - low) / (high - low);
  return (1 - smooth) * (frequency / ropeFactor) + smooth * frequency;
}

/**
 * One block: x [..., T, dModel] → the same shape.
 *
 * @param prefix of the block's weight names: "" or "layers.3."
 */
export function transformerBlock(config: BlockConfig, weights: Weights, x: Numeric, prefix = ""): Array64 {
  const { norm = "pre", position = "rope", ffn = "swiglu" } = config;
  const weight = (name: string) => named(weights, `${prefix}${name}.weight`);

  const attention = (input: Numeric) =>
    multiHeadSelfAttention(
      {
        q: weight("attn.q_proj"),
        k: weight("attn.k_proj"),
        v: weight("attn.v_proj"),
        output: weight("attn.output_proj"),
      },
      input,
      {
        numHeads: config.numHeads,
        numKeyValueHeads: config.numKeyValueHeads,
        qkNorm: config.qkNorm,
        rope:
          position === "rope"
            ? { theta: config.ropeTheta, scale: (frequency) => scaleFrequency(config, frequency) }
            : undefined,
      },
    );
  const feedForward = (input: Numeric) =>
    ffn === "swiglu"
      ? swiglu(weight("ffn.w1"), weight("ffn.w2"), weight("ffn.w3"), input)
      : siluFeedForward(weight("ffn.w1"), weight("ffn.w2"), input);
  const ln1 = (input: Numeric) => rmsnorm(weight("ln1"), input, config.rmsNormEps);
  const ln2 = (input: Numeric) => rmsnorm(weight("ln2"), input, config.rmsNormEps);

  if (norm === "pre") {
    const h = add(x, attention(ln1(x)));
    return add(h, feedForward(ln2(h)));
  }
  if (norm === "post") {
    const h = ln1(add(x, attention(x)));
    return ln2(add(h, feedForward(h)));
  }
  const h = add(x, attention(x));
  return add(h, feedForward(h));
}

/** Token ids [..., T] → logits [..., T, vocabSize] */
export function transformerLm(config: ModelConfig, weights: Weights, inIndices: Numeric): Array64 {
  const full = withDefaults(config);
  const T = inIndices.shape[inIndices.shape.length - 1];
  if (T > config.contextLength) throw new Error(`${T} tokens exceed the context length ${config.contextLength}`);

  let x = embedding(named(weights, "token_embeddings.weight"), inIndices);
  for (let i = 0; i < config.numLayers; i++) x = transformerBlock(full, weights, x, `layers.${i}.`);
  if (full.norm !== "none") x = rmsnorm(named(weights, "ln_final.weight"), x, full.rmsNormEps);
  const logits = linear(named(weights, full.tieEmbeddings ? "token_embeddings.weight" : "lm_head.weight"), x);
  return full.logitSoftCap > 0 ? softCap(logits, full.logitSoftCap) : logits;
}

/**
 * Mean cross-entropy of the next tokens, and `zLoss` times the mean of log²Z.
 *
 * @param inputs token ids [batch · T], row-major
 * @param targets the ids to predict, in the same order
 */
export function lossOf(
  config: ModelConfig,
  weights: Weights,
  inputs: ArrayLike<number>,
  targets: ArrayLike<number>,
  batch: number,
  zLoss = 0,
): number {
  const logits = transformerLm(config, weights, { shape: [batch, inputs.length / batch], data: inputs });
  return crossEntropy(logits, { shape: [targets.length], data: targets }, zLoss);
}

function named(weights: Weights, name: string): Numeric {
  const weight = weights[name];
  if (!weight) throw new Error(`weight "${name}" is missing; there are ${Object.keys(weights).join(", ")}`);
  return weight;
}
