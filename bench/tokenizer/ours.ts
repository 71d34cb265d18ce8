/**
 * One measurement of this package, in a process of its own; prints JSON. Started by run.ts.
 * Usage: bun bench/tokenizer/ours.ts JOB TEXT GPT2_DIRECTORY
 */
import { readFileSync, statSync } from "node:fs";

const [job, textPath, gpt2] = process.argv.slice(2);
const started = performance.now();
const { PretokenStream, Tokenizer } = await import("@mantou/tokenizer");
const imported = performance.now() - started;
const files = await import("@mantou/tokenizer/files");

const seconds = (work: () => unknown): number => {
  const from = performance.now();
  work();
  return (performance.now() - from) / 1000;
};
const secondsOf = async (work: () => Promise<unknown>): Promise<number> => {
  const from = performance.now();
  await work();
  return (performance.now() - from) / 1000;
};
const megabytes = statSync(textPath).size / 1e6;
const [kind, detail = "", more = ""] = job.split(":");
const result: Record<string, number> = {};

/** GPT-2's vocabulary under another pattern: what is measured is the scanner. */
const load = (pattern: string) => files.loadTokenizer(gpt2, { pattern });

if (kind === "count") {
  const time = await secondsOf(() => files.countFiles(textPath, { workers: Number(detail) }));
  result.rate = megabytes / time;
} else if (kind === "train") {
  result.seconds = await secondsOf(() =>
    files.trainFromFiles(textPath, { vocabSize: 32_768, workers: Number(detail) }),
  );
  result.peakMB = process.resourceUsage().maxRSS / 1024;
} else if (kind === "encode") {
  const tokenizer = load(detail);
  const bytes = new Uint8Array(readFileSync(textPath));
  const target = new Int32Array(bytes.length / 2).fill(-1); // memory that the system has given already
  const text = more === "string" ? new TextDecoder().decode(bytes) : bytes;
  for (const pass of ["first", "second"]) {
    result[pass] = megabytes / seconds(() => (result.tokens = tokenizer.encodeInto(text, target)));
  }
} else if (kind === "file") {
  const tokenizer = load("gpt2");
  const { closeSync, openSync, rmSync, writeSync } = await import("node:fs");
  const out = `${process.env.TMPDIR ?? "/tmp"}/mantou-bench-${process.pid}.bin`;
  const file = openSync(out, "w");
  const write = (ids: Uint16Array) => {
    const bytes = new Uint8Array(ids.buffer, ids.byteOffset, ids.byteLength);
    for (let done = 0; done < bytes.length;) done += writeSync(file, bytes, done); // as `bun run tokenizer encode` does
  };
  const options = { ids: "uint16", workers: Number(detail) } as const;
  const time = await secondsOf(() => files.encodeFile(tokenizer, textPath, write, options));
  closeSync(file);
  rmSync(out, { force: true });
  result.rate = megabytes / time;
  result.peakMB = process.resourceUsage().maxRSS / 1024;
} else if (kind === "decode") {
  const tokenizer = load("gpt2");
  const bytes = readFileSync(textPath).subarray(0, 50e6);
  const ids = tokenizer.encodeBytes(bytes);
  for (let i = 0; i < 5; i++) {
    result.text = bytes.length / 1e6 / seconds(() => tokenizer.decode(ids));
    result.bytes = bytes.length / 1e6 / seconds(() => tokenizer.decodeBytes(ids));
  }
} else if (kind === "worst") {
  let state = 1;
  const random = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const make: Record<string, (n: number) => string | Uint8Array> = {
    "one letter": (n) => "a".repeat(n),
    letters: (n) => Array.from({ length: n }, () => String.fromCharCode(97 + random(26))).join(""),
    spaces: (n) => " ".repeat(n),
    emoji: (n) => "😀".repeat(n),
    bytes: (n) => Uint8Array.from({ length: n }, () => random(256)),
  };
  const tokenizer = load("gpt2");
  const encode = (input: string | Uint8Array) => tokenizer.encodeOrdinary(input);
  for (const [name, of] of Object.entries(make)) {
    const input = of(100_000);
    result[name] = 1000 * seconds(() => encode(input));
  }
  let before = 0;
  for (const n of [2_500_000, 5_000_000, 10_000_000]) {
    const input = make["one letter"](n);
    const time = seconds(() => encode(input));
    if (before > 0) result.growth = Math.max(result.growth ?? 0, time / before);
    before = time;
  }
  result["one letter, 10 million"] = 1000 * before;
} else if (kind === "start") {
  const { parseGpt2 } = await import("@mantou/tokenizer/formats");
  const options = parseGpt2(readFileSync(`${gpt2}/vocab.json`, "utf8"), readFileSync(`${gpt2}/merges.txt`, "utf8"));
  result.milliseconds = imported + 1000 * seconds(() => new Tokenizer(options).encode("a"));
} else if (kind === "scan") {
  const bytes = new Uint8Array(readFileSync(textPath));
  const stream = new PretokenStream({ pattern: detail });
  result.rate = megabytes / seconds(() => stream.push(bytes));
}
console.log(JSON.stringify(result));
