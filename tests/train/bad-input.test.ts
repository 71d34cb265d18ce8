/**
 * What `train`, `generate` and `eval` say to input they cannot use: one `error:` line that names it, a `fix:`, the right
 * exit code, no stack, and nothing overwritten.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { NativeError } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { saveTokenizer } from "@mantou/tokenizer/files";
import { isWholeCheckpoint, listCheckpoints } from "../../packages/train/src/checkpoint.ts";
import { toUserError } from "../../packages/train/src/cli/known-errors.ts";
import { writeTokens } from "../../packages/train/src/dataset.ts";
import { UserError } from "../../packages/train/src/errors.ts";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { type Ended, Workplace, flags, newestStep, resultOf, root, smallFlags } from "./support/workplace.ts";
import { storyText, succeeded, temporariesIn } from "./support/workplace.ts";

const place = new Workplace();
let data: string;
beforeAll(async () => {
  data = place.file("stories.txt", storyText(30_000));
  await place.succeed("train", ...smallFlags, "--data", data, "--name", "finished");
});
afterAll(() => place[Symbol.dispose]());

/** The error of a command that must fail with this exit code. */
function failure({ code, stderr }: Ended, expectedCode: 1 | 2): string {
  expect(stderr).toMatch(/^error: .*\n {2}fix: .*\n$/m);
  expect(stderr).not.toContain("    at ");
  expect(code).toBe(expectedCode);
  return stderr;
}

const trainFails = async (code: 1 | 2, ...argv: string[]) =>
  failure(await place.run("train", ...smallFlags, ...argv), code);

/** The files of a run with their contents, to see that nothing changed. */
function contents(folder: string): Record<string, string> {
  const names = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return Object.fromEntries(
    names.map(({ parentPath, name }) => [name, readFileSync(join(parentPath, name), "latin1")]),
  );
}

const runs = () => readdirSync(place.path("runs")).sort();

