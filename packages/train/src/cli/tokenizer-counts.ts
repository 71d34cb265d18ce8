/**
 * `bun run tokenizer count-shard | merge-counts`: counting split over many machines. Each counts its share of the corpus
 * into a file; the files are merged, in any order and in steps, and `bun run tokenizer train` takes the result for text.
 */
import { mergeCounts, type PretokenCounts } from "@mantou/tokenizer";
import { checkSameSplit, countFiles, type CountsAbout, loadCounts, saveCounts } from "@mantou/tokenizer/files";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { formatCount } from "../terminal/format.ts";
import { type Command, parseOptions } from "./options.ts";
import {
  ByteBar,
  checkFile,
  checkTarget,
  checkText,
  interruptible,
  patternFlag,
  specialTokensFlag,
  usage,
  threadsFor,
  workersFlag,
} from "./tokenizer-input.ts";

const outFlag = z
  .string()
  .regex(/\.counts$/, "must end in .counts, by which it is known")
  .meta({ description: "file to write, ending in .counts", placeholder: "FILE.counts" });

const shardOptions = z.strictObject({
  specialTokens: specialTokensFlag,
  pattern: patternFlag,
  workers: workersFlag,
  out: outFlag,
});

export const countShardCommand: Command<typeof shardOptions> = {
  usage: `${usage} count-shard`,
  summary: "Counts the words of a part of a corpus, for `merge-counts` and `train`",
  options: shardOptions,
  positionals: [{ name: "INPUT", description: "files of UTF-8 text", variadic: true }],
  examples: [`${usage} count-shard part-07.txt --out part-07.counts`],
};

export async function countShard(argv: string[]): Promise<void> {
  const { options, positionals } = parseOptions(countShardCommand, argv);
  const { specialTokens, pattern, workers, out } = options;
  positionals.forEach(checkText);
  checkTarget(out);
  let bar: ByteBar | undefined;
  const counts = await interruptible((signal) =>
    countFiles(positionals, {
      specialTokens,
      pattern,
      workers: threadsFor(workers),
      signal,
      onProgress(done, total) {
        bar ??= new ByteBar("counting words", total);
        bar.update(done);
      },
    }),
  );
  bar?.finish();
  saveCounts(counts, { pattern, specialTokens }, out);
  console.log(describe(out, counts));
}

const mergeOptions = z.strictObject({ out: outFlag });

export const mergeCountsCommand: Command<typeof mergeOptions> = {
  usage: `${usage} merge-counts`,
  summary: "Adds up what several `count-shard` have written",
  options: mergeOptions,
  positionals: [{ name: "COUNTS", description: "files of counts", variadic: true }],
  examples: [
    `${usage} merge-counts part-*.counts --out all.counts`,
    `${usage} train all.counts --vocab-size 32768 --out tokenizer.json`,
  ],
};

export function mergeCountFiles(argv: string[]): void {
  const { options, positionals } = parseOptions(mergeCountsCommand, argv);
  checkTarget(options.out);
  const { counts, about } = readCounts(positionals);
  saveCounts(counts, about, options.out);
  console.log(describe(options.out, counts));
}

/** The sum of several files of counts, which are read one after the other. */
export function readCounts(paths: string[]): { counts: PretokenCounts; about: CountsAbout } {
  paths.forEach(checkFile);
  let about: CountsAbout | undefined;
  function* each(): Generator<PretokenCounts> {
    for (const path of paths) {
      const loaded = loadCounts(path);
      about ??= loaded.about;
      try {
        checkSameSplit(about, loaded.about);
      } catch (cause) {
        throw new UserError(`${path}: ${(cause as Error).message}`, { fix: "count all parts alike", cause });
      }
      yield loaded.counts;
    }
  }
  const counts = mergeCounts(each());
  return { counts, about: about! };
}

function describe(path: string, { counts }: PretokenCounts): string {
  return `${path}: ${formatCount(counts.reduce((sum, count) => sum + count, 0))} words, ${formatCount(counts.length)} distinct`;
}
