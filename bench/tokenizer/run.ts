/**
 * The tokenizer against every peer that is installed, on one machine, file and run; every figure from fresh processes,
 * medians of --runs. Prints a table; --out NAME writes NAME.json, NAME.md and the bar chart NAME.svg;
 * what is in NAME.json already of other jobs of the same machine stays, so that --only can measure in pieces.
 * Usage: bun bench/tokenizer/run.ts --text FILE --gpt2 DIRECTORY [--peers DIRECTORY with node_modules] [--python PYTHON]
 *        [--runs 3] [--peer-megabytes 10] [--only REGEXP of jobs] [--out NAME]
 */

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, tmpdir } from "node:os";
import { basename, join } from "node:path";
import { parseArgs } from "node:util";
import { loadTokenizer, saveTokenizer } from "@mantou/tokenizer/files";
import { formatTable } from "../../packages/train/src/terminal/format.ts";
import { barChart } from "./chart.ts";

const { values } = parseArgs({
  options: {
    text: { type: "string" },
    gpt2: { type: "string" },
    peers: { type: "string" },
    python: { type: "string" },
    runs: { type: "string", default: "3" },
    "peer-megabytes": { type: "string", default: "10" },
    only: { type: "string", default: "" },
    out: { type: "string" },
  },
});
const { text, gpt2 } = values;
if (text === undefined || gpt2 === undefined) throw new Error("--text FILE and --gpt2 DIRECTORY are needed");
const directory = mkdtempSync(join(tmpdir(), "mantou-bench-"));
process.on("exit", () => rmSync(directory, { recursive: true, force: true }));
const gpt2Tokenizer = loadTokenizer(gpt2, { specialTokens: { "<|endoftext|>": 50256 } });
const [ranks, huggingface] = [join(directory, "gpt2.tiktoken"), join(directory, "tokenizer.json")];
saveTokenizer(gpt2Tokenizer, ranks, "tiktoken");
saveTokenizer(gpt2Tokenizer, huggingface, "huggingface");

type Figures = Record<string, number>;
interface Row {
  job: string;
  version: string;
  figures: Figures;
}
const rows: Row[] = [];
const only = new RegExp(values.only);

/** Runs a command several times and keeps the median of each figure; a peer that is not installed is left out. */
function measure(job: string, runs: number, command: string[], cwd?: string): void {
  if (!only.test(job)) return;
  const all: (Figures & { version?: string })[] = [];
  for (let i = 0; i < runs; i++) {
    const { success, stdout, stderr } = Bun.spawnSync(command, { cwd });
    if (!success) {
      console.error(`${job}: left out: ${stderr.toString().trim().split("\n").at(-1)}`);
      return;
    }
    all.push(JSON.parse(stdout.toString().trim().split("\n").at(-1)!) as Figures & { version?: string });
  }
  const figures: Figures = {};
  for (const name of Object.keys(all[0]).filter((key) => key !== "version")) {
    figures[name] = all.map((figure) => figure[name]).sort((a, b) => a - b)[Math.floor(all.length / 2)];
  }
  rows.push({ job, version: String(all[0].version ?? ""), figures });
  console.error(job, JSON.stringify(figures));
}

const runs = Number(values.runs);
const script = (name: string) => join(import.meta.dir, name);
const ours = (job: string) => measure(job, runs, [process.execPath, script("ours.ts"), job, text, gpt2]);
for (const job of ["count:1", "count:2", "train:1", "train:2", "encode:gpt2", "encode:gpt2:string"]) ours(job);
for (const pattern of ["cl100k", "o200k", "llama3", "qwen2"]) ours(`encode:${pattern}`);
for (const job of ["file:1", "file:2", "decode", "worst", "start"]) ours(job);
const { peers, python, "peer-megabytes": size } = values;
if (python !== undefined) {
  measure("tiktoken (Python)", runs, [python, script("peers.py"), "tiktoken", text, size, ranks]);
  for (const threads of ["1", "2"]) {
    measure(`tokenizers (Python), train:${threads}`, 1, [python, script("peers.py"), "train", text, threads]);
  }
}
if (peers !== undefined) {
  for (const peer of ["tiktoken", "gpt-tokenizer", "js-tiktoken", "ai-tokenizer", "kitoken", "tokenizers"]) {
    if (!existsSync(join(peers, "node_modules", peer))) continue;
    const file = ["kitoken", "tokenizers"].includes(peer) ? huggingface : gpt2;
    // the slowest ones get less text
    const share = ["js-tiktoken", "tokenizers"].includes(peer) ? String(Number(size) / 5) : size;
    measure(`${peer} (npm)`, runs, [process.execPath, script("peers.mjs"), peer, text, share, file], peers);
  }
}

