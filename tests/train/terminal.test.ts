/** What the terminal shows: the progress bar (also in a real terminal), curves, tables and figures. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import fc from "fast-check";
import { formatConfig } from "../../packages/train/src/cli/config-summary.ts";
import { choose, resolveConfig } from "../../packages/train/src/config.ts";
import { formatCount, formatDuration, formatTable, shellWord } from "../../packages/train/src/terminal/format.ts";
import { plotCurve } from "../../packages/train/src/terminal/plot.ts";
import { ProgressBar, type ProgressOptions } from "../../packages/train/src/terminal/progress.ts";
import { colorStyle, plainStyle, styleFor, visible, wrap } from "../../packages/train/src/terminal/style.ts";
import { Screen } from "./support/screen.ts";

/** A bar on a made-up stream with a clock that the test moves. */
function rig(options: Partial<ProgressOptions> & { columns?: number } = {}) {
  const clock = { ms: 0 };
  const writes: string[] = [];
  const stream = {
    isTTY: options.columns !== undefined,
    columns: options.columns,
    write: (text: string) => writes.push(text),
  };
  const bar = new ProgressBar({ total: 100, stream, now: () => clock.ms, ...options });
  return { bar, clock, writes, stream };
}

describe("progress bar on a terminal", () => {
  const values = { loss: "2.310", lr: "9.1e-4", "tok/s": "52.1k" };

  test("shows steps, percent, values and the time left on one line", () => {
    const { bar, clock, writes } = rig({ columns: 100, label: "train" });
    clock.ms = 10_000;
    bar.update(25, values);
    const { lines } = new Screen(100).write(writes.join(""));
    expect(lines).toHaveLength(1);
    expect(lines[0]).toMatch(
      /^train {2}█+[▏▎▍▌▋▊▉]?·+ {3}25% {3}25\/100 {2}loss 2\.310 {2}lr 9\.1e-4 {2}tok\/s 52\.1k {2}ETA 30s$/,
    );
  });

  test("is drawn ten times a second at most, however often it is updated", () => {
    const { bar, clock, writes } = rig({ columns: 80, total: 5000 });
    for (let step = 1; step <= 5000; step++) {
      clock.ms = step;
      bar.update(step, values);
    }
    expect(writes.length).toBeGreaterThan(45);
    expect(writes.length).toBeLessThanOrEqual(51);
  });

  test("the end is always shown", () => {
    const { bar, clock, writes } = rig({ columns: 80 });
    bar.update(50, values);
    clock.ms = 1;
    bar.update(100, { loss: "1.000" });
    bar.finish();
    bar.finish();
    const { lines } = new Screen(80).write(writes.join(""));
    expect(lines).toHaveLength(2);
    expect(lines[0]).toContain("100%  100/100  loss 1.000  took 0.0s");
    expect(lines[0]).not.toContain("·");
    expect(lines[1]).toBe("");
  });

  test("texts are printed above it, and nothing of it stays behind", () => {
    const { bar, clock, writes } = rig({ columns: 80 });
    bar.update(10, values);
    bar.print("short");
    clock.ms = 1;
    bar.update(11, values);
    bar.finish();
    const { lines } = new Screen(80).write(writes.join(""));
    expect(lines[0]).toBe("short");
    expect(lines[1]).toContain("11/100");
    expect(lines).toHaveLength(3);
  });

  test("never fills a line of any width, and keeps loss and time longest", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 200 }),
        fc.nat(100),
        fc.string({ maxLength: 12 }),
        (columns, step, label) => {
          const { bar, writes } = rig({ columns, label: label.replace(/[^ -~]/g, "") });
          bar.update(step, values);
          const { lines } = new Screen(columns).write(writes.join(""));
          expect(lines).toHaveLength(1);
          expect(Bun.stringWidth(lines[0])).toBeLessThan(Math.max(2, columns));
          if (columns > 60) expect(lines[0]).toContain("loss 2.310");
        },
      ),
    );
    const narrow = rig({ columns: 50 });
    narrow.bar.update(50, values);
    const [line] = new Screen(50).write(narrow.writes.join("")).lines;
    expect(line).toContain("loss");
    expect(line).toContain("ETA");
    expect(line).not.toContain("tok/s");
  });

  test("the bar does not twitch when a figure gets shorter", () => {
    const { bar, clock, writes } = rig({ columns: 60 });
    const barAfter = (step: number, loss: string) => {
      clock.ms += 1000;
      bar.update(step, { loss });
      return new Screen(60).write(writes.join("")).lines[0].match(/[█▏▎▍▌▋▊▉·]+/)?.[0].length;
    };
    const long = barAfter(50, "12345.678");
    expect(long).toBeLessThan(30);
    expect(barAfter(51, "1.2")).toBe(long as number);
  });

  test("a resumed job's time left counts this process's steps only", () => {
    const { bar, clock, writes } = rig({ columns: 100, start: 80 });
    clock.ms = 10_000;
    bar.update(90, {});
    expect(writes.join("")).toMatch(/ETA\S* 10s/);
  });

  test("bytes and tokens are rounded", () => {
    const { bar, writes } = rig({ columns: 100, total: 4_000_000 });
    bar.update(1_230_000, {});
    expect(writes.join("")).toContain("1.23M/4M");
  });
});

