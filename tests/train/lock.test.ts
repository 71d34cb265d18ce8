/** One process at a time in a directory: those at work keep others out, those that are gone do not. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  closeSync,
  constants,
  openSync,
  readFileSync,
  readdirSync,
  renameSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { UserError } from "../../packages/train/src/errors.ts";
import { DirectoryLock } from "../../packages/train/src/lock.ts";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { Workplace, flags, newestStep, smallFlags, storyText } from "./support/workplace.ts";
import { succeeded, until } from "./support/workplace.ts";

const place = new Workplace();
let data: string;
beforeAll(() => {
  data = place.file("stories.txt", storyText(60_000));
});
afterAll(() => place[Symbol.dispose]());

test("a second training of the same run is refused and changes nothing", async () => {
  const command = (name: string) => [
    ...smallFlags,
    ...flags({ data, name, steps: 4000, checkpointInterval: 10, evalInterval: 0, sampleInterval: 0 }),
  ];
  const running = place.start("train", ...command("run"));
  const run = place.path("runs/run");
  await until(() => newestStep(run) >= 10, running);
  for (const argv of [command("run"), ["--resume", run]]) {
    const { code, stderr } = await place.run("train", ...argv);
    expect(stderr).toMatch(/^error: process \d+ is at work in .*run\n {2}fix: wait until it has ended, or .*--name\n$/);
    expect(code).toBe(1);
  }
  expect(running.isOver).toBe(false);
  running.kill("SIGKILL");
  await running.ended;
  // Killed, it leaves its lock, which holds nobody up.
  expect(readdirSync(run).join()).toContain("lock.tmp-");
  const again = place.start("train", "--resume", run);
  const before = newestStep(run);
  await until(() => newestStep(run) > before, again);
  again.kill("SIGINT");
  succeeded(await again.ended);
  expect(readdirSync(run).join()).not.toContain("tmp");
  const steps = readMetrics(join(run, "metrics.jsonl")).map(({ step }) => step);
  expect(steps).toEqual(steps.map((_, i) => i + 1));
}, 60_000);

test("a run that comes into being while another is about to begin under its name is left alone", async () => {
  const command = (tokenizer: string, steps: number) => [
    ...flags({ data, name: "taken", steps, threads: 1, batchSize: 2, "tokenizer.path": tokenizer }),
    ...flags({ "model.dModel": 32, "model.numLayers": 1, "model.contextLength": 16, sampleTokens: 4 }),
  ];
  await place.succeed("train", ...smallFlags, ...flags({ data, name: "first", steps: 1 }));
  const tokenizer = place.path("runs/first/tokenizer.json");
  // A tokenizer that comes when we let it, which is read before the directory is claimed, and once more after that.
  const [pipe, next] = [place.path("pipe.json"), place.path("next.json")];
  expect(Bun.spawnSync(["mkfifo", pipe, next]).exitCode).toBe(0);
  const slow = place.start("train", ...command(pipe, 5));
  const reader = async () => {
    for (;;) {
      try {
        return openSync(pipe, constants.O_WRONLY | constants.O_NONBLOCK);
      } catch {
        expect(slow.isOver).toBe(false);
        await Bun.sleep(1); // nobody reads yet
      }
    }
  };
  const give = (file: number) => {
    writeSync(file, readFileSync(tokenizer));
    closeSync(file);
  };
  const first = await reader();
  renameSync(next, pipe);
  give(first);
  const second = await reader();
  await place.succeed("train", ...command(tokenizer, 4));
  const files = ["config.json", "metrics.jsonl"].map((name) => place.path("runs/taken", name));
  const before = files.map((path) => readFileSync(path, "utf8"));
  give(second);
  const { code, stderr } = await slow.ended;
  expect([code, stderr]).toEqual([1, expect.stringContaining("another process has meanwhile begun a run in")]);
  expect(files.map((path) => readFileSync(path, "utf8"))).toEqual(before);
}, 60_000);

test("who holds a directory: a process that runs, as long as it is the one that wrote the lock", () => {
  const folder = place.path("folder");
  const take = () => new DirectoryLock(folder, "wait")[Symbol.dispose]();
  take();
  expect(readdirSync(folder)).toEqual([]);
  const living = Bun.spawn(["sleep", "60"]);
  try {
    const other = join(folder, `lock.tmp-${living.pid}`);
    writeFileSync(other, "");
    expect(take).toThrow(UserError);
    expect(take).toThrow(`process ${living.pid} is at work in ${folder}`);
    expect(readdirSync(folder)).toHaveLength(1);
    // Its number was another's when the lock was written.
    using _own = new DirectoryLock(place.path("second"), "wait");
    const own = readFileSync(place.path(`second/lock.tmp-${process.pid}`), "utf8");
    if (own === "") return; // no /proc to tell them apart
    writeFileSync(other, own);
    take();
    expect(readdirSync(folder)).toEqual([]);
  } finally {
    living.kill("SIGKILL");
  }
});
