/**
 * Typed access to the golden files of `tests/golden`, which `generate.py` there makes with PyTorch.
 *
 * A file is safetensors (https://huggingface.co/docs/safetensors) whose metadata entry "tree" is JSON with
 * `{"$tensor": name}` wherever a tensor belongs. The reader is separate from the one in the packages, so that a fault
 * in either cannot hide. Every call reads afresh: a test may change what it gets.
 *
 * `options` of a case is exactly what the adapter of that operation takes.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { FloatArray, IntArray, NdArray } from "./ndarray.ts";

/** Named weights or their gradients. */
export type NamedArrays = Record<string, FloatArray>;

/** One operation on one input; `gradients` are those of Σ output · gradOutput by the options of the same name. */
export interface OperationCase<Options, Gradients = Partial<Record<keyof Options, FloatArray>>> {
  options: Options;
  output: FloatArray;
  gradOutput: FloatArray;
  gradients: Gradients;
}

/** Options of multi-head self-attention without position information. */
export interface SelfAttentionOptions {
  dModel: number;
  numHeads: number;
  qProjWeight: FloatArray;
  kProjWeight: FloatArray;
  vProjWeight: FloatArray;
  oProjWeight: FloatArray;
  inFeatures: FloatArray;
}

/** Options of multi-head self-attention with RoPE; positions default to 0 … T - 1. */
export interface SelfAttentionWithRopeOptions extends SelfAttentionOptions {
  maxSeqLen: number;
  theta: number;
  tokenPositions?: IntArray;
}

/** Options of one pre-norm block; weight names without the `layers.{i}.` prefix. */
export interface TransformerBlockOptions {
  dModel: number;
  numHeads: number;
  dFf: number;
  maxSeqLen: number;
  theta: number;
  weights: NamedArrays;
  inFeatures: FloatArray;
}

/** Options of masked attention. */
export interface AttentionOptions {
  Q: FloatArray;
  K: FloatArray;
  V: FloatArray;
  mask?: NdArray & { data: Uint8Array };
}

/** The kinds of case in `operations.safetensors`. */
export interface OperationCases {
  linear: OperationCase<{ weights: FloatArray; inFeatures: FloatArray }>;
  embedding: OperationCase<{ weights: FloatArray; tokenIds: IntArray }, { weights: FloatArray }>;
  rmsnorm: OperationCase<
    { dModel: number; eps: number; weights: FloatArray; inFeatures: FloatArray },
    { weights: FloatArray; inFeatures: FloatArray }
  >;
  silu: OperationCase<{ inFeatures: FloatArray }>;
  swiglu: OperationCase<{ w1: FloatArray; w2: FloatArray; w3: FloatArray; inFeatures: FloatArray }>;
  softmax: OperationCase<{ inFeatures: FloatArray; dim: number }, { inFeatures: FloatArray }>;
  scaledDotProductAttention: OperationCase<AttentionOptions, { Q: FloatArray; K: FloatArray; V: FloatArray }>;
  rope: OperationCase<
    { dK: number; theta: number; maxSeqLen: number; inQueryOrKey: FloatArray; tokenPositions: IntArray },
    { inQueryOrKey: FloatArray }
  >;
  multiheadSelfAttention: OperationCase<SelfAttentionOptions>;
  multiheadSelfAttentionWithRope: OperationCase<SelfAttentionWithRopeOptions>;
  transformerBlock: OperationCase<TransformerBlockOptions, { inFeatures: FloatArray; weights: NamedArrays }>;
  crossEntropy: {
    options: { inputs: FloatArray; targets: IntArray };
    /** The mean loss. */
    output: number;
    gradients: { inputs: FloatArray };
  };
  gradientClipping: {
    options: { gradients: FloatArray[]; maxL2Norm: number };
    /** Combined norm before clipping. */
    norm: number;
    /** The gradients after clipping. */
    output: FloatArray[];
  };
  adamw: {
    settings: { lr?: number; betas?: [number, number]; eps?: number; weightDecay?: number };
    /** Per parameter: the initial value, and for each step the gradient (null: none) and the value after the step. */
    parameters: { value: FloatArray; grads: (FloatArray | null)[]; values: FloatArray[] }[];
  };
  lrCosineSchedule: {
    options: { maxLearningRate: number; minLearningRate: number; warmupIters: number; cosineCycleIters: number };
    /** The learning rate at iteration 0, 1, 2, … */
    rates: number[];
  };
}

