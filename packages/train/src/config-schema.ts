/**
 * The settings of a training run: each with its unit, its bounds, its default and a line of help.
 *
 * Convention: what a flag, a key of a config file and a field of `TrainConfig` are called is the same name. A value that
 * can be left to us is `"auto"`, and its description says what that comes to.
 */

import { z } from "zod";

const count = () => z.int().min(1);
const countOrZero = () => z.int().min(0);
const positive = () => z.number().gt(0);
const auto = z.literal("auto");

const modelSchema = z
  .strictObject({
    vocabSize: z
      .union([count(), auto])
      .default("auto")
      .meta({ description: "rows of the embedding; auto: as many as the tokenizer has ids" }),
    contextLength: count().default(256).meta({ description: "tokens the model sees at once" }),
    dModel: count().default(128).meta({ description: "width of the residual stream" }),
    numLayers: count().default(4).meta({ description: "transformer blocks" }),
    numHeads: count().default(4).meta({ description: "attention heads; dModel / numHeads is the head size" }),
    numKeyValueHeads: z
      .union([count(), auto])
      .default("auto")
      .meta({ description: "heads of keys and values (grouped-query attention when fewer); auto: numHeads" }),
    dFf: z.union([count(), auto]).default("auto").meta({
      description:
        "width of the feed-forward layer; auto: 8/3 dModel for swiglu, 4 dModel for silu, which cost the same",
    }),
    rmsNormEps: positive().default(1e-5).meta({ description: "added to the mean square in RMSNorm" }),
    ropeTheta: positive().default(10000).meta({ description: "base of the rotary angles" }),
    ropeScaling: z
      .enum(["none", "linear", "llama3"])
      .default("none")
      .meta({ description: "how rotary angles are stretched for contexts longer than those trained with" }),
    ropeFactor: positive().default(1).meta({ description: "by how much ropeScaling stretches" }),
    ropeLowFreqFactor: positive()
      .default(1)
      .meta({ description: "llama3: turns in the original context up to which a frequency is stretched" }),
    ropeHighFreqFactor: positive()
      .default(4)
      .meta({ description: "llama3: turns in the original context from which a frequency is kept" }),
    ropeOriginalContext: count().default(8192).meta({ description: "llama3: the context trained with at first" }),
    norm: z.enum(["pre", "post", "none"]).default("pre").meta({ description: "where RMSNorm stands in a block" }),
    position: z.enum(["rope", "none"]).default("rope").meta({ description: "position encoding" }),
    ffn: z
      .enum(["swiglu", "silu"])
      .default("swiglu")
      .meta({ description: "feed-forward layer: gated, or plain with SiLU" }),
    qkNorm: z
      .boolean()
      .default(false)
      .meta({ description: "normalise every head of queries and keys, without gains, which bounds the scores" }),
    logitSoftCap: z.number().min(0).default(0).meta({
      description: "logits become cap · tanh(logits / cap), between ±cap, in training and generation; 0: left alone",
    }),
    tieEmbeddings: z.boolean().default(false).meta({ description: "use the token embedding as the output layer too" }),
  })
  .prefault({})
  .meta({ group: "Model" });

const tokenizerSchema = z
  .strictObject({
    path: z
      .string()
      .min(1)
      .optional()
      .meta({ description: "a trained tokenizer to use instead of training one", placeholder: "FILE" }),
    vocabSize: z
      .int()
      .min(256)
      .default(1024)
      .meta({ description: "ids in all: 256 bytes, merges, special tokens; 256 + specials means bytes only" }),
    specialTokens: z
      .array(z.string().min(1))
      .default(["<|endoftext|>"])
      .meta({ description: "texts that are one token each; repeat the flag for several" }),
  })
  .prefault({})
  .meta({ group: "Tokenizer" });