describe("progress on a pipe", () => {
  const linesFor = (seconds: number, steps: number) => {
    const { bar, clock, writes } = rig({ total: steps });
    for (let step = 1; step <= steps; step++) {
      clock.ms = (step / steps) * seconds * 1000;
      bar.update(step, { loss: "1.0" });
    }
    bar.finish();
    return writes;
  };

  test("one plain line for every 5 %", () => {
    const lines = linesFor(150, 1200);
    expect(lines).toHaveLength(21);
    expect(lines[1]).toMatch(/^61\/1200 \(5%\) {2}loss 1\.0 {2}elapsed 7\.6s {2}ETA 2m 22s\n$/);
    expect(lines[20]).toMatch(/^1200\/1200 \(100%\) {2}loss 1\.0 {2}elapsed 2m 30s\n$/);
    expect(lines.join("")).not.toContain("\x1b");
  });

  test("quick jobs get a first and a last line, long ones a line a minute", () => {
    expect(linesFor(0.5, 100)).toHaveLength(2);
    expect(linesFor(7200, 7200).length).toBeWithin(118, 125);
  });

  test("printed texts come out as they are", () => {
    const { bar, writes } = rig();
    bar.update(1, {});
    bar.print("a sample\n");
    bar.print("a line");
    expect(writes.slice(1)).toEqual(["a sample\n", "a line\n"]);
  });
});

test("in a real terminal: one line redrawn, texts above it, and the width followed", async () => {
  let output = "";
  let seen = () => {};
  const waiting = new Promise<void>((resolve) => {
    seen = resolve;
  });
  const terminal = new Bun.Terminal({
    cols: 100,
    rows: 24,
    data(_, bytes) {
      output += new TextDecoder().decode(bytes, { stream: true });
      if (output.includes("5/10")) seen();
    },
  });
  try {
    const child = Bun.spawn([process.execPath, join(import.meta.dir, "support", "progress.ts")], {
      terminal,
      env: { ...process.env, NO_COLOR: "", TERM: "xterm-256color" },
    });
    await Promise.race([waiting, child.exited]);
    const before = output;
    terminal.resize(50, 24);
    // This terminal is not the child's controlling one, so the kernel leaves the signal to us.
    child.kill("SIGWINCH");
    expect(await child.exited).toBe(0);
    // What the child wrote last may arrive after its end.
    while (!/took[^\n]*\n/.test(output)) await new Promise((resolve) => setTimeout(resolve, 1));

    const wide = new Screen(100).write(before).lines;
    expect(wide).toHaveLength(2);
    expect(wide[0]).toBe("a sample text");
    expect(wide[1]).toMatch(
      /^train {2}█.* 50% .* 5\/10 {2}loss 0\.800 {2}lr 1\.0e-3 {2}tok\/s 52\.1k {2}val 2\.345 {2}ETA \d+s$/,
    );
    expect(Bun.stringWidth(wide[1])).toBeGreaterThan(80);
    expect(before).toContain("\x1b[36m");

    const after = new Screen(50).write(output.slice(before.length)).lines;
    expect(after).toHaveLength(2);
    expect(after[0]).toMatch(/100% {2}10\/10 {2}loss 0\.400 .*took/);
    expect(Bun.stringWidth(after[0])).toBeLessThan(50);
    expect(after[1]).toBe("");
  } finally {
    terminal.close();
  }
});

