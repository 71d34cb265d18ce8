/**
 * Inference with a key/value cache: each call takes the next tokens of some sequences and gives logits. The same
 * equations as the layers, without what only a backward pass needs. Sequences lie in slots of the cache, each as long as
 * it happens to be, so that one can end and another begin while the rest go on (continuous batching, Yu et al. 2022,
 * "Orca", §3).
 */
import { checkCount } from "./config.ts";
import { headShape } from "./layers/attention.ts";
import { HEAD_NORM_EPS } from "./layers/head-norm.ts";
import { add, attentionCached, embeddingForward, matmul, rmsnormForward } from "./operations.ts";
import { scale, siluForward, softmax, swigluForward } from "./operations.ts";
import { Repeated } from "./repeated.ts";
import { type DType, Tensor } from "./tensor.ts";
import type { TransformerLM } from "./transformer.ts";

/** Logits alive at once when all positions are asked for. */
const LOGIT_ELEMENTS = 4 << 20;

export interface DecodeOptions {
  /** Whose tokens they are, each slot at most once. Default: all of them. */
  slots?: readonly number[];
  /** Logits of every position, not only of the last. */
  allLogits?: boolean;
  /**
   * Of each sequence: its softmax of logits / temperature in place of the logits, computed on the device; 0 for logits.
   * Not with allLogits, nor for models with a soft cap.
   */
  temperatures?: readonly number[];
}

export class Decoder implements Disposable {
  /** Tokens that each slot holds. */
  readonly positions: Int32Array;
  readonly batchSize: number;
  readonly capacity: number;
  /** One a layer. */
  #keys: Tensor[] = [];
  #values: Tensor[] = [];
  #buffers = new Map<string, Tensor>();
  /** Steps of one token each, by the number of sequences. */
  #steps = new Map<number, Repeated<Tensor>>();
  /** Gains of the norm of heads. */
  #ones: Tensor | null = null;

