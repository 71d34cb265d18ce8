/**
 * The commands as a newcomer calls them, through the package scripts and with nothing but PATH and HOME set: what they
 * print, what they leave behind, and that their numbers agree with one another.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { openDevice } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { ArrayTokens } from "../../packages/train/src/dataset.ts";
import { MACHINE_FIELDS, type StepMetrics, readMetrics } from "../../packages/train/src/metrics.ts";
import { loadRun } from "../../packages/train/src/run.ts";
import { cosineLearningRate } from "../../packages/train/src/schedule.ts";
import { RunDirectory } from "../../packages/train/src/run.ts";
import { train } from "../../packages/train/src/trainer.ts";
import {
  type CommandName,
  type Ended,
  Workplace,
  environmentOf,
  flags,
  resultOf,
  root,
  smallFlags,
} from "./support/workplace.ts";
import { storyText, succeeded, until } from "./support/workplace.ts";

const place = new Workplace();
const text = storyText(40_000);
let data: string;
let trained: Ended;
const run = place.path("runs/main");
/** Enough batches for a validation over all of the held-out text. */
const settings = {
  "model.numLayers": 2,
  steps: 30,
  evalInterval: 10,
  evalBatches: 1000,
  sampleInterval: 15,
  lr: 0.003,
};

beforeAll(async () => {
  data = place.file("stories.txt", text);
  trained = await place.succeed("train", ...smallFlags, ...flags({ data, name: "main", ...settings }));
});
afterAll(() => place[Symbol.dispose]());

const metrics = () => readMetrics(join(run, "metrics.jsonl"));

/** Ids of a .bin of uint16. */
function idsOf(path: string): Int32Array {
  const bytes = readFileSync(path);
  return Int32Array.from(new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2));
}