describe("texts", () => {
  test("missing, empty, tiny, no file, shorter than the context: nothing is written", async () => {
    const before = runs();
    const empty = place.file("empty.txt", "");
    const tiny = place.file("tiny.txt", "hi");
    const short = place.file("short.txt", "A text of a few dozen bytes, which is not enough.");
    expect(await trainFails(2, "--data", "nowhere.txt")).toContain("--data nowhere.txt does not exist");
    expect(await trainFails(2, "--data", empty)).toContain(`--data ${empty} is empty`);
    expect(await trainFails(2, "--data", place.folder)).toContain("is a directory without a manifest.json");
    expect(await trainFails(2, "--data", tiny)).toContain(`--data ${tiny} has 2 bytes, too few for a context of 16`);
    const held = await trainFails(2, "--data", short);
    expect(held).toMatch(
      /the held-out end of .*short\.txt has 5 bytes, .*\n {2}fix: .* a larger --held-out, .* \(4 at most\)\n/,
    );
    const training = await trainFails(2, "--data", short, "--held-out", "0.5", "--model.context-length", "30");
    expect(training).toMatch(
      /the training part of .*short\.txt has 24 bytes, .*\n {2}fix: .* a smaller --held-out, .* \(23 at most\)\n/,
    );
    const long = await trainFails(2, "--data", data, "--model.context-length", "50000");
    expect(long).toContain("too few for a context of 50000");
    expect(long).toContain("--model.context-length");
    const compressed = place.file("stories.gz", Bun.gzipSync(Buffer.from(storyText(5000))));
    for (const argv of [
      ["--data", compressed],
      ["--data", data, "--val", compressed],
    ]) {
      expect(await trainFails(2, ...argv)).toContain(`${argv.at(-2)} ${compressed} is a gzip file, not text`);
    }
    expect(runs()).toEqual(before);
  });

  test("--val: missing, empty, too short, tokens for a text, without --data", async () => {
    const before = runs();
    const tiny = place.file("tiny-val.txt", "hello");
    const tokens = place.file("val.bin", "tokens");
    expect(await trainFails(2, "--data", data, "--val", "no.txt")).toContain("--val no.txt does not exist");
    expect(await trainFails(2, "--data", data, "--val", place.file("no-val.txt", ""))).toContain("is empty");
    expect(await trainFails(2, "--data", data, "--val", tiny)).toContain(`--val ${tiny} has 5 bytes`);
    expect(await trainFails(2, "--data", data, "--val", tokens)).toContain("--val holds tokens and --data is a text");
    expect(await trainFails(2, "--val", data)).toContain("--val needs --data");
    expect(runs()).toEqual(before);
  });

  test("a text with bytes enough and tokens too few is named too", async () => {
    const text = place.file("ababab.txt", "ab".repeat(500));
    const stderr = await trainFails(2, "--data", text);
    expect(stderr).toMatch(/the (training|validation) data has \d+ tokens?, too few for a context of 16/);
  });

  test("a file that may not be read, for someone who is not root", async () => {
    const program = await asSomebody();
    if (program === undefined) return;
    const secret = place.file("secret.txt", storyText(3000));
    chmodSync(secret, 0o000);
    const stderr = failure(await program(["--data", secret, "--name", "secret"]), 1);
    expect(stderr).toContain(secret);
    expect(stderr).toMatch(/EACCES|permission denied/);
  });

  test("a file that may only be read is enough", async () => {
    const program = await asSomebody();
    if (program === undefined) return;
    try {
      chmodSync(data, 0o444);
      succeeded(await program(["--data", data, "--name", "read-only", "--steps", "2"]));
      // And as tokens, which are mapped.
      const folder = place.path("somebody", "read-only", "data");
      for (const part of ["train", "val"]) chmodSync(join(folder, `${part}.bin`), 0o444);
      const [train, val] = ["train", "val"].map((part) => join(folder, `${part}.bin`));
      const path = place.path("somebody", "read-only", "tokenizer.json");
      const argv = ["--data", train, "--val", val, "--tokenizer.path", path, "--name", "mapped", "--steps", "2"];
      succeeded(await program(argv));
    } finally {
      chmodSync(data, 0o644);
    }
  });

  /** `train` as a user whom permissions hold: ourselves, or "nobody" where we are root and may become someone else. */
  async function asSomebody(): Promise<((argv: string[]) => Promise<Ended>) | undefined> {
    const become =
      process.getuid?.() === 0 ? ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] : [];
    const folder = place.path("somebody");
    mkdirSync(folder, { recursive: true });
    chmodSync(folder, 0o777);
    chmodSync(place.folder, 0o755);
    const script = join(root, "packages/train/src/cli/train.ts");
    if (become.length > 0) {
      const can =
        Bun.which("setpriv") !== null &&
        (await place.startProgram([...become, process.execPath, script, "--help"]).ended).code === 0;
      if (!can) {
        console.log("skipped: root cannot act as another user here");
        return undefined;
      }
    }
    const command = [...become, process.execPath, script, ...smallFlags, "--runs-dir", folder];
    return (argv) => place.startProgram([...command, ...argv]).ended;
  }
});