describe("curves", () => {
  const falling = Array.from({ length: 500 }, (_, x): [number, number] => [x, 4 - x / 200]);
  const validation: [number, number][] = [
    [0, 4.2],
    [250, 2.9],
    [499, 1.8],
  ];
  const picture = plotCurve(
    [
      { label: "training", points: falling },
      { label: "validation", points: validation },
    ],
    { width: 60, height: 10, title: "loss", xLabel: "step" },
  );
  const rows = picture.split("\n");
  /** Rows of the plot itself, and in each the columns that hold a line or a mark. */
  const plot = rows.slice(1, 11).map((row) => [...row].slice(9));
  const isLine = (cell: string) => cell >= "\u2801" && cell <= "\u28ff";
  const lineCells = (row: string) => Array.from(row).filter(isLine).length;

  test("have a title, an axis, ticks, a legend, and the size asked for", () => {
    expect(rows).toHaveLength(1 + 10 + 2 + 1);
    expect(rows[0]).toBe("loss");
    for (const row of rows) expect(Bun.stringWidth(row)).toBeLessThanOrEqual(60);
    expect(rows[11]).toContain("└");
    expect(rows[12]).toMatch(/^ +0 +\S+ .*\d$/);
    expect(rows[13]).toMatch(/⠒⠒ training {3}● validation +step$/);
  });

  test("fall where the points fall, and cover every column", () => {
    const heights = Array.from({ length: 51 }, (_, column) =>
      plot.findIndex((row) => row[column] !== undefined && row[column] !== " "),
    );
    for (const height of heights) expect(height).toBeGreaterThanOrEqual(0);
    expect(heights[0]).toBe(0);
    for (let i = 2; i < heights.length; i++) expect(heights[i]).toBeGreaterThanOrEqual(heights[i - 1] - 1);
    expect(heights[49]).toBeGreaterThanOrEqual(8);
  });

  test("label the height of a value", () => {
    const rowOf = (label: string) => rows.findIndex((row) => row.trimStart().startsWith(`${label} ┤`));
    const row = rowOf("3");
    expect(row).toBeGreaterThan(rowOf("4"));
    // y = 3 is reached at x = 200, two fifths of the width.
    const columns = plot[row - 1].flatMap((cell, i) => (isLine(cell) ? [i] : []));
    expect(columns.some((column) => Math.abs(column - (51 * 200) / 499) < 3)).toBe(true);
  });

  test("marks stand where the validations were", () => {
    const marks = plot.flatMap((row) => row.flatMap((cell, i) => (cell === "●" ? [i] : [])));
    expect(marks.sort((a, b) => a - b)).toEqual([0, 25, 50]);
  });

  test("noise between two columns is averaged away", () => {
    const noisy = Array.from({ length: 20_000 }, (_, x): [number, number] => [
      x,
      1 + (x % 2 === 0 ? 0.5 : -0.5) + x / 20_000,
    ]);
    const lines = plotCurve([{ label: "a", points: noisy }], { width: 60, height: 8 }).split("\n");
    // A straight line from corner to corner: every row and column is met, and few cells in each.
    for (const row of lines.slice(0, 8)) expect(lineCells(row)).toBeWithin(3, 12);
  });

  test("a logarithmic axis makes a power law straight", () => {
    const points = Array.from({ length: 300 }, (_, x): [number, number] => [x, 10 ** (-x / 100)]);
    const lines = plotCurve([{ label: "a", points }], { width: 60, height: 8, log: true }).split("\n");
    for (const row of lines.slice(0, 8)) expect(lineCells(row)).toBeWithin(4, 10);
    expect(lines.join("\n")).toContain("0.1 ┤");
  });

  test("colour tells them apart where it is wanted", () => {
    const series = [{ label: "a", points: falling }];
    expect(plotCurve(series, { style: plainStyle })).not.toContain("\x1b");
    expect(plotCurve(series, { style: colorStyle })).toContain("\x1b[36m");
  });

  test("nothing, one point, equal values, gaps and infinities are drawn or said", () => {
    expect(plotCurve([{ label: "a", points: [] }])).toContain("no points");
    expect(plotCurve([])).toContain("no points");
    expect(plotCurve([{ label: "a", points: [[1, Number.NaN]] }])).toContain("no points");
    const drawn = (points: [number, number][]) => [...plotCurve([{ label: "", points }])].filter(isLine).length;
    expect(drawn([[5, 2]])).toBeGreaterThan(0);
    expect(drawn([[0, 2], [9, 2]])).toBeGreaterThan(60); // prettier-ignore
    expect(drawn([[0, 2], [1, Number.NaN], [2, Number.POSITIVE_INFINITY], [3, 1]])).toBeGreaterThan(10); // prettier-ignore
    // Only the second series has points.
    expect(plotCurve([{ label: "a", points: [] }, { label: "b", points: [[0, 1]] }])).toContain("●"); // prettier-ignore
  });

  test("any points and sizes give a picture of that size", () => {
    const point = fc.tuple(fc.double({ noNaN: true }), fc.double({ noNaN: true }));
    fc.assert(
      fc.property(
        fc.array(point, { minLength: 1, maxLength: 30 }),
        fc.integer({ min: 1, max: 120 }),
        fc.integer({ min: 1, max: 20 }),
        fc.boolean(),
        (points, width, height, log) => {
          const lines = plotCurve([{ label: "a", points }], { width, height, log, xLabel: "step" }).split("\n");
          if (lines.length === 1) return; // no usable points
          expect(lines).toHaveLength(height + 3);
          for (const row of lines.slice(0, height))
            expect(Bun.stringWidth(row)).toBeLessThanOrEqual(Math.max(17, width));
        },
      ),
    );
  });

  test("a long run does not overflow the stack", () => {
    const points = Array.from({ length: 300_000 }, (_, x): [number, number] => [x, 1 / (x + 1)]);
    expect(plotCurve([{ label: "a", points }])).toContain("a");
  });
});