/** Whole command lines, start-up included, on the first --peer-megabytes of the text; with hyperfine, where it is installed. */
if (python !== undefined && Bun.which("hyperfine") !== null && only.test("command line")) {
  const [part, ids, report] = ["part.txt", "ids.bin", "hyperfine.json"].map((name) => join(directory, name));
  writeFileSync(
    part,
    readFileSync(text)
      .subarray(0, Number(size) * 1e6)
      .toString()
      .replace(/\ufffd+$/, ""),
  );
  const tokenizer = join(directory, "ours.json");
  saveTokenizer(gpt2Tokenizer, tokenizer);
  const cli = join(import.meta.dir, "../../packages/train/src/cli/tokenizer.ts");
  const commands = {
    "command line: encode": [
      process.execPath,
      cli,
      "encode",
      part,
      "--tokenizer",
      tokenizer,
      "--workers",
      "1",
      "--out",
      ids,
    ],
    "command line: tiktoken (Python)": [python, script("peers.py"), "file", part, ranks, ids],
  };
  const names = Object.entries(commands).flatMap(([name, command]) => ["-n", name, command.join(" ")]);
  const { success, stderr } = Bun.spawnSync(["hyperfine", "-N", "-r", values.runs, "--export-json", report, ...names]);
  if (!success) throw new Error(`hyperfine: ${stderr.toString()}`);
  const { results } = JSON.parse(readFileSync(report, "utf8")) as { results: { command: string; median: number }[] };
  for (const { command, median } of results) rows.push({ job: command, version: "", figures: { seconds: median } });
}

const machine = `${cpus()[0].model}, ${cpus().length} cores; Bun ${Bun.version}`;
if (values.out !== undefined && existsSync(`${values.out}.json`)) {
  const before = JSON.parse(readFileSync(`${values.out}.json`, "utf8")) as { machine: string; rows: Row[] };
  if (before.machine !== machine) throw new Error(`${values.out}.json is of another machine: ${before.machine}`);
  const again = new Set(rows.map(({ job }) => job));
  rows.unshift(...before.rows.filter(({ job }) => !again.has(job)));
}
const show = (value: number) => (value >= 100 ? value.toFixed(0) : value.toFixed(2));
const table = [
  ["job", "version", "figures"],
  ...rows.map(({ job, version, figures }) => [
    job,
    version,
    Object.entries(figures)
      .map(([name, value]) => `${name} ${show(value)}`)
      .join(", "),
  ]),
];
console.log(machine);
console.log(formatTable(table));
if (values.out !== undefined) {
  const measured = `--text ${basename(text)} --gpt2 DIRECTORY --peers DIRECTORY --python PYTHON`;
  const command = `bun bench/tokenizer/run.ts ${measured} --runs ${runs} --peer-megabytes ${size}`;
  writeFileSync(`${values.out}.json`, `${JSON.stringify({ machine, command, rows }, null, 2)}\n`);
  const lines = table.map((row) => `| ${row.join(" | ")} |`);
  lines.splice(1, 0, "| --- | --- | --- |");
  const note =
    `Rates are MB/s of UTF-8, medians of ${runs} fresh processes (training by peers: one). Ours encodes the whole text, ` +
    `peers its first ${size} MB, js-tiktoken and tokenizers (npm) a fifth of that; gpt-tokenizer and ai-tokenizer with ` +
    "the vocabulary of cl100k. Ids go to an array that has been written to before.";
  writeFileSync(`${values.out}.md`, `${machine}\n\n${note} \`${command}\`\n\n${lines.join("\n")}\n`);
  const bars = rows
    .filter(({ job, figures }) => figures.first !== undefined && (job === "encode:gpt2" || !job.startsWith("encode:")))
    .map(({ job, version, figures }) => ({
      label: job === "encode:gpt2" ? "mantou" : `${job} ${version}`,
      value: figures.first,
      accent: job === "encode:gpt2",
    }))
    .sort((a, b) => b.value - a.value);
  writeFileSync(`${values.out}.svg`, barChart("Encoding English, one thread, first pass, MB/s", machine, bars));
}