describe("token files", () => {
  const sets = () => {
    const text = storyText(20_000, 3);
    const tokenizer = Tokenizer.train(text, { vocabSize: 280, specialTokens: ["<|endoftext|>"] });
    const path = place.path("tokenizer.json");
    saveTokenizer(tokenizer, path);
    const about = { vocabSize: tokenizer.vocabSize, tokenizerHash: tokenizer.hash };
    for (const name of ["a", "b"]) writeTokens(place.path(`${name}.bin`), [tokenizer.encode(text)], about);
    return { path, about, tokenizer, text };
  };
  const given = (name: string) =>
    flags({
      data: place.path("a.bin"),
      val: place.path("b.bin"),
      "tokenizer.path": place.path("tokenizer.json"),
      "tokenizer.vocabSize": 280,
      name,
    });

  test("tokens train as well as their text", async () => {
    sets();
    await place.succeed("train", ...smallFlags, ...given("tokens"));
    expect(newestStep(place.path("runs/tokens"))).toBe(12);
  });

  test("without --val or a tokenizer", async () => {
    sets();
    const argv = given("x");
    const stderr = await trainFails(2, ...argv.slice(0, 2));
    expect(stderr).toContain("a.bin holds tokens");
    expect(stderr).toContain("--tokenizer.path");
    expect(await trainFails(2, ...given("x"), "--tokenizer.path", "no.json")).toContain("no.json does not exist");
    const before = runs();
    const size = await trainFails(2, ...given("x"), "--tokenizer.vocabSize", "300");
    expect(size).toContain("--tokenizer.vocabSize 300 is for a tokenizer to be trained");
    expect(size).toContain("tokenizer.json has 280 ids");
    const broken = place.file("broken-tokenizer.json", "{");
    const refused = await trainFails(2, "--data", data, "--tokenizer.path", broken, "--name", "broken");
    expect(refused).toContain(`${broken}: not a tokenizer file, or one cut short`);
    expect(runs()).toEqual(before);
  });

  test("an id that the vocabulary does not have", async () => {
    const { about } = sets();
    writeFileSync(place.path("a.bin"), new Uint8Array(Uint16Array.from({ length: 4000 }, () => 60_000).buffer));
    writeFileSync(
      place.path("a.bin.json"),
      JSON.stringify({ format: "mantou-tokens", version: 1, dtype: "uint16", count: 4000, ...about }),
    );
    const { code, stderr } = await place.run("train", ...smallFlags, ...given("large-id"));
    expect(stderr).toMatch(/^error: token 60000 at position \d+ of '.*a\.bin' is not below vocab_size, 280\n {2}fix: /);
    expect(stderr).not.toContain("    at ");
    expect(code).toBe(1);
  });

  test("made by another tokenizer", async () => {
    const { about, text, tokenizer } = sets();
    writeTokens(place.path("b.bin"), [tokenizer.encode(text)], { ...about, tokenizerHash: "0".repeat(16) });
    const stderr = await trainFails(2, ...given("foreign"));
    expect(stderr).toContain("b.bin was made by another tokenizer");
    expect(stderr).toContain(tokenizer.hash);
    // A run's own data are held to its tokenizer, too.
    const other = Tokenizer.train("another text", { vocabSize: 270, specialTokens: ["<|endoftext|>"] });
    await place.succeed("train", ...smallFlags, "--data", data, "--name", "swapped", "--steps", "3");
    saveTokenizer(other, place.path("runs/swapped/tokenizer.json"));
    const { stderr: refused, code } = await place.run("eval", "--run", "runs/swapped");
    expect(refused).toMatch(/^error: /);
    expect(code).not.toBe(0);
  });

  test("cut off", async () => {
    sets();
    const bytes = readFileSync(place.path("a.bin"));
    writeFileSync(place.path("a.bin"), bytes.subarray(0, -3));
    const stderr = await trainFails(2, ...given("cut"));
    expect(stderr).toContain(`has ${bytes.length - 3} bytes, its sidecar says ${bytes.length}`);
  });
});

describe("command lines and configs", () => {
  test("an unknown flag, an unknown key, a bad value: the nearest is named, nothing is written", async () => {
    const before = runs();
    expect(await trainFails(2, "--data", data, "--model.numLayer", "2")).toMatch(
      /unknown flag --model\.numLayer[\s\S]*--model\.numLayers\?/,
    );
    const config = place.file("config.json", '{ "model": { "numHead": 4 } }');
    expect(await trainFails(2, "--data", data, "--config", config)).toMatch(/model\.numHead[\s\S]*model\.numHeads/);
    const bad = place.file("bad.json", '{ "steps": "many" }');
    const { code, stderr } = await place.run("train", "--data", data, "--config", bad);
    expect(code).toBe(2);
    expect(stderr).toContain("steps");
    expect(stderr).toContain(bad);
    expect(await trainFails(2, "--data", data, "--lr", "-1")).toContain("--lr");
    expect(await trainFails(2, "--preset", "tinny")).toContain("tiny");
    expect(await trainFails(2, "--data", data, "--precision", "fp16")).toContain("bf16");
    expect(runs()).toEqual(before);
  });

  test("a device that is not there", async () => {
    for (const command of ["generate", "eval"] as const) {
      const { code, stderr } = await place.run(command, "--run", "runs/finished", "--device", "cuda");
      expect(stderr).toMatch(/^error: device cuda: /);
      expect(stderr).not.toContain("    at ");
      expect(code).toBe(1);
    }
  });
});

