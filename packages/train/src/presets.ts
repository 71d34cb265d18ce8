/**
 * Named starting points. A preset lists what it sets on purpose; the rest are the defaults in `config-schema.ts`.
 *
 * Learning rates, warmup and widths that are left out follow from the others ("auto"): the cosine ends at a tenth of
 * `lr`, the warmup takes 5 % of the steps.
 */

import type { PartialConfig } from "./config-schema.ts";

/** What presets for a GPU have in common. */
const onGpu = { evalInterval: 500, sampleInterval: 1000, sampleTokens: 256, checkpointInterval: 1000 };

/** The model of the Stanford CS336 handout (assignment 1, §7.2): 17M parameters besides the token embedding. */
const handout = {
  ...onGpu,
  model: { contextLength: 256, dModel: 512, numLayers: 4, numHeads: 16, dFf: 1344, ropeTheta: 10000 },
  batchSize: 64,
  steps: 20000,
  lr: 1e-3,
};

/** GPT-2's context, vocabulary and tied embeddings. */
const gpt2 = (sizes: { dModel: number; numLayers: number; numHeads: number; dFf: number }) => ({
  ...onGpu,
  tokenizer: { vocabSize: 50257 },
  model: { contextLength: 1024, ...sizes, tieEmbeddings: true },
});

/** What `train` uses when no preset is named, also under a config file or `--data`. */
export const defaultPreset = "tiny";

export const presets: Record<string, PartialConfig> = {
  /**
   * `bun run train` with nothing else: two to three minutes on two CPU cores. A story has about 250 tokens, so the
   * context holds a whole one; the width is spent on few sequences and a high learning rate.
   */
  tiny: {
    tokenizer: { vocabSize: 1024 },
    model: { contextLength: 256, dModel: 128, numLayers: 4, numHeads: 4 },
    batchSize: 8,
    steps: 2200,
    lr: 3e-3,
    evalInterval: 200,
    sampleInterval: 400,
    sampleTokens: 320,
    checkpointInterval: 200,
  },

  /**
   * nanoGPT's small CPU config (config/train_shakespeare_char.py as its README runs it on a laptop: validation loss
   * 1.88), on bytes instead of its 65 characters. For `--data` tinyshakespeare; there are no documents in it, hence no
   * special token. dFf 344 makes SwiGLU's three matrices as large as that config's two of 512.
   */
  shakespeare: {
    tokenizer: { vocabSize: 256, specialTokens: [] },
    model: { contextLength: 64, dModel: 128, numLayers: 4, numHeads: 4, dFf: 344 },
    batchSize: 12,
    steps: 2000,
    lr: 1e-3, // to 1e-4, after 100 steps of warmup
    betas: [0.9, 0.99],
    evalInterval: 250,
    sampleInterval: 500,
    sampleTokens: 300,
  },

  /** Prose of your own (`--data books.txt`, a few MB) in about five minutes on two CPU cores. */
  books: {
    tokenizer: { vocabSize: 4096 },
    model: { contextLength: 128, dModel: 192, numLayers: 4, numHeads: 6 },
    batchSize: 16,
    steps: 2400,
    lr: 2e-3,
    evalInterval: 200,
    sampleInterval: 400,
    checkpointInterval: 200,
  },

  /** The handout's experiment on TinyStories: 327.68M tokens (20,000 steps of 64 × 256). Meant for a GPU. */
  "tinystories-17m": { ...handout, tokenizer: { vocabSize: 10000 } },

  /** The same model for the handout's OpenWebText experiment (§7.4): 32k ids, as many steps. Meant for a GPU. */
  "owt-17m": { ...handout, tokenizer: { vocabSize: 32000 } },

  /**
   * The sizes of GPT-2 (Radford et al. 2019) with this model's RMSNorm, RoPE and SwiGLU, and the schedule that llm.c
   * reproduces it with: 2^19 tokens a step, 10 billion in all for the smallest. Learning rates are those of GPT-3 (Brown
   * et al. 2020, table 2.1) at about these sizes. All are meant for a GPU and for `--data` of their own.
   */
  "gpt2-124m": {
    ...gpt2({ dModel: 768, numLayers: 12, numHeads: 12, dFf: 2048 }),
    batchSize: 512,
    steps: 19073,
    lr: 6e-4,
    evalInterval: 250,
  },
  "350m": {
    ...gpt2({ dModel: 1024, numLayers: 24, numHeads: 16, dFf: 2752 }),
    batchSize: 512,
    steps: 60000,
    lr: 3e-4,
    sampleInterval: 2000,
  },
  "1.5b": {
    ...gpt2({ dModel: 1600, numLayers: 48, numHeads: 25, dFf: 4288 }),
    batchSize: 1024,
    steps: 32000,
    lr: 2e-4,
    sampleInterval: 2000,
  },
};
