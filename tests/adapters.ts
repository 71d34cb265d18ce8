/**
 * Every system of CS336 assignment 1 under one name, thin over the packages: options in, arrays out. The conformance
 * suite and anyone who wants to compare implementations call these; the arithmetic lives in the packages.
 *
 * Convention: `NdArray` is row-major; leading dimensions are batches; `backend` names the device ("cpu" by default).
 */
import {
  AdamW,
  type Device,
  type Emulation,
  type NdArray,
  ParameterStore,
  TransformerLM,
  functional,
  openDevice,
} from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { trainFromFilesSync } from "@mantou/tokenizer/files";
import { ArrayTokens, BatchReader, type CheckpointTarget, type TokenSource } from "@mantou/train";
import { cosineLearningRate, loadCheckpoint, saveCheckpoint } from "@mantou/train";

export type { NdArray };
export type Backend = "cpu" | "cuda" | "emulated";

interface OnBackend {
  backend?: Backend;
}

const devices = new Map<Backend, Device>();

/** A new device of a backend. $MANTOU_EMULATION says how the emulated one is checked. */
export function openBackend(backend: Backend, threads = 0): Device {
  return openDevice(backend, { threads, emulation: process.env.MANTOU_EMULATION as Emulation | undefined });
}

/** The device of a backend, opened once. */
export function deviceFor(backend: Backend = "cpu"): Device {
  const device = devices.get(backend) ?? openBackend(backend);
  devices.set(backend, device);
  return device;
}

export function runLinear(options: OnBackend & { weights: NdArray; inFeatures: NdArray }): NdArray {
  return functional.linear(deviceFor(options.backend), options.inFeatures, options.weights);
}

export function runEmbedding(options: OnBackend & { weights: NdArray; tokenIds: NdArray }): NdArray {
  return functional.embedding(deviceFor(options.backend), options.weights, options.tokenIds);
}

export function runSwiglu(
  options: OnBackend & { w1: NdArray; w2: NdArray; w3: NdArray; inFeatures: NdArray },
): NdArray {
  return functional.swiglu(deviceFor(options.backend), options.inFeatures, options);
}

export function runSilu(options: OnBackend & { inFeatures: NdArray }): NdArray {
  return functional.silu(deviceFor(options.backend), options.inFeatures);
}

export function runSoftmax(options: OnBackend & { inFeatures: NdArray; dim: number }): NdArray {
  return functional.softmax(deviceFor(options.backend), options.inFeatures, options.dim);
}

export function runScaledDotProductAttention(
  options: OnBackend & { Q: NdArray; K: NdArray; V: NdArray; mask?: NdArray },
): NdArray {
  return functional.scaledDotProductAttention(deviceFor(options.backend), options);
}

interface SelfAttention extends OnBackend {
  dModel: number;
  numHeads: number;
  qProjWeight: NdArray;
  kProjWeight: NdArray;
  vProjWeight: NdArray;
  oProjWeight: NdArray;
  inFeatures: NdArray;
}

export function runMultiheadSelfAttention(options: SelfAttention): NdArray {
  return functional.multiheadSelfAttention(deviceFor(options.backend), options.inFeatures, options);
}

export function runMultiheadSelfAttentionWithRope(
  options: SelfAttention & { maxSeqLen: number; theta: number; tokenPositions?: NdArray },
): NdArray {
  const { inFeatures, backend, maxSeqLen, theta, tokenPositions } = options;
  const rope = { maxSeqLen, theta, tokenPositions };
  return functional.multiheadSelfAttention(deviceFor(backend), inFeatures, { ...options, rope });
}

export function runRope(
  options: OnBackend & {
    dK: number;
    theta: number;
    maxSeqLen: number;
    inQueryOrKey: NdArray;
    tokenPositions?: NdArray;
  },
): NdArray {
  return functional.rope(deviceFor(options.backend), options.inQueryOrKey, options);
}

export function runTransformerBlock(
  options: OnBackend & {
    dModel: number;
    numHeads: number;
    dFf: number;
    maxSeqLen: number;
    theta: number;
    weights: Record<string, NdArray>;
    inFeatures: NdArray;
  },
): NdArray {
  const { maxSeqLen: contextLength, theta: ropeTheta, inFeatures, weights, backend, ...sizes } = options;
  return functional.transformerBlock(deviceFor(backend), inFeatures, { ...sizes, contextLength, ropeTheta }, weights);
}

