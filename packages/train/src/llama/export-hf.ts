/** A run as a Hugging Face directory: what transformers loads as LlamaForCausalLM with its tokenizer. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { type TensorEntry, type TransformerLM, safetensorsChunks, writeAtomically } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { toHuggingFace } from "@mantou/tokenizer/formats";
import { END_OF_TEXT } from "../prompt.ts";
import { toHuggingFaceConfig } from "./config.ts";
import { llamaTensors, toHalfSplit } from "./weights.ts";

/** Number formats of the weights, and what transformers calls them. */
export const HF_DTYPES = { f32: "float32", f16: "float16", bf16: "bfloat16" } as const;

/**
 * Writes `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json`,
 * the weights last.
 * @param directory made if it is not there
 * @returns the names of the files
 * @throws UserError for a model that is no Llama, before anything is written
 */
export function exportHuggingFace(
  directory: string,
  model: TransformerLM,
  tokenizer: Tokenizer,
  dtype: keyof typeof HF_DTYPES,
): string[] {
  const { config } = model;
  const endOfText = tokenizer.specialTokens.get(END_OF_TEXT);
  const end = endOfText === undefined ? null : END_OF_TEXT;
  const texts = {
    "config.json": toHuggingFaceConfig(config, HF_DTYPES[dtype], endOfText),
    "generation_config.json": { bos_token_id: endOfText ?? null, eos_token_id: endOfText ?? null },
    "tokenizer.json": toHuggingFace(tokenizer),
    "tokenizer_config.json": {
      tokenizer_class: "PreTrainedTokenizerFast",
      model_max_length: config.contextLength,
      clean_up_tokenization_spaces: false,
      bos_token: end,
      eos_token: end,
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
  mkdirSync(directory, { recursive: true });
  for (const [name, content] of Object.entries(texts)) {
    const text = typeof content === "string" ? content : `${JSON.stringify(content, null, 2)}\n`;
    writeAtomically(join(directory, name), [new TextEncoder().encode(text)]);
  }
  writeAtomically(join(directory, "model.safetensors"), safetensorsChunks(entries, { format: "pt" }));
  return [...Object.keys(texts), "model.safetensors"];
}
