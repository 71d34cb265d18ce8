/**
 * The Llama-style language model: embedding, blocks, final norm, output projection; forward and hand-written backward.
 * Parameter names are those of CS336 assignment 1.
 */
import { Activations } from "./activations.ts";
import { type ModelConfig, type ResolvedModelConfig, checkCount, resolveModelConfig } from "./config.ts";
import type { Device, Precision } from "./device.ts";
import { Decoder } from "./decoder.ts";
import { type Block, type Residual, createBlock } from "./layers/block.ts";
import { Embedding } from "./layers/embedding.ts";
import { recomputedBlocks } from "./layers/recompute.ts";
import { Head } from "./layers/head.ts";
import { RMSNorm } from "./layers/rmsnorm.ts";
import { type Parameter, type ParameterSpec, ParameterStore } from "./parameters.ts";
import { Random } from "./random.ts";
import { Repeated } from "./repeated.ts";
import { ropeTable } from "./rope.ts";
import { type FloatType, type NdArray, Tensor, elementCount } from "./tensor.ts";

/** Rows of the output projection on a GPU: whole tiles of its matrix products, and 256-byte rows of logits. */
const GPU_VOCABULARY_MULTIPLE = 128;

/** Kinds of steps that are kept recorded: training and validation, each perhaps with a last batch of its own. */
const MOST_RECORDS = 4;

export interface TransformerOptions {
  device: Device;
  /** Initialise as in the CS336 handout, deterministic in the seed. Default 0. */
  seed?: number;
  /** Weights to start from, all of them, in place of a seed. */
  weights?: Record<string, NdArray>;
  /** Most sequences per training step. Default 1. */
  batchSize?: number;
  /** What matrix products are computed in. Default fp32. */
  precision?: Precision;
  /** What the backward pass needs of the blocks is kept, or computed again to save memory. Default keep. */
  activations?: "keep" | "recompute";
  /**
   * Times the mean of log²Z, Z a token's sum of exponentials: minimised along with the loss, it keeps logits from drifting
   * (PaLM, Chowdhery et al. 2022, §5). Losses are without it. Default 0.
   */
  zLoss?: number;
  /**
   * Rows of the output projection as the kernels see it, and so columns of the logits: a multiple of this, with zeros
   * past the vocabulary that leave no trace. Default: what suits the device.
   */
  vocabularyMultiple?: number;
}

/**
 * The parameters of a model, group by group (see ParameterStore), in the order of the forward pass.
 * @param vocabularyMultiple of the rows of the output projection
 */
export function parameterGroups(config: ResolvedModelConfig, vocabularyMultiple = 1): ParameterSpec[][] {
  const { vocabSize, dModel, dFf, numLayers, numHeads, numKeyValueHeads, norm, ffn, tieEmbeddings } = config;
  const dKeyValue = (dModel / numHeads) * numKeyValueHeads;
  const gain = (name: string): ParameterSpec[][] => (norm === "none" ? [] : [[{ name, shape: [dModel] }]]);
  const matrix = (name: string, dOut: number, dIn: number) => ({ name: `${name}.weight`, shape: [dOut, dIn] });
  const projection = (name: string) => ({ ...matrix(name, vocabSize, dModel), rowMultiple: vocabularyMultiple });
  const embeddings = tieEmbeddings ? projection("token_embeddings") : matrix("token_embeddings", vocabSize, dModel);
  const groups: ParameterSpec[][] = [[embeddings]];
  for (let i = 0; i < numLayers; i++) {
    const [attn, ffnName] = [`layers.${i}.attn`, `layers.${i}.ffn`];
    const up = [matrix(`${ffnName}.w1`, dFf, dModel)];
    if (ffn === "swiglu") up.push(matrix(`${ffnName}.w3`, dFf, dModel));
    groups.push(...gain(`layers.${i}.ln1.weight`));
    groups.push([
      matrix(`${attn}.q_proj`, dModel, dModel),
      matrix(`${attn}.k_proj`, dKeyValue, dModel),
      matrix(`${attn}.v_proj`, dKeyValue, dModel),
    ]);
    groups.push([matrix(`${attn}.output_proj`, dModel, dModel)]);
    groups.push(...gain(`layers.${i}.ln2.weight`));
    groups.push(up, [matrix(`${ffnName}.w2`, dModel, dFf)]);
  }
  groups.push(...gain("ln_final.weight"));
  if (!tieEmbeddings) groups.push([projection("lm_head")]);
  return groups;
}

