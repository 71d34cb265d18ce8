/** A Hugging Face checkpoint of the Llama architecture as a run: config, weights in safetensors, `tokenizer.json`. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Device, type ModelConfig, SafetensorsError, SafetensorsFile, TransformerLM } from "@mantou/model";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { fromHuggingFaceConfig } from "./config.ts";
import { type LlamaTensor, llamaTensors, toNeighbours } from "./weights.ts";

const FETCH = "fetch the whole checkpoint again";

/** @throws UserError naming the file that is missing */
export function readText(path: string): string {
  if (!existsSync(path)) {
    throw new UserError(`there is no ${path}`, { fix: "give a directory as transformers saves it" });
  }
  return readFileSync(path, "utf8");
}

function readJson(path: string): unknown {
  const text = readText(path);
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new UserError(`${path} is not valid JSON: ${(cause as Error).message}`, { fix: "fetch it again", cause });
  }
}

/** The model's config in a directory. @throws UserError for one that is no Llama or that we cannot build */
export function readLlamaConfig(directory: string): ReturnType<typeof fromHuggingFaceConfig> {
  const path = join(directory, "config.json");
  return fromHuggingFaceConfig(readJson(path), path);
}

/** The weights of a directory, opened: one file, or as many as the index names. */
export class LlamaWeights implements Disposable {
  #files = new Map<string, SafetensorsFile>();
  /** File of each tensor. */
  #places = new Map<string, string>();

  /** @throws UserError for weights that are missing, damaged, superfluous or of another shape */
  constructor(
    readonly directory: string,
    readonly config: ReturnType<typeof fromHuggingFaceConfig>,
  ) {
    try {
      this.#open();
      this.#check();
    } catch (error) {
      this[Symbol.dispose]();
      if (!(error instanceof SafetensorsError)) throw error;
      throw new UserError(error.message, { fix: "fetch it again", cause: error });
    }
  }

  /** The model with these weights. @param contextLength in place of the checkpoint's own */
  load(device: Device, contextLength: number): TransformerLM {
    const config: ModelConfig = { ...this.config, contextLength };
    const model = new TransformerLM(config, { device });
    for (const { name, huggingFace, shape, rotaryHeads } of llamaTensors(this.config)) {
      const { data } = this.#files.get(this.#places.get(huggingFace)!)!.toFloat32(huggingFace);
      const values = rotaryHeads === undefined ? data : toNeighbours(data, rotaryHeads, shape[1]!);
      model.store.get(name).set(values);
    }
    return model;
  }

  [Symbol.dispose](): void {
    for (const file of this.#files.values()) file[Symbol.dispose]();
    this.#files.clear();
  }

  #open(): void {
    const index = join(this.directory, "model.safetensors.index.json");
    const single = join(this.directory, "model.safetensors");
    if (!existsSync(index) && !existsSync(single)) {
      throw new UserError(`there is neither ${single} nor ${index}`, {
        fix: "weights must be in safetensors: load them with transformers and save them with safe_serialization",
      });
    }
    const sharded = existsSync(index) ? z.looseObject({ weight_map: z.record(z.string(), z.string()) }) : undefined;
    const parsed = sharded?.safeParse(readJson(index));
    if (parsed && !parsed.success)
      throw new UserError(`${index} is not valid: ${z.prettifyError(parsed.error)}`, { fix: FETCH });
    const names = parsed ? [...new Set(Object.values(parsed.data.weight_map))] : ["model.safetensors"];
    for (const name of names) {
      // An index could name any file of this machine.
      if (name.includes("/") || name.includes("\\"))
        throw new UserError(`${index} names ${name}, not a file beside it`, { fix: FETCH });
      const path = join(this.directory, name);
      if (!existsSync(path)) throw new UserError(`${index} names ${path}, which is not there`, { fix: FETCH });
      const file = new SafetensorsFile(path);
      this.#files.set(name, file);
      for (const tensor of file.tensors.keys()) this.#places.set(tensor, name);
    }
  }

  #check(): void {
    const expected = new Map<string, LlamaTensor>();
    for (const tensor of llamaTensors(this.config)) expected.set(tensor.huggingFace, tensor);
    for (const { huggingFace: name, shape } of expected.values()) {
      const place = this.#places.get(name);
      const info = place === undefined ? undefined : this.#files.get(place)!.tensors.get(name);
      if (info === undefined) throw new UserError(`${this.directory} has no tensor ${name}`, { fix: FETCH });
      if (info.shape.join() !== shape.join()) {
        const [is, should] = [info.shape, shape].map((each) => `[${each.join(", ")}]`);
        throw new UserError(`tensor ${name} is ${is} in ${place}, its config says ${should}`, { fix: FETCH });
      }
      if (!["F32", "BF16", "F16", "F64"].includes(info.dtype)) {
        throw new UserError(`tensor ${name} is ${info.dtype} in ${place}: weights must be F32, BF16, F16 or F64`, {
          fix: "load the model with transformers in one of these types and save it again",
        });
      }
    }
    for (const name of this.#places.keys()) {
      // A tied head may be stored once more, and old checkpoints keep the rotary frequencies.
      const isKnown = expected.has(name) || name === "lm_head.weight" || name.endsWith(".rotary_emb.inv_freq");
      if (!isKnown)
        throw new UserError(`tensor ${name} is no part of a Llama model that we know`, {
          fix: "merge adapters into the weights, and leave out heads for other tasks",
        });
    }
  }
}
