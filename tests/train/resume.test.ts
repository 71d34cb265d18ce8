/**
 * A run that is interrupted, by whatever signal and whenever, and goes on afterwards gives bit for bit what the
 * uninterrupted run gives: losses, samples, weights and moments. Real processes, real signals.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Random } from "@mantou/model";
import { checkpointName, listCheckpoints } from "../../packages/train/src/checkpoint.ts";
import { Workplace, flags, newestStep, resultOf, root, smallFlags, storyText } from "./support/workplace.ts";
import { succeeded, temporariesIn, until } from "./support/workplace.ts";

const STEPS = 60;
const place = new Workplace();
let data: string;
let reference: ReturnType<typeof resultOf>;

/** Steps of some milliseconds, so that a signal meets a run that is under way. */
const trainFlags = (name: string, more: Record<string, string | number> = {}) => {
  const own = { name, data, "model.numLayers": 2, batchSize: 32, steps: STEPS, threads: 2 };
  const intervals = { checkpointInterval: 4, evalInterval: 10, sampleInterval: 15 };
  return [...smallFlags, ...flags({ ...own, ...intervals, ...more })];
};
const runPath = (name: string) => place.path("runs", name);

beforeAll(async () => {
  data = place.file("stories.txt", storyText(60_000));
  await place.succeed("train", ...trainFlags("reference"));
  reference = resultOf(runPath("reference"));
});
afterAll(() => place[Symbol.dispose]());

function expectReference(name: string): void {
  const result = resultOf(runPath(name));
  expect(result.metrics).toEqual(reference.metrics);
  expect(result.samples).toBe(reference.samples);
  expect(result.checkpoint.equals(reference.checkpoint)).toBe(true);
  expect(temporariesIn(runPath(name))).toEqual([]);
}

test("the uninterrupted run did something worth comparing", () => {
  expect(reference.metrics).toHaveLength(STEPS);
  const losses = (reference.metrics as { loss: number }[]).map(({ loss }) => loss);
  expect(losses.at(-1)!).toBeLessThan(losses[0]);
  expect(reference.samples.match(/^--- step/gm)).toHaveLength(4);
});

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  test(`${signal} saves and ends with 0; --resume goes on, with as many threads as one likes`, async () => {
    const name = signal.toLowerCase();
    const path = runPath(name);
    let command = trainFlags(name);
    for (const target of [8, 24]) {
      const running = place.start("train", ...command);
      await until(() => newestStep(path) >= target, running);
      running.kill(signal);
      const { stdout } = succeeded(await running.ended);
      const stopped = Number(/stopped after step (\d+)/.exec(stdout)?.[1]);
      expect(stopped).toBeGreaterThanOrEqual(target);
      expect(stopped).toBeLessThan(STEPS);
      expect(newestStep(path)).toBe(stopped);
      expect(stdout).toMatch(new RegExp(`bun run train --resume \\S*runs/${name}\n`));
      command = ["--resume", path];
    }
    const { stdout } = await place.succeed("train", ...command, "--threads", "1", "--device", "cpu");
    expect(stdout).toContain(`resuming after step ${resumeStep(stdout)}`);
    expect(stdout).toMatch(/device +.*, 1 thread,/);
    expect(JSON.parse(readFileSync(join(path, "config.json"), "utf8"))).toMatchObject({ threads: 1, device: "cpu" });
    expectReference(name);
    const { stderr } = await place.run("train", ...trainFlags(name));
    expect(stderr).toContain("holds a finished run of this config");
  });
}

test("a reader that closes the pipe stops the run with a checkpoint, and the same command goes on", async () => {
  const argv = trainFlags("read");
  const script = join(root, "packages/train/src/cli/train.ts");
  // The first sample is the first that is printed after the run's description.
  const pipe = '{ "$@"; echo "ended with $?" >&2; } | sed "/^run /q"';
  const { stderr } = await place.startProgram(["sh", "-c", pipe, "sh", process.execPath, script, ...argv]).ended;
  expect(stderr).toContain("warning: standard output cannot be written, so the run stops: EPIPE");
  expect(stderr).toContain("ended with 0");
  expect(newestStep(runPath("read"))).toBeGreaterThan(0);
  expect(newestStep(runPath("read"))).toBeLessThan(STEPS);
  await place.succeed("train", ...argv);
  expectReference("read");
});