/** Everything a training or evaluation step keeps in memory. */
interface Step {
  activations: Activations;
  tokens: Tensor;
  targets: Tensor;
  embedding: Embedding;
  blocks: Block[];
  lnFinal: RMSNorm | null;
  head: Head;
}

export class TransformerLM implements Disposable {
  readonly config: ResolvedModelConfig;
  readonly device: Device;
  readonly batchSize: number;
  readonly precision: Precision;
  readonly activations: "keep" | "recompute";
  readonly zLoss: number;
  readonly store: ParameterStore;
  /** cos/sin table, or null without rotary position embedding. */
  readonly rope: Tensor | null;
  #step: Step | undefined;
  /** What steps of one shape and gradient scale do, the newest last. */
  #repeated = new Map<string, Repeated<Tensor>>();

  /** @throws RangeError for sizes that do not fit together, missing, superfluous or misshapen weights */
  constructor(config: ModelConfig, options: TransformerOptions) {
    this.config = resolveModelConfig(config);
    this.device = options.device;
    this.batchSize = options.batchSize ?? 1;
    checkCount("batchSize", this.batchSize);
    const { contextLength, dModel, numHeads, position } = this.config;
    if (options.weights) checkWeights(parameterGroups(this.config).flat(), options.weights);
    this.activations = options.activations ?? "keep";
    if (this.activations !== "keep" && this.activations !== "recompute") {
      throw new RangeError(`activations must be keep or recompute, not ${String(this.activations)}`);
    }
    this.zLoss = options.zLoss ?? 0;
    if (!(this.zLoss >= 0 && Number.isFinite(this.zLoss))) {
      throw new RangeError(`zLoss must be a number ≥ 0, not ${this.zLoss}`);
    }
    this.precision = options.precision ?? "fp32";
    if (this.precision !== "fp32" && this.precision !== "bf16") {
      throw new RangeError(`precision must be fp32 or bf16, not ${String(this.precision)}`);
    }
    const multiple = options.vocabularyMultiple ?? (this.device.name === "cpu" ? 1 : GPU_VOCABULARY_MULTIPLE);
    checkCount("vocabularyMultiple", multiple);
    const random = new Random(options.seed ?? 0); // refuses a wrong seed before anything is allocated
    this.store = new ParameterStore(this.device, parameterGroups(this.config, multiple), this.type);
    this.rope = position === "rope" ? ropeTable(this.device, contextLength, dModel / numHeads, this.config) : null;
    if (options.weights) this.load(options.weights);
    else if (!this.device.isPlan) this.#initialise(random);
  }

  /** Type of weights and activations. */
  get type(): FloatType {
    return this.precision === "bf16" ? "bfloat16" : "float32";
  }

  /** Name → value and gradient, in the order of the forward pass. */
  parameters(): Map<string, Parameter> {
    return this.store.byName;
  }

  /** The matrix of the output projection, [vocabSize, dModel]. */
  get headParameter(): Parameter {
    return this.store.get(this.config.tieEmbeddings ? "token_embeddings.weight" : "lm_head.weight");
  }

  /** Replaces all weights. @throws RangeError naming the first that is missing, superfluous or misshapen */
  load(weights: Record<string, NdArray>): void {
    checkWeights([...this.parameters().values()], weights);
    for (const parameter of this.parameters().values()) {
      parameter.set(Float32Array.from(weights[parameter.name]!.data));
    }
  }

  /**
   * Mean cross-entropy in nats per token of `targets` given `inputs`, both [batch · length] row by row; adds the
   * gradients (those of `zLoss` too), times `gradientScale`, to the parameters' `grad`.
   * @param length tokens per sequence, at most contextLength (the default)
   * @throws RangeError for a token that is not in the vocabulary or a batch that does not fit
   */
  lossAndGradients(
    inputs: Int32Array,
    targets: Int32Array,
    options: StepOptions & { gradientScale?: number } = {},
  ): number {
    const { gradientScale = 1 } = options;
    // Each token's share must not be 0 in float32, where the kernels take it for the loss alone.
    if (!Number.isFinite(gradientScale) || (gradientScale !== 0 && Math.fround(gradientScale / inputs.length) === 0)) {
      throw new RangeError(`gradientScale must be a finite number, and not tiny: ${gradientScale}`);
    }
    return this.#run(inputs, targets, options, gradientScale);
  }

  /** The loss alone. */
  loss(inputs: Int32Array, targets: Int32Array, options: StepOptions = {}): number {
    return this.#run(inputs, targets, options, 0);
  }

