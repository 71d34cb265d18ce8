/**
 * The page's own program, in the browser: draws the runs that the page holds, and asks for more where it is live. It is
 * written without imports: the page brings uPlot along, and this text is put into it as it is, without its types.
 */
import type uPlotType from "uplot";
import type { Columns, PageData, RunData, Sample, Update } from "./data.ts";

declare const uPlot: typeof uPlotType;

const dark = matchMedia("(prefers-color-scheme: dark)").matches;
const COLORS = dark
  ? ["#60a5fa", "#f87171", "#4ade80", "#c084fc", "#fb923c", "#22d3ee", "#f472b6", "#a3e635", "#facc15"]
  : ["#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#be185d", "#65a30d", "#a16207"];

interface Shown {
  run: RunData;
  color: string;
  visible: boolean;
  /** Where the next part of its metrics begins. */
  next: number;
}

interface Chart {
  title: string;
  series: { column: keyof Columns; label: string; kind: "line" | "smooth" | "points" }[];
  /** What values are divided by. Default: 1. */
  unit?: number;
  /** Undefined while there is nothing to draw. */
  plot?: uPlotType;
}

const charts: Chart[] = [
  {
    title: "loss (nats per token)",
    series: [
      { column: "loss", label: "training", kind: "smooth" },
      { column: "valLoss", label: "validation", kind: "points" },
    ],
  },
  { title: "validation, bits per byte", series: [{ column: "valBitsPerByte", label: "", kind: "points" }] },
  { title: "learning rate", series: [{ column: "lr", label: "", kind: "line" }] },
  { title: "gradient norm", series: [{ column: "gradNorm", label: "", kind: "smooth" }] },
  { title: "update / weights", series: [{ column: "updateRatio", label: "", kind: "points" }] },
  { title: "tokens per second", series: [{ column: "tokensPerSecond", label: "", kind: "smooth" }] },
  { title: "memory (MB)", series: [{ column: "memory", label: "", kind: "line" }], unit: 1e6 },
];

const page = JSON.parse(document.getElementById("data")!.textContent!) as PageData;
const shown: Shown[] = page.runs.map((run, i) => {
  return { run, color: COLORS[i % COLORS.length], visible: true, next: 0 };
});
let axis = page.axis;
let smoothing = 0.9;

const byId = (id: string) => document.getElementById(id)!;

function element(tag: string, className: string, text = ""): HTMLElement {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** An exponential moving average without the bias of its beginning. */
function smooth(values: (number | null)[]): (number | null)[] {
  let [average, weight] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    average = smoothing * average + (1 - smoothing) * value;
    weight = smoothing * weight + 1 - smoothing;
    return average / weight;
  });
}

function dataOf(chart: Chart): uPlotType.AlignedData {
  const tables = shown.flatMap(({ run, visible }) =>
    chart.series.map(({ column, kind }): [number[], (number | null)[]] => {
      if (!visible) return [[], []];
      const values = kind === "smooth" ? smooth(run.columns[column]) : run.columns[column];
      const { unit = 1 } = chart;
      return [run.columns[axis] as number[], values.map((value) => (value === null ? null : value / unit))];
    }),
  );
  return uPlot.join(tables as uPlotType.AlignedData[]) as uPlotType.AlignedData;
}

function hours(seconds: number): string {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return h > 0
    ? `${h}h${String(m).padStart(2, "0")}`
    : m > 0
      ? `${m}m${String(s).padStart(2, "0")}`
      : `${seconds.toFixed(seconds < 10 ? 1 : 0)}s`;
}

function short(value: number): string {
  const size = Math.abs(value);
  for (const [limit, unit] of [
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "k"],
  ] as const) {
    if (size >= limit) return `${Number((value / limit).toPrecision(3))}${unit}`;
  }
  return size !== 0 && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

/** The marks of an axis, all with as many decimals as the steps between them need. */
function marks(ticks: number[], step: number): string[] {
  if (Math.max(...ticks.map(Math.abs)) >= 1e3) return ticks.map(short);
  const isWhole = (digits: number) => Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) < 1e-6;
  const decimals = [0, 1, 2, 3, 4, 5].find(isWhole);
  return ticks.map((tick) => (decimals === undefined ? tick.toExponential(1) : tick.toFixed(decimals)));
}

function draw(chart: Chart, box: HTMLElement): void {
  chart.plot?.destroy();
  chart.plot = undefined;
  const data = dataOf(chart);
  if (!data.slice(1).some((values) => Array.from(values).some((value) => typeof value === "number"))) {
    box.replaceChildren(element("p", "empty", "nothing to draw yet"));
    return;
  }
  box.replaceChildren();
  const ink = dark ? "#a3a3a3" : "#525252";
  const grid = { stroke: dark ? "#2a2a2a" : "#e5e5e5", width: 1 };
  const many = shown.length > 1;
  const series = shown.flatMap(({ run, color, visible }) =>
    chart.series.map(({ label, kind }) => ({
      label: [many ? run.name : "", label].filter((text) => text !== "").join(" ") || chart.title,
      stroke: color,
      show: visible,
      width: kind === "points" ? 2 : 1.5,
      dash: kind === "points" && chart.series.length > 1 ? [6, 4] : undefined,
      spanGaps: true,
      points: { show: kind === "points", size: 5 },
      value: (_: uPlotType, value: number | null) => (value === null ? "–" : short(value)),
    })),
  );
  const xValue = axis === "time" ? hours : short;
  chart.plot = new uPlot(
    {
      width: box.clientWidth,
      height: Math.max(200, Math.min(340, box.clientWidth * 0.5)),
      scales: { x: { time: false } },
      legend: { live: true },
      cursor: { sync: { key: "mantou" } },
      axes: [
        { stroke: ink, grid, ticks: grid, values: (_, ticks) => ticks.map(xValue) },
        {
          stroke: ink,
          grid,
          ticks: grid,
          size: (_, texts) => 20 + 7 * Math.max(4, ...(texts ?? []).map((text) => text.length)),
          values: (_, ticks, __, ___, step) => marks(ticks, step),
        },
      ],
      series: [{ label: axis, value: (_, value) => (value === null ? "–" : xValue(value)) }, ...series],
    },
    data,
    box,
  );
}

