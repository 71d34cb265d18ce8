/** A bar chart as SVG, readable on light and on dark ground. */

export interface Bar {
  label: string;
  value: number;
  accent?: boolean;
}

export function barChart(title: string, note: string, bars: Bar[]): string {
  const [width, left, row, top] = [760, 230, 30, 54];
  const height = top + bars.length * row + 34;
  const scale = (width - left - 80) / Math.max(...bars.map(({ value }) => value));
  const escape = (text: string) => text.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);
  const body = bars.map(({ label, value, accent }, i) => {
    const y = top + i * row;
    const length = Math.max(1, value * scale).toFixed(1);
    return (
      `<text x="${left - 10}" y="${y + 15}" text-anchor="end" class="label">${escape(label)}</text>` +
      `<rect x="${left}" y="${y}" width="${length}" height="20" rx="3" class="${accent ? "accent" : "bar"}"/>` +
      `<text x="${left + Number(length) + 8}" y="${y + 15}" class="value">${value.toFixed(1)}</text>`
    );
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}">
<style>
text { font: 13px system-ui, sans-serif; fill: #57534e }
.title { font-size: 16px; font-weight: 600; fill: #292524 }
.note { font-size: 11px }
.accent { fill: #c2410c }
.bar { fill: #a8a29e }
@media (prefers-color-scheme: dark) { text { fill: #a8a29e } .title { fill: #f5f5f4 } .accent { fill: #fb923c } .bar { fill: #57534e } }
</style>
<text x="16" y="28" class="title">${escape(title)}</text>
${body.join("\n")}
<text x="16" y="${height - 10}" class="note">${escape(note)}</text>
</svg>
`;
}
