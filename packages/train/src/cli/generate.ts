/**
 * `bun run generate`: samples text from a trained run, printing it as it comes.
 * Usage: bun run generate --run runs/NAME [--prompt TEXT|-] [--samples N] [--temperature T] [--top-k K] [--top-p P] …
 */
import { GenerationBatch, type Sequence, openDevice } from "@mantou/model";
import { z } from "zod";
import { encodePrompt } from "../prompt.ts";
import { loadRun } from "../run.ts";
import { styleFor, visible } from "../terminal/style.ts";
import { TextStream } from "../text-stream.ts";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  run: z.string().meta({ group: "Text", description: "directory of a run", placeholder: "DIR" }),
  prompt: z.string().default("").meta({
    group: "Text",
    description:
      "what the text begins with; -: standard input, without its last line break; empty: the start of a document",
    placeholder: "TEXT|-",
  }),
  samples: z.int().min(1).default(1).meta({ group: "Text", description: "how many texts" }),
  maxTokens: z
    .int()
    .min(1)
    .default(256)
    .meta({ group: "Text", description: "tokens of each at most; a document's end stops earlier" }),
  stop: z
    .array(z.string().min(1))
    .default([])
    .meta({ group: "Text", description: "a text that ends a sample and is left out; repeat the flag for several" }),
  temperature: z
    .number()
    .min(0)
    .default(0.8)
    .meta({ group: "Sampling", description: "0 takes the most likely token each time" }),
  topK: z.int().min(0).default(0).meta({ group: "Sampling", description: "sample from this many tokens; 0: from all" }),
  topP: z
    .number()
    .gt(0)
    .max(1)
    .default(0.95)
    .meta({ group: "Sampling", description: "sample from the likeliest tokens of this share" }),
  minP: z
    .number()
    .min(0)
    .max(1)
    .default(0)
    .meta({ group: "Sampling", description: "leave out tokens less likely than this share of the likeliest" }),
  repetitionPenalty: z
    .number()
    .gt(0)
    .default(1)
    .meta({ group: "Sampling", description: "above 1: tokens that occur already become less likely" }),
  seed: z
    .int()
    .min(0)
    .max(0xffff_ffff)
    .default(1)
    .meta({ group: "Sampling", description: "same seed, same text; sample n has seed + n − 1" }),
  parallel: z
    .int()
    .min(1)
    .default(8)
    .meta({ group: "Machine", description: "samples generated side by side; each takes a cache of the context" }),
  device: z.enum(["auto", "cpu", "cuda"]).default("auto").meta({ group: "Machine", description: "where to compute" }),
  threads: z.int().min(0).max(4096).default(0).meta({ group: "Machine", description: "CPU threads; 0: one a core" }),
});

const command: Command<typeof options> = {
  usage: "bun run generate",
  summary: "Samples text from a trained run, printing it as it comes",
  options,
  examples: [
    'bun run generate --run runs/tiny --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 1',
    "bun run generate --run runs/tiny --prompt - --samples 4 --max-tokens 100 --stop . < beginning.txt",
  ],
};

/** One of the samples: what it has said and nobody has seen yet. */
interface Sample {
  sequence: Sequence;
  stream: TextStream;
  unseen: string;
}

await runCommand(async (argv) => {
  const given = parseOptions(command, argv).options;
  const { run, samples: count, seed, stop, parallel, device: name, threads, ...sampling } = given;
  // What a shell puts behind a text is no part of it.
  const prompt = given.prompt === "-" ? (await Bun.stdin.text()).replace(/\r?\n$/, "") : given.prompt;
  using device = openDevice(name, { threads });
  const { model, tokenizer } = loadRun(run, device, (message) => console.error(`warning: ${message}`));
  const { tokens, stopTokens } = encodePrompt(tokenizer, prompt);
  using batch = new GenerationBatch(model, Math.min(count, parallel));
  const style = styleFor(process.stdout);

  const samples: Sample[] = [];
  const active = new Set<Sample>();
  const print = (text: string) => process.stdout.write(process.stdout.isTTY ? visible(text) : text);
  const begin = (index: number) => {
    const head = style.dim(`── sample ${index + 1} of ${count}`);
    if (count > 1) process.stdout.write(`${index === 0 ? "" : "\n"}${head}\n`);
    print(prompt);
  };
  // Samples are printed in order: the first that is not at its end as it comes, those behind it when their turn comes.
  let shown = 0;
  const show = () => {
    for (let sample = samples[shown]; sample !== undefined; sample = samples[shown]) {
      print(sample.unseen);
      sample.unseen = "";
      if (active.has(sample)) return;
      print("\n");
      if (++shown < count) begin(shown);
    }
  };
  begin(0);
  while (shown < count) {
    while (samples.length < count && batch.size < batch.slots) {
      const sequence = batch.add(tokens, { ...sampling, seed: seed + samples.length, stopTokens });
      const sample = { sequence, stream: new TextStream(tokenizer, stop, prompt !== ""), unseen: "" };
      samples.push(sample);
      active.add(sample);
    }
    const drawn = new Map(batch.step().map(({ sequence, token }) => [sequence, token]));
    for (const sample of active) {
      const { sequence, stream } = sample;
      const token = drawn.get(sequence);
      if (token !== undefined) sample.unseen += stream.push(token);
      if (sequence.finish === undefined && !stream.stopped) continue;
      sample.unseen += stream.finish();
      batch.remove(sequence);
      active.delete(sample);
    }
    show();
    // Text appears as it comes, and Ctrl-C is heard, only when the event loop turns.
    await new Promise((resolve) => setImmediate(resolve));
  }
});