export const trainConfigSchema = z.strictObject({
  name: z
    .union([auto, z.string().regex(/^[A-Za-z0-9][\w.-]*$/)])
    .default("auto")
    .meta({
      group: "Run",
      description: "name of the run; auto: the data file's name, else the preset's",
      placeholder: "NAME",
      expects: "a directory name of letters, digits, '-', '_' and '.'",
    }),
  runsDir: z
    .string()
    .min(1)
    .default("runs")
    .meta({ group: "Run", description: "where runs are kept, each in a directory of its name", placeholder: "DIR" }),
  seed: z
    .int()
    .min(0)
    .max(2 ** 32 - 1)
    .default(1)
    .meta({ group: "Run", description: "seeds the initial weights, the batches and the samples" }),

  init: z.string().min(1).optional().meta({
    group: "Run",
    description: "start from the weights, the model and the tokenizer of this run, trained or imported",
    placeholder: "DIR",
  }),

  data: z.string().min(1).optional().meta({
    group: "Data",
    description:
      "text to train on, tokens (.bin, .npy), or a directory of `data prepare`; none: short stories are generated",
    placeholder: "FILE",
  }),
  val: z
    .string()
    .min(1)
    .optional()
    .meta({ group: "Data", description: "text to validate on, instead of a held-out tail", placeholder: "FILE" }),
  heldOut: z
    .number()
    .gt(0)
    .lt(1)
    .default(0.1)
    .meta({ group: "Data", description: "part of the text, at its end, kept for validation when there is no --val" }),
  order: z.enum(["random", "shuffled"]).default("random").meta({
    group: "Data",
    description: "random: windows from anywhere; shuffled: every window once an epoch, in a new order each",
  }),

  tokenizer: tokenizerSchema,
  model: modelSchema,

  steps: count().default(1000).meta({ group: "Training", description: "optimizer steps" }),
  batchSize: z.union([count(), auto]).default("auto").meta({
    group: "Training",
    description: "sequences a step; auto: about 2,048 tokens a step on a CPU, 16,384 on a GPU",
  }),
  microBatchSize: z.union([count(), auto]).default("auto").meta({
    group: "Training",
    description:
      "sequences computed at once, a divisor of batchSize: the gradients of several add up to a step; auto: as many as fit",
  }),
  lr: positive()
    .default(1e-3)
    .meta({ group: "Training", description: "highest learning rate, reached after the warmup" }),
  minLr: z
    .union([z.number().min(0), auto])
    .default("auto")
    .meta({ group: "Training", description: "learning rate at the end of the decay; auto: lr / 10" }),
  schedule: z.enum(["cosine", "linear", "wsd", "constant"]).default("cosine").meta({
    group: "Training",
    description: "how the learning rate goes on after the warmup; wsd: stays, and falls in the last decaySteps",
  }),
  decaySteps: z
    .union([countOrZero(), auto])
    .default("auto")
    .meta({ group: "Training", description: "steps of the decay of wsd, at the end; auto: 20 % of the steps" }),
  warmupSteps: z
    .union([countOrZero(), auto])
    .default("auto")
    .meta({ group: "Training", description: "steps of linear warmup; auto: 5 % of the steps" }),
  optimizer: z.enum(["adamw", "muon"]).default("adamw").meta({
    group: "Training",
    description: "muon: orthogonalised momentum for the hidden matrices, AdamW for the rest",
  }),
  muonMomentum: z
    .number()
    .min(0)
    .lt(1)
    .default(0.95)
    .meta({ group: "Training", description: "decay of Muon's momentum" }),
  betas: z
    .tuple([z.number().min(0).lt(1), z.number().min(0).lt(1)])
    .default([0.9, 0.95])
    .meta({ group: "Training", description: "decay of AdamW's first and second moment" }),
  eps: positive().default(1e-8).meta({ group: "Training", description: "added to AdamW's denominator" }),
  weightDecay: z
    .number()
    .min(0)
    .default(0.1)
    .meta({ group: "Training", description: "decoupled weight decay of the matrices; norm gains have none" }),
  clipNorm: z
    .number()
    .min(0)
    .default(1)
    .meta({ group: "Training", description: "longest the gradient may be (L2 norm); 0: no clipping" }),
  zLoss: z.number().min(0).default(0).meta({
    group: "Training",
    description: "times log²Z, Z a token's sum of exponentials, minimised beside the loss, which is shown without it",
  }),
  onDivergence: z.enum(["stop", "skip"]).default("stop").meta({
    group: "Training",
    description:
      "a loss or gradient that is no number, or a spike: stop, or go back to a checkpoint and skip the batch",
  }),
  lossSpike: z.number().min(0).default(0).meta({
    group: "Training",
    description: "nats above the mean of the last 50 losses that count as diverged; 0: any",
  }),

  evalInterval: countOrZero()
    .default(200)
    .meta({ group: "Evaluation", description: "steps between validations; 0: only at the end" }),
  evalBatches: count().default(20).meta({ group: "Evaluation", description: "batches a validation averages over" }),
  sampleInterval: countOrZero()
    .default(250)
    .meta({ group: "Evaluation", description: "steps between sample texts; 0: only at the end" }),
  samplePrompt: z
    .string()
    .default("")
    .meta({ group: "Evaluation", description: "what samples begin with; empty: the start of a document" }),
  sampleTokens: count().default(128).meta({ group: "Evaluation", description: "tokens a sample has at most" }),

  checkpointInterval: countOrZero()
    .default(250)
    .meta({ group: "Checkpoints", description: "steps between checkpoints; 0: only at the end or when stopped" }),
  keepCheckpoints: count().default(2).meta({ group: "Checkpoints", description: "newest checkpoints kept" }),
  keepEvery: countOrZero()
    .default(0)
    .meta({ group: "Checkpoints", description: "checkpoints of every so many steps are kept as well; 0: none" }),
  keepBest: z.boolean().default(false).meta({
    group: "Checkpoints",
    description: "save and keep the checkpoint of the lowest validation loss as well",
  }),

  device: z
    .enum(["auto", "cpu", "cuda"])
    .default("auto")
    .meta({ group: "Machine", description: "where to compute; auto: a GPU if there is one" }),
  precision: z.enum(["auto", "fp32", "bf16"]).default("auto").meta({
    group: "Machine",
    description: "number format of the matrix products (sums, weights kept and moments are float32); auto: the faster",
  }),
  activations: z.enum(["keep", "recompute"]).default("keep").meta({
    group: "Machine",
    description: "what the backward pass needs of the blocks: keep it, or compute it again, slower in less memory",
  }),
  threads: z
    .union([count().max(4096), auto])
    .default("auto")
    .meta({ group: "Machine", description: "CPU threads; auto: one a core" }),
});

/** A whole config in which values may still be `"auto"`. */
export type TrainConfig = z.output<typeof trainConfigSchema>;

/** Some settings, as a preset or a config file gives them. */
export type PartialConfig = DeepPartial<z.input<typeof trainConfigSchema>>;

type DeepPartial<T> = T extends readonly unknown[] ? T : T extends object ? { [K in keyof T]?: DeepPartial<T[K]> } : T;

/** The config a run trains with: `TrainConfig` with every `"auto"` replaced by what was chosen. */
export type SettledConfig = Settled<TrainConfig>;

type Settled<T> = T extends "auto"
  ? never
  : T extends readonly unknown[]
    ? T
    : T extends object
      ? { [K in keyof T]: Settled<T[K]> }
      : T;
