/** A run as a Hugging Face directory: what transformers loads as LlamaForCausalLM with its tokenizer. */
import { mkdirSync, rmSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { type TensorEntry, type TransformerLM, safetensorsChunks, writeAtomically } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { toHuggingFace } from "@mantou/tokenizer/formats";
import { documentMarks } from "../prompt.ts";
import { toHuggingFaceConfig } from "./config.ts";
import { llamaTensors, toHalfSplit } from "./weights.ts";

/** Number formats of the weights, and what transformers calls them. */
export const HF_DTYPES = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

export interface HuggingFaceOptions {
  dtype: keyof typeof HF_DTYPES;
  /** Most bytes of tensors in a file, but at least one tensor. Default 5 GB, as transformers. */
  maxShardBytes?: number;
}

/**
 * Writes `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and, last, the weights:
 * `model.safetensors`, or where they are more than a shard `model-00001-of-0000N.safetensors` … and then their index.
 * @param directory made if it is not there
 * @returns the names of the files
 * @throws UserError for a model that is no Llama; the system's errors. Nothing is left behind then
 */
export function exportHuggingFace(
  directory: string,
  model: TransformerLM,
  tokenizer: Tokenizer,
  { dtype, maxShardBytes = 5e9 }: HuggingFaceOptions,
): string[] {
  const { config } = model;
  const marks = documentMarks(tokenizer);
  const texts = {
    "config.json": toHuggingFaceConfig(config, HF_DTYPES[dtype], marks),
    "generation_config.json": { bos_token_id: marks?.begin.id ?? null, eos_token_id: marks?.end.id ?? null },
    "tokenizer.json": toHuggingFace(tokenizer),
    "tokenizer_config.json": {
      tokenizer_class: "PreTrainedTokenizerFast",
      model_max_length: config.contextLength,
      clean_up_tokenization_spaces: false,
      bos_token: marks?.begin.text ?? null,
      eos_token: marks?.end.text ?? null,
      add_bos_token: false,
      add_eos_token: false,
    },
  };
  const entries: TensorEntry[] = llamaTensors(config).map(({ name, huggingFace, shape, rotaryHeads }) => ({
    name: huggingFace,
    dtype: dtype.toUpperCase() as TensorEntry["dtype"],
    shape,
    data: () => {
      const values = model.store.get(name).value.toFloat32Array();
      return rotaryHeads === undefined ? values : toHalfSplit(values, rotaryHeads, shape[1]!);
    },
  }));
  const isNew = mkdirSync(directory, { recursive: true }) !== undefined;
  const names: string[] = [];
  const write: Write = (name, chunks) => {
    writeAtomically(join(directory, name), chunks);
    names.push(name);
  };
  try {
    for (const [name, content] of Object.entries(texts)) {
      write(name, typeof content === "string" ? [new TextEncoder().encode(content)] : jsonChunks(content));
    }
    writeWeights(write, entries, maxShardBytes);
  } catch (error) {
    // Half an export would stand in the way of the next.
    for (const name of names) rmSync(join(directory, name), { force: true });
    if (isNew) rmdirSync(directory);
    throw error;
  }
  return names;
}

type Write = (name: string, chunks: Iterable<Uint8Array>) => void;

function jsonChunks(content: object): Uint8Array[] {
  return [new TextEncoder().encode(`${JSON.stringify(content, null, 2)}\n`)];
}

/** Writes the weights in one file, or in shards with an index, which comes last. */
function writeWeights(write: Write, entries: TensorEntry[], maxShardBytes: number): void {
  const shards = intoShards(entries, maxShardBytes);
  const number = (of: number) => String(of).padStart(5, "0");
  const names = shards.map((_, i) =>
    shards.length === 1 ? "model.safetensors" : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`,
  );
  shards.forEach((shard, i) => {
    write(names[i]!, safetensorsChunks(shard, { format: "pt" }));
  });
  if (shards.length === 1) return;
  const places = shards.flatMap((shard, i) => shard.map(({ name }) => [name, names[i]!]));
  const index = {
    metadata: { total_size: entries.reduce((sum, entry) => sum + bytesOf(entry), 0) },
    weight_map: Object.fromEntries(places) as Record<string, string>,
  };
  write("model.safetensors.index.json", jsonChunks(index));
}

/** Cuts the tensors, in order, into parts of at most so many bytes; a larger tensor is a part of its own. */
function intoShards(entries: TensorEntry[], maxBytes: number): TensorEntry[][] {
  const shards: TensorEntry[][] = [[]];
  let bytes = 0;
  for (const entry of entries) {
    const own = bytesOf(entry);
    if (bytes > 0 && bytes + own > maxBytes) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)!.push(entry);
    bytes += own;
  }
  return shards;
}

function bytesOf({ shape, dtype }: TensorEntry): number {
  return shape.reduce((a, b) => a * b, dtype === "F32" ? 4 : 2);
}
