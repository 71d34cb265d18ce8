/**
 * Colours and measures of terminal text.
 *
 * Convention: nothing outside `terminal/` writes escape codes. Colour is used when the stream is a terminal and
 * NO_COLOR (https://no-color.org) is unset or empty; FORCE_COLOR turns it on for a pipe.
 */

/** The part of a stream that the terminal code needs; `process.stdout` and `process.stderr` have it. */
export interface TerminalStream {
  write(text: string): unknown;
  readonly isTTY?: boolean;
  readonly columns?: number;
}

export type Color = "red" | "green" | "yellow" | "blue" | "magenta" | "cyan";

export interface Style {
  bold(text: string): string;
  dim(text: string): string;
  color(name: Color, text: string): string;
}

const codes: Record<Color, number> = { red: 31, green: 32, yellow: 33, blue: 34, magenta: 35, cyan: 36 };

export const plainStyle: Style = { bold: (text) => text, dim: (text) => text, color: (_, text) => text };

export const colorStyle: Style = {
  bold: (text) => `\x1b[1m${text}\x1b[22m`,
  dim: (text) => `\x1b[2m${text}\x1b[22m`,
  color: (name, text) => `\x1b[${codes[name]}m${text}\x1b[39m`,
};

export function styleFor(stream: { readonly isTTY?: boolean }, env = process.env): Style {
  if (env.NO_COLOR) return plainStyle;
  if (env.FORCE_COLOR && env.FORCE_COLOR !== "0") return colorStyle;
  return stream.isTTY === true && env.TERM !== "dumb" ? colorStyle : plainStyle;
}

/** Columns of a terminal, or `fallback` where there is none. */
export function widthOf(stream: TerminalStream, fallback = 80): number {
  return stream.isTTY === true && stream.columns !== undefined && stream.columns > 0 ? stream.columns : fallback;
}

/** Columns a text takes; escape codes take none, wide characters two. */
export function displayWidth(text: string): number {
  return Bun.stringWidth(text);
}

export function padEnd(text: string, width: number): string {
  return text + " ".repeat(Math.max(0, width - displayWidth(text)));
}

export function padStart(text: string, width: number): string {
  return " ".repeat(Math.max(0, width - displayWidth(text))) + text;
}

/**
 * What a model writes, for a terminal: its control characters would move the cursor, ring or recolour, so their pictures
 * stand for them.
 */
export function visible(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replace(/\r/g, "").replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, (control) => {
    const code = control.charCodeAt(0);
    return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
  });
}

/** Breaks a text at spaces into lines of at most `width` columns; a longer word keeps a line to itself. */
export function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    if (line !== "" && displayWidth(line) + 1 + displayWidth(word) > width) {
      lines.push(line);
      line = word;
    } else {
      line = line === "" ? word : `${line} ${word}`;
    }
  }
  lines.push(line);
  return lines;
}
