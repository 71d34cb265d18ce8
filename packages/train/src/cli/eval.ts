/**
 * `bun run eval`: loss, perplexity and bits per byte of a trained run on its validation data or on any text.
 * Usage: bun run eval --run runs/NAME [--data FILE]
 */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { losses, openDevice } from "@mantou/model";
import { z } from "zod";
import { BatchReader, TokenFile } from "../dataset.ts";
import { UserError } from "../errors.ts";
import { checkFile, encodeText, isTokenFile } from "../prepare.ts";
import { loadRun } from "../run.ts";
import { isDirectory, openPart } from "../shards.ts";
import { formatTable } from "../terminal/format.ts";
import { ProgressBar } from "../terminal/progress.ts";
import { print, runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  run: z.string().meta({ description: "directory of a run", placeholder: "DIR" }),
  data: z
    .string()
    .optional()
    .meta({
      description:
        "text to evaluate, or tokens of the same tokenizer: a file, or the validation part of prepared data; " +
        "default: the run's own validation data",
    }),
  device: z.enum(["auto", "cpu", "cuda"]).default("auto").meta({ description: "where to compute" }),
  threads: z.int().min(0).max(4096).default(0).meta({ description: "CPU threads; 0: one a core" }),
});

const command: Command<typeof options> = {
  usage: "bun run eval",
  summary: "Measures a trained run: loss, perplexity and bits per byte over all of a text",
  options,
  examples: ["bun run eval --run runs/tiny", "bun run eval --run runs/tiny --data other.txt"],
};

await runCommand(async (argv) => {
  const { run: path, data, device: name, threads } = parseOptions(command, argv).options;
  using device = openDevice(name, { threads });
  const { run, config, model, tokenizer, step } = loadRun(path, device, (text) => console.error(`warning: ${text}`));
  const about = { vocabSize: model.config.vocabSize, tokenizerHash: tokenizer.hash };
  const scratch = mkdtempSync(join(tmpdir(), "mantou-eval-"));
  try {
    let file = data ?? config.val ?? config.data ?? "";
    const isPrepared = isDirectory(file);
    if (data !== undefined && !isPrepared) checkFile("--data", data);
    if (data === undefined && !isPrepared && !isTokenFile(file)) file = join(run.path, "data", "val.bin");
    if (!existsSync(file)) throw new UserError(`${path} has no validation data`, { fix: "add --data FILE" });
    if (!isPrepared && !isTokenFile(file)) file = encodeText(file, join(scratch, "text.bin"), tokenizer);
    using source = isPrepared ? openPart(device, file, "val", about) : new TokenFile(device, file, about);
    if (source.count < 2) {
      const has = source.count === 0 ? "no token" : "1 token, with none after it to tell";
      throw new UserError(`${data ?? file} has ${has}`, { fix: "give more text" });
    }
    const contextLength = Math.min(config.model.contextLength, source.count - 1);
    const reader = new BatchReader(source, config.microBatchSize, contextLength);
    const windows = Math.floor((source.count - 1) / contextLength);
    const bar = new ProgressBar({ total: windows * contextLength, label: "evaluating" });
    // A special token stands for no bytes of text.
    const specials = new Set(tokenizer.specialTokens.values());
    let [nats, tokens, bytes] = [0, 0, 0];
    const counted = function* () {
      for (const batch of reader.sweep(Number.POSITIVE_INFINITY)) {
        for (const token of batch.targets) bytes += specials.has(token) ? 0 : tokenizer.tokenBytes(token).length;
        yield batch;
      }
    };
    for (const { loss, count } of losses(model, counted(), { length: contextLength })) {
      nats += loss * count;
      tokens += count;
      bar.update(tokens, { loss: (nats / tokens).toFixed(4) });
    }
    bar.finish();
    const loss = nats / tokens;
    const text = data === undefined ? "its validation data" : isPrepared ? `the validation part of ${data}` : data;
    const rows = [
      ["run", `${path}, step ${step}`],
      ["text", `${text}: ${tokens} tokens, ${bytes} bytes`],
      ["loss", `${loss.toFixed(4)} nats per token`],
      ["perplexity", Math.exp(loss).toFixed(3)],
      ["bits per byte", (nats / Math.LN2 / bytes).toFixed(4)],
    ];
    await print(`${formatTable(rows)}\n`);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
});