test("another number of threads in a --config file goes on with the run, and is taken", async () => {
  const name = "machine";
  const argv = trainFlags(name);
  const others = argv.filter((_, i) => argv[i - (i % 2)] !== "--threads");
  const command = [...others, "--config", place.file("machine.json", '{ "threads": 2 }')];
  const running = place.start("train", ...command);
  await until(() => newestStep(runPath(name)) >= 8, running);
  running.kill("SIGINT");
  succeeded(await running.ended);
  place.file("machine.json", '{ "threads": 1 }');
  const { stdout } = await place.succeed("train", ...command);
  expect(stdout).toContain(`resuming after step ${resumeStep(stdout)}`);
  expect(stdout).toMatch(/device +.*, 1 thread,/);
  expectReference(name);
});

function resumeStep(stdout: string): number {
  return Number(/resuming after step (\d+)/.exec(stdout)?.[1]);
}

test("a run that would take for ever ends soon after SIGINT", async () => {
  const running = place.start("train", ...trainFlags("endless", { steps: 1_000_000, evalInterval: 0 }));
  await until(() => newestStep(runPath("endless")) >= 8, running);
  const before = newestStep(runPath("endless"));
  running.kill("SIGINT");
  succeeded(await running.ended);
  // A checkpoint comes every 4 steps: at most the one that was under way, and the last one.
  expect(newestStep(runPath("endless")) - before).toBeLessThanOrEqual(8);
});

for (const seed of [1, 2]) {
  test(`SIGKILL again and again, at moments drawn with seed ${seed}`, async () => {
    const name = `killed-${seed}`;
    const path = runPath(name);
    const random = new Random(seed);
    let kills = 0;
    // The first kill meets the preparation, at the moment when the config is there.
    let target = () => existsSync(join(path, "config.json"));
    while (newestStep(path) < STEPS) {
      const command = random.next() < 0.5 && newestStep(path) > 0 ? ["--resume", path] : trainFlags(name);
      const running = place.start("train", ...command);
      await until(target, running);
      // Some turns of the event loop later, which is anywhere in a step or in a checkpoint.
      for (let i = Math.floor(random.next() * 300); i > 0; i--) await new Promise((resolve) => setImmediate(resolve));
      running.kill("SIGKILL");
      const ended = await running.ended;
      if (ended.signal === "SIGKILL") kills++;
      else succeeded(ended);
      const next = newestStep(path) + 4 + Math.floor(random.next() * 12);
      target = () => newestStep(path) >= next;
    }
    expect(kills).toBeGreaterThanOrEqual(3);
    expectReference(name);
  });
}

test("SIGKILL while a checkpoint is written: the half-written file is ignored, and removed later", async () => {
  // A model whose checkpoint of some megabytes takes a while to write, at every step.
  const large = { "model.dModel": 192, batchSize: 1, checkpointInterval: 1, steps: 12, evalInterval: 0 };
  await place.succeed("train", ...trainFlags("large", large));
  const name = "half-written";
  const folder = join(runPath(name), "checkpoints");
  for (let attempt = 0; ; attempt++) {
    const running = place.start("train", ...trainFlags(name, large));
    const before = newestStep(runPath(name));
    await until(() => newestStep(runPath(name)) > before && temporariesIn(folder).length > 0, running);
    running.kill("SIGKILL");
    expect((await running.ended).signal).toBe("SIGKILL");
    // As if signals had met the other files that are written whole; no process has such a number.
    const others = ["config.json", "data/val.bin", "tensorboard/events.out.tfevents.0.mantou"];
    for (const file of others) writeFileSync(join(runPath(name), `${file}.tmp-4194305`), "");
    // It may have been renamed between our look and the signal.
    if (temporariesIn(folder).length > 0) break;
    expect(attempt).toBeLessThan(5);
  }
  await place.succeed("train", ...trainFlags(name, large));
  const [result, expected] = [name, "large"].map((each) => resultOf(runPath(each)));
  expect(result.metrics).toEqual(expected.metrics);
  expect(result.checkpoint.equals(expected.checkpoint)).toBe(true);
  expect(temporariesIn(runPath(name))).toEqual([]);
});

