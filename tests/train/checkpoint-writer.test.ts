/** Checkpoints written beside the training, and which of them are kept. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { TransformerLM } from "@mantou/model";
import { CheckpointWriter } from "../../packages/train/src/checkpoint-writer.ts";
import { checkpointStep, listCheckpoints, saveCheckpoint } from "../../packages/train/src/checkpoint.ts";
import { RunDirectory } from "../../packages/train/src/run.ts";
import { createOptimizer } from "../../packages/train/src/trainer.ts";
import { device, smallConfig, trainSmall } from "./support/training.ts";

const folder = mkdtempSync(join(tmpdir(), "mantou-writer-"));
afterAll(() => rmSync(folder, { recursive: true }));

function fresh() {
  const config = smallConfig();
  const model = new TransformerLM(config.model, { device, seed: 3, batchSize: 2 });
  return { model, optimizer: createOptimizer(model, config) };
}

describe("a checkpoint written beside the training", () => {
  test("holds what was there when it was asked for, whatever happens to the model meanwhile", async () => {
    const trained = fresh();
    const [expected, path] = ["expected", "path"].map((name) => join(folder, name));
    saveCheckpoint(expected, { ...trained, iteration: 5 });
    await using writer = new CheckpointWriter();
    let written = 0;
    await writer.save(path, { ...trained, iteration: 5 }, () => written++);
    expect(written).toBe(0);
    trained.model.store.values.zero();
    await writer.finish();
    expect(written).toBe(1);
    expect(readFileSync(path).equals(readFileSync(expected))).toBe(true);
    // The memory is used again; the second file must not have the first one's numbers.
    await writer.save(path, { ...trained, iteration: 6 }, () => written++);
    saveCheckpoint(expected, { ...trained, iteration: 6 });
    await writer.finish();
    expect(readFileSync(path).equals(readFileSync(expected))).toBe(true);
    expect(readdirSync(folder).toSorted()).toEqual(["expected", "path"]);
  });

  test("that could not be written is told of by the next one, with the path and the system's code", async () => {
    const trained = fresh();
    const path = join(folder, "no-such-folder", "checkpoint");
    await using writer = new CheckpointWriter();
    await writer.save(path, { ...trained, iteration: 1 }, () => expect.unreachable());
    const error = await writer
      .save(path, { ...trained, iteration: 2 }, () => {})
      .then(
        () => undefined,
        (thrown: NodeJS.ErrnoException) => thrown,
      );
    expect(error?.code).toBe("ENOENT");
    expect(error?.message).toContain(path);
  });

  for (const file of ["metrics", "samples"] as const) {
    test(`comes after the ${file} before it are on the disk, or not at all`, async () => {
      const config = smallConfig({ sampleInterval: 1, evalInterval: 0 });
      const directory = new RunDirectory(mkdtempSync(join(folder, "run-")));
      const training = trainSmall({
        config,
        directory,
        events: () => ({
          onStep({ step }) {
            if (step !== 2) return;
            // It takes all that is written and is on no disk.
            rmSync(directory[file], { force: true });
            symlinkSync("/dev/null", directory[file]);
          },
        }),
      });
      expect(await training.catch((error: Error) => error.message)).toStartWith(`${directory[file]}: EINVAL`);
      expect(readdirSync(directory.checkpoints)).toEqual([]);
    });
  }
});

describe("checkpoints that are kept", () => {
  const stepsOf = (path: string) => listCheckpoints(path).map(checkpointStep).toReversed();

  test("the newest, and every so many", async () => {
    const config = smallConfig({ checkpointInterval: 2, keepCheckpoints: 2, keepEvery: 8, evalInterval: 0 });
    const { run } = await trainSmall({ config });
    expect(stepsOf(run.checkpoints)).toEqual([8, 16, 18, 20]);
  });

  test("the best, saved when it is seen and kept while better ones do not come", async () => {
    // A learning rate far too high at first: the loss falls, rises and does not come back.
    const config = smallConfig({
      lr: 0.05,
      schedule: "constant",
      warmupSteps: 19,
      checkpointInterval: 4,
      keepCheckpoints: 1,
      keepBest: true,
      evalInterval: 1,
      clipNorm: 0,
      minLr: 0,
    });
    const { run, history } = await trainSmall({ config });
    const best = history.reduce((a, b) => (b.valLoss! < a.valLoss! ? b : a)).step;
    expect(stepsOf(run.checkpoints)).toContain(best);
    expect(stepsOf(run.checkpoints)).toContain(20);
    expect(stepsOf(run.checkpoints).length).toBeLessThanOrEqual(2);
  });
});