describe("train", () => {
  test("prints the config with a reason for each automatic choice, a progress, samples, a curve and what to do next", () => {
    const { stdout, stderr } = trained;
    expect(stderr).toBe("");
    expect(stdout).toMatch(/^config {2}preset tiny/m);
    expect(stdout).toMatch(/^ +model\.dModel +32 +by --model\.d-?[mM]odel/m);
    const [, chosen] = stdout.split("chosen automatically\n");
    for (const [path, reason] of [
      ["minLr", "a tenth of lr"],
      ["warmupSteps", "5 % of 30 steps"],
      ["model.dFf", "8/3 dModel, a multiple of 64"],
      ["device", ""],
      ["precision", ""],
    ]) {
      expect(chosen).toMatch(new RegExp(`^  ${path} +\\S+ +(?=\\S).*${reason}`, "m"));
    }
    expect(stdout).toMatch(/^30\/30 \(100%\) {2}loss \d.* lr 3\.0e-4 .*val \d/m);
    expect(stdout.match(/── sample after step (\d+)/g)).toHaveLength(2);
    expect(stdout).toContain("loss (nats per token)");
    expect(stdout).toContain("bun run generate --run runs/main");
    const last = metrics().at(-1)!;
    expect(stdout).toContain(`validation loss ${last.valLoss!.toFixed(4)}`);
  });

  test("leaves a run directory with all that is promised, and nothing else", () => {
    const promised = [
      "checkpoints",
      "config.json",
      "data",
      "metrics.jsonl",
      "report.html",
      "samples.txt",
      "tensorboard",
      "tokenizer.json",
    ];
    expect(readdirSync(run).sort()).toEqual(promised);
    expect(readdirSync(join(run, "data")).sort()).toEqual(["train.bin", "train.bin.json", "val.bin", "val.bin.json"]);
    // The folder is also the home directory, where Bun keeps what it knows of itself.
    const visible = readdirSync(place.folder).filter((name) => !name.startsWith("."));
    expect(visible.sort()).toEqual(["runs", "stories.txt"]);
  });

  test("metrics.jsonl has one line a step, each with the same fields", () => {
    const all = metrics();
    expect(all.map(({ step }) => step)).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
    const schedule = { maxLearningRate: 0.003, minLearningRate: 0.0003, warmupIters: 1, cosineCycleIters: 30 };
    let before = 0;
    for (const line of all) {
      const keys: (keyof StepMetrics)[] = [
        "step",
        "time",
        "tokens",
        "loss",
        "lr",
        "gradNorm",
        ...MACHINE_FIELDS.slice(1),
      ];
      const validated: (keyof StepMetrics)[] = [
        "valLoss",
        "valPerplexity",
        "valBitsPerByte",
        "paramNorm",
        "updateRatio",
      ];
      if (line.step % 10 === 0) keys.push(...validated, "norms");
      expect(Object.keys(line).sort()).toEqual(keys.sort());
      const { norms = {}, ...numbers } = line;
      for (const value of [...Object.values(numbers), ...Object.values(norms)]) {
        expect(Number.isFinite(value)).toBe(true);
      }
      expect(line.tokens).toBe(line.step * 4 * 16);
      expect(line.lr).toBe(cosineLearningRate(line.step, schedule));
      expect(line.time).toBeGreaterThanOrEqual(before);
      before = line.time;
    }
    // A model that knows nothing yet guesses among all ids; this one has learnt something.
    const { config } = JSON.parse(`{"config":${readFileSync(join(run, "config.json"), "utf8")}}`) as {
      config: { choices: { path: string; value: number }[] };
    };
    const vocabSize = config.choices.find(({ path }) => path === "model.vocabSize")!.value;
    expect(all[0].loss).toBeCloseTo(Math.log(vocabSize), 0);
    expect(all.at(-1)!.loss).toBeLessThan(all[0].loss - 0.5);
  });

  test("samples.txt holds the samples that were printed", () => {
    const samples = readFileSync(join(run, "samples.txt"), "utf8");
    const parts = samples.split(/^--- step (\d+)\n/m).slice(1);
    expect(parts.filter((_, i) => i % 2 === 0)).toEqual(["15", "30"]);
    for (const part of parts.filter((_, i) => i % 2 === 1)) expect(trained.stdout).toContain(part.trim());
  });

  test("the held-out text begins with a document, and nothing is lost or in both parts", () => {
    const tokenizer = loadTokenizer(join(run, "tokenizer.json"));
    const [first, second] = ["train", "val"].map((part) => tokenizer.decode(idsOf(join(run, `data/${part}.bin`))));
    expect(first + second).toBe(text);
    expect(first.endsWith("<|endoftext|>")).toBe(true);
    const share = Buffer.byteLength(second) / Buffer.byteLength(text);
    expect(share).toBeLessThanOrEqual(0.1);
    expect(share).toBeGreaterThan(0.05);
    // The tokenizer has seen the training part alone.
    const own = Tokenizer.train(first, { vocabSize: 300, specialTokens: ["<|endoftext|>"] });
    expect(tokenizer.hash).toBe(own.hash);
  });

  test("without documents the text is cut after a line, without lines between characters", async () => {
    const lines = place.file("lines.txt", "A line with a few words, and no document.\n".repeat(300));
    const noLines = place.file("no-lines.txt", "ここには改行がありません。".repeat(200));
    for (const [path, name] of [
      [lines, "lines"],
      [noLines, "no-lines"],
    ]) {
      await place.succeed("train", ...smallFlags, ...flags({ data: path, name, steps: 2 }));
      const tokenizer = loadTokenizer(place.path("runs", name, "tokenizer.json"));
      const parts = ["train", "val"].map((part) =>
        tokenizer.decode(idsOf(place.path("runs", name, `data/${part}.bin`))),
      );
      expect(parts.join("")).toBe(readFileSync(path, "utf8"));
      expect(parts.join("")).not.toContain("\uFFFD");
      for (const part of parts) expect(part).not.toContain("\uFFFD");
      if (name === "lines") expect(parts[0].endsWith("\n")).toBe(true);
    }
  });

  test("--val takes its text as it is, and all of --data for training", async () => {
    const val = place.file("val.txt", storyText(5_000, 7));
    await place.succeed("train", ...smallFlags, ...flags({ data, val, name: "val", steps: 2 }));
    const tokenizer = loadTokenizer(place.path("runs/val/tokenizer.json"));
    expect(tokenizer.decode(idsOf(place.path("runs/val/data/train.bin")))).toBe(text);
    expect(tokenizer.decode(idsOf(place.path("runs/val/data/val.bin")))).toBe(readFileSync(val, "utf8"));
  });

  test("a saved config.json starts the same run again under another name", async () => {
    await place.succeed("train", "--config", join(run, "config.json"), "--name", "again");
    const [again, main] = [place.path("runs/again"), run].map(resultOf);
    expect(again.metrics).toEqual(main.metrics);
    expect(again.samples).toBe(main.samples);
    expect(again.checkpoint.equals(main.checkpoint)).toBe(true);
  });

  test("another seed and another number of threads: other numbers, the same numbers", async () => {
    const config = ["--config", join(run, "config.json")];
    await place.succeed("train", ...config, "--name", "seed", "--seed", "2");
    expect(resultOf(place.path("runs/seed")).metrics).not.toEqual(resultOf(run).metrics);
    await place.succeed("train", ...config, "--name", "threads", "--threads", "3");
    expect(resultOf(place.path("runs/threads")).checkpoint.equals(resultOf(run).checkpoint)).toBe(true);
  });
});

