/**
 * `bun run import`: a Llama-architecture checkpoint in Hugging Face's form as a run.
 * Usage: bun run import --from DIR [--out runs/NAME] [--tokenizer FILE] [--context-length N]
 */
import { existsSync, statSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { openDevice } from "@mantou/model";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { LlamaWeights, readLlamaConfig, readText } from "../llama/import-hf.ts";
import { importedConfig, saveImported } from "../llama/import-run.ts";
import { readHuggingFaceTokenizer } from "../llama/tokenizer.ts";
import { RunDirectory } from "../run.ts";
import { formatCount, shellWord } from "../terminal/format.ts";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

/** Contexts beyond it are cut unless asked for: the key/value cache and the activations grow with them. */
const CONTEXT = 4096;

const options = z.strictObject({
  from: z.string().min(1).meta({
    description: "directory with config.json, model.safetensors (or its shards) and tokenizer.json",
    placeholder: "DIR",
  }),
  out: z
    .string()
    .min(1)
    .optional()
    .meta({ description: "directory of the run to make; default: runs/NAME after --from", placeholder: "DIR" }),
  tokenizer: z.string().min(1).optional().meta({
    description: "another tokenizer.json than the checkpoint's, whose ids the model has yet to learn",
    placeholder: "FILE",
  }),
  contextLength: z
    .union([z.int().min(1), z.literal("auto")])
    .default("auto")
    .meta({ description: `tokens the model is to see at once; auto: as the checkpoint has it, at most ${CONTEXT}` }),
});

const command: Command<typeof options> = {
  usage: "bun run import",
  summary: "Makes a run of a Hugging Face checkpoint of the Llama architecture",
  options,
  examples: ["bun run import --from SmolLM2-135M", "bun run train --init runs/SmolLM2-135M --data book.txt --lr 3e-5"],
};

await runCommand((argv) => {
  const { from, out, tokenizer: otherTokenizer, contextLength: asked } = parseOptions(command, argv).options;
  if (!existsSync(from) || !statSync(from).isDirectory()) {
    throw new UserError(`--from ${from} is no directory`, { fix: "give a directory as transformers saves it" });
  }
  const target = out ?? join("runs", basename(resolve(from)));
  const run = new RunDirectory(target);
  if (run.exists) throw new UserError(`${target} exists already`, { fix: "choose another --out, or take it away" });
  const config = readLlamaConfig(from);
  const tokenizerPath = otherTokenizer ?? join(from, "tokenizer.json");
  const tokenizer = readHuggingFaceTokenizer(readText(tokenizerPath), tokenizerPath);
  if (tokenizer.vocabSize > config.vocabSize) {
    throw new UserError(`${tokenizerPath} has ${tokenizer.vocabSize} ids, the model knows ${config.vocabSize}`, {
      fix: "give the tokenizer that belongs to the checkpoint",
    });
  }
  const contextLength = asked === "auto" ? Math.min(config.contextLength, CONTEXT) : asked;
  const resolved = importedConfig(target, { ...config, contextLength });
  using weights = new LlamaWeights(from, config);
  using device = openDevice("cpu", { threads: 1 });
  using model = weights.load(device, contextLength);
  saveImported(run, resolved, model, tokenizer);
  console.log(
    `${target}: ${formatCount(model.store.count)} parameters, vocabulary ${config.vocabSize}, context ${contextLength}\n` +
      `sample from it: bun run generate --run ${shellWord(target)} --prompt "Once upon a time"\n` +
      `train on: bun run train --init ${shellWord(target)} --data FILE`,
  );
  if (otherTokenizer !== undefined) {
    console.log(`${otherTokenizer} is not the tokenizer that the model was trained with: train on before you sample`);
  }
});