describe("damaged checkpoints", () => {
  async function interrupted(name: string): Promise<string[]> {
    const running = place.start("train", ...trainFlags(name, { keepCheckpoints: 3 }));
    await until(() => newestStep(runPath(name)) >= 16, running);
    running.kill("SIGINT");
    succeeded(await running.ended);
    return listCheckpoints(join(runPath(name), "checkpoints"));
  }

  test("the newest is passed over with a warning, by training, generation and evaluation", async () => {
    const [newest, previous] = await interrupted("damaged");
    writeFileSync(newest, "no checkpoint at all, though of a right name");
    const step = Number(/(\d+)\.safetensors/.exec(previous)![1]);
    const { stderr, stdout } = await place.succeed("eval", "--run", runPath("damaged"), "--threads", "1");
    expect(stderr).toContain(`warning: ${newest}`);
    expect(stdout).toContain(`step ${step}`);
    const text = await place.succeed("generate", "--run", runPath("damaged"), "--max-tokens", "3");
    expect(text.stderr).toContain(`warning: ${newest}`);
    const resumed = await place.succeed("train", "--resume", runPath("damaged"));
    expect(resumed.stdout).toContain("warning");
    expect(resumeStep(resumed.stdout)).toBe(step);
    expectReference("damaged");
  });

  test("a damaged last checkpoint makes a run unfinished again", async () => {
    await place.succeed("train", ...trainFlags("last"));
    const [last] = listCheckpoints(join(runPath("last"), "checkpoints"));
    const bytes = Buffer.from(reference.checkpoint);
    bytes[bytes.length - 5] ^= 1;
    writeFileSync(last, bytes);
    const { stdout } = await place.succeed("train", "--resume", runPath("last"));
    expect(resumeStep(stdout)).toBe(STEPS - 4);
    expectReference("last");
  });

  test("where all are damaged, the run is left alone", async () => {
    const paths = await interrupted("ruined");
    for (const path of paths) writeFileSync(path, reference.checkpoint.subarray(0, -1));
    for (const [command, flag] of [
      ["train", "--resume"],
      ["generate", "--run"],
      ["eval", "--run"],
    ] as const) {
      const { code, stderr } = await place.run(command, flag, runPath("ruined"));
      expect(code).toBe(1);
      expect(stderr).toContain("error: none of the 3 checkpoints can be used");
      expect(stderr).toContain("fix: ");
      expect(stderr).not.toContain("    at ");
    }
    expect(listCheckpoints(join(runPath("ruined"), "checkpoints"))).toEqual(paths);
  });

  test("a checkpoint of another model is named as such", async () => {
    await place.succeed("train", ...trainFlags("other", { "model.dModel": 16, steps: 3, evalInterval: 0 }));
    await interrupted("swapped");
    const [foreign] = listCheckpoints(join(runPath("other"), "checkpoints"));
    for (const path of listCheckpoints(join(runPath("swapped"), "checkpoints"))) {
      writeFileSync(path, await Bun.file(foreign).bytes());
    }
    const { code, stderr } = await place.run("train", "--resume", runPath("swapped"));
    expect(code).toBe(1);
    expect(stderr).toMatch(/is of another model: dModel is 16, not 32/);
    expect(checkpointName(3)).toBe(foreign.slice(-checkpointName(3).length));
  });
});
