/**
 * Curves in the terminal, two by four Braille dots a character. The first series is drawn as a line, averaged over the
 * points that share a column of dots (a training loss has more points than a terminal has columns); the others as
 * marks, so that two curves can be told apart without colour.
 */

import { formatCount } from "./format.ts";
import { type Color, displayWidth, padEnd, padStart, plainStyle, type Style } from "./style.ts";

type Point = [x: number, y: number];

export interface Series {
  label: string;
  /** In any order; points that are not finite (or beyond 1e150) are left out. */
  points: Point[];
}

export interface PlotOptions {
  /** Columns of the whole picture, labels included. */
  width?: number;
  /** Rows of the plot itself, without title, axis and legend. */
  height?: number;
  title?: string;
  xLabel?: string;
  /** Logarithmic y axis; points with y ≤ 0 are left out. */
  log?: boolean;
  style?: Style;
}

const colors: Color[] = ["cyan", "yellow", "magenta", "green"];
const marks = ["●", "▲", "■", "◆"];
/** Columns for the labels of the y axis. */
const gutter = 7;
/** Bits of a Braille character (U+2800 + bits) by row and column of the dot. */
const dotBits = [
  [0x01, 0x08],
  [0x02, 0x10],
  [0x04, 0x20],
  [0x40, 0x80],
];

/** Draws the series into one picture of several lines, without a final newline. */
export function plotCurve(series: Series[], options: PlotOptions = {}): string {
  const { width = 72, height = 14, title = "", xLabel = "", log = false, style = plainStyle } = options;
  const columns = Math.max(8, width - gutter - 2);
  const scale = log ? Math.log : (y: number) => y;
  const points = series.map((each) => usable(each.points, log));
  const all = points.flat();
  if (all.length === 0) return title === "" ? "(no points to draw)" : `${style.bold(title)}\n(no points to draw)`;

  const [xMin, xMax] = extent(all.map(([x]) => x));
  const xToDot = mapping(xMin, xMax, columns * 2 - 1);
  // Averaged before the range of y is taken: noise that is not drawn must not flatten what is.
  const [line, ...others] = [average(points[0], xToDot), ...points.slice(1)];
  const [yMin, yMax] = extent([line, ...others].flat().map(([, y]) => y));
  const fromTop = mapping(scale(yMax), scale(yMin), height * 4 - 1);
  const yToDot = (y: number) => fromTop(scale(y));

  const bits = Array.from({ length: height }, () => Array.from({ length: columns }, () => 0));
  line.forEach(([x, y], i) => {
    const [fromX, fromY] = line[Math.max(0, i - 1)];
    drawLine(xToDot(fromX), yToDot(fromY), xToDot(x), yToDot(y), (column, row) => {
      bits[row >> 2][column >> 1] |= dotBits[row & 3][column & 1];
    });
  });
  const cells = bits.map((row) =>
    row.map((dots) => (dots === 0 ? " " : style.color(colors[0], String.fromCharCode(0x2800 + dots)))),
  );
  others.forEach((each, i) => {
    const mark = style.color(colors[(i + 1) % colors.length], marks[i % marks.length]);
    for (const [x, y] of each) cells[yToDot(y) >> 2][xToDot(x) >> 1] = mark;
  });

  const labels = new Map<number, string>();
  for (const [tick, label] of ticksBetween(yMin, yMax, height / 3, log)) labels.set(yToDot(tick) >> 2, label);
  const rows = cells.map((row, i) => {
    const label = labels.get(i);
    const axis = `${padStart(label ?? "", gutter)} ${label === undefined ? "│" : "┤"}`;
    return style.dim(axis) + row.join("").trimEnd();
  });

  const legend = series.map(({ label }, i) => {
    return `${style.color(colors[i % colors.length], i === 0 ? "⠒⠒" : marks[(i - 1) % marks.length])} ${label}`;
  });
  const xTicks = ticksBetween(xMin, xMax, columns / 12, false).map(([tick]): [number, string] => {
    return [xToDot(tick) >> 1, formatCount(tick)];
  });
  return [
    ...(title === "" ? [] : [style.bold(title)]),
    ...rows,
    ...xAxis(xTicks, columns).map((text) => style.dim(" ".repeat(gutter + 1) + text)),
    " ".repeat(gutter + 2) + padEnd(legend.join("   "), columns - displayWidth(xLabel) - 1) + style.dim(` ${xLabel}`),
  ]
    .join("\n")
    .trimEnd();
}

