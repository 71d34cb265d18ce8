/**
 * What a model is: the sizes of its tensors and the ablations of CS336 assignment 1, as plain data.
 */
export interface ModelConfig {
  /** Tokens that the model knows. */
  vocabSize: number;
  /** Most tokens that it sees at once. */
  contextLength: number;
  /** Width of the residual stream. */
  dModel: number;
  numLayers: number;
  /** Query heads; dModel / numHeads is the head size, an even number. */
  numHeads: number;
  /** Key/value heads (grouped-query attention, Ainslie et al. 2023); numHeads unless given, and a divisor of it. */
  numKeyValueHeads?: number;
  /** Inner width of the feed-forward layer. */
  dFf: number;
  /** ε of every RMSNorm. Default 1e-5. */
  rmsNormEps?: number;
  /** Base Θ of the rotary frequencies (Su et al. 2021). */
  ropeTheta: number;
  /** How the rotary frequencies are changed for contexts beyond the one trained with; see rope.ts. */
  ropeScaling?: "none" | "linear" | "llama3";
  /** What `linear` and `llama3` divide frequencies by. Default 1. */
  ropeFactor?: number;
  /** `llama3`: turns within the original context up to which a frequency is divided. Default 1. */
  ropeLowFreqFactor?: number;
  /** `llama3`: turns within the original context from which a frequency is kept. Default 4. */
  ropeHighFreqFactor?: number;
  /** `llama3`: the context that the model was trained with at first. Default 8192. */
  ropeOriginalContext?: number;
  /** Where RMSNorm stands: before each sublayer, after each residual addition (ln_final is kept), or nowhere. */
  norm?: "pre" | "post" | "none";
  /** Rotary position embedding, or none (NoPE). */
  position?: "rope" | "none";
  /** w2(SiLU(w1 x) ⊙ w3 x), or w2(SiLU(w1 x)). */
  ffn?: "swiglu" | "silu";
  /** RMSNorm, without gains, of every head of queries and keys (Henry et al. 2020). */
  qkNorm?: boolean;
  /** Logits become cap · tanh(logits / cap), between ±cap (Gemma 2, 2024, §2). Default 0: they are left alone. */
  logitSoftCap?: number;
  /** One matrix for token embedding and output projection. */
  tieEmbeddings?: boolean;
}

export type ResolvedModelConfig = Required<ModelConfig>;

/** ε of RMSNorm unless a config says otherwise. */
export const RMSNORM_EPS = 1e-5;

/** Largest head size that the attention kernels take. */
export const MAX_HEAD_DIM = 256;

/** @throws RangeError naming the value unless it is a whole number of at least 1 */
export function checkCount(name: string, value: number): void {
  if (Number.isSafeInteger(value) && value >= 1) return;
  throw new RangeError(`${name} must be a whole number of at least 1, not ${value}`);
}

/**
 * Fills in defaults and checks that the sizes fit together.
 * @throws RangeError naming the field, its value and the fix
 */
export function resolveModelConfig(config: ModelConfig): ResolvedModelConfig {
  const resolved: ResolvedModelConfig = {
    ...config,
    numKeyValueHeads: config.numKeyValueHeads ?? config.numHeads,
    rmsNormEps: config.rmsNormEps ?? RMSNORM_EPS,
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
  const sizes = ["vocabSize", "contextLength", "dModel", "numLayers", "numHeads", "numKeyValueHeads", "dFf"] as const;
  for (const name of [...sizes, "ropeOriginalContext"] as const) checkCount(`model.${name}`, resolved[name]);
  const { dModel, numHeads, numKeyValueHeads, ropeTheta } = resolved;
  if (dModel % numHeads !== 0) {
    throw new RangeError(`model.dModel ${dModel} is not a multiple of model.numHeads ${numHeads}`);
  }
  const headDim = dModel / numHeads;
  if (headDim % 2 !== 0 || headDim > MAX_HEAD_DIM) {
    throw new RangeError(
      `model.dModel / model.numHeads = ${headDim}: the head size must be even and at most ${MAX_HEAD_DIM}`,
    );
  }
  if (numHeads % numKeyValueHeads !== 0) {
    throw new RangeError(`model.numKeyValueHeads ${numKeyValueHeads} does not divide model.numHeads ${numHeads}`);
  }
  if (!(ropeTheta > 1) || !Number.isFinite(ropeTheta)) {
    throw new RangeError(`model.ropeTheta must be a number greater than 1, not ${ropeTheta}`);
  }
  for (const name of ["rmsNormEps", "ropeFactor", "ropeLowFreqFactor", "ropeHighFreqFactor"] as const) {
    const value = resolved[name];
    if (!(value > 0) || !Number.isFinite(value)) {
      throw new RangeError(`model.${name} must be a number greater than 0, not ${value}`);
    }
  }
  const { logitSoftCap } = resolved;
  if (!(logitSoftCap >= 0) || !Number.isFinite(logitSoftCap)) {
    throw new RangeError(`model.logitSoftCap must be a number ≥ 0, not ${logitSoftCap}`);
  }
  const { ropeLowFreqFactor: low, ropeHighFreqFactor: high } = resolved;
  if (!(low < high)) {
    throw new RangeError(`model.ropeLowFreqFactor ${low} must be less than model.ropeHighFreqFactor ${high}`);
  }
  for (const name of ["qkNorm", "tieEmbeddings"] as const) {
    const value: unknown = resolved[name];
    if (typeof value !== "boolean") throw new RangeError(`model.${name} must be true or false, not ${String(value)}`);
  }
  const choices = {
    norm: ["pre", "post", "none"],
    position: ["rope", "none"],
    ropeScaling: ["none", "linear", "llama3"],
    ffn: ["swiglu", "silu"],
  } as const;
  for (const [name, values] of Object.entries(choices)) {
    const value = resolved[name as keyof typeof choices];
    if (!(values as readonly string[]).includes(value)) {
      throw new RangeError(`model.${name} must be one of ${values.join(", ")}, not ${value}`);
    }
  }
  return resolved;
}
