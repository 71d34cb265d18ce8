/** The table of `--profile`: operations by time, with their speed and share of the measured peaks. */
import type { Peaks, Profile } from "@mantou/model";
import { formatTable } from "./format.ts";

/**
 * @param profile one that was stopped
 * @param steps how many steps were counted: figures are per step
 */
export function profileTable(profile: Profile, peaks: Peaks, steps: number): string {
  const { rows, restMs, totalMs } = profile.result(peaks);
  const percent = (share: number) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  const lines = rows.map(({ name, calls, ms, flops, bytes, share }) => [
    name,
    String(Math.round(calls / steps)),
    (ms / steps).toFixed(2),
    percent(ms / totalMs),
    flops > 0 ? (flops / ms / 1e6).toFixed(0) : "",
    bytes > 0 ? (bytes / ms / 1e6).toFixed(1) : "",
    flops + bytes > 0 ? percent(share) : "",
  ]);
  lines.push(["not in kernels", "", (restMs / steps).toFixed(2), percent(restMs / totalMs), "", "", ""]);
  lines.push(["a step", "", (totalMs / steps).toFixed(2), "100 %", "", "", ""]);
  const [float32, bfloat16] = [peaks.float32Flops, peaks.bfloat16Flops].map((flops) => (flops / 1e9).toFixed(0));
  return `${formatTable(lines, { header: ["operation", "calls", "ms", "time", "GFLOP/s", "GB/s", "of peak"] })}
Measured peaks: ${float32} GFLOP/s in float32, ${bfloat16} in bfloat16 products, ${(peaks.bytesRead / 1e9).toFixed(1)} GB/s read from memory.`;
}