function usable(points: Point[], log: boolean): Point[] {
  // Beyond 1e150 differences and products overflow; no loss worth drawing is there.
  const isDrawable = (value: number) => Math.abs(value) < 1e150;
  return points.filter(([x, y]) => isDrawable(x) && isDrawable(y) && (!log || y > 0)).sort((a, b) => a[0] - b[0]);
}

/** Smallest and greatest value, by hand because Math.min(...values) overflows the stack on a long run. */
function extent(values: number[]): [number, number] {
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (const value of values) {
    min = Math.min(min, value);
    max = Math.max(max, value);
  }
  return [min, max];
}

/** Maps [from, to] linearly to the whole numbers 0…last; a range of one value goes to the middle. */
function mapping(from: number, to: number, last: number): (value: number) => number {
  if (from === to) return () => Math.floor(last / 2);
  return (value) => Math.min(last, Math.max(0, Math.round(((value - from) / (to - from)) * last)));
}

/** One point for each column of dots: the mean of the points there. `points` are sorted by x. */
function average(points: Point[], xToDot: (x: number) => number): Point[] {
  const means: Point[] = [];
  let count = 0;
  points.forEach(([x, y], i) => {
    const last = means[means.length - 1];
    if (last === undefined || xToDot(x) !== xToDot(points[i - 1][0])) {
      means.push([x, y]);
      count = 1;
    } else {
      count++;
      last[1] += (y - last[1]) / count;
    }
  });
  return means;
}

/** Bresenham's line from one dot to another, both included. */
function drawLine(x0: number, y0: number, x1: number, y1: number, setDot: (x: number, y: number) => void): void {
  const dx = Math.abs(x1 - x0);
  const dy = -Math.abs(y1 - y0);
  let error = dx + dy;
  let [x, y] = [x0, y0];
  for (;;) {
    setDot(x, y);
    if (x === x1 && y === y1) return;
    const doubled = 2 * error;
    if (doubled >= dy) {
      error += dy;
      x += Math.sign(x1 - x0);
    }
    if (doubled <= dx) {
      error += dx;
      y += Math.sign(y1 - y0);
    }
  }
}

/**
 * Round values between `min` and `max`, about `wanted` of them, with their labels: steps of 1, 2 or 5 times a power of
 * ten. On a logarithmic axis that spans more than a factor of ten: 1, 2 and 5 times every power.
 */
function ticksBetween(min: number, max: number, wanted: number, log: boolean): [tick: number, label: string][] {
  const isFlat = max - min <= Math.max(Math.abs(min), Math.abs(max)) * 1e-9 || max - min < 1e-150;
  if (isFlat) return [[min, formatTick(min, Math.abs(min) / 100)]];
  if (log && max / min > 10) {
    const powers = Array.from({ length: 40 }, (_, i) => 10 ** (Math.floor(Math.log10(min)) + i));
    const ticks = powers.flatMap((power) => [power, 2 * power, 5 * power]);
    return ticks.filter((tick) => tick >= min && tick <= max).map((tick) => [tick, formatTick(tick, tick)]);
  }
  const rough = (max - min) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const ticks: [number, string][] = [];
  // Counted, not added up, so that 0.1 + 0.1 + … does not drift past `max`.
  for (let i = Math.ceil(min / step - 1e-9); i * step <= max + step * 1e-9; i++) {
    ticks.push([i * step, formatTick(i * step, step)]);
  }
  return ticks;
}

/** A tick with as many digits as tell it from its neighbours, in at most `gutter` columns. */
function formatTick(tick: number, step: number): string {
  const digits = step > 0 ? Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) : 0;
  const text = tick.toFixed(Math.min(digits, 20));
  if (text.length <= gutter) return text;
  const rounded = Math.abs(tick) >= 1 ? formatCount(tick) : "";
  return rounded !== "" && rounded.length <= gutter ? rounded : tick.toExponential(0);
}

/** The axis under the plot and its labels; labels that would touch the one before are left out. */
function xAxis(ticks: [column: number, label: string][], columns: number): [string, string] {
  const axis = Array.from({ length: columns }, () => "─");
  let labels = "";
  for (const [column, label] of ticks) {
    axis[column] = "┬";
    const start = Math.max(0, Math.min(column - Math.floor(label.length / 2), columns - label.length));
    if (labels === "" || start >= labels.length + 2) labels = labels.padEnd(start) + label;
  }
  return [`└${axis.join("")}`, ` ${labels}`];
}