  /** @param options batchSize: slots, one a sequence; capacity: most tokens of each, at most contextLength */
  constructor(
    readonly model: TransformerLM,
    options: { batchSize?: number; capacity?: number } = {},
  ) {
    const { contextLength, numLayers, qkNorm } = model.config;
    this.batchSize = options.batchSize ?? 1;
    this.capacity = options.capacity ?? contextLength;
    checkCount("batchSize", this.batchSize);
    checkCount("capacity", this.capacity);
    if (this.capacity > contextLength) {
      throw new RangeError(`${this.capacity} tokens are more than model.contextLength ${contextLength}`);
    }
    this.positions = new Int32Array(this.batchSize);
    const { kvHeads, headDim } = headShape(model.config);
    const shape = [this.batchSize, this.capacity, kvHeads * headDim];
    const cache = () => Tensor.zeros(model.device, shape, model.type, "key/value cache");
    try {
      for (let layer = 0; layer < numLayers; layer++) {
        this.#keys.push(cache());
        this.#values.push(cache());
      }
      if (qkNorm) this.#ones = Tensor.from(model.device, [headDim], new Float32Array(headDim).fill(1), model.type);
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Forgets the tokens of one slot, or of all. */
  reset(slot?: number): void {
    if (slot === undefined) this.positions.fill(0);
    else if (this.positions[slot] === undefined) throw new RangeError(this.#noSlot(slot));
    else this.positions[slot] = 0;
  }

  /**
   * Takes the next tokens of some sequences, the same number of each, into the cache: int32 [slots.length, length].
   * @returns logits of the last position, [slots.length, vocabSize], or of all, [slots.length, length, vocabSize]
   * @throws RangeError when a slot is full or is none, or a token is not in the vocabulary, or temperatures are given
   *   where they cannot be
   */
  forward(tokens: Int32Array, options: DecodeOptions = {}): Float32Array {
    const { model } = this;
    const { allLogits = false, temperatures = [] } = options;
    const slots = options.slots ?? Array.from(this.positions.keys());
    const batch = slots.length;
    const rows = tokens.length;
    const length = rows / batch;
    if (!Number.isInteger(length) || length === 0) throw new RangeError(`${rows} tokens for ${batch} sequences`);
    this.#checkSlots(slots, length);
    if (temperatures.length > 0) this.#checkTemperatures(temperatures, batch, allLogits);
    model.checkTokens(tokens);
    const starts = slots.map((slot) => this.positions[slot]!);
    this.#buffer("starts", [batch], "int32").upload(Int32Array.from(starts));
    this.#buffer("slots", [batch], "int32").upload(Int32Array.from(slots));
    this.#buffer("tokens", [rows], "int32").upload(tokens);
    let logits: Float32Array;
    if (length === 1 && batch <= this.#logitRows) logits = this.#download(this.#step(batch), temperatures);
    else {
      const features = this.#features(batch, rows);
      logits = this.#project(allLogits ? features : this.#lastRows(features, batch), temperatures);
    }
    for (const slot of slots) this.positions[slot]! += length;
    return logits;
  }

  /** The logits of one token more of every sequence. */
  #step(batch: number): Tensor {
    let step = this.#steps.get(batch);
    if (!step) {
      step = new Repeated(this.model.device, () => this.#logits(this.#features(batch, batch)));
      this.#steps.set(batch, step);
    }
    return step.run();
  }

  /** What the output projection reads, [rows, dModel], of the tokens that were uploaded. */
  #features(batch: number, rows: number): Tensor {
    const { config, store } = this.model;
    const places = { starts: this.#buffer("starts", [batch], "int32"), slots: this.#buffer("slots", [batch], "int32") };
    const ids = this.#buffer("tokens", [rows], "int32");
    const [x, normed, update] = ["x", "normed", "update"].map((name) => this.#buffer(name, [rows, config.dModel]));
    embeddingForward(x!, store.get("token_embeddings.weight").weight, ids);

    // value = x + update, where update is what a norm has yet to add (see layers/block.ts).
    const addAndNorm = (name: string, residual: Tensor | null, output: Tensor) => {
      const rstd = this.#buffer("rstd", [rows], "float32");
      const gain = store.get(name).weight;
      rmsnormForward({ output, sum: residual && x!, rstd }, { input: x!, residual, gain, eps: config.rmsNormEps });
    };
    let pending: Tensor | null = null;
    for (let layer = 0; layer < config.numLayers; layer++) {
      const prefix = `layers.${layer}`;
      if (config.norm === "pre") addAndNorm(`${prefix}.ln1.weight`, pending, normed!);
      this.#attend(layer, config.norm === "pre" ? normed! : x!, update!, places);
      if (config.norm === "pre") addAndNorm(`${prefix}.ln2.weight`, update!, normed!);
      else if (config.norm === "post") this.#postNorm(`${prefix}.ln1.weight`, x!, update!);
      else add(x!, x!, update!);
      this.#feedForward(layer, config.norm === "pre" ? normed! : x!, update!);
      if (config.norm === "pre") pending = update!;
      else if (config.norm === "post") this.#postNorm(`${prefix}.ln2.weight`, x!, update!);
      else add(x!, x!, update!);
    }
    if (config.norm !== "none") addAndNorm("ln_final.weight", pending, normed!);
    return config.norm === "none" ? x! : normed!;
  }

  [Symbol.dispose](): void {
    this.#forgetSteps();
    this.#ones?.[Symbol.dispose]();
    for (const cache of [...this.#keys, ...this.#values]) cache[Symbol.dispose]();
    for (const buffer of this.#buffers.values()) buffer[Symbol.dispose]();
  }

  #noSlot(slot: number): string {
    return `there is no slot ${slot}: the cache has ${this.batchSize}`;
  }

  #checkSlots(slots: readonly number[], length: number): void {
    const seen = new Set<number>();
    for (const slot of slots) {
      const position = this.positions[slot];
      if (position === undefined) throw new RangeError(this.#noSlot(slot));
      if (seen.has(slot)) throw new RangeError(`slot ${slot} is given twice`);
      seen.add(slot);
      if (position + length > this.capacity) {
        throw new RangeError(`${position} + ${length} tokens exceed the cache's capacity ${this.capacity}`);
      }
    }
  }

  #checkTemperatures(temperatures: readonly number[], batch: number, allLogits: boolean): void {
    const { length } = temperatures;
    if (length !== batch) throw new RangeError(`${length} temperatures for ${batch} sequences: give one for each`);
    const wrong = temperatures.find((temperature) => !(temperature >= 0 && Number.isFinite(temperature)));
    if (wrong !== undefined) throw new RangeError(`temperatures must be numbers ≥ 0, not ${wrong}`);
    if (allLogits) throw new RangeError("temperatures are of last positions: not with allLogits");
    const { logitSoftCap } = this.model.config;
    if (logitSoftCap > 0 && temperatures.some((temperature) => temperature > 0)) {
      throw new RangeError(`temperatures must be 0 where logitSoftCap is ${logitSoftCap}: the cap comes first`);
    }
  }

  /** x = RMSNorm(x + update). */
  #postNorm(name: string, x: Tensor, update: Tensor): void {
    const sum = this.#buffer("sum", [x.rows, x.columns]);
    const rstd = this.#buffer("rstd", [x.rows], "float32");
    const gain = this.model.store.get(name).weight;
    rmsnormForward({ output: x, sum, rstd }, { input: update, residual: x, gain, eps: this.model.config.rmsNormEps });
  }

  #attend(layer: number, input: Tensor, output: Tensor, places: { starts: Tensor; slots: Tensor }): void {
    const { store, config, rope } = this.model;
    const prefix = `layers.${layer}.attn`;
    const weight = store.stacked(["q", "k", "v"].map((part) => `${prefix}.${part}_proj.weight`)).weight;
    const qkv = this.#buffer("qkv", [input.rows, weight.rows]);
    const attended = this.#buffer("attended", [input.rows, config.dModel]);
    matmul(qkv, input, weight, { transposeB: true });
    const [kCache, vCache] = [this.#keys[layer]!, this.#values[layer]!];
    const batch = places.starts.count;
    const shape = { batch, length: input.rows / batch, ...headShape(config), rope };
    const normed = config.qkNorm ? this.#normHeads(qkv) : qkv;
    attentionCached(attended, { qkv: normed, values: qkv, kCache, vCache, capacity: this.capacity, ...places }, shape);
    matmul(output, attended, store.get(`${prefix}.output_proj.weight`).weight, { transposeB: true });
  }

  /** Packed rows with every head's root mean square 1. */
  #normHeads(qkv: Tensor): Tensor {
    const { headDim } = headShape(this.model.config);
    const heads = [qkv.count / headDim, headDim];
    const normed = this.#buffer("normedHeads", [qkv.rows, qkv.columns]);
    const rstd = this.#buffer("headRstd", [qkv.count / headDim], "float32");
    const given = { input: qkv.view(heads), residual: null, gain: this.#ones!, eps: HEAD_NORM_EPS };
    rmsnormForward({ output: normed.view(heads), sum: null, rstd }, given);
    return normed;
  }

  #feedForward(layer: number, input: Tensor, output: Tensor): void {
    const { store, config } = this.model;
    const prefix = `layers.${layer}.ffn`;
    const gated = config.ffn === "swiglu";
    const names = gated ? ["w1", "w3"] : ["w1"];
    const { weight } = store.stacked(names.map((name) => `${prefix}.${name}.weight`));
    const up = this.#buffer("up", [input.rows, weight.rows]);
    const hidden = this.#buffer("hidden", [input.rows, config.dFf]);
    matmul(up, input, weight, { transposeB: true });
    if (gated) swigluForward(hidden, up);
    else siluForward(hidden, up);
    matmul(output, hidden, store.get(`${prefix}.w2.weight`).weight, { transposeB: true });
  }

  /** Each sequence's last row of [batch · length, dModel]. */
  #lastRows(features: Tensor, batch: number): Tensor {
    const length = features.rows / batch;
    if (length === 1) return features;
    const last = this.#buffer("last", [batch, features.columns]);
    for (let b = 0; b < batch; b++) {
      const row = features.slice((b + 1) * length - 1, 1);
      last.slice(b, 1).copyFrom(row);
    }
    return last;
  }

  /** Rows of logits alive at once. */
  get #logitRows(): number {
    return Math.max(1, Math.floor(LOGIT_ELEMENTS / this.model.headParameter.weight.rows));
  }

  #project(features: Tensor, temperatures: readonly number[]): Float32Array {
    const { rows } = features;
    const columns = this.model.headParameter.weight.rows;
    const result = new Float32Array(new ArrayBuffer(rows * columns * 4));
    for (let first = 0; first < rows; first += this.#logitRows) {
      const count = Math.min(this.#logitRows, rows - first);
      const logits = this.#logits(features.slice(first, count));
      const place = result.subarray(first * columns, (first + count) * columns);
      this.#download(logits, temperatures.slice(first, first + count), place);
    }
    return result;
  }

  /** Logits of some rows, before the soft cap. */
  #logits(features: Tensor): Tensor {
    const { weight } = this.model.headParameter;
    const logits = this.#buffer("logits", [features.rows, weight.rows], "float32");
    matmul(logits, features, weight, { transposeB: true });
    return logits;
  }

  #download(
    logits: Tensor,
    temperatures: readonly number[],
    result = new Float32Array(new ArrayBuffer(4 * logits.count)),
  ): Float32Array {
    this.#weigh(logits, temperatures);
    logits.download(result);
    const cap = this.model.config.logitSoftCap;
    if (cap > 0) for (let i = 0; i < result.length; i++) result[i] = cap * Math.tanh(result[i]! / cap);
    return result;
  }