  /**
   * Logits of every position: inputs int32 [batch, length] → float32 [batch, length, vocabSize].
   * @throws RangeError when length exceeds contextLength, the data do not fill the shape or a token is not in the
   *   vocabulary
   */
  logits(inputs: NdArray): NdArray {
    const length = inputs.shape.at(-1);
    const count = elementCount(inputs.shape);
    if (length === undefined || inputs.data.length !== count) {
      const given = `[${inputs.shape.join(", ")}] with ${inputs.data.length} values`;
      throw new RangeError(`logits takes tokens [batch, length], as many as their shape says, not ${given}`);
    }
    this.checkTokens(inputs.data);
    const batch = length === 0 ? 0 : count / length;
    if (length > this.config.contextLength) {
      throw new RangeError(`${length} tokens are more than model.contextLength ${this.config.contextLength}`);
    }
    const shape = [...inputs.shape, this.config.vocabSize];
    if (batch === 0) return { shape, data: new Float32Array(0) };
    using decoder = new Decoder(this, { batchSize: batch, capacity: length });
    return { shape, data: decoder.forward(Int32Array.from(inputs.data), { allLogits: true }) };
  }

  /** @throws RangeError naming the token, its place and the vocabulary's size */
  checkTokens(tokens: ArrayLike<number>): void {
    const { vocabSize } = this.config;
    for (let i = 0; i < tokens.length; i++) {
      const token = tokens[i]!;
      if (Number.isInteger(token) && token >= 0 && token < vocabSize) continue;
      throw new RangeError(`token ${token} at position ${i} is not in a vocabulary of ${vocabSize}`);
    }
  }

  [Symbol.dispose](): void {
    for (const work of this.#repeated.values()) work[Symbol.dispose]();
    this.#step?.activations[Symbol.dispose]();
    this.rope?.[Symbol.dispose]();
    this.store[Symbol.dispose]();
  }

  /** @throws RangeError for a token that is not in the vocabulary or a batch that does not fit */
  checkBatch(inputs: Int32Array, targets: Int32Array, { length = this.config.contextLength }: StepOptions = {}): void {
    const rows = inputs.length;
    if (targets.length !== rows) throw new RangeError(`${rows} inputs but ${targets.length} targets`);
    const isLength = Number.isInteger(length) && length >= 1 && length <= this.config.contextLength;
    if (!isLength || rows === 0 || rows % length !== 0) {
      const limit = `model.contextLength is ${this.config.contextLength}`;
      throw new RangeError(`${rows} tokens are not sequences of ${length} (${limit})`);
    }
    if (rows / length > this.batchSize) {
      throw new RangeError(`${rows / length} sequences are more than the model's batchSize ${this.batchSize}`);
    }
    this.checkTokens(inputs);
    this.checkTokens(targets);
  }

  #run(inputs: Int32Array, targets: Int32Array, options: StepOptions, gradientScale: number): number {
    this.checkBatch(inputs, targets, options);
    const rows = inputs.length;
    this.prepare();
    const step = this.#step!;
    step.tokens.view([rows]).upload(inputs);
    step.targets.view([rows]).upload(targets);
    const loss = this.#compute(rows, options.length ?? this.config.contextLength, gradientScale);
    const value = new Float32Array(new ArrayBuffer(4));
    loss.download(value);
    return value[0]!;
  }

  /**
   * The device's part of `lossAndGradients`, without waiting: on the tokens that lie in `tokens` and `targets` when it is
   * done, whole batches of whole contexts. @returns where the loss will be
   */
  queueLossAndGradients(gradientScale: number): Tensor {
    return this.#compute(this.batch.tokens.count, this.config.contextLength, gradientScale);
  }

  /** The device's part of `loss`, without waiting, on the first `rows` tokens. @returns where the loss will be */
  queueLoss(rows: number, { length = this.config.contextLength }: StepOptions = {}): Tensor {
    return this.#compute(rows, length, 0);
  }

  /** Where a whole batch's tokens lie on the device, int32 [batchSize · contextLength] each. */
  get batch(): { tokens: Tensor; targets: Tensor } {
    this.prepare();
    return this.#step!;
  }

  /** Forward, and backward unless gradientScale is 0, on the first `rows` tokens that lie on the device. */
  #compute(rows: number, length: number, gradientScale: number): Tensor {
    const key = [rows, length, gradientScale].join();
    let repeated = this.#repeated.get(key);
    if (!repeated) {
      const [oldest] = this.#repeated;
      if (oldest && this.#repeated.size === MOST_RECORDS) {
        oldest[1][Symbol.dispose]();
        this.#repeated.delete(oldest[0]);
      }
      const step = this.#step!;
      const [tokens, targets] = [step.tokens.view([rows]), step.targets.view([rows])];
      repeated = new Repeated(this.device, () => this.#pass(step, tokens, targets, length, gradientScale));
      this.#repeated.set(key, repeated);
    }
    return repeated.run();
  }