/** A model's configuration; fields left out have their defaults ("pre", "rope", "swiglu", untied, numHeads). */
export interface GoldenConfig {
  vocabSize: number;
  contextLength: number;
  dModel: number;
  numLayers: number;
  numHeads: number;
  numKeyValueHeads?: number;
  dFf: number;
  ropeTheta: number;
  norm?: "pre" | "post" | "none";
  position?: "rope" | "none";
  ffn?: "swiglu" | "silu";
  logitSoftCap?: number;
  tieEmbeddings?: boolean;
}

/** One model on one batch. */
export interface GoldenModel {
  config: GoldenConfig;
  weights: NamedArrays;
  /** [batch, T] */
  inputs: IntArray;
  /** [batch, T] */
  targets: IntArray;
  /** [batch, T, vocabSize] */
  logits: FloatArray;
  /** Mean cross-entropy. */
  loss: number;
  /** Default 0. */
  zLoss?: number;
  /** Of the loss and zLoss times the mean of log²Z, by every weight. */
  gradients: NamedArrays;
}

/** A short training run of PyTorch in float32: zero, backward, clip, AdamW at learningRates[step], every step. */
export interface GoldenTrajectory {
  config: GoldenConfig;
  settings: {
    maxLearningRate: number;
    minLearningRate: number;
    warmupIters: number;
    cosineCycleIters: number;
    betas: [number, number];
    eps: number;
    weightDecay: number;
    maxL2Norm: number;
  };
  /** [steps, batch, T] */
  inputs: IntArray;
  /** [steps, batch, T] */
  targets: IntArray;
  /** The schedule at iterations 1, 2, …, steps. */
  learningRates: number[];
  initial: NamedArrays;
  /** Before each step's update. */
  losses: number[];
  /** Gradient norms before clipping. */
  norms: number[];
  final: NamedArrays;
  /** Loss of the last batch with the final weights. */
  lossAfter: number;
  /** The same run in float64: how far float32 drifts on its own. */
  float64: { losses: number[]; norms: number[]; lossAfter: number };
}

/** All cases of one operation, by name. */
export function goldenOperation<Name extends keyof OperationCases>(name: Name): Record<string, OperationCases[Name]> {
  operations ??= readFileSync(pathOf("operations"));
  const tree = parse(operations) as { [Key in keyof OperationCases]: Record<string, OperationCases[Key]> };
  return tree[name];
}

/** Every golden model, by name. */
export function goldenModels(): Record<string, GoldenModel> {
  const trees = ["models", "capped"].map((name) => parse(readFileSync(pathOf(name))));
  return Object.assign({}, ...trees) as Record<string, GoldenModel>;
}

/** The golden training run. */
export function goldenTrajectory(): GoldenTrajectory {
  return parse(readFileSync(pathOf("trajectory"))) as GoldenTrajectory;
}

let operations: Uint8Array | undefined;

function pathOf(name: string): string {
  return join(import.meta.dir, "..", "golden", `${name}.safetensors`);
}

/** Safetensors bytes → the tree with its tensors in place, each a copy. */
function parse(bytes: Uint8Array): unknown {
  const headerLength = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const header: Record<string, TensorEntry> & { __metadata__: { tree: string } } = JSON.parse(
    new TextDecoder().decode(bytes.subarray(8, 8 + headerLength)),
  );

  function tensor(name: string): NdArray {
    const { dtype, shape, data_offsets } = header[name];
    const [start, end] = data_offsets.map((offset) => 8 + headerLength + offset);
    const { buffer } = Uint8Array.from(bytes.subarray(start, end));
    switch (dtype) {
      case "F32":
        return { shape, data: new Float32Array(buffer) };
      case "I32":
        return { shape, data: new Int32Array(buffer) };
      case "U8":
        return { shape, data: new Uint8Array(buffer) };
      default:
        throw new Error(`golden tensor ${name} has dtype ${dtype}; generate.py writes F32, I32 and U8 only`);
    }
  }

  return JSON.parse(header.__metadata__.tree, (_, value) =>
    typeof value?.$tensor === "string" ? tensor(value.$tensor) : value,
  );
}

interface TensorEntry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}
