/** Durations, counts and tables as people read them. Everything here returns text and writes nothing. */

import { displayWidth, padEnd, padStart, plainStyle, type Style } from "./style.ts";

/** A word of a command line as a shell takes it: quoted where it holds blanks or anything else that means something. */
export function shellWord(text: string): string {
  return /^[\p{L}\p{N}_./:@%+,=-]+$/u.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** Seconds → `0.4s`, `42s`, `2m 05s`, `1h 03m`, `2d 04h`: two units at most. */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return "?";
  if (seconds < 9.95) return `${seconds.toFixed(1)}s`;
  const two = (value: number) => String(value).padStart(2, "0");
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)}h ${two(minutes % 60)}m`;
  const hours = Math.round(seconds / 3600);
  return `${Math.floor(hours / 24)}d ${two(hours % 24)}h`;
}

/** 950 → `950`, 1_500 → `1.5k`, 327_680_000 → `328M`: three significant digits, without zeros at the end. */
export function formatCount(count: number): string {
  if (!Number.isFinite(count)) return String(count);
  const units = ["", "k", "M", "B", "T"];
  let value = Math.abs(count);
  let unit = 0;
  // 999.5 rounds to 1000 in three digits, so it belongs to the next unit.
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${count < 0 ? "-" : ""}${Number(value.toPrecision(3))}${units[unit]}`;
}

/** 950 → `950 B`, 1_536 → `1.50 KiB`, 5e9 → `4.66 GiB`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${units[unit]}`;
}

export type Cell = string | number;

export interface TableOptions {
  header?: string[];
  style?: Style;
}

/** Rows with aligned columns; a column whose cells are all numbers (the type) is aligned to the right. */
export function formatTable(rows: Cell[][], { header, style = plainStyle }: TableOptions = {}): string {
  const all: Cell[][] = header === undefined ? rows : [header, ...rows];
  const columns = Math.max(0, ...all.map((row) => row.length));
  const layout = Array.from({ length: columns }, (_, column) => ({
    width: Math.max(...all.map((row) => displayWidth(String(row[column] ?? "")))),
    right: rows.length > 0 && rows.every((row) => typeof row[column] === "number"),
  }));
  const line = (row: Cell[]) => {
    const cells = layout.map(({ width, right }, i) => (right ? padStart : padEnd)(String(row[i] ?? ""), width));
    return cells.join("  ").trimEnd();
  };
  return [...(header === undefined ? [] : [style.bold(line(header))]), ...rows.map(line)].join("\n");
}
