/**
 * SIGKILLs at random moments of a run with checkpoints every few steps: the weights, moments, losses and samples at the
 * end are those of the undisturbed run, bit for bit. Three kills unless MANTOU_KILLS says more.
 *
 * MANTOU_KILLS=100 bun run test tests/train/kills.test.ts
 */
import { afterAll, expect, test } from "bun:test";
import { Random } from "@mantou/model";
import { Workplace, flags, newestStep, resultOf, smallFlags, storyText } from "./support/workplace.ts";
import { succeeded, temporariesIn, until } from "./support/workplace.ts";

const KILLS = Number(process.env.MANTOU_KILLS ?? 3);
const STEPS = KILLS * 40;

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());

test(
  `${KILLS} SIGKILLs`,
  async () => {
    const data = place.file("stories.txt", storyText(60_000));
    const run = { data, steps: STEPS, batchSize: 32, microBatchSize: 8, threads: 2, "model.dModel": 64 };
    const intervals = { checkpointInterval: 3, evalInterval: 10, sampleInterval: 25, keepEvery: 20 };
    const command = (name: string) => [...smallFlags, ...flags({ ...run, ...intervals, name })];
    await place.succeed("train", ...command("undisturbed"));
    const reference = resultOf(place.path("runs/undisturbed"));

    const path = place.path("runs/killed");
    const random = new Random(7);
    let kills = 0;
    while (kills < KILLS) {
      const running = place.start("train", ...command("killed"));
      // Some meet the start, some a step, some a checkpoint that is being written.
      const target = newestStep(path) + Math.floor(random.next() * 60) - 10;
      await until(() => newestStep(path) >= Math.min(target, STEPS - 6), running);
      for (let i = Math.floor(random.next() * 3000); i > 0; i--) await new Promise((resolve) => setImmediate(resolve));
      running.kill("SIGKILL");
      const ended = await running.ended;
      if (ended.signal !== "SIGKILL") {
        // It was done before enough kills: begin again, the kills count on.
        succeeded(ended);
        expect(resultOf(path).checkpoint.equals(reference.checkpoint)).toBe(true);
        await Bun.$`rm -r ${path}`.quiet();
      } else {
        kills++;
      }
    }
    if (newestStep(path) < STEPS) await place.succeed("train", ...command("killed"));
    const result = resultOf(path);
    expect(result.metrics).toEqual(reference.metrics);
    expect(result.samples).toBe(reference.samples);
    expect(result.checkpoint.equals(reference.checkpoint)).toBe(true);
    expect(temporariesIn(path)).toEqual([]);
  },
  KILLS * 20_000,
);
