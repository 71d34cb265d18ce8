/** The page of dashboard and report: one HTML file with data, styles, uPlot and its own program in it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { PageData } from "./data.ts";

const STYLE = `
:root { color-scheme: light dark; --ink: #171717; --dim: #737373; --paper: #fafafa; --card: #fff; --line: #e5e5e5;
  --accent: #2563eb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ededed; --dim: #a3a3a3; --paper: #111; --card: #191919; --line: #2e2e2e; --accent: #60a5fa; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 16px; max-width: 1280px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
header { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: baseline; }
h1 { font-size: 20px; margin: 0; }
h2 { font-size: 14px; margin: 0 0 4px; font-weight: 600; }
#status { color: var(--dim); } #status.live { color: #16a34a; } #status.lost { color: #dc2626; }
#tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); gap: 8px; margin: 12px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; min-width: 0; }
.tile .name { color: var(--dim); font-size: 12px; }
.tile .value { font-size: 18px; font-variant-numeric: tabular-nums; white-space: nowrap; }
#controls, #runs { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 8px 0; align-items: center; }
.group { color: var(--dim); font-size: 13px; }
button { font: inherit; font-size: 13px; padding: 3px 10px; margin-left: 4px; border: 1px solid var(--line);
  border-radius: 6px; background: var(--card); color: var(--ink); cursor: pointer; }
button.on { border-color: var(--accent); color: var(--accent); }
.run { display: inline-flex; gap: 6px; align-items: center; font-size: 14px; }
.swatch { width: 14px; height: 4px; border-radius: 2px; }
#charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; }
.wide { grid-column: 1 / -1; }
.empty { color: var(--dim); font-size: 13px; margin: 4px 0; }
.u-legend { font-size: 12px; } .u-legend .u-marker { border-radius: 2px; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; margin: 8px 0; }
summary { cursor: pointer; color: var(--dim); }
pre { margin: 8px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font: inherit; max-width: 70ch; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 13px; margin: 8px 0 16px; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
h3 { font-size: 16px; margin: 24px 0 8px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 4px 12px 4px 0; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
`;

/** A text inside HTML. */
export function escapeHtml(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll('"', "&quot;");
}

/** @param summary HTML that stands above the charts, such as a table */
export function pageHtml(title: string, data: PageData, summary = ""): string {
  const uplot = join(import.meta.dir, "../../../..", "node_modules/uplot/dist");
  const library = (name: string) => readFileSync(join(uplot, name), "utf8");
  const source = readFileSync(join(import.meta.dir, "client.ts"), "utf8");
  const program = new Bun.Transpiler({ loader: "ts", target: "browser" }).transformSync(source);
  // "<" in the data could end the script that holds them.
  const json = JSON.stringify(data).replaceAll("<", "\\u003c");
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>${escapeHtml(title)}</title>
<style>${library("uPlot.min.css")}${STYLE}</style>
</head>
<body>
<header><h1>${escapeHtml(title)}</h1><span id="status"></span></header>
${summary}
<div id="tiles"></div>
<div id="controls"></div>
<div id="runs"></div>
<div id="charts"></div>
<h3>Samples</h3>
<div id="samples"></div>
<h3>Settings</h3>
<dl id="facts"></dl>
<script type="application/json" id="data">${json}</script>
<script>${library("uPlot.iife.min.js")}</script>
<script type="module">${program}</script>
</body>
</html>
`;
}
