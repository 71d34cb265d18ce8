/** Loss curves as an SVG picture, for a page that cannot run a program. */
import type { RunData } from "../dashboard/data.ts";
import { escapeHtml } from "../dashboard/page.ts";
import { formatCount } from "../terminal/format.ts";

const [WIDTH, HEIGHT] = [760, 380];
const MARGIN = { left: 52, top: 34, bottom: 40 };
/** Of a character, on the generous side. */
const CHARACTER_WIDTH = 7;
const COLORS = ["#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#be185d", "#65a30d", "#a16207"];

/** Validation losses over the tokens seen, of one run or more; training losses of runs that ended before a validation. */
export function curvesSvg(title: string, runs: { label: string; data: RunData }[]): string {
  const curves = runs.map(({ label, data: { columns } }, i) => {
    const pointsOf = (losses: (number | null)[]) =>
      columns.tokens.flatMap((tokens, row): [number, number][] => {
        const loss = losses[row];
        return tokens === null || loss === null ? [] : [[tokens, loss]];
      });
    const validation = pointsOf(columns.valLoss);
    const isValidated = validation.length > 0;
    const points = isValidated ? validation : pointsOf(columns.loss);
    const last = isValidated ? ` ${validation.at(-1)![1].toFixed(2)}` : "";
    return {
      label: label + last,
      points,
      isValidated,
      color: COLORS[i % COLORS.length],
      dash: i < COLORS.length ? "none" : "6 3",
    };
  });
  const all = curves.flatMap(({ points }) => points);
  const xs = all.map(([x]) => x);
  const scaled = curves.filter(({ isValidated }) => isValidated).flatMap(({ points }) => points);
  const ys = (scaled.length > 0 ? scaled : all).map(([, y]) => y).toSorted((a, b) => a - b);
  const [maxX, minY] = [Math.max(1, ...xs), ys[0] ?? 0];
  // One run that went astray must not squeeze the others into a line.
  const maxY = Math.max(minY + 0.1, ys[Math.floor(ys.length * 0.98)] ?? 1);
  const legendWidth = 38 + CHARACTER_WIDTH * Math.max(0, ...curves.map(({ label }) => label.length));
  const [plotWidth, plotHeight] = [WIDTH - MARGIN.left - legendWidth, HEIGHT - MARGIN.top - MARGIN.bottom];
  const x = (tokens: number) => MARGIN.left + (tokens / maxX) * plotWidth;
  const y = (loss: number) => MARGIN.top + Math.max(0, Math.min(1, (maxY - loss) / (maxY - minY))) * plotHeight;
  const line = (x1: number, y1: number, x2: number, y2: number) =>
    `<line x1="${x1}" y1="${y1}" x2="${x2}" y2="${y2}" stroke="#d4d4d4"/>`;
  const text = (left: number, top: number, anchor: string, content: string, more = "") =>
    `<text x="${left.toFixed(1)}" y="${top.toFixed(1)}" text-anchor="${anchor}"${more}>${escapeHtml(content)}</text>`;
  const parts: string[] = [
    text(MARGIN.left, 20, "start", `${title}: validation loss`, ' font-weight="600" font-size="14"'),
  ];
  for (const tick of ticks(minY, maxY, 5)) {
    parts.push(line(MARGIN.left, y(tick), MARGIN.left + plotWidth, y(tick)));
    parts.push(text(MARGIN.left - 6, y(tick) + 4, "end", String(Number(tick.toPrecision(4)))));
  }
  for (const tick of ticks(0, maxX, 5)) {
    parts.push(text(x(tick), HEIGHT - MARGIN.bottom + 18, "middle", formatCount(tick)));
  }
  parts.push(text(MARGIN.left + plotWidth / 2, HEIGHT - 6, "middle", "tokens"));
  curves.forEach(({ label, points, color, dash }, i) => {
    const path = points.map(([tokens, loss]) => `${x(tokens).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
    parts.push(
      `<polyline points="${path}" fill="none" stroke="${color}" stroke-width="2" stroke-dasharray="${dash}"/>`,
    );
    const top = MARGIN.top + 8 + i * 18;
    const left = WIDTH - legendWidth + 14;
    parts.push(
      `<line x1="${left}" y1="${top}" x2="${left + 18}" y2="${top}" stroke="${color}" stroke-width="3" stroke-dasharray="${dash}"/>`,
    );
    parts.push(text(left + 24, top + 4, "start", label));
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" width="${WIDTH}" height="${HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#404040">
<rect width="100%" height="100%" fill="#ffffff"/>
${parts.join("\n")}
</svg>
`;
}

/** Round numbers between two, about `count` of them. */
function ticks(from: number, to: number, count: number): number[] {
  const rough = (to - from) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((value) => value >= rough) ?? rough;
  const found: number[] = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + step * 1e-9; tick += step) found.push(tick);
  return found;
}