test("--profile tells of steps 3 to 12 and changes no bit, and says so where there is no third", async () => {
  const profiled = async (name: string, ...more: string[]) => {
    const argv = ["--config", join(run, "config.json"), "--name", name, "--profile"];
    return (await place.succeed("train", ...argv, ...more)).stdout;
  };
  const steps = resultOf(run).metrics.length;
  expect(await profiled("profiled")).toMatch(
    new RegExp(`^profile of steps 3 to ${Math.min(12, steps)}\n[^]*^a step .* 100 %$`, "m"),
  );
  expect(resultOf(place.path("runs/profiled")).checkpoint.equals(resultOf(run).checkpoint)).toBe(true);
  const short = await profiled("short", "--steps", "2", "--warmup-steps", "auto");
  expect(short).toContain("\nprofile: none, for the first 2 steps are left out\n");
  expect(short).not.toContain("profile of");
});

describe("the loop", () => {
  test("ends after the step in which it is told to, with a checkpoint", async () => {
    using device = openDevice("cpu", { threads: 1 });
    const { model, config, tokenizer } = loadRun(run, device, expect.unreachable);
    const tokens = new ArrayTokens(Uint32Array.from(tokenizer.encode(text)));
    const stop = new AbortController();
    const target = new RunDirectory(place.path("loop"));
    const saved: string[] = [];
    const outcome = await train(
      { run: target, config, model, tokenizer, train: tokens, val: tokens },
      {
        onStep: ({ step }) => step === 5 && stop.abort(),
        onCheckpoint: (path) => saved.push(path),
      },
      stop.signal,
    );
    expect(outcome).toMatchObject({ step: 5, stopped: true });
    expect(outcome.history).toHaveLength(5);
    expect(saved).toEqual([join(target.checkpoints, "step-00000005.safetensors")]);
    expect(readMetrics(target.metrics)).toEqual(outcome.history);
  });
});