describe("a run directory that exists", () => {
  test("finished, of another config, or no run at all: refused by name, and left as it was", async () => {
    const before = contents(place.path("runs/finished"));
    const same = ["--data", data, "--name", "finished"];
    const finished = await trainFails(2, ...same);
    expect(finished).toContain("runs/finished holds a finished run of this config (12 steps)");
    expect(finished).toContain("bun run generate --run runs/finished");
    const other = await trainFails(2, ...same, "--lr", "0.01");
    expect(other).toContain("runs/finished holds a run with another config: lr is 0.003 there and 0.01 here\n");
    expect(other).toContain("--name");
    const resumed = failure(await place.run("train", "--resume", "runs/finished"), 2);
    expect(resumed).toContain("runs/finished is finished: 12 of 12 steps");
    expect(contents(place.path("runs/finished"))).toEqual(before);

    mkdirSync(place.path("runs/photos"));
    writeFileSync(place.path("runs/photos/holiday.jpg"), "a beach");
    const foreign = await trainFails(2, "--data", data, "--name", "photos");
    expect(foreign).toContain("runs/photos exists and is no run of Mantou");
    expect(contents(place.path("runs/photos"))).toEqual({ "holiday.jpg": "a beach" });
  });

  test("left by a process that was killed before it had written anything: as if it were not there", async () => {
    mkdirSync(place.path("runs/killed/checkpoints"), { recursive: true });
    place.file("runs/killed/config.json.tmp-999999", "{");
    await place.succeed("train", ...smallFlags, "--data", data, "--name", "killed");
    expect(newestStep(place.path("runs/killed"))).toBe(12);
    expect(readdirSync(place.path("runs/killed"))).not.toContain("config.json.tmp-999999");
  });

  test("an automatic name takes the next number and says so", async () => {
    const short = [...smallFlags, "--data", data, "--steps", "2"];
    await place.succeed("train", ...short);
    const { stdout } = await place.succeed("train", ...short, "--lr", "0.01");
    expect(stdout).toMatch(/name +stories-2 +runs\/stories holds another run/);
    expect(runs()).toContain("stories-2");
  });

  test("--resume takes a run and no other flag", async () => {
    const resume = async (...argv: string[]) => failure(await place.run("train", "--resume", ...argv), 2);
    expect(await resume("runs/nowhere")).toContain("there is no run in runs/nowhere");
    expect(await resume("runs/photos")).toContain("there is no run in runs/photos");
    expect(await resume("runs/finished", "--steps", "20")).toContain("takes no other flag");
    expect(runs()).not.toContain("nowhere");
    mkdirSync(place.path("runs/broken"));
    writeFileSync(place.path("runs/broken/config.json"), '{ "steps": 5');
    expect(await resume("runs/broken")).toContain("runs/broken/config.json is not valid JSON");
    writeFileSync(place.path("runs/broken/config.json"), '{ "steps": 5 }');
    expect(await resume("runs/broken")).toContain("runs/broken/config.json is not the config of a finished setup");
  });

  test("generate and eval say what is missing", async () => {
    for (const command of ["generate", "eval"] as const) {
      expect(failure(await place.run(command, "--run", "runs/nowhere"), 2)).toContain(
        "there is no run in runs/nowhere",
      );
      const { code, stderr } = await place.run(command);
      expect(code).toBe(2);
      expect(stderr).toContain("--run");
    }
    for (const command of ["generate", "eval", "serve"] as const) {
      const refused = failure(await place.run(command, "--run", "runs/stories", "--threads", "5000"), 2);
      expect(refused).toContain("--threads is 5000; it must be");
    }
    writeFileSync(place.path("runs/stories/tokenizer.json"), "{");
    const broken = failure(await place.run("generate", "--run", "runs/stories"), 2);
    expect(broken).toContain("runs/stories/tokenizer.json: not a tokenizer file, or one cut short");
    cpSync(place.path("runs/finished/tokenizer.json"), place.path("runs/stories/tokenizer.json"));
    rmSync(place.path("runs/stories/checkpoints"), { recursive: true });
    rmSync(place.path("runs/stories/tokenizer.json"));
    const untrained = "runs/stories has no checkpoint yet\n  fix: train it: bun run train --resume runs/stories";
    for (const command of ["generate", "eval", "serve"] as const) {
      expect(failure(await place.run(command, "--run", "runs/stories"), 2)).toContain(untrained);
    }
    const init = ["--init", "runs/stories", "--data", "stories.txt", "--name", "begun"];
    expect(failure(await place.run("train", ...init), 2)).toContain(untrained);
    expect(existsSync(place.path("runs/begun"))).toBe(false);
    expect(failure(await place.run("eval", "--run", "runs/finished", "--data", "no.txt"), 2)).toContain("no.txt");
    place.file("letter.txt", "a");
    const letter = failure(await place.run("eval", "--run", "runs/finished", "--data", "letter.txt"), 2);
    expect(letter).toContain("letter.txt has 1 token, with none after it to tell\n  fix: give more text");
  });
});

