/** Training that starts from the weights of another run: what it takes over, what may differ, and what is refused. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { cpSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { AdamW, TransformerLM, openDevice } from "@mantou/model";
import {
  CheckpointError,
  listCheckpoints,
  loadCheckpoint,
  saveCheckpoint,
} from "../../packages/train/src/checkpoint.ts";
import { loadRunConfig } from "../../packages/train/src/config.ts";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { initialise, loadRun } from "../../packages/train/src/run.ts";
import { Workplace, flags, resultOf, smallFlags, storyText } from "./support/workplace.ts";

const place = new Workplace();
let [data, other] = ["", ""];
const base = place.path("runs/base");

beforeAll(async () => {
  data = place.file("stories.txt", storyText(40_000));
  other = place.file("other.txt", storyText(20_000, 9));
  await place.succeed("train", ...smallFlags, ...flags({ data, name: "base", steps: 60, lr: 0.01 }));
});
afterAll(() => place[Symbol.dispose]());

const start = (name: string, more: Record<string, string | number> = {}) =>
  place.run("train", ...flags({ init: base, data: other, name, steps: 4, batchSize: 4, threads: 1, ...more }));
const lossesOf = (name: string) => readMetrics(place.path("runs", name, "metrics.jsonl")).map(({ loss }) => loss);

test("takes over weights, model and tokenizer, and learns on from there", async () => {
  expect((await start("on")).code).toBe(0);
  const [before, after] = [base, place.path("runs/on")].map((path) => loadRunConfig(join(path, "config.json")));
  expect(after.model).toEqual(before.model);
  const tokenizers = [base, place.path("runs/on")].map((path) => readFileSync(join(path, "tokenizer.json"), "utf8"));
  expect(tokenizers[1]).toBe(tokenizers[0]);
  // A model that knows stories already, not one that guesses.
  expect(lossesOf("on")[0]).toBeLessThan(Math.log(before.model.vocabSize) - 1);
  expect(readMetrics(join(base, "metrics.jsonl"))).toHaveLength(60);
});

test("the context and the rotary frequencies may be others", async () => {
  const { code } = await start("longer", {
    "model.contextLength": 32,
    "model.ropeScaling": "linear",
    "model.ropeFactor": 2,
  });
  expect(code).toBe(0);
  const { model } = loadRunConfig(place.path("runs/longer/config.json"));
  expect([model.contextLength, model.ropeScaling, model.ropeFactor]).toEqual([32, "linear", 2]);
  expect(lossesOf("longer")[0]).toBeLessThan(Math.log(model.vocabSize) - 0.5);
});

test("a run that was stopped before its first checkpoint begins again from the same weights", async () => {
  await start("whole");
  // Without its checkpoints and metrics it is a run that has not got anywhere.
  cpSync(place.path("runs/whole"), place.path("runs/stopped"), { recursive: true });
  rmSync(place.path("runs/stopped/checkpoints"), { recursive: true });
  rmSync(place.path("runs/stopped/metrics.jsonl"));
  rmSync(place.path("runs/stopped/samples.txt"));
  await place.succeed("train", "--resume", place.path("runs/stopped"));
  expect(resultOf(place.path("runs/stopped"))).toEqual(resultOf(place.path("runs/whole")));
});

test("weights alone are a beginning and good for generating, but nothing to resume", async () => {
  cpSync(base, place.path("runs/weights"), { recursive: true });
  using device = openDevice("cpu", { threads: 1 });
  const { model } = loadRun(base, device, expect.unreachable);
  const [path] = listCheckpoints(place.path("runs/weights/checkpoints"));
  const whole = readFileSync(path).length;
  saveCheckpoint(path, { model, optimizer: null, iteration: 60 });
  expect(readFileSync(path).length).toBeLessThan(whole / 2.5);

  await place.succeed(
    "train",
    ...flags({
      init: place.path("runs/weights"),
      data: other,
      name: "from-weights",
      steps: 4,
      batchSize: 4,
      threads: 1,
    }),
  );
  await start("again");
  expect(lossesOf("from-weights")).toEqual(lossesOf("again"));
  const texts = ["base", "weights"].map((name) =>
    place.succeed("generate", "--run", place.path("runs", name), "--max-tokens", "20"),
  );
  const [first, second] = await Promise.all(texts);
  expect(second.stdout).toBe(first.stdout);

  using optimizer = new AdamW(model.parameters());
  const refused = () => loadCheckpoint(path, { model, optimizer });
  expect(refused).toThrow(CheckpointError);
  expect(refused).toThrow("holds weights alone");
});

test("refuses what does not fit, before anything is written", async () => {
  const cases: [Record<string, string | number>, string][] = [
    [{ init: place.path("nowhere") }, "is no run: there is no"],
    [{ "model.dModel": 64 }, "--model.dModel = 64 does not go with --init"],
    [{ "model.norm": "post" }, '--model.norm = "post" does not go with --init'],
    [{ "tokenizer.path": join(base, "config.json") }, "--tokenizer.path"],
  ];
  for (const [more, message] of cases) {
    const { code, stderr } = await start("refused", more);
    expect([code, stderr]).toEqual([2, expect.stringContaining(message)]);
    expect(stderr).toContain("fix: ");
  }
  using device = openDevice("cpu", { threads: 1 });
  using model = new TransformerLM({ ...loadRunConfig(join(base, "config.json")).model, rmsNormEps: 1e-3 }, { device });
  expect(() => initialise(model, base, () => {})).toThrow("rmsNormEps is 0.00001, not 0.001");
  expect(() => initialise(model, place.path("empty"), () => {})).toThrow("has no checkpoint yet");
});