  #pass(step: Step, tokens: Tensor, targetTokens: Tensor, length: number, gradientScale: number): Tensor {
    let x: Residual = { stream: step.embedding.forward(tokens), update: null };
    for (const block of step.blocks) x = block.forward(x, length);
    const features = step.lnFinal ? step.lnFinal.forward(x.stream, x.update).output : x.stream;
    const { loss, dx } = step.head.forward(features, targetTokens, gradientScale);
    if (gradientScale !== 0) {
      let d = step.lnFinal ? step.lnFinal.backward(dx, null) : dx;
      for (const block of step.blocks.toReversed()) d = block.backward(d, length);
      step.embedding.backward(d, tokens);
    }
    return loss;
  }

  /**
   * Makes all the memory that training and evaluation steps need, which the first of them would otherwise do.
   * @throws NativeError when there is not enough
   */
  prepare(): void {
    if (this.#step) return;
    const activations = new Activations(this.device, this.batchSize, this.config.contextLength, this.type);
    try {
      this.#step = this.#plan(activations);
      void activations.workspace;
    } catch (error) {
      // A smaller batch of another model may have the memory.
      this.#step = undefined;
      activations[Symbol.dispose]();
      throw error;
    }
  }

  /** Builds the layers around the parameters and plans their memory. */
  #plan(activations: Activations): Step {
    const { config, store } = this;
    const { numLayers, dModel } = config;
    const create = (index: number, of: Activations) => createBlock(store, index, config, this.rope, of);
    const blocks =
      this.activations === "recompute"
        ? recomputedBlocks(numLayers, activations, dModel, create)
        : Array.from({ length: numLayers }, (_, i) => create(i, activations));
    const head = store.padded(this.headParameter.name);
    const loss = { vocabSize: config.vocabSize, softCap: config.logitSoftCap, zLoss: this.zLoss };
    return {
      activations,
      tokens: activations.keep([activations.rows], "int32"),
      targets: activations.keep([activations.rows], "int32"),
      embedding: new Embedding(store.get("token_embeddings.weight"), activations),
      blocks,
      lnFinal:
        config.norm === "none" ? null : new RMSNorm(store.get("ln_final.weight"), activations, config.rmsNormEps),
      head: new Head(head.weight, head.dWeight, loss, activations),
    };
  }

  /**
   * CS336 assignment 1, §3.4.1: matrices from N(0, 2 / (dIn + dOut)) truncated at ±3σ, embeddings from N(0, 1)
   * truncated at ±3, gains 1. A tied embedding is drawn as the matrix of the projection that it also is.
   */
  #initialise(random: Random): void {
    const parameters = [...this.parameters().values()];
    // One array for all: what is left to the garbage collector counts as memory in use.
    const room = new Float32Array(new ArrayBuffer(4 * Math.max(0, ...parameters.map(({ value }) => value.count))));
    for (const parameter of parameters) {
      const { name, shape } = parameter;
      const data = room.subarray(0, parameter.value.count);
      if (shape.length === 1) data.fill(1);
      else {
        const isEmbedding = name === "token_embeddings.weight" && !this.config.tieEmbeddings;
        random.truncatedNormal(data, isEmbedding ? 1 : Math.sqrt(2 / (shape[0]! + shape[1]!)));
      }
      parameter.set(data);
    }
  }
}

export interface StepOptions {
  /** Tokens per sequence; default: the model's contextLength. */
  length?: number;
}

function checkWeights(specs: { name: string; shape: readonly number[] }[], weights: Record<string, NdArray>): void {
  for (const { name, shape } of specs) {
    const given = Object.hasOwn(weights, name) ? weights[name] : undefined;
    if (!given) throw new RangeError(`weight ${name} is missing`);
    if (given.shape.join() !== shape.join() || given.data.length !== shape.reduce((a, b) => a * b, 1)) {
      throw new RangeError(`weight ${name} has shape [${given.shape.join(", ")}], not [${shape.join(", ")}]`);
    }
  }
  const names = new Set(specs.map(({ name }) => name));
  const superfluous = Object.keys(weights).find((name) => !names.has(name));
  if (superfluous) throw new RangeError(`weight ${superfluous} is not part of this model`);
}
