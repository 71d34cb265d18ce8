/**
 * The progress of a long job. On a terminal: one line, redrawn in place at most ten times a second, fitted to the
 * terminal's width at every drawing. On a pipe or in a log file: a plain line at the first update, then one for every
 * 5 % or every minute (but at most one a second), and one at the end.
 *
 * Convention: the bar never leaves the cursor hidden and sets no timer, so a crash or a signal leaves a usable terminal
 * and nothing keeps the process alive.
 */

import { formatCount, formatDuration } from "./format.ts";
import { displayWidth, type Style, styleFor, type TerminalStream, widthOf } from "./style.ts";

export interface ProgressOptions {
  /** Steps in all. */
  total: number;
  /** Steps done before this process began, for a resumed job; they do not count for the time left. */
  start?: number;
  /** Shown in front of the bar. */
  label?: string;
  stream?: TerminalStream;
  /** Milliseconds on a clock that never goes back; tests set it. */
  now?: () => number;
}

const redrawMs = 100;
const plainMinMs = 1000;
const plainMaxMs = 60_000;
const plainFraction = 0.05;
const narrowestBar = 8;
const widestBar = 30;
const eighths = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

export class ProgressBar {
  readonly #total: number;
  readonly #start: number;
  readonly #label: string;
  readonly #stream: TerminalStream;
  readonly #now: () => number;
  readonly #isTTY: boolean;
  readonly #style: Style;
  readonly #startedAt: number;
  #done: number;
  #values: Record<string, string> = {};
  /** When and at which step something was last drawn. */
  #drawnAt = Number.NEGATIVE_INFINITY;
  #drawnDone = Number.NEGATIVE_INFINITY;
  #onScreen = false;
  /** Width of the bar when the terminal had `columns`; it only shrinks until that changes, or it would twitch. */
  #fitted = { columns: 0, bar: widestBar };
  #finished = false;

  constructor({
    total,
    start = 0,
    label = "",
    stream = process.stdout,
    now = () => performance.now(),
  }: ProgressOptions) {
    this.#total = total;
    this.#start = start;
    this.#done = start;
    this.#label = label;
    this.#stream = stream;
    this.#now = now;
    this.#isTTY = stream.isTTY === true && process.env.TERM !== "dumb";
    this.#style = styleFor(stream);
    this.#startedAt = now();
  }

  /**
   * Reports `done` steps and what to show beside them, such as `{ loss: "2.31", lr: "9.1e-4" }`, the most important
   * first: on a narrow terminal the last ones go. Cheap enough to call every step.
   */
  update(done: number, values: Record<string, string> = this.#values): void {
    this.#done = done;
    this.#values = values;
    if (this.#isDue()) this.#draw();
  }

  /** Prints text above the bar; the bar comes back with the next update. */
  print(text: string): void {
    this.clear();
    this.#stream.write(text.endsWith("\n") ? text : `${text}\n`);
  }

  /** Takes the bar off the screen so that others can write; it comes back with the next update. */
  clear(): void {
    if (this.#onScreen) this.#stream.write("\r\x1b[K");
    this.#onScreen = false;
    if (this.#isTTY) this.#drawnAt = Number.NEGATIVE_INFINITY;
  }

  /** Draws the last state and ends the line. Further calls do nothing. */
  finish(): void {
    if (this.#finished) return;
    this.#finished = true;
    if (this.#isTTY) {
      this.#draw();
      this.#stream.write("\n");
      this.#onScreen = false;
    } else if (this.#drawnDone !== this.#done) {
      this.#draw();
    }
  }

  [Symbol.dispose](): void {
    this.finish();
  }

  #isDue(): boolean {
    const since = this.#now() - this.#drawnAt;
    if (this.#isTTY) return since >= redrawMs;
    const progressed = this.#done - this.#drawnDone >= this.#total * plainFraction;
    return since >= plainMaxMs || (since >= plainMinMs && progressed);
  }

  #draw(): void {
    this.#drawnAt = this.#now();
    this.#drawnDone = this.#done;
    if (!this.#isTTY) {
      this.#stream.write(`${this.#plainLine()}\n`);
      return;
    }
    // Drawn over the old line, then the rest erased: erasing first would flicker.
    this.#stream.write(`\r${this.#barLine(widthOf(this.#stream))}\x1b[K`);
    this.#onScreen = true;
  }

  #fraction(): number {
    return this.#total > 0 ? Math.min(1, Math.max(0, this.#done / this.#total)) : 1;
  }

  /** `40/1200`; bytes and tokens, which come in millions, rounded: `1.2M/4M`. */
  #steps(): string {
    const show = this.#total < 1e6 ? String : formatCount;
    return `${show(this.#done).padStart(show(this.#total).length)}/${show(this.#total)}`;
  }

  #elapsed(): number {
    return (this.#now() - this.#startedAt) / 1000;
  }

  /** `ETA 1m 02s` from the mean rate of this process so far, or the time taken when there is nothing left. */
  #timing(): [string, string] {
    const done = this.#done - this.#start;
    if (this.#done >= this.#total) return ["took", formatDuration(this.#elapsed())];
    return ["ETA", done > 0 ? formatDuration((this.#elapsed() / done) * (this.#total - this.#done)) : "?"];
  }

  #plainLine(): string {
    const percent = Math.floor(this.#fraction() * 100);
    const values = [...Object.entries(this.#values), ["elapsed", formatDuration(this.#elapsed())]];
    if (this.#done < this.#total) values.push(this.#timing());
    const head = `${this.#label === "" ? "" : `${this.#label} `}${this.#steps()} (${percent}%)`;
    return [head.trimStart(), ...values.map(([key, value]) => `${key} ${value}`)].join("  ");
  }

  /** The line for a terminal of `columns`; one column stays free, because a full line would wrap. */
  #barLine(columns: number): string {
    const room = columns - 1;
    const percent = `${Math.floor(this.#fraction() * 100)}%`.padStart(4);
    const steps = this.#steps();
    const values = Object.entries(this.#values);
    const timing = this.#timing();
    let label = this.#label;
    let bar = narrowestBar;

    const measure = () => {
      const parts = [label, bar > 0 ? " ".repeat(bar) : "", percent, steps];
      const texts = [...parts, ...[...values, timing].map((pair) => pair.join(" "))].filter((part) => part !== "");
      return texts.reduce((sum, part) => sum + displayWidth(part) + 2, -2);
    };
    while (values.length > 1 && measure() > room) values.pop();
    if (measure() > room) label = "";
    if (measure() > room) bar = 0;
    if (bar > 0) {
      const widest = this.#fitted.columns === columns ? this.#fitted.bar : widestBar;
      bar = Math.min(widest, bar + Math.max(0, room - measure()));
      this.#fitted = { columns, bar };
    }

    const { dim, bold } = this.#style;
    const shown = [...values, timing].map(([key, value]) => `${dim(key)} ${value}`);
    const parts = [bold(label), this.#bar(bar), percent, dim(steps), ...shown];
    const line = parts.filter((part) => displayWidth(part) > 0).join("  ");
    // A terminal of a few columns: whatever fits, without the escape codes that cutting could tear.
    return displayWidth(line) <= room ? line : `${percent.trim()} ${steps}`.slice(0, Math.max(0, room));
  }

  #bar(width: number): string {
    const filled = Math.round(this.#fraction() * width * 8);
    const solid = "█".repeat(Math.floor(filled / 8)) + eighths[filled % 8];
    return this.#style.color("cyan", solid) + this.#style.dim("·".repeat(Math.max(0, width - displayWidth(solid))));
  }
}
