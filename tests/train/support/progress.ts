/**
 * A job with a progress bar on its standard output; `terminal.test.ts` runs it in a terminal of its own. Its clock goes
 * on by a second at every look, so that each update is drawn. Half way it waits until the terminal changes its size.
 */
import { ProgressBar } from "../../../packages/train/src/terminal/progress.ts";

let milliseconds = 0;
const bar = new ProgressBar({ total: 10, label: "train", now: () => (milliseconds += 1000) });
const values = (step: number) => ({ loss: (4 / step).toFixed(3), lr: "1.0e-3", "tok/s": "52.1k", val: "2.345" });

for (let step = 1; step <= 3; step++) bar.update(step, values(step));
bar.print("a sample text");
const alive = setInterval(() => {}, 1000);
process.stdout.once("resize", () => {
  clearInterval(alive);
  for (let step = 6; step <= 10; step++) bar.update(step, values(step));
  bar.finish();
});
bar.update(5, values(5));
