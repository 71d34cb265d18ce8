/** Sweeps: the file, runs in turn and side by side, stops, what diverges and fails, the comparison. */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { readSweep, resolveRun } from "../../packages/train/src/sweep/sweep-file.ts";
import type { ResultRow } from "../../packages/train/src/sweep/results.ts";
import { Workplace, root, storyText, temporariesIn, until } from "./support/workplace.ts";
import { refusal } from "./support/refusal.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const model = { dModel: 16, numLayers: 1, numHeads: 2, contextLength: 16 };
const base = {
  data: place.file("stories.txt", storyText(40_000)),
  tokenizer: { vocabSize: 300 },
  model,
  steps: 40,
  batchSize: 4,
  threads: 1,
  evalInterval: 10,
  evalBatches: 2,
  sampleInterval: 0,
  sampleTokens: 4,
  checkpointInterval: 5,
};

const write = (name: string, content: unknown) =>
  place.file(`${name}.json`, typeof content === "string" ? content : JSON.stringify(content));
const resultsOf = (directory: string) =>
  JSON.parse(readFileSync(join(directory, "results.json"), "utf8")) as ResultRow[];

describe("the file", () => {
  test("a grid makes a run of every combination, named by its values", () => {
    const { runs, experiments } = readSweep(
      write("grid", { base, grid: { lr: [1e-3, 0.1], "model.ffn": ["swiglu", "silu"] } }),
    );
    expect(runs.map(({ name }) => name)).toEqual([
      "lr-0.001_ffn-swiglu",
      "lr-0.001_ffn-silu",
      "lr-0.1_ffn-swiglu",
      "lr-0.1_ffn-silu",
    ]);
    expect(runs[1].settings).toMatchObject({ lr: 1e-3, model: { ...model, ffn: "silu" }, steps: 40 });
    expect(experiments).toEqual([{ name: "grid", runs: runs.map(({ name }) => name) }]);
  });

  test.each([
    ["no JSON", "{", "cannot read the sweep"],
    ["no runs", { base }, "has no runs"],
    ["an unknown key", { run: {} }, "run"],
    ["a bad name", { runs: { "../x": {} } }, "is not a sweep"],
    ["a reserved name", { runs: { logs: {} } }, '"logs"'],
    ["an unknown run", { runs: { a: {} }, experiments: [{ name: "x", runs: ["b"] }] }, '"b" that is not there'],
  ])("%s is refused", (_, content, message) => {
    expect(refusal(() => readSweep(write("bad", content))).message).toContain(message);
  });

  test("a setting that is wrong is refused before anything is trained, with the run's name", async () => {
    const sweep = readSweep(write("wrong", { base, runs: { good: {}, odd: { lr: -1 } } }));
    expect(refusal(() => resolveRun(sweep, sweep.runs[1])).message).toContain(`run "odd": "lr" in ${sweep.path} is -1`);
    const { code, stderr } = await place.run("sweep", "--config", place.path("wrong.json"));
    expect(code).toBe(2);
    expect(stderr).toContain('run "odd"');
    expect(existsSync(place.path("runs/wrong"))).toBe(false);
  });

  test("the handout's experiments resolve", () => {
    const sweep = readSweep(join(root, "docs/experiments/handout.json"));
    for (const run of sweep.runs) {
      const { config } = resolveRun(sweep, run);
      // Every run sees as many tokens, to a step.
      const tokens = config.steps * Number(config.batchSize) * config.model.contextLength;
      expect(Math.abs(tokens / 512_000 - 1)).toBeLessThan(0.01);
    }
    expect(sweep.experiments).toHaveLength(6);
  });
});

