/**
 * `bun run export`: a trained run as a Hugging Face directory or as a GGUF file for llama.cpp.
 * Usage: bun run export --run runs/NAME --format hf|gguf --out PATH [--dtype f32|f16|bf16|q8_0] [--max-shard-size 5GB]
 */
import { existsSync, readdirSync, statSync } from "node:fs";
import { dirname, join } from "node:path";
import { openDevice } from "@mantou/model";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { GGUF_TYPES, exportGguf } from "../llama/export-gguf.ts";
import { HF_DTYPES, exportHuggingFace } from "../llama/export-hf.ts";
import { joinOr } from "../schema.ts";
import { type LoadedRun, loadRun } from "../run.ts";
import { formatCount } from "../terminal/format.ts";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  run: z.string().meta({ description: "directory of a run", placeholder: "DIR" }),
  format: z.enum(["hf", "gguf"]).meta({ description: "hf: a directory for transformers; gguf: a file for llama.cpp" }),
  out: z.string().min(1).meta({ description: "directory (hf) or file (gguf) to write", placeholder: "PATH" }),
  dtype: z
    .enum(["auto", "f32", "f16", "bf16", "q8_0"])
    .default("auto")
    .meta({ description: "number format of the weights; auto: f32 for hf, f16 for gguf; q8_0 is gguf's alone" }),
  maxShardSize: z
    .string()
    .regex(/^[1-9]\d*(\.\d+)?[KMG]B$/)
    .default("5GB")
    .meta({
      description: "hf: weights beyond it go into several files with an index",
      placeholder: "SIZE",
      expects: "a size such as 500MB or 5GB",
    }),
});

const UNITS: Record<string, number> = { K: 1e3, M: 1e6, G: 1e9 };

const command: Command<typeof options> = {
  usage: "bun run export",
  summary: "Writes a trained run in a format that other programs read",
  options,
  examples: [
    "bun run export --run runs/tiny --format hf --out exports/tiny",
    "bun run export --run runs/tiny --format gguf --out exports/tiny.gguf --dtype q8_0",
  ],
};

await runCommand((argv) => {
  const { run, format, out, dtype, maxShardSize } = parseOptions(command, argv).options;
  checkTarget(out, format);
  using device = openDevice("cpu", { threads: 1 });
  const load = () => loadRun(run, device, (message) => console.error(`warning: ${message}`));
  if (format === "hf") {
    const chosen = dtype === "auto" ? "f32" : dtype;
    if (!isKey(HF_DTYPES, chosen)) throw wrongDtype(format, dtype, HF_DTYPES);
    const loaded = load();
    const files = exportHuggingFace(out, loaded.model, loaded.tokenizer, {
      dtype: chosen,
      maxShardBytes: Number.parseFloat(maxShardSize) * UNITS[maxShardSize.at(-2)!]!,
    });
    report(
      loaded,
      files.map((name) => join(out, name)),
    );
  } else {
    const chosen = dtype === "auto" ? "f16" : dtype;
    if (!isKey(GGUF_TYPES, chosen)) throw wrongDtype(format, dtype, GGUF_TYPES);
    const loaded = load();
    exportGguf(out, loaded.model, loaded.tokenizer, { type: chosen, name: loaded.config.name });
    report(loaded, [out]);
  }
});

function isKey<T extends object>(object: T, key: PropertyKey): key is keyof T {
  return Object.hasOwn(object, key);
}

function wrongDtype(format: string, dtype: string, known: object): UserError {
  return new UserError(`--format ${format} has no --dtype ${dtype}`, { fix: `use ${joinOr(Object.keys(known))}` });
}

/** Refuses to write over what is there, or where nothing can be. */
function checkTarget(out: string, format: "hf" | "gguf"): void {
  if (format === "gguf" && !existsSync(dirname(out))) {
    throw new UserError(`--out ${out}: there is no directory ${dirname(out)}`, { fix: "make it first" });
  }
  if (!existsSync(out)) return;
  const isDirectory = statSync(out).isDirectory();
  if (format === "hf" && isDirectory && readdirSync(out).length === 0) return;
  throw new UserError(`--out ${out} exists already`, { fix: "choose another, or take it away" });
}

function report({ model, step }: LoadedRun, paths: string[]): void {
  console.log(`${formatCount(model.store.count)} parameters after step ${step}:`);
  for (const path of paths) console.log(`  ${path}  ${formatCount(statSync(path).size)}B`);
}
