/** What is sent to wandb_log.py, by a program in its place; tests/interop has the real one. */
import { afterAll, expect, test } from "bun:test";
import { chmodSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { SettledConfig } from "../../packages/train/src/config.ts";
import { UserError } from "../../packages/train/src/errors.ts";
import type { StepMetrics } from "../../packages/train/src/metrics.ts";
import { RunDirectory } from "../../packages/train/src/run.ts";
import { WandbLog, checkWandb } from "../../packages/train/src/wandb.ts";
import { Workplace, root, smallFlags } from "./support/workplace.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

const config = { name: "tiny", lr: 1e-3 } as SettledConfig;
const metrics = (step: number) => ({ step, loss: 4 / step, lr: 1e-3, norms: { w: 2 } }) as unknown as StepMetrics;

/** A program that is called as Python would be. */
function program(name: string, script: string): string {
  const path = place.file(name, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

test("sends the config first, then every step; a run that goes on has the same id", async () => {
  const run = new RunDirectory(place.path("runs/tiny"));
  const ids = new Set<string>();
  for (const first of [1, 3]) {
    const sent = place.path(`sent-${first}`);
    const python = program(`python-${first}`, `echo '{"where": "offline-run-1"}'; cat > ${sent}`);
    const log = await WandbLog.start(run, config, { project: "mantou", python, onWarning: expect.unreachable });
    expect(log.where).toBe("offline-run-1");
    log.log(metrics(first));
    log.log(metrics(first + 1));
    await log.finish();
    const [init, ...steps] = readFileSync(sent, "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(init).toEqual({ project: "mantou", name: "tiny", config, dir: run.path, id: expect.any(String) });
    ids.add(init.id);
    expect(steps).toEqual(
      [first, first + 1].map((step) => ({
        step,
        "loss/train": 4 / step,
        "optimizer/learning_rate": 1e-3,
        "norms/w": 2,
      })),
    );
  }
  expect(ids.size).toBe(1);
});

test("without Python, or without wandb, the run does not begin", async () => {
  expect(() => checkWandb("mantou", place.path("nowhere"))).toThrow("--wandb mantou needs Python, and there is no");
  expect(() => checkWandb("mantou", program("without", "exit 1"))).toThrow("without has no wandb");
  checkWandb("mantou", program("with", "exit 0"));
  const argv = ["--data", place.file("a.txt", "A text. ".repeat(200)), ...smallFlags, "--wandb", "mantou"];
  const train = [process.execPath, join(root, "packages/train/src/cli/train.ts"), ...argv];
  const { code, stderr } = await place.startProgram(["env", `MANTOU_PYTHON=${place.path("without")}`, ...train]).ended;
  expect([code, stderr]).toEqual([2, expect.stringContaining("without has no wandb\n  fix: ")]);
  expect(existsSync(place.path("runs/a"))).toBe(false);
});

test("what wandb says when it does not begin is told", async () => {
  const python = program("failing", `echo "wandb.errors.UsageError: No API key configured" >&2; exit 1`);
  const options = { project: "mantou", python, onWarning: expect.unreachable };
  const failing = WandbLog.start(new RunDirectory(place.path("runs/other")), config, options);
  await expect(failing).rejects.toThrow("--wandb mantou: wandb.errors.UsageError: No API key configured");
  await expect(failing).rejects.toBeInstanceOf(UserError);
});

test("where it ends early, there is one warning and no error", async () => {
  const run = new RunDirectory(place.path("runs/early"));
  const warnings: string[] = [];
  const python = program("early", `echo '{"where": "x"}'`);
  const onWarning = (message: string) => void warnings.push(message);
  const log = await WandbLog.start(run, config, { project: "mantou", python, onWarning });
  await log.child.exited;
  for (let step = 1; step < 100; step++) log.log(metrics(step));
  await log.finish();
  expect(warnings).toEqual(["wandb ended before the run: what follows is in metrics.jsonl alone"]);
});