test("runs are trained and compared; stopped and repeated, in turn or two at once, they come to the same", async () => {
  const runs = { low: { lr: 1e-4 }, high: { lr: 1e-2 }, wild: { lr: 1e30, warmupSteps: 30 } };
  const experiments = [{ name: "Learning rate", about: "How <fast>?", runs: ["low", "high", "wild"] }];
  const file = write("rates", { base, runs, experiments });
  const directory = place.path("runs/rates");
  const running = place.start("sweep", "--config", file);
  await until(() => readMetrics(join(directory, "low/metrics.jsonl")).length > 0, running);
  running.kill("SIGINT");
  const stopped = await running.ended;
  expect(stopped.code).toBe(1);
  expect(stopped.stderr).toContain("go on with: bun run sweep --config");
  // As if it had been killed while it wrote; no process has such a number.
  const halves = ["outcomes.json", "configs/low.json", "data/val.bin"].map((path) => `${path}.tmp-4194305`);
  for (const path of halves) writeFileSync(join(directory, path), "");
  const { stdout } = await place.succeed("sweep", "--config", file);
  expect(stdout).toContain("wild  diverged");
  expect(temporariesIn(directory)).toEqual([]);

  const rows = resultsOf(directory);
  expect(rows.map(({ name, status }) => [name, status])).toEqual([
    ["low", "finished"],
    ["high", "finished"],
    ["wild", "diverged"],
  ]);
  expect(rows[1].valLoss!).toBeLessThan(rows[0].valLoss!);
  const markdown = readFileSync(join(directory, "results.md"), "utf8");
  expect(markdown.indexOf("| high |")).toBeLessThan(markdown.indexOf("| low |"));
  expect(markdown).toMatch(/\| wild \| .* diverged at step \d+ \|/);
  expect(markdown).toContain("![Learning rate](plots/learning-rate.svg)");
  const svg = readFileSync(join(directory, "plots/learning-rate.svg"), "utf8");
  expect(svg.match(/<polyline/g)).toHaveLength(3);
  expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  expect(readFileSync(join(directory, "results.html"), "utf8").includes("<p>How &lt;fast>?</p>")).toBe(true);

  // Nothing is left to do, and another sweep may not take its place.
  const before = readFileSync(join(directory, "results.json"), "utf8");
  await place.succeed("sweep", "--config", file);
  expect(readFileSync(join(directory, "results.json"), "utf8")).toBe(before);
  const outcomes = readFileSync(join(directory, "outcomes.json"));
  for (const damaged of ["{", "null", '{"low":{"status":"lost"}}']) {
    writeFileSync(join(directory, "outcomes.json"), damaged);
    const { code, stderr } = await place.run("sweep", "--config", file);
    expect([code, stderr]).toEqual([2, expect.stringContaining("outcomes.json does not say how runs ended\n  fix: ")]);
  }
  writeFileSync(join(directory, "outcomes.json"), outcomes);
  const other = await place.run(
    "sweep",
    "--config",
    write("rates", { base: { ...base, steps: 45 }, runs, experiments }),
  );
  expect(other.stderr).toContain("holds another sweep");

  const twice = write("twice", { base, runs, experiments });
  await place.succeed("sweep", "--config", twice, "--parallel", "2");
  const losses = (path: string) => resultsOf(path).map(({ valLoss, steps }) => ({ valLoss, steps }));
  expect(losses(place.path("runs/twice"))).toEqual(losses(directory));
}, 60_000);

test("a run that fails is told of, and the others are compared all the same", async () => {
  const missing = place.file("tokens.bin", new Uint8Array(Uint16Array.from({ length: 2000 }, () => 9999).buffer));
  const runs = {
    good: {},
    bad: { data: missing, val: missing, tokenizer: { path: place.path("runs/failing/tokenizer.json") } },
  };
  // The tokenizer that "bad" names comes into being with the sweep, so it is there when the run begins.
  const file = write("failing", { base: { ...base, steps: 5 }, runs: { good: runs.good } });
  await place.succeed("sweep", "--config", file);
  const tokenizer = place.path("runs/failing/tokenizer.json");
  const second = write("failing-too", {
    base: { ...base, steps: 5 },
    runs: { ...runs, bad: { ...runs.bad, tokenizer: { path: tokenizer } } },
  });
  const { code, stderr, stdout } = await place.run("sweep", "--config", second);
  expect(code).toBe(1);
  expect(stderr).toContain("some runs failed");
  expect(stdout).toMatch(/bad: failed: error: .*9999/);
  expect(resultsOf(place.path("runs/failing-too")).map(({ status }) => status)).toEqual(["finished", "failed"]);
}, 60_000);