describe("eval", () => {
  const number = (stdout: string, label: string) => Number(new RegExp(`^${label} +([\\d.]+)`, "m").exec(stdout)?.[1]);

  test("gives the trainer's own validation loss, and bits per byte that follow from it", async () => {
    const { stdout, stderr } = await place.succeed("eval", "--run", run);
    expect(stderr).toBe("");
    const loss = number(stdout, "loss");
    expect(Math.abs(loss - metrics().at(-1)!.valLoss!)).toBeLessThan(1e-4);
    expect(Math.abs(number(stdout, "perplexity") - Math.exp(loss))).toBeLessThan(1e-4 * Math.exp(loss));
    const [, tokens, bytes] = /its validation data: (\d+) tokens, (\d+) bytes/.exec(stdout)!.map(Number);
    expect(Math.abs(number(stdout, "bits per byte") - (loss * tokens) / Math.LN2 / bytes)).toBeLessThan(1e-3);
    // The bytes are those of the text but for its special tokens, the first token and what fills no window.
    const ids = idsOf(join(run, "data/val.bin")).subarray(1, tokens + 1);
    expect(tokens).toBe(Math.floor((ids.length + 0) / 16) * 16);
    const decoded = loadTokenizer(join(run, "tokenizer.json")).decode(ids).replaceAll("<|endoftext|>", "");
    expect(bytes).toBe(Buffer.byteLength(decoded));
    expect(number(stdout, "bits per byte")).toBeGreaterThan(1);
    expect(number(stdout, "bits per byte")).toBeLessThan(8);
  });

  test("--data: the validation text and its tokens give the same; a text unlike it is worse", async () => {
    const tokenizer = loadTokenizer(join(run, "tokenizer.json"));
    const copy = place.file("copy.txt", tokenizer.decode(idsOf(join(run, "data/val.bin"))));
    const noise = place.file("noise.txt", "%$#@ QZX ".repeat(300));
    const losses: number[] = [];
    for (const argv of [[], ["--data", copy], ["--data", join(run, "data/val.bin")], ["--data", noise]]) {
      losses.push(number((await place.succeed("eval", "--run", run, ...argv)).stdout, "loss"));
    }
    expect(losses.slice(1, 3)).toEqual([losses[0], losses[0]]);
    expect(losses[3]).toBeGreaterThan(losses[0]);
    expect(readdirSync(place.folder).filter((name) => name.startsWith("mantou"))).toEqual([]);
  });
});

