/**
 * Inference with a key/value cache: each call takes the next tokens of every sequence and gives logits. The same
 * equations as the layers, without what only a backward pass needs.
 */
import { RMSNORM_EPS } from "./config.ts";
import { headShape } from "./layers/attention.ts";
import { add, attentionCached, embeddingForward, matmul, rmsnormForward } from "./operations.ts";
import { siluForward, swigluForward } from "./operations.ts";
import { Tensor } from "./tensor.ts";
import type { TransformerLM } from "./transformer.ts";

/** Logits alive at once when all positions are asked for. */
const LOGIT_ELEMENTS = 4 << 20;

export class Decoder implements Disposable {
  /** Tokens of each sequence that the cache holds. */
  position = 0;
  readonly batchSize: number;
  readonly capacity: number;
  #caches: { k: Tensor; v: Tensor }[];
  #buffers = new Map<string, Tensor>();

  /** @param options batchSize: sequences side by side; capacity: most tokens of each, at most contextLength */
  constructor(
    readonly model: TransformerLM,
    options: { batchSize?: number; capacity?: number } = {},
  ) {
    const { contextLength, numLayers } = model.config;
    this.batchSize = options.batchSize ?? 1;
    this.capacity = options.capacity ?? contextLength;
    if (this.capacity > contextLength) {
      throw new RangeError(`${this.capacity} tokens are more than model.contextLength ${contextLength}`);
    }
    const { kvHeads, headDim } = headShape(model.config);
    const shape = [this.batchSize, this.capacity, kvHeads * headDim];
    this.#caches = Array.from({ length: numLayers }, () => ({
      k: Tensor.zeros(model.device, shape),
      v: Tensor.zeros(model.device, shape),
    }));
  }

  /** Forgets all tokens. */
  reset(): void {
    this.position = 0;
  }

  /**
   * Takes the next tokens, int32 [batchSize, length], into the cache.
   * @returns logits of the last position, [batchSize, vocabSize], or of all, [batchSize, length, vocabSize]
   * @throws RangeError when the cache is full or a token is not in the vocabulary
   */
  forward(tokens: Int32Array, options: { allLogits?: boolean } = {}): Float32Array {
    const { model, batchSize: batch } = this;
    const { config, store, device } = model;
    const rows = tokens.length;
    const length = rows / batch;
    if (!Number.isInteger(length) || length === 0) throw new RangeError(`${rows} tokens for ${batch} sequences`);
    if (this.position + length > this.capacity) {
      throw new RangeError(`${this.position} + ${length} tokens exceed the cache's capacity ${this.capacity}`);
    }
    model.checkTokens(tokens);
    const ids = this.#buffer("tokens", [rows], "int32");
    ids.upload(tokens);
    const [x, normed, update] = ["x", "normed", "update"].map((name) => this.#buffer(name, [rows, config.dModel]));
    embeddingForward(x!, store.get("token_embeddings.weight").value, ids);

    // value = x + update, where update is what a norm has yet to add (see layers/block.ts).
    const addAndNorm = (name: string, residual: Tensor | null, output: Tensor) => {
      const rstd = this.#buffer("rstd", [rows]);
      const gain = store.get(name).value;
      rmsnormForward({ output, sum: residual && x!, rstd }, { input: x!, residual, gain, eps: RMSNORM_EPS });
    };
    let pending: Tensor | null = null;
    for (let layer = 0; layer < config.numLayers; layer++) {
      const prefix = `layers.${layer}`;
      if (config.norm === "pre") addAndNorm(`${prefix}.ln1.weight`, pending, normed!);
      this.#attend(layer, config.norm === "pre" ? normed! : x!, update!);
      if (config.norm === "pre") addAndNorm(`${prefix}.ln2.weight`, update!, normed!);
      else if (config.norm === "post") this.#postNorm(`${prefix}.ln1.weight`, x!, update!);
      else add(x!, x!, update!);
      this.#feedForward(layer, config.norm === "pre" ? normed! : x!, update!);
      if (config.norm === "pre") pending = update!;
      else if (config.norm === "post") this.#postNorm(`${prefix}.ln2.weight`, x!, update!);
      else add(x!, x!, update!);
    }
    if (config.norm !== "none") addAndNorm("ln_final.weight", pending, normed!);
    this.position += length;
    const features = config.norm === "none" ? x! : normed!;
    return options.allLogits ? this.#project(features) : this.#project(this.#lastRows(features, length, device));
  }

  [Symbol.dispose](): void {
    for (const { k, v } of this.#caches) {
      k[Symbol.dispose]();
      v[Symbol.dispose]();
    }
    for (const buffer of this.#buffers.values()) buffer[Symbol.dispose]();
  }

  /** x = RMSNorm(x + update). */
  #postNorm(name: string, x: Tensor, update: Tensor): void {
    const sum = this.#buffer("sum", [x.rows, x.columns]);
    const rstd = this.#buffer("rstd", [x.rows]);
    const gain = this.model.store.get(name).value;
    rmsnormForward({ output: x, sum, rstd }, { input: update, residual: x, gain, eps: RMSNORM_EPS });
  }

  #attend(layer: number, input: Tensor, output: Tensor): void {
    const { store, config, rope } = this.model;
    const prefix = `layers.${layer}.attn`;
    const weight = store.stacked(["q", "k", "v"].map((part) => `${prefix}.${part}_proj.weight`)).weight;
    const qkv = this.#buffer("qkv", [input.rows, weight.rows]);
    const attended = this.#buffer("attended", [input.rows, config.dModel]);
    matmul(qkv, input, weight, { transposeB: true });
    const { k: kCache, v: vCache } = this.#caches[layer]!;
    const shape = { batch: this.batchSize, length: input.rows / this.batchSize, ...headShape(config), rope };
    attentionCached(attended, { qkv, kCache, vCache, start: this.position, capacity: this.capacity }, shape);
    matmul(output, attended, store.get(`${prefix}.output_proj.weight`).value, { transposeB: true });
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
    matmul(output, hidden, store.get(`${prefix}.w2.weight`).value, { transposeB: true });
  }

  /** Each sequence's last row of [batch · length, dModel]. */
  #lastRows(features: Tensor, length: number, device: TransformerLM["device"]): Tensor {
    if (length === 1) return features;
    const last = this.#buffer("last", [this.batchSize, features.columns]);
    for (let b = 0; b < this.batchSize; b++) {
      const row = features.slice((b + 1) * length - 1, 1);
      device.run("mantou_copy", last.slice(b, 1), row, row.count * 4);
    }
    return last;
  }

  #project(features: Tensor): Float32Array {
    const weight = this.model.headParameter.value;
    const result = new Float32Array(new ArrayBuffer(features.rows * weight.rows * 4));
    const chunk = Math.max(1, Math.min(features.rows, Math.floor(LOGIT_ELEMENTS / weight.rows)));
    for (let first = 0; first < features.rows; first += chunk) {
      const count = Math.min(chunk, features.rows - first);
      const logits = this.#buffer("logits", [count, weight.rows]);
      matmul(logits, features.slice(first, count), weight, { transposeB: true });
      logits.download(result.subarray(first * weight.rows, (first + count) * weight.rows));
    }
    return result;
  }

  /** The buffer of that name, grown if it is too small. */
  #buffer(name: string, shape: number[], dtype: "float32" | "int32" = "float32"): Tensor {
    const count = shape.reduce((a, b) => a * b, 1);
    let buffer = this.#buffers.get(name);
    if (!buffer || buffer.count < count) {
      buffer?.[Symbol.dispose]();
      buffer = Tensor.zeros(this.model.device, [count], dtype);
      this.#buffers.set(name, buffer);
    }
    return buffer.view(shape);
  }
}