  /** Softmax of the rows that have a temperature. */
  #weigh(logits: Tensor, temperatures: readonly number[]): void {
    if (!temperatures.some((temperature) => temperature > 0)) return;
    const factors = this.#buffer("factors", [logits.rows], "float32");
    factors.upload(Float32Array.from(temperatures, (temperature) => 1 / temperature));
    temperatures.forEach((temperature, i) => {
      if (temperature === 0) return;
      const row = logits.slice(i, 1);
      if (temperature !== 1) scale(row, factors.view([1], i));
      softmax(row, row, 1, row.count, 1);
    });
  }

  /** The buffer of that name, grown if it is too small. */
  #buffer(name: string, shape: number[], dtype: DType = this.model.type): Tensor {
    const count = shape.reduce((a, b) => a * b, 1);
    let buffer = this.#buffers.get(name);
    if (!buffer || buffer.count < count) {
      // What was recorded refers to the old one.
      if (buffer) this.#forgetSteps();
      buffer?.[Symbol.dispose]();
      buffer = Tensor.zeros(this.model.device, [count], dtype, "activations");
      this.#buffers.set(name, buffer);
    }
    return buffer.view(shape);
  }

  #forgetSteps(): void {
    for (const step of this.#steps.values()) step[Symbol.dispose]();
    this.#steps.clear();
  }
}
