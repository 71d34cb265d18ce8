/** A run as a GGUF file for llama.cpp, architecture "llama". */
import {
  type ResolvedModelConfig,
  type TransformerLM,
  ropeFrequencies,
  toBfloat16,
  toFloat16,
  writeAtomically,
} from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { checkLlama } from "./config.ts";
import { type GgufTensor, type GgufValue, ggufChunks } from "./gguf.ts";
import { tokenizerMetadata } from "./gguf-tokenizer.ts";
import { llamaTensors } from "./weights.ts";

/** Formats of the matrices: ggml's type, bytes of `count` numbers, and llama.cpp's file type. */
export const GGUF_TYPES = {
  f32: { type: 0, fileType: 0, block: 1, blockBytes: 4 },
  f16: { type: 1, fileType: 1, block: 1, blockBytes: 2 },
  q8_0: { type: 8, fileType: 7, block: 32, blockBytes: 34 },
  bf16: { type: 30, fileType: 32, block: 1, blockBytes: 2 },
} as const;

export type GgufType = keyof typeof GGUF_TYPES;

/**
 * Writes the file; it appears whole or not at all.
 * @param options type: of the matrices; gains stay f32, and rows that are no multiple of q8_0's 32 numbers become f16
 * @throws UserError for a model that is no Llama or a tokenizer that llama.cpp does not have, before anything is written
 */
export function exportGguf(
  path: string,
  model: TransformerLM,
  tokenizer: Tokenizer,
  options: { type: GgufType; name: string },
): void {
  const { config } = model;
  checkLlama(config);
  const metadata = {
    ...modelMetadata(config, options),
    ...tokenizerMetadata(tokenizer, config.vocabSize),
  };
  const tensors: GgufTensor[] = llamaTensors(config).map(({ name, gguf, shape }) => {
    const type = typeOf(options.type, shape);
    const values = () => model.store.get(name).value.toFloat32Array();
    return { name: gguf, shape, ...encoded(type, shape, values) };
  });
  if (config.ropeScaling === "llama3") {
    const factors = ropeFactors(config);
    tensors.push({
      name: "rope_freqs.weight",
      shape: [factors.length],
      ...encoded("f32", [factors.length], () => factors),
    });
  }
  writeAtomically(path, ggufChunks(metadata, tensors));
}

function typeOf(asked: GgufType, shape: readonly number[]): GgufType {
  if (shape.length === 1) return "f32";
  return asked === "q8_0" && shape[1]! % GGUF_TYPES.q8_0.block !== 0 ? "f16" : asked;
}

function encoded(type: GgufType, shape: readonly number[], values: () => Float32Array) {
  const { block, blockBytes, type: number } = GGUF_TYPES[type];
  const bytes = (shape.reduce((a, b) => a * b, 1) / block) * blockBytes;
  return { type: number, bytes, data: () => encode(type, values()) };
}

function encode(type: GgufType, values: Float32Array): Uint8Array {
  if (type === "q8_0") return quantizeQ8(values);
  const result = type === "f32" ? values : type === "f16" ? toFloat16(values) : toBfloat16(values);
  return new Uint8Array(result.buffer, result.byteOffset, result.byteLength);
}

/**
 * ggml's Q8_0: blocks of 32 numbers, each a float16 scale d = max |x| / 127 and 32 whole numbers round(x / d). Rounding is
 * half away from zero, as C's roundf.
 */
export function quantizeQ8(values: Float32Array): Uint8Array {
  const { block, blockBytes } = GGUF_TYPES.q8_0;
  const count = values.length / block;
  const scales = new Float32Array(count);
  const result = new Uint8Array(count * blockBytes);
  const signed = new Int8Array(result.buffer);
  for (let b = 0; b < count; b++) {
    const part = values.subarray(b * block, (b + 1) * block);
    const scale = Math.fround(part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 127);
    scales[b] = scale;
    const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    for (let i = 0; i < block; i++) {
      const scaled = Math.fround(part[i]! * inverse);
      signed[b * blockBytes + 2 + i] = Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5);
    }
  }
  const halves = toFloat16(scales);
  const view = new DataView(result.buffer);
  for (let b = 0; b < count; b++) view.setUint16(b * blockBytes, halves[b]!, true);
  return result;
}

/** By how much llama.cpp is to divide each rotary frequency. */
function ropeFactors(config: ResolvedModelConfig): Float32Array {
  const headDim = config.dModel / config.numHeads;
  const scaled = ropeFrequencies(headDim, config);
  return Float32Array.from(ropeFrequencies(headDim, { ropeTheta: config.ropeTheta }), (f, i) => f / scaled[i]!);
}

function modelMetadata(
  config: ResolvedModelConfig,
  { type, name }: { type: GgufType; name: string },
): Record<string, GgufValue> {
  const uint32 = (value: number): GgufValue => ({ type: "uint32", value });
  const float32 = (value: number): GgufValue => ({ type: "float32", value });
  const text = (value: string): GgufValue => ({ type: "string", value });
  const scaling: Record<string, GgufValue> =
    config.ropeScaling === "linear"
      ? { "llama.rope.scaling.type": text("linear"), "llama.rope.scaling.factor": float32(config.ropeFactor) }
      : {};
  return {
    "general.architecture": text("llama"),
    "general.name": text(name),
    "general.file_type": uint32(GGUF_TYPES[type].fileType),
    "general.quantization_version": uint32(2),
    "general.alignment": uint32(32),
    "llama.context_length": uint32(config.contextLength),
    "llama.embedding_length": uint32(config.dModel),
    "llama.block_count": uint32(config.numLayers),
    "llama.feed_forward_length": uint32(config.dFf),
    "llama.attention.head_count": uint32(config.numHeads),
    "llama.attention.head_count_kv": uint32(config.numKeyValueHeads),
    "llama.attention.layer_norm_rms_epsilon": float32(config.rmsNormEps),
    "llama.rope.dimension_count": uint32(config.dModel / config.numHeads),
    "llama.rope.freq_base": float32(config.ropeTheta),
    ...scaling,
    "llama.vocab_size": uint32(config.vocabSize),
  };
}