test("control characters of a model's text do nothing to a terminal; breaks and tabs stay", () => {
  expect(visible("a\x1b[31mb\x07\x00\x7f\u009b1m\r\n\tç 你🎉")).toBe("a␛[31mb␇␀␡\ufffd1m\n\tç 你🎉");
});

test("words of a command line: quoted where a shell would read them otherwise, and read back the same", () => {
  expect(shellWord("runs/tiny-2.b")).toBe("runs/tiny-2.b");
  for (const word of ["my runs/a", "it's", "$HOME", "a;b", "", "*", "~x", "мой run", 'say "hi"', "a\\b", "#x", "!1"]) {
    expect(Bun.spawnSync(["sh", "-c", `printf %s ${shellWord(word)}`]).stdout.toString()).toBe(word);
  }
});

describe("figures", () => {
  test("durations", () => {
    const cases: [number, string][] = [
      [0, "0.0s"],
      [0.42, "0.4s"],
      [9.94, "9.9s"],
      [9.96, "10s"],
      [59.4, "59s"],
      [59.6, "1m 00s"],
      [62, "1m 02s"],
      [3599.6, "1h 00m"],
      [3723, "1h 02m"],
      [86_399, "1d 00h"],
      [187_200, "2d 04h"],
      [-1, "?"],
      [Number.NaN, "?"],
      [Number.POSITIVE_INFINITY, "?"],
    ];
    for (const [seconds, text] of cases) expect(`${seconds}: ${formatDuration(seconds)}`).toBe(`${seconds}: ${text}`);
  });

  test("counts", () => {
    const cases: [number, string][] = [
      [0, "0"],
      [950, "950"],
      [999.9, "1k"],
      [1500, "1.5k"],
      [12_345, "12.3k"],
      [999_499, "999k"],
      [999_500, "1M"],
      [327_680_000, "328M"],
      [2e15, "2000T"],
      [-1500, "-1.5k"],
      [0.25, "0.25"],
    ];
    for (const [count, text] of cases) expect(`${count}: ${formatCount(count)}`).toBe(`${count}: ${text}`);
  });

  test("tables align texts to the left and numbers to the right, by their width on screen", () => {
    const rows = [
      ["train", 1.52, "x"],
      ["日本", 12, "yy"],
    ];
    expect(formatTable(rows, { header: ["part", "loss", ""] }).split("\n")).toEqual([
      "part   loss",
      "train  1.52  x",
      "日本     12  yy",
    ]);
    expect(formatTable([])).toBe("");
  });

  test("wrapping breaks at spaces only", () => {
    expect(wrap("one two three", 7)).toEqual(["one two", "three"]);
    expect(wrap("incomprehensibilities is", 5)).toEqual(["incomprehensibilities", "is"]);
  });

  test("NO_COLOR, FORCE_COLOR, dumb terminals and pipes", () => {
    expect(styleFor({ isTTY: true }, {})).toBe(colorStyle);
    expect(styleFor({ isTTY: true }, { NO_COLOR: "1", FORCE_COLOR: "1" })).toBe(plainStyle);
    expect(styleFor({ isTTY: true }, { NO_COLOR: "" })).toBe(colorStyle);
    expect(styleFor({ isTTY: true }, { TERM: "dumb" })).toBe(plainStyle);
    expect(styleFor({}, {})).toBe(plainStyle);
    expect(styleFor({}, { FORCE_COLOR: "1" })).toBe(colorStyle);
    expect(styleFor({}, { FORCE_COLOR: "0" })).toBe(plainStyle);
  });
});