test("what went wrong first is told, also where freeing fails after it", () => {
  const train = () => {
    const failing = (name: string) => ({ [Symbol.dispose]: () => void fail(name) });
    const fail = (name: string): never => {
      throw new NativeError(`${name}: an illegal memory access was encountered`, 5);
    };
    using _device = failing("mantou_synchronize");
    using _memory = failing("mantou_free");
    fail("mantou_wait_for_mark");
  };
  let thrown: unknown;
  try {
    train();
  } catch (error) {
    thrown = toUserError(error);
  }
  expect(thrown).toBeInstanceOf(UserError);
  expect((thrown as UserError).message).toBe("mantou_wait_for_mark: an illegal memory access was encountered");
});

test("a loss that is no number stops the run; the last good checkpoint is kept and usable", async () => {
  const diverging = flags({ data, name: "nan", lr: 1e30, warmupSteps: 8, checkpointInterval: 1, keepCheckpoints: 9 });
  const stderr = await trainFails(1, ...diverging);
  const step = Number(/step (\d+) diverged/.exec(stderr)?.[1]);
  expect(step).toBeGreaterThan(1);
  expect(stderr).toContain(`the checkpoint after step ${step - 1} is kept`);
  expect(stderr).toContain("--lr");
  const kept = listCheckpoints(place.path("runs/nan/checkpoints"));
  expect(kept).toHaveLength(step - 1);
  for (const path of kept) expect(isWholeCheckpoint(path)).toBe(true);
  const losses = readMetrics(place.path("runs/nan/metrics.jsonl")).map(({ loss }) => loss);
  expect(losses).toHaveLength(step - 1);
  for (const loss of losses) expect(loss).toBeNumber();
}, 20_000);

test("a full disk: the run stays consistent, and goes on when there is space", async () => {
  const mounted = place.path("small");
  mkdirSync(mounted);
  const mount = (options: string) =>
    Bun.spawnSync(["mount", "-t", "tmpfs", "-o", options, "none", mounted], { stdout: "ignore", stderr: "ignore" });
  if (process.platform !== "linux" || Bun.which("mount") === null || mount("size=1m").exitCode !== 0) {
    console.log("skipped: no tmpfs can be mounted here");
    return;
  }
  try {
    // While the text is encoded.
    const large = place.file("large.txt", storyText(1_500_000));
    const argv = (text: string, name: string) => [
      ...smallFlags,
      ...flags({ data: text, name, runsDir: mounted, checkpointInterval: 2, keepCheckpoints: 3 }),
    ];
    const encoding = failure(await place.run("train", ...argv(large, "large")), 1);
    expect(encoding).toContain("ENOSPC");
    expect(encoding).toContain(join(mounted, "large/data"));
    expect(temporariesIn(mounted)).toEqual([]);
    rmSync(join(mounted, "large"), { recursive: true });

    // While a checkpoint is saved: two fit, a third does not.
    const saving = failure(await place.run("train", ...argv(data, "small")), 1);
    const folder = join(mounted, "small");
    expect(saving).toContain("ENOSPC");
    expect(saving).toContain(folder);
    expect(temporariesIn(mounted)).toEqual([]);
    const before = newestStep(folder);
    expect(before).toBeGreaterThanOrEqual(2);
    for (const path of listCheckpoints(join(folder, "checkpoints"))) expect(isWholeCheckpoint(path)).toBe(true);
    expect(mount("remount,size=16m").exitCode).toBe(0);
    const { stdout } = await place.succeed("train", "--resume", folder);
    expect(stdout).toContain(`resuming after step ${before}`);
    const [small, finished] = [folder, place.path("runs/finished")].map(resultOf);
    expect(small.metrics).toEqual(finished.metrics);
    expect(small.checkpoint.equals(finished.checkpoint)).toBe(true);
    expect(existsSync(join(folder, "samples.txt"))).toBe(true);

    // Nothing fits, not even the config.
    expect(mount("remount,size=16m,nr_inodes=20").exitCode).toBe(0);
    let files = 0;
    try {
      for (; ; files++) writeFileSync(join(mounted, `file-${files}`), "");
    } catch {
      expect(files).toBeLessThan(20);
    }
    const nothing = failure(await place.run("train", ...argv(data, "nothing")), 1);
    expect(nothing).toContain("ENOSPC");
    expect(temporariesIn(mounted)).toEqual([]);
  } finally {
    Bun.spawnSync(["umount", "-l", mounted]);
  }
}, 30_000);