export function runTransformerLm(
  options: OnBackend & {
    vocabSize: number;
    contextLength: number;
    dModel: number;
    numLayers: number;
    numHeads: number;
    dFf: number;
    ropeTheta: number;
    weights: Record<string, NdArray>;
    inIndices: NdArray;
  },
): NdArray {
  const { weights, inIndices, backend, ...config } = options;
  using model = new TransformerLM(config, { device: deviceFor(backend), weights });
  return model.logits(inIndices);
}

export function runRmsnorm(
  options: OnBackend & { dModel: number; eps: number; weights: NdArray; inFeatures: NdArray },
): NdArray {
  return functional.rmsnorm(deviceFor(options.backend), options.inFeatures, options.weights, options.eps);
}

export function runCrossEntropy(options: OnBackend & { inputs: NdArray; targets: NdArray }): number {
  return functional.crossEntropy(deviceFor(options.backend), options.inputs, options.targets);
}

/** x and y are int32 [batchSize, contextLength]; seed defaults to a new one each time. */
export function runGetBatch(options: {
  dataset: Uint16Array | Uint32Array | TokenSource;
  batchSize: number;
  contextLength: number;
  device?: Backend;
  seed?: number;
}): { x: NdArray; y: NdArray } {
  const { dataset, batchSize, contextLength, device, seed } = options;
  deviceFor(device);
  const source = ArrayBuffer.isView(dataset) ? new ArrayTokens(dataset) : dataset;
  const reader = new BatchReader(source, batchSize, contextLength);
  const { inputs, targets } = reader.at("random", seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!, 0);
  const shape = [batchSize, contextLength];
  return { x: { shape, data: inputs }, y: { shape, data: targets } };
}

/** Scales the gradients in place. */
export function runGradientClipping(options: OnBackend & { gradients: NdArray[]; maxL2Norm: number }): void {
  functional.clipGradients(deviceFor(options.backend), options.gradients, options.maxL2Norm);
}

export interface HostParameter {
  value: NdArray;
  grad: NdArray | null;
}

/** AdamW over host arrays: each parameter has a store, moments and step count of its own. */
class HostAdamW {
  readonly #lr: number;
  readonly #states: { parameter: HostParameter; store: ParameterStore; optimizer: AdamW }[];

  constructor(
    parameters: HostParameter[],
    options: OnBackend & { lr?: number; betas?: [number, number]; eps?: number; weightDecay?: number } = {},
  ) {
    this.#lr = options.lr ?? 1e-3;
    this.#states = parameters.map((parameter) => {
      const { shape } = parameter.value;
      const store = new ParameterStore(deviceFor(options.backend), [[{ name: "parameter", shape }]]);
      return { parameter, store, optimizer: new AdamW(store.byName, options) };
    });
  }

  /** Updates the values in place; a parameter whose grad is null is left alone. */
  step(): void {
    for (const { parameter, store, optimizer } of this.#states) {
      if (parameter.grad === null) continue;
      const { value, grad } = store.get("parameter");
      value.upload(Float32Array.from(parameter.value.data));
      grad.upload(Float32Array.from(parameter.grad.data));
      optimizer.step(this.#lr);
      parameter.value.data.set(value.toFloat32Array());
    }
  }
}

export function getAdamWClass(): typeof HostAdamW {
  return HostAdamW;
}

export function runGetLrCosineSchedule(options: {
  it: number;
  maxLearningRate: number;
  minLearningRate: number;
  warmupIters: number;
  cosineCycleIters: number;
}): number {
  return cosineLearningRate(options.it, options);
}

export function runSaveCheckpoint(options: {
  model: TransformerLM;
  optimizer: AdamW;
  iteration: number;
  out: CheckpointTarget;
}): void {
  saveCheckpoint(options.out, options);
}

/** Returns the iteration. */
export function runLoadCheckpoint(options: {
  src: string | Uint8Array;
  model: TransformerLM;
  optimizer: AdamW;
}): number {
  return loadCheckpoint(options.src, options);
}

export function getTokenizer(options: {
  vocab: Map<number, Uint8Array>;
  merges: [Uint8Array, Uint8Array][];
  specialTokens?: string[];
}): Tokenizer {
  return new Tokenizer(options);
}

export function runTrainBpe(options: {
  inputPath: string;
  vocabSize: number;
  specialTokens: string[];
  pattern?: string;
}): { vocab: Map<number, Uint8Array>; merges: [Uint8Array, Uint8Array][] } {
  const { inputPath, ...rest } = options;
  const { vocab, merges } = trainFromFilesSync(inputPath, rest);
  return { vocab: new Map(vocab), merges: merges.map(([left, right]) => [left, right]) };
}