test("the printed config shows every value, what the user set and each choice with its reason", () => {
  const run = resolveConfig({ flags: { lr: 3e-3, samplePrompt: "Once upon a time" } });
  choose(run, "device", "cpu", "there is no CUDA device");
  const text = formatConfig(run, 90);
  expect(text).toContain("preset tiny");
  expect(text).toMatch(/Model +.*dModel \d+ {2}numLayers \d+/);
  expect(text).toContain("samplePrompt Once upon a time");
  expect(text).toMatch(/lr +0\.003 +by --lr/);
  expect(text).toMatch(/device +cpu +there is no CUDA device/);
  expect(text).toMatch(/minLr +0\.0003 +a tenth of lr/);
  expect(text).toMatch(/Machine +device cpu/);
  for (const line of text.split("\n")) expect(line.length).toBeLessThanOrEqual(90);
});

test("the printed config leaves out what means nothing beside the rest, unless the user gave it", () => {
  const shown = (flags: object) => formatConfig(resolveConfig({ flags: { ...flags } }), 90);
  expect(shown({})).not.toMatch(/decaySteps|muonMomentum|ropeFactor/);
  expect(shown({ schedule: "wsd", steps: 1000 })).toMatch(/decaySteps +200 +20 % of 1000 steps/);
  expect(shown({ schedule: "constant" })).not.toMatch(/minLr|decaySteps/);
  expect(shown({ decaySteps: 7 })).toMatch(/decaySteps +7 +by --decay-steps/);
  expect(shown({ model: { ropeScaling: "linear" } })).toMatch(/ropeFactor 1/);
});