describe("generate", () => {
  const generate = async (...argv: string[]) => (await place.succeed("generate", "--run", run, ...argv)).stdout;

  test("the same seed gives the same text, another seed another one, temperature 0 needs none", async () => {
    const argv = ["--prompt", "Once upon", "--max-tokens", "40"];
    const [first, second, other] = await Promise.all(["1", "1", "2"].map((seed) => generate(...argv, "--seed", seed)));
    expect(first.startsWith("Once upon")).toBe(true);
    expect(second).toBe(first);
    expect(other).not.toBe(first);
    const greedy = await Promise.all(["1", "2"].map((seed) => generate(...argv, "--temperature", "0", "--seed", seed)));
    expect(greedy[0]).toBe(greedy[1]);
  });

  test("several samples are what their seeds give one by one, in order, and a prompt may come by standard input", async () => {
    const argv = ["--max-tokens", "30", "--temperature", "1.2"];
    const alone = await Promise.all([5, 6, 7].map((seed) => generate(...argv, "--prompt", "It", "--seed", `${seed}`)));
    const many = await generate(...argv, "--prompt", "It", "--seed", "5", "--samples", "3", "--parallel", "2");
    const head = (n: number) => `── sample ${n} of 3\n`;
    expect(many).toBe(alone.map((text, i) => head(i + 1) + text).join("\n"));
    const program = [process.execPath, join(root, "packages/train/src/cli/generate.ts"), "--run", run, ...argv];
    const input = new TextEncoder().encode("It\n");
    const { stdout } = succeeded(
      await place.startProgram([...program, "--prompt", "-", "--seed", "5"], { input }).ended,
    );
    expect(stdout).toBe(alone[0]);
  });

  test("a stop string ends the text and is not in it; top-k 1 is greedy; a bad value is refused", async () => {
    const argv = ["--prompt", "Once upon", "--max-tokens", "60", "--temperature", "1.5"];
    const whole = (await generate(...argv)).slice("Once upon".length, -1);
    const stop = whole.slice(7, 10);
    const cut = await generate(...argv, "--stop", "no such text, surely", "--stop", stop);
    expect(cut).toBe(`Once upon${whole.slice(0, whole.indexOf(stop))}\n`);
    const greedy = ["--top-k", "1", "--min-p", "0.5", "--repetition-penalty", "1.1"];
    const texts = await Promise.all(["1", "2"].map((seed) => generate(...argv, ...greedy, "--seed", seed)));
    expect(texts[0]).toBe(texts[1]);
    for (const [flag, value, message] of [
      ["--top-p", "0", "--top-p is 0; it must be a number above 0 and at most 1"],
      ["--repetition-penalty", "0", "it must be a number above 0"],
      ["--seed", "9007199254740991", "it must be a whole number of at least 0 and at most 4294967295"],
    ]) {
      const { code, stdout, stderr } = await place.run("generate", "--run", run, flag, value);
      expect([code, stdout]).toEqual([2, ""]);
      expect(stderr).toContain(message);
    }
  });

  test("prints text as it comes", async () => {
    // Without an end in sight: only a reader of the first pieces sees anything.
    const program = [process.execPath, join(root, "packages/train/src/cli/generate.ts"), "--run", run];
    const child = Bun.spawn([...program, "--max-tokens", "100000000", "--prompt", "Once"], {
      env: environmentOf(place.folder),
      stdout: "pipe",
      timeout: 30_000,
    });
    try {
      let seen = "";
      for await (const chunk of child.stdout) {
        seen += new TextDecoder().decode(chunk);
        if (seen.length > 20) break;
      }
      expect(seen.startsWith("Once")).toBe(true);
      expect(seen.length).toBeGreaterThan(20);
      expect(child.exitCode).toBeNull();
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
  });

  test("a model that has learnt one short document ends where it ends", async () => {
    const path = place.file("one.txt", "the cat sat.<|endoftext|>".repeat(400));
    const own = { data: path, name: "one", "tokenizer.vocabSize": 257, steps: 150, lr: 0.01, batchSize: 8 };
    await place.succeed("train", ...smallFlags, ...flags({ ...own, "model.contextLength": 32 }));
    for (const prompt of ["", "the"]) {
      const { stdout } = await place.succeed(
        ...(["generate", "--run", place.path("runs/one"), "--prompt", prompt, "--temperature", "0.1"] as const),
      );
      expect(stdout).toBe("the cat sat.\n");
    }
  });
});

describe("every command", () => {
  const commands: [CommandName, string[], string[]][] = [
    ["train", [], ["--data", "--model.numLayers", "--steps", "--lr", "--preset", "--config", "--resume"]],
    ["generate", [], ["--run", "--prompt", "--samples", "--temperature", "--top-k", "--min-p", "--stop", "--seed"]],
    ["serve", [], ["--run", "--port", "--slots", "--queue", "--timeout"]],
    ["export", [], ["--run", "--format", "--out", "--dtype"]],
    ["import", [], ["--from", "--out", "--context-length"]],
    ["eval", [], ["--run", "--data"]],
    ["build-kernels", [], ["--force"]],
    ["tokenizer", ["train"], ["--vocab-size", "--special-tokens", "--pattern", "--ties", "--workers", "--out"]],
    ["tokenizer", ["encode"], ["--tokenizer", "--out", "--shard-tokens", "--workers"]],
    ["tokenizer", ["count"], ["--tokenizer", "--workers"]],
    ["tokenizer", ["convert"], ["--to", "--out", "--pattern", "--special-tokens"]],
    ["tokenizer", ["count-shard"], ["--pattern", "--workers", "--out"]],
    ["tokenizer", ["merge-counts"], ["--out"]],
    ["tokenizer", ["decode"], ["--tokenizer", "--out"]],
    ["tokenizer", ["info"], ["--tokenizer"]],
  ];

  test("has a --help with usage, flags and an example, an exit code of 0, and refuses unknown flags", async () => {
    for (const [command, words, names] of commands) {
      const [help, wrong] = await Promise.all([
        place.succeed(command, ...words, "--help"),
        place.run(command, ...words, "--no-such-thing"),
      ]);
      expect(help.stderr).toBe("");
      const script = { "build-kernels": "build:kernels" }[command as string] ?? command;
      expect(help.stdout).toStartWith(`usage  bun run ${[script, ...words].join(" ")}`);
      for (const name of names) expect(help.stdout).toMatch(new RegExp(`^  ${name.replaceAll(".", "\\.")}\\b`, "m"));
      expect(help.stdout).toMatch(/^Examples\n {2}\S/m);
      expect(wrong.code).toBe(2);
      expect(wrong.stderr).toMatch(/^error: unknown flag --no-such-thing\n {2}fix: /);
    }
    const { stdout } = await place.succeed("tokenizer", "--help");
    for (const name of ["train", "encode", "decode", "info"]) expect(stdout).toMatch(new RegExp(`^  ${name} `, "m"));
  });

  /** PATH with the package manager and nothing of this repository. */
  async function script(manager: "bun" | "npm", name: string, ...argv: string[]): Promise<Ended> {
    const command = manager === "npm" ? ["npm", "run", "--silent", name, "--"] : [process.execPath, "run", name];
    return succeeded(await place.startProgram([...command, ...argv], { directory: root }).ended);
  }

  test("works as a script of bun, and of npm where there is one", async () => {
    for (const manager of ["bun", "npm"] as const) {
      if (manager === "npm" && Bun.which("npm") === null) {
        console.log("skipped: there is no npm here");
        continue;
      }
      const name = `by-${manager}`;
      const runsDir = place.path("scripts");
      await script(manager, "train", ...smallFlags, ...flags({ data, name, runsDir, ...settings }));
      expect(resultOf(join(runsDir, name)).metrics).toEqual(resultOf(run).metrics);
      const path = join(runsDir, name);
      const { stdout } = await script(manager, "generate", "--run", path, "--prompt", "Once upon", "--max-tokens", "5");
      expect(stdout).toStartWith("Once upon");
      expect((await script(manager, "eval", "--run", path)).stdout).toMatch(/^bits per byte +\d/m);
      const info = await script(manager, "tokenizer", "info", "--tokenizer", join(path, "tokenizer.json"));
      expect(info.stdout).toMatch(/^vocabulary +300 ids/m);
      const built = (await script(manager, "build:kernels")).stdout.trim().split("\n").at(-1)!;
      expect(existsSync(built)).toBe(true);
      expect(built).toStartWith(join(root, "build/"));
    }
  }, 30_000);

  test("SIGINT and SIGTERM reach the training through either script", async () => {
    for (const [manager, signal] of [
      ["bun", "SIGTERM"],
      ["bun", "SIGINT"],
      ["npm", "SIGTERM"],
      ["npm", "SIGINT"],
    ] as const) {
      if (manager === "npm" && Bun.which("npm") === null) continue;
      const name = `${manager}-${signal}`;
      const path = place.path("scripts", name);
      const endless = { data, name, runsDir: place.path("scripts"), steps: 10_000_000, checkpointInterval: 10 };
      const command =
        manager === "npm" ? ["npm", "run", "--silent", "train", "--"] : [process.execPath, "run", "train"];
      const argv = [...command, ...smallFlags, ...flags(endless)];
      const running = place.startProgram(argv, { directory: root });
      await until(() => existsSync(join(path, "checkpoints/step-00000010.safetensors")), running);
      running.kill(signal);
      const { stdout } = await running.ended;
      expect(stdout).toMatch(/stopped after step \d+; a checkpoint is saved/);
    }
  }, 30_000);
});
