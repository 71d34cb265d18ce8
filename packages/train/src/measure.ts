/** What a run measures besides its loss: the sizes of weights and updates, arithmetic, bytes of text. */
import { type Device, type FloatType, NativeError, OUT_OF_MEMORY, Tensor } from "@mantou/model";
import { type TransformerLM, operations } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";

/**
 * Floating-point operations of training on one token: 6 for each weight of a matrix that multiplies activations, and
 * 12 · layers · dModel · contextLength for attention (Chowdhery et al. 2022, "PaLM", appendix B).
 */
export function flopsPerToken(model: TransformerLM): number {
  const { numLayers, dModel, contextLength, tieEmbeddings } = model.config;
  const lookup = tieEmbeddings ? 0 : model.store.get("token_embeddings.weight").value.count;
  return 6 * (model.store.count - lookup) + 12 * numLayers * dModel * contextLength;
}

/** Floating-point operations a second of a square matrix product of that type, the best of a few. */
export function measurePeak(device: Device, type: FloatType): number {
  for (let size = { cpu: 768, cuda: 8192, emulated: 64 }[device.name]; ; size /= 2) {
    try {
      using a = Tensor.zeros(device, [size, size], type);
      using b = Tensor.zeros(device, [size, size], type);
      using c = Tensor.zeros(device, [size, size], type);
      return (2 * size ** 3) / bestSeconds(device, () => operations.matmul(c, a, b));
    } catch (error) {
      // A model that fits shall not fail for the sake of a yardstick.
      if (!(error instanceof NativeError && error.status === OUT_OF_MEMORY) || size === 1) throw error;
    }
  }
}

/** Bytes a second of adding two arrays that no cache holds, the best of a few. */
export function measureBandwidth(device: Device): number {
  const count = 16 << 20;
  using a = Tensor.zeros(device, [count]);
  using b = Tensor.zeros(device, [count]);
  using c = Tensor.zeros(device, [count]);
  return (12 * count) / bestSeconds(device, () => operations.add(c, a, b));
}

function bestSeconds(device: Device, work: () => void): number {
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 4; i++) {
    const started = performance.now();
    work();
    device.synchronize();
    best = Math.min(best, performance.now() - started);
  }
  return best / 1000;
}

/** The norms of weights and of one update. Weights are compared one by one: all of them may not fit into one array. */
export class UpdateProbe {
  #before = new Map<string, Float32Array<ArrayBuffer>>();

  constructor(readonly model: TransformerLM) {}

  /** Copies the weights before an update. */
  begin(): void {
    for (const { name, value } of this.model.parameters().values()) {
      const copy = this.#before.get(name) ?? new Float32Array(new ArrayBuffer(value.count * 4));
      value.download(copy);
      this.#before.set(name, copy);
    }
  }

  /** Compares the weights after it. */
  end(): { paramNorm: number; updateRatio: number; norms: Record<string, number> } {
    const norms: Record<string, number> = {};
    let [weights, change] = [0, 0];
    for (const { name, value } of this.model.parameters().values()) {
      const before = this.#before.get(name);
      if (before === undefined) throw new Error("end() needs begin()");
      const after = value.toFloat32Array();
      let sum = 0;
      for (let i = 0; i < after.length; i++) {
        sum += after[i] * after[i];
        change += (after[i] - before[i]) * (after[i] - before[i]);
      }
      norms[name] = Math.sqrt(sum);
      weights += sum;
    }
    return { paramNorm: Math.sqrt(weights), updateRatio: Math.sqrt(change / weights), norms };
  }
}

/** Bytes of text that each id stands for; special tokens stand for none. */
export function bytesPerToken(tokenizer: Tokenizer): Uint32Array {
  const bytes = new Uint32Array(tokenizer.vocabSize);
  for (const [id, { length }] of tokenizer.vocab) bytes[id] = length;
  for (const id of tokenizer.specialTokens.values()) bytes[id] = 0;
  return bytes;
}
