/** The Python programs of the GPU check (bench/gpu), on the emulator: that they run, and what they write of it. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { buildEmulatedLibrary } from "@mantou/model";
import { folder } from "./python.ts";

const root = join(import.meta.dir, "../..");
const parts = join(folder, "gpu-check");
mkdirSync(parts);

function run(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { cwd: root });
  if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}:\n${stdout}${stderr}`);
  return String(stdout);
}

const python = (program: string, ...argv: string[]) => run(process.env.MANTOU_PYTHON!, `bench/gpu/${program}`, ...argv);

test("every operation is right, and what is to be timed runs", () => {
  const said = python("kernels.py", buildEmulatedLibrary(), "--small", "--out", join(parts, "kernels.json"));
  expect(said).toContain("every operation is right, and gives the same bits twice");
  const { rows, done, errors } = JSON.parse(readFileSync(join(parts, "kernels.json"), "utf8"));
  expect(rows).toEqual([]); // no figure without a GPU
  expect(done).toContain("what is timed");
  expect(Object.keys(errors)).toContain("attention bfloat16");
});

test("training steps and PyTorch's beside them", () => {
  const options = ["--shape", "toy", "--steps", "1", "--series", "1", "--device", "emulated"];
  const out = join(parts, "steps.json");
  run(process.execPath, "bench/gpu/step.ts", ...options, "--python", process.env.MANTOU_PYTHON!, "--out", out);
  const [{ ms, tokensPerSecond, peerMs, failed }] = JSON.parse(readFileSync(out, "utf8"));
  expect(failed).toEqual([]);
  expect(ms).toBeGreaterThan(0);
  expect(tokensPerSecond).toBe(Math.round((4 * 32 * 1000) / ms));
  expect(peerMs).toBeGreaterThan(0);
});

test("the report has what the stages left, and no row of what they did not", () => {
  writeFileSync(join(parts, "stages.tsv"), "captures\tpassed\t0.1\nsteps\ttook more than 280 s\t280.0\n");
  writeFileSync(join(parts, "captures.log"), "as it should be");
  writeFileSync(join(parts, "steps.log"), "an illegal memory access");
  const results = join(folder, "gpu-results");
  python("report.py", parts, results);
  const [json, markdown] = readdirSync(results).sort();
  expect(json).toMatch(/^gpu-\d{4}-\d\d-\d\d\.json$/);
  // What failed on a machine that was lent is known afterwards.
  const { logs } = JSON.parse(readFileSync(join(results, json!), "utf8"));
  expect(logs).toEqual({ steps: "an illegal memory access" });
  const text = readFileSync(join(results, markdown!), "utf8");
  for (const part of ["| captures | passed | 0.1 |", "| steps | took more than 280 s |", "| toy | ", "emulated GPU"]) {
    expect(text).toContain(part);
  }
  expect(text).not.toMatch(/GB\/s|TFLOP\/s/);
});
