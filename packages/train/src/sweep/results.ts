/** What came out of a sweep: a table and curves for each experiment, as Markdown with SVG, and as a page to click in. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { writeAtomically } from "@mantou/model";
import { type RunData, readRun } from "../dashboard/data.ts";
import { escapeHtml, pageHtml } from "../dashboard/page.ts";
import { formatCount, formatDuration } from "../terminal/format.ts";
import { curvesSvg } from "./svg.ts";
import type { Sweep, SweepRun } from "./sweep-file.ts";

/** How a run ended. */
export interface RunOutcome {
  status: "finished" | "diverged" | "failed" | "unfinished";
  /** What it said, where it did not finish. */
  message?: string;
}

export interface ResultRow extends RunOutcome {
  name: string;
  settings: string;
  steps: number;
  tokens: number;
  seconds: number;
  valLoss: number | undefined;
  bestValLoss: number | undefined;
  bitsPerByte: number | undefined;
}

const POINTS = 1000;

function rowOf(run: SweepRun, data: RunData, outcome: RunOutcome): ResultRow {
  const { columns } = data;
  const present = (values: (number | null)[]) => values.filter((value): value is number => value !== null);
  const validations = present(columns.valLoss);
  const own = [...run.own].map(([path, value]) => `${path} ${String(value)}`).join(", ");
  return {
    ...outcome,
    name: run.name,
    settings: own,
    steps: columns.step.at(-1) ?? 0,
    tokens: columns.tokens.at(-1) ?? 0,
    seconds: columns.time.at(-1) ?? 0,
    valLoss: validations.at(-1),
    bestValLoss: validations.length === 0 ? undefined : Math.min(...validations),
    bitsPerByte: present(columns.valBitsPerByte).at(-1),
  };
}

const HEADINGS = ["run", "settings", "outcome", "validation loss", "best", "bits per byte", "steps", "tokens", "time"];

function cells(row: ResultRow): string[] {
  const figure = (value: number | undefined) => value?.toFixed(3) ?? "–";
  const outcome = row.status === "finished" ? "finished" : `${row.status} at step ${row.steps}`;
  const losses = [figure(row.valLoss), figure(row.bestValLoss), figure(row.bitsPerByte)];
  const effort = [String(row.steps), formatCount(row.tokens), formatDuration(row.seconds)];
  return [row.name, row.settings || "(base)", outcome, ...losses, ...effort];
}

/** Rows of an experiment, best first; what did not finish comes last. */
function ranked(rows: ResultRow[]): ResultRow[] {
  const key = (row: ResultRow) => (row.status === "finished" ? (row.valLoss ?? Infinity) : Infinity);
  return rows.toSorted((a, b) => (key(a) === key(b) ? 0 : key(a) - key(b)));
}

/** Writes results.md with its pictures, results.html and results.json into the sweep's directory; returns the first. */
export function writeResults(
  directory: string,
  sweep: Sweep,
  outcomes: Record<string, RunOutcome>,
  about: string,
): string {
  const data = new Map(sweep.runs.map(({ name }) => [name, readRun(join(directory, name), name, POINTS)]));
  const rows = sweep.runs.map((run) => rowOf(run, data.get(run.name)!, outcomes[run.name] ?? { status: "unfinished" }));
  const write = (name: string, text: string) =>
    writeAtomically(join(directory, name), [new TextEncoder().encode(text)]);
  write("results.json", `${JSON.stringify(rows, null, 2)}\n`);

  mkdirSync(join(directory, "plots"), { recursive: true });
  const parts = [`# ${sweep.name}`, about];
  const tables: string[] = [];
  for (const { name, about: question, runs } of sweep.experiments) {
    const best = ranked(rows.filter((row) => runs.includes(row.name)));
    const curves = runs.map((run) => ({ label: run, data: data.get(run)! }));
    const file = `plots/${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.svg`;
    write(file, curvesSvg(name, curves));
    const table = [HEADINGS, HEADINGS.map((_, i) => (i < 3 ? "---" : "---:")), ...best.map(cells)];
    parts.push(`## ${name}`, ...(question === undefined ? [] : [question]), `![${name}](${file})`);
    parts.push(table.map((line) => `| ${line.join(" | ")} |`).join("\n"));
    tables.push(htmlTable(name, question, best));
  }
  const finished = ranked(rows)[0]?.name ?? sweep.runs[0].name;
  const page = { live: false, main: finished, axis: "tokens" as const, runs: [...data.values()] };
  write("results.html", pageHtml(sweep.name, page, tables.join("\n")));
  write("results.md", `${parts.join("\n\n")}\n`);
  return join(directory, "results.md");
}

function htmlTable(name: string, about: string | undefined, rows: ResultRow[]): string {
  const row = (tag: string, texts: string[]) => {
    return `<tr>${texts.map((text) => `<${tag}>${escapeHtml(text)}</${tag}>`).join("")}</tr>`;
  };
  const body = rows.map((each) => row("td", cells(each))).join("\n");
  const text = about === undefined ? "" : `<p>${escapeHtml(about)}</p>`;
  return `<h3>${escapeHtml(name)}</h3>${text}<div class="scroll"><table>${row("th", HEADINGS)}${body}</table></div>`;
}
