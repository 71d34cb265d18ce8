/**
 * `bun run generate`: samples text from a trained run, printing it as it comes.
 * Usage: bun run generate --run runs/NAME [--prompt TEXT] [--temperature T] [--top-p P] [--max-tokens N] [--seed S]
 */
import { openDevice } from "@mantou/model";
import { z } from "zod";
import { loadRun } from "../run.ts";
import { sampleTokens } from "../trainer.ts";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  run: z.string().meta({ description: "directory of a run", placeholder: "DIR" }),
  prompt: z.string().default("").meta({ description: "what the text begins with; empty: the start of a document" }),
  temperature: z.number().min(0).default(0.8).meta({ description: "0 takes the most likely token each time" }),
  topP: z.number().gt(0).max(1).default(0.95).meta({ description: "sample from the likeliest tokens of this share" }),
  maxTokens: z.int().min(1).default(256).meta({ description: "tokens at most; a document's end stops earlier" }),
  seed: z.int().min(0).default(1).meta({ description: "same seed, same text" }),
  device: z.enum(["auto", "cpu", "cuda"]).default("auto").meta({ description: "where to compute" }),
  threads: z.int().min(0).default(0).meta({ description: "CPU threads; 0: one a core" }),
});

const command: Command<typeof options> = {
  usage: "bun run generate",
  summary: "Samples text from a trained run, printing it as it comes",
  options,
  examples: ['bun run generate --run runs/tiny --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1'],
};

await runCommand(async (argv) => {
  const {
    run,
    prompt,
    temperature,
    topP,
    maxTokens,
    seed,
    device: name,
    threads,
  } = parseOptions(command, argv).options;
  using device = openDevice(name, { threads });
  const { model, tokenizer } = loadRun(run, device, (message) => console.error(`warning: ${message}`));
  const decoder = tokenizer.createDecoder();
  process.stdout.write(prompt);
  for (const token of sampleTokens(model, tokenizer, { prompt, temperature, topP, maxTokens, seed })) {
    process.stdout.write(decoder.push(token));
    // Text appears as it comes, and Ctrl-C is heard, only when the event loop turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
  process.stdout.write(`${decoder.finish()}\n`);
});
