/** A run that is logged with the real wandb, offline. Skipped where a Python of one's own (MANTOU_PYTHON) has no wandb. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { Glob } from "bun";
import { RunDirectory } from "../../packages/train/src/run.ts";
import { scalarsOf } from "../../packages/train/src/tensorboard.ts";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { loadRunConfig } from "../../packages/train/src/config.ts";
import { WandbLog } from "../../packages/train/src/wandb.ts";
import { Workplace, flags, smallFlags, storyText } from "../train/support/workplace.ts";
import { python } from "./python.ts";

// A package that is for W&B's telemetry alone may be lacking.
Object.assign(process.env, { PYTHONPATH: join(import.meta.dir, "standins"), WANDB_ERROR_REPORTING: "false" });
const path = process.env.MANTOU_PYTHON ?? "";
const isThere = path !== "" && Bun.spawnSync([path, "-c", "import wandb"], { env: process.env }).exitCode === 0;
if (!isThere) console.log(`wandb.interop.ts SKIPPED: ${path || "no Python"} has no wandb`);

interface Logged {
  project: string;
  name: string;
  id: string;
  config: Record<string, unknown>;
  history: Record<string, number>[];
}

test.skipIf(!isThere)("an offline run of W&B holds the config and every step", async () => {
  using place = new Workplace();
  const data = place.file("stories.txt", storyText(20_000));
  await place.succeed("train", ...smallFlags, ...flags({ data, name: "logged", evalInterval: 5 }));
  const run = new RunDirectory(place.path("runs/logged"));
  const config = loadRunConfig(run.config);
  const metrics = readMetrics(run.metrics);
  process.env.WANDB_MODE = "offline";
  const log = await WandbLog.start(run, config, { project: "mantou", onWarning: expect.unreachable });
  expect(log.where).toStartWith(run.path);
  for (const step of metrics) log.log(step);
  await log.finish();
  const [file] = [...new Glob("wandb/offline-run-*/run-*.wandb").scanSync(run.path)];
  const logged = await python<Logged>("read_wandb.py", { path: `${run.path}/${file}` });
  expect([logged.project, logged.name]).toEqual(["mantou", "logged"]);
  expect(file).toEndWith(`run-${logged.id}.wandb`);
  expect(logged.config).toMatchObject(JSON.parse(JSON.stringify(config)));
  const numbers = logged.history.map((step) =>
    Object.fromEntries(Object.entries(step).filter(([key]) => key[0] !== "_")),
  );
  expect(numbers).toEqual(metrics.map((step) => ({ step: step.step, ...Object.fromEntries(scalarsOf(step)) })));
});
