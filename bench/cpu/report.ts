/**
 * What a bench found: printed as a table and, where it is to be kept, written to `bench/results/cpu-<chip>-<date>.json`,
 * one entry per bench, with the same tables in a `.md` beside it.
 */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";
import { join } from "node:path";
import { formatTable } from "../../packages/train/src/terminal/format.ts";

export interface Report {
  title: string;
  /** What was measured, how, beside what. */
  notes: string[];
  header: string[];
  rows: string[][];
  /** Printed as it is, in place of a table. */
  text?: string;
}

interface Kept extends Report {
  command: string;
  /** ISO 8601. */
  at: string;
  bun: string;
}

const results = join(import.meta.dir, "../results");

/** @param name the entry to keep it under; false or empty to print alone */
export function report(name: string | false, { title, notes, header, rows, text }: Report): void {
  console.log(`\n${title}\n${notes.join("\n")}\n${text ?? formatTable(rows, { header })}`);
  if (!name) return;
  const at = new Date().toISOString();
  const path = join(results, `cpu-${chip()}-${at.slice(0, 10)}`);
  const kept: Record<string, Kept> = existsSync(`${path}.json`) ? JSON.parse(readFileSync(`${path}.json`, "utf8")) : {};
  // Paths of this machine say nothing to others.
  const options = process.argv.slice(2).map((option) => (option.startsWith("/") ? option.split("/").at(-1)! : option));
  const quoted = options.map((option) => (/[^\w./=,-]/.test(option) ? `"${option}"` : option));
  const command = ["bun", process.argv[1]!.slice(join(results, "../..").length + 1), ...quoted].join(" ");
  kept[name] = { title, notes, header, rows, text, command, at, bun: Bun.version };
  mkdirSync(results, { recursive: true });
  writeFileSync(`${path}.json`, `${JSON.stringify(kept, null, 2)}\n`);
  writeFileSync(`${path}.md`, markdown(Object.values(kept)));
  console.log(`kept as ${name} in ${path}.{json,md}`);
}

function markdown(kept: Kept[]): string {
  const memory = `${(totalmem() / 2 ** 30).toFixed(0)} GiB`;
  const lines = [`# ${cpus()[0]?.model}, ${cpus().length} CPUs, ${memory}, ${process.platform} ${release()}`];
  for (const { title, notes, header, rows, text, command, at, bun } of kept) {
    const row = (cells: string[]) => `| ${cells.join(" | ")} |`;
    lines.push(
      "",
      `## ${title}`,
      "",
      `\`${command}\`, ${at.slice(0, 16)}Z, Bun ${bun}`,
      "",
      ...notes.map((note) => `- ${note}`),
      "",
    );
    if (text) lines.push("```", text, "```");
    else lines.push(row(header), row(header.map(() => "---")), ...rows.map(row));
  }
  return `${lines.join("\n")}\n`;
}

/** The processor's family and model, which its name does not always tell: `amd-epyc-25-17`. */
function chip(): string {
  const text = existsSync("/proc/cpuinfo") ? readFileSync("/proc/cpuinfo", "utf8") : "";
  const field = (name: string) => new RegExp(`^${name}\\s*: (.*)$`, "m").exec(text)?.[1] ?? "";
  const words = [cpus()[0]?.model ?? "unknown", field("cpu family"), field("model")].filter((word) => word);
  return words
    .join("-")
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-");
}