function redraw(): void {
  for (const [i, chart] of charts.entries()) draw(chart, byId(`chart-${i}`));
}

/** New numbers in the charts that are there. */
function refresh(): void {
  for (const [i, chart] of charts.entries()) {
    if (chart.plot) chart.plot.setData(dataOf(chart));
    else draw(chart, byId(`chart-${i}`));
  }
  summarise();
}

function last(values: (number | null)[]): number | undefined {
  return values.findLast((value) => value !== null) ?? undefined;
}

function summarise(): void {
  const main = shown.find(({ run }) => run.name === page.main) ?? shown[0];
  const { columns, steps, samples } = main.run;
  const step = last(columns.step) ?? 0;
  const time = last(columns.time) ?? 0;
  const [speed, mfu] = [last(smooth(columns.tokensPerSecond)), last(smooth(columns.mfu))];
  const tiles: [string, string][] = [
    ["step", `${step} / ${steps}`],
    ["loss", last(smooth(columns.loss))?.toFixed(3) ?? "–"],
    ["validation", last(columns.valLoss)?.toFixed(3) ?? "–"],
    ["bits per byte", last(columns.valBitsPerByte)?.toFixed(3) ?? "–"],
    ["tokens / s", speed === undefined ? "–" : short(speed)],
    ["MFU", mfu === undefined ? "–" : `${(mfu * 100).toFixed(1)} %`],
    ["tokens", short(last(columns.tokens) ?? 0)],
    [
      step < steps && step > 0 ? "time, left" : "time",
      hours(time) + (step < steps && step > 0 ? `, ${hours((time / step) * (steps - step))}` : ""),
    ],
  ];
  byId("tiles").replaceChildren(
    ...tiles.map(([name, value]) => {
      const tile = element("div", "tile");
      tile.append(element("div", "name", name), element("div", "value", value));
      return tile;
    }),
  );
  showSamples(samples);
}

let samplesShown: string | undefined;

function showSamples(samples: Sample[]): void {
  const key = samples.map(({ step }) => step).join();
  if (key === samplesShown) return;
  samplesShown = key;
  if (samples.length === 0) byId("samples").replaceChildren(element("p", "empty", "none yet"));
  else
    byId("samples").replaceChildren(
      ...samples.toReversed().map(({ step, text }, i) => {
        const box = document.createElement("details");
        box.open = i === 0;
        box.append(element("summary", "", `after step ${step}`), element("pre", "", text));
        return box;
      }),
    );
}

function controls(): void {
  const group = (name: string, choices: [string, () => boolean, () => void][]) => {
    const box = element("span", "group", `${name} `);
    for (const [label, isOn, choose] of choices) {
      const button = element("button", isOn() ? "on" : "", label) as HTMLButtonElement;
      button.onclick = () => {
        choose();
        controls();
        redraw();
        summarise();
      };
      box.append(button);
    }
    return box;
  };
  byId("controls").replaceChildren(
    group(
      "x",
      (["step", "time", "tokens"] as const).map((name) => [name, () => axis === name, () => void (axis = name)]),
    ),
    group(
      "smoothing",
      [0, 0.9, 0.99].map((value) => [
        value === 0 ? "none" : String(value),
        () => smoothing === value,
        () => void (smoothing = value),
      ]),
    ),
  );
  byId("runs").replaceChildren(
    ...shown.map((item) => {
      const label = element("label", "run");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = item.visible;
      box.onchange = () => {
        item.visible = box.checked;
        redraw();
      };
      const swatch = element("span", "swatch");
      swatch.style.background = item.color;
      label.append(box, swatch, element("span", "", item.run.name));
      return label;
    }),
  );
}

/** Asks for what is new of every run, once a second; says so when nobody answers. */
async function follow(): Promise<void> {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 5000 : 1000));
    try {
      for (const item of shown) {
        const response = await fetch(`/api/run/${encodeURIComponent(item.run.name)}?from=${item.next}`);
        if (!response.ok) throw new Error(String(response.status));
        const { restarted, next, columns, samples } = (await response.json()) as Update;
        const isNew = restarted || item.next === 0;
        for (const name of Object.keys(columns) as (keyof Columns)[]) {
          item.run.columns[name] = isNew ? columns[name] : [...item.run.columns[name], ...columns[name]];
        }
        item.run.samples = samples;
        item.next = next;
      }
      refresh();
      byId("status").textContent = "live";
      byId("status").className = "live";
    } catch {
      byId("status").textContent = "the run has ended, or does not answer";
      byId("status").className = "lost";
    }
  }
}

for (const [i, { title }] of charts.entries()) {
  const card = element("section", i === 0 ? "card wide" : "card");
  const box = element("div", "chart");
  box.id = `chart-${i}`;
  card.append(element("h2", "", title), box);
  byId("charts").append(card);
}
byId("facts").replaceChildren(
  ...(shown.find(({ run }) => run.name === page.main) ?? shown[0]).run.facts.flatMap(([name, value]) => [
    element("dt", "", name),
    element("dd", "", value),
  ]),
);
controls();
redraw();
summarise();
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === width) return;
  width = innerWidth;
  redraw();
});
if (page.live) void follow();
