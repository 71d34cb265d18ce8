/**
 * What a terminal shows, as a picture that the README can hold: the last rows of a recorded session as SVG.
 *
 *   script -qfc "stty cols 100; bun run train" session.txt
 *   bun docs/images/terminal-svg.ts session.txt 42 > docs/images/train.svg
 */
import { readFileSync } from "node:fs";

interface Cell {
  text: string;
  style: string;
}

const [CELL, LINE, MARGIN, COLUMNS] = [8.4, 17, 16, 100];
/** Colours of SGR 30 … 37 on a dark ground. */
const COLORS = ["#3b4252", "#f28b82", "#8bd49c", "#f5c86b", "#8ab4f8", "#d7aefb", "#78d9ec", "#e8eaed"];
const ESCAPE = String.fromCharCode(27);
const [GROUND, INK] = ["#1b1d22", "#e8eaed"];

/** The rows that are on the screen, scrolled ones included, after everything was written. */
function screenOf(session: string): Cell[][] {
  const rows: Cell[][] = [[]];
  let [row, column, style] = [0, 0, ""];
  // A sequence of control characters, or one character (a surrogate pair is one).
  const pattern = new RegExp(`${ESCAPE}\\[([?\\d;]*)([A-Za-z])|${ESCAPE}[()].|[\\s\\S]`, "gu");
  for (const [whole, argument = "", command] of session.matchAll(pattern)) {
    const count = Number(argument || 1);
    if (command === "m") style = styleAfter(style, argument);
    else if (command === "A") row = Math.max(0, row - count);
    else if (command === "G") column = count - 1;
    else if (command === "K") rows[row]!.length = argument === "2" ? 0 : Math.min(rows[row]!.length, column);
    else if (command === "J") {
      rows.length = row + 1;
      rows[row]!.length = Math.min(rows[row]!.length, column);
    } else if (whole === "\r") column = 0;
    else if (whole === "\n") {
      row++;
      column = 0;
      rows[row] ??= [];
    } else if (whole >= " ") {
      if (column === COLUMNS) {
        row++;
        column = 0;
        rows[row] ??= [];
      }
      const line = rows[row]!;
      while (line.length < column) line.push({ text: " ", style: "" });
      line[column++] = { text: whole, style };
    }
  }
  return rows;
}

function styleAfter(style: string, argument: string): string {
  const parts = new Set(style.split(" ").filter(Boolean));
  for (const code of argument.split(";").map(Number)) {
    if (code === 0) parts.clear();
    else if (code === 1) parts.add("bold");
    else if (code === 2) parts.add("dim");
    else if (code === 22) for (const each of ["bold", "dim"]) parts.delete(each);
    else if ((code >= 30 && code <= 37) || code === 39) {
      for (const part of parts) if (part.startsWith("c")) parts.delete(part);
      if (code !== 39) parts.add(`c${code - 30}`);
    }
  }
  return [...parts].join(" ");
}

/** Runs of cells of one style, each held to its columns whatever font there is. */
function svgOf(rows: Cell[][]): string {
  const [width, height] = [2 * MARGIN + COLUMNS * CELL, 2 * MARGIN + rows.length * LINE];
  const escape = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const lines = rows.flatMap((cells, row) => {
    const runs: { begin: number; text: string; style: string; length: number }[] = [];
    cells.forEach(({ text, style }, column) => {
      const last = runs.at(-1);
      if (last?.style === style) {
        last.text += text;
        last.length++;
      } else runs.push({ begin: column, text, style, length: 1 });
    });
    return runs
      .filter(({ text }) => text.trim() !== "")
      .map(({ begin, text, style, length }) => {
        const blank = text.length - text.trimStart().length;
        const kept = text.trim();
        const columns = length - (text.length - kept.length);
        const x = (MARGIN + (begin + blank) * CELL).toFixed(1);
        const y = MARGIN + row * LINE + 13;
        const classes = style === "" ? "" : ` class="${style}"`;
        return `<text x="${x}" y="${y}" textLength="${(columns * CELL).toFixed(1)}" lengthAdjust="spacingAndGlyphs"${classes}>${escape(kept)}</text>`;
      });
  });
  const colors = COLORS.map((color, i) => `.c${i}{fill:${color}}`).join("");
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<style>text{font:14px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:${INK};white-space:pre}.bold{font-weight:bold}.dim{opacity:.6}${colors}</style>
<rect width="100%" height="100%" rx="8" fill="${GROUND}"/>
${lines.join("\n")}
</svg>
`;
}

const [path, count = "40"] = process.argv.slice(2);
const session = readFileSync(path!, "utf8").replace(/^Script started.*\n|\nScript done[\s\S]*$/g, "");
const rows = screenOf(session);
while (rows.at(-1)!.every(({ text }) => text === " ")) rows.pop();
process.stdout.write(svgOf(rows.slice(-Number(count))));
