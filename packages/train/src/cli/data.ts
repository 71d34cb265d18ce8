/**
 * `bun run data`: makes data sets of text, JSON lines or Parquet for `bun run train --data DIR`.
 * Usage: bun run data prepare SOURCE… --out DIR
 */
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import { fetchHubFile, hubDatasets, listHubFiles } from "../data/hub.ts";
import { prepareDataset } from "../data/preparation.ts";
import { UserError } from "../errors.ts";
import { joinOr, nearest } from "../schema.ts";
import { formatCount, formatTable, shellWord } from "../terminal/format.ts";
import { ProgressBar } from "../terminal/progress.ts";
import { runCommand, runSubcommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const usage = "bun run data";

const options = z.strictObject({
  out: z.string().min(1).meta({ description: "directory for the data set", placeholder: "DIR" }),
  preset: z
    .string()
    .optional()
    .meta({
      description: `a data set to fetch from the Hugging Face hub: ${Object.keys(hubDatasets).join(", ")}`,
      placeholder: "NAME",
    }),
  field: z
    .string()
    .min(1)
    .default("text")
    .meta({ description: "field of the JSON objects or Parquet rows that holds the text", placeholder: "NAME" }),
  heldOut: z
    .number()
    .gt(0)
    .lt(1)
    .default(0.01)
    .meta({ description: "part of the documents that goes into the validation part" }),
  tokenizer: z
    .string()
    .optional()
    .meta({ group: "Tokenizer", description: "a trained tokenizer; default: one is trained", placeholder: "FILE" }),
  vocabSize: z
    .int()
    .min(256)
    .default(10_000)
    .meta({ group: "Tokenizer", description: "ids of the tokenizer that is trained, bytes and specials included" }),
  specialTokens: z
    .array(z.string().min(1))
    .default(["<|endoftext|>"])
    .meta({ group: "Tokenizer", description: "texts that are one token each; <|endoftext|> ends every document" }),
  tokenizerBytes: z
    .int()
    .min(1)
    .default(100_000_000)
    .meta({ group: "Tokenizer", description: "most bytes of text that it is trained on, evenly from all files" }),
  threads: z
    .union([z.int().min(1), z.literal("auto")])
    .default("auto")
    .meta({ group: "Machine", description: "files worked on at once; auto: one a core" }),
});

const command: Command<typeof options> = {
  usage: `${usage} prepare`,
  summary: "Turns documents into shards of tokens; repeated after a stop, it goes on where it was",
  options,
  positionals: [
    {
      name: "SOURCE",
      description: "files or directories: text, .jsonl (either also .gz or .zst), .parquet",
      optional: true,
      variadic: true,
    },
  ],
  examples: [
    `${usage} prepare stories.txt --out data/stories`,
    `${usage} prepare crawl/ --field content --tokenizer tokenizer.json --out data/crawl`,
    `${usage} prepare --preset tinystories --out data/tinystories`,
    "bun run train --data data/stories --preset tinystories-17m",
  ],
};

async function prepare(argv: string[]): Promise<void> {
  const { options: given, positionals } = parseOptions(command, argv);
  const { preset, out, threads } = given;
  if ((preset === undefined) === (positionals.length === 0)) {
    throw new UserError(preset === undefined ? "there is nothing to prepare" : "--preset takes no SOURCE beside it", {
      fix: preset === undefined ? "name files, or a --preset to fetch" : "prepare the two one after the other",
    });
  }
  const stop = new AbortController();
  const onSignal = () => {
    stop.abort(new UserError("stopped", { fix: "repeat the command: it goes on where it was", exitCode: 1 }));
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  const bars = new Map<string, ProgressBar>();
  const onProgress = (label: string, done: number, total: number) => {
    const bar = bars.get(label) ?? new ProgressBar({ total, label, start: done });
    bars.set(label, bar);
    bar.update(done, { size: `${(done / 1e6).toFixed(1)} MB` });
    if (done >= total) bar.finish();
  };
  const sources = preset === undefined ? positionals : await fetchPreset(preset, out, stop.signal, onProgress);
  const field = preset === undefined ? given.field : hubDatasets[preset].field;
  const { manifest, resumed } = await prepareDataset({
    ...given,
    field,
    sources,
    threads: threads === "auto" ? availableParallelism() : threads,
    signal: stop.signal,
    onProgress,
  });
  process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  const rows = (["train", "val"] as const).map((part) => {
    const { tokens, documents, bytes, shards } = manifest[part];
    const ratio = tokens === 0 ? "" : `${(bytes / tokens).toFixed(2)} bytes a token`;
    const counts = [
      `${formatCount(documents)} ${documents === 1 ? "document" : "documents"}`,
      `${formatCount(bytes)} bytes`,
      `${formatCount(tokens)} tokens`,
    ];
    return [part, ...counts, ratio, `${shards.length} ${shards.length === 1 ? "shard" : "shards"}`];
  });
  console.log(`\n${formatTable(rows)}`);
  if (resumed > 0) console.log(`${resumed} pieces were there from before`);
  console.log(`train on it: bun run train --data ${shellWord(out)}`);
}

async function fetchPreset(
  name: string,
  out: string,
  signal: AbortSignal,
  onProgress: (label: string, done: number, total: number) => void,
): Promise<string[]> {
  const dataset = Object.hasOwn(hubDatasets, name) ? hubDatasets[name] : undefined;
  if (dataset === undefined) {
    const near = nearest(name, Object.keys(hubDatasets));
    throw new UserError(`there is no data set ${JSON.stringify(name)}`, {
      fix: `use --preset ${joinOr(near.length > 0 ? near : Object.keys(hubDatasets))}`,
    });
  }
  const onRetry = (message: string) => console.error(`warning: ${message}`);
  const files = await listHubFiles(dataset, { signal, onRetry });
  const total = files.reduce((sum, { size }) => sum + size, 0);
  const paths: string[] = [];
  let before = 0;
  for (const file of files) {
    const report = (bytes: number) => onProgress("fetching", before + Math.min(bytes, file.size), total);
    paths.push(await fetchHubFile(dataset, file, join(out, "download"), { signal, onRetry, onProgress: report }));
    before += file.size;
    onProgress("fetching", before, total);
  }
  return paths;
}

await runCommand((argv) =>
  runSubcommand(usage, "Makes data sets to train on", { prepare: { command, run: prepare } }, argv),
);
