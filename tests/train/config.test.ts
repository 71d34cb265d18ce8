/** How a run's config comes together: layers and their origins, automatic choices, refusals, and the saved file. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { elementCount, parameterGroups } from "@mantou/model";
import fc from "fast-check";
import { resolveModelConfig } from "../../packages/model/src/config.ts";
import {
  autoBatchSize,
  choose,
  chooseBatchSizes,
  type ConfigLayers,
  configJson,
  loadRunConfig,
  type ResolvedConfig,
  resolveConfig,
  settled,
} from "../../packages/train/src/config.ts";
import { UserError } from "../../packages/train/src/errors.ts";
import { presets } from "../../packages/train/src/presets.ts";
import { refusal } from "./support/refusal.ts";

const directory = mkdtempSync(join(tmpdir(), "config-test-"));
afterAll(() => rmSync(directory, { recursive: true }));

let files = 0;
function file(content: unknown): string {
  const path = join(directory, `${files++}.json`);
  writeFileSync(path, typeof content === "string" ? content : JSON.stringify(content));
  return path;
}

/** What the trainer chooses before it starts. */
function chooseMachine(run: ResolvedConfig): ResolvedConfig {
  const { config } = run;
  if (config.device === "auto") choose(run, "device", "cpu", "no GPU");
  if (config.precision === "auto") choose(run, "precision", "fp32", "the CPU's");
  if (config.threads === "auto") choose(run, "threads", 2, "cores");
  chooseBatchSizes(run, "cpu");
  if (config.model.vocabSize === "auto") choose(run, "model.vocabSize", 300, "the tokenizer's");
  return run;
}

describe("layers", () => {
  test("flags go over the file, the file over the preset, the preset over the defaults", () => {
    const path = file({ steps: 60, batchSize: 3, model: { numLayers: 2 } });
    const { config, origins } = resolveConfig({
      preset: "shakespeare",
      file: path,
      flags: { steps: 70, model: { ropeTheta: 500 } },
    });
    expect(config.steps).toBe(70);
    expect(config.batchSize).toBe(3);
    expect(config.model.numLayers).toBe(2);
    expect(config.model.contextLength).toBe(presets.shakespeare.model?.contextLength as number);
    expect(config.model.ropeTheta).toBe(500);
    expect(origins.get("steps")).toEqual({ kind: "flag" });
    expect(origins.get("model.ropeTheta")).toEqual({ kind: "flag" });
    expect(origins.get("batchSize")).toEqual({ kind: "file", name: path });
    expect(origins.get("model.contextLength")).toEqual({ kind: "preset", name: "shakespeare" });
    expect(origins.get("eps")).toEqual({ kind: "default" });
  });

  test("any preset can be cut short with --steps alone", () => {
    for (const preset of Object.keys(presets)) {
      expect(resolveConfig({ preset, flags: { steps: 2 } }).config.steps).toBe(2);
    }
  });

  test("a list replaces the list below it", () => {
    const { config } = resolveConfig({ preset: "shakespeare", flags: { betas: [0.5, 0.6] } });
    expect(config.betas).toEqual([0.5, 0.6]);
    expect(resolveConfig({ flags: { tokenizer: { specialTokens: [] } } }).config.tokenizer.specialTokens).toEqual([]);
  });

  test("resolving leaves the presets as they are", () => {
    const before = JSON.stringify(presets);
    const run = resolveConfig({ preset: "tiny", flags: { model: { dModel: 64 }, steps: 5 } });
    run.config.model.numLayers = 99;
    choose(run, "device", "cpu", "test");
    expect(JSON.stringify(presets)).toBe(before);
    expect(resolveConfig().config.model.numLayers).not.toBe(99);
  });
});

describe("presets", () => {
  test.each(Object.keys(presets))("%s resolves and settles", (preset) => {
    const config = settled(chooseMachine(resolveConfig({ preset })));
    expect(config.name).toBe(preset);
    expect(config.warmupSteps).toBeLessThan(config.steps);
  });

  test("tinystories-17m sees the handout's 327.68M tokens with the handout's model", () => {
    const { steps, batchSize, model } = settled(chooseMachine(resolveConfig({ preset: "tinystories-17m" })));
    expect(steps * batchSize * model.contextLength).toBe(327_680_000);
    expect(model).toMatchObject({ dModel: 512, numLayers: 4, numHeads: 16, dFf: 1344, ropeTheta: 10000 });
    // The automatic width comes to the handout's figure by itself.
    const auto = resolveConfig({ preset: "tinystories-17m", flags: { model: { dFf: "auto" } } });
    expect(settled(chooseMachine(auto)).model.dFf).toBe(1344);
  });

  test("the handout's OpenWebText model differs in its vocabulary alone", () => {
    const { tokenizer: _, ...owt } = presets["owt-17m"];
    const { tokenizer: __, ...stories } = presets["tinystories-17m"];
    expect(owt).toEqual(stories);
    expect(presets["owt-17m"].tokenizer?.vocabSize).toBe(32000);
  });

  test.each([
    ["gpt2-124m", 124e6],
    ["350m", 355e6],
    ["1.5b", 1.56e9],
  ])("%s has the parameters that its name says, a step in micro-batches that fit", (preset, parameters) => {
    const run = resolveConfig({ preset });
    chooseBatchSizes(run, "cuda");
    const { model, batchSize, microBatchSize } = settled(chooseMachine(run));
    const groups = parameterGroups(resolveModelConfig({ ...model, vocabSize: 50257 }));
    const count = groups.flat().reduce((sum, { shape }) => sum + elementCount(shape), 0);
    expect(Math.abs(count / parameters - 1)).toBeLessThan(0.03);
    expect(batchSize % microBatchSize).toBe(0);
    expect(microBatchSize).toBeLessThan(batchSize);
    expect(batchSize * model.contextLength).toBe(preset === "1.5b" ? 2 ** 20 : 2 ** 19);
  });

  test("shakespeare is nanoGPT's schedule, on bytes only", () => {
    const { tokenizer, ...config } = settled(chooseMachine(resolveConfig({ preset: "shakespeare" })));
    expect(tokenizer.vocabSize).toBe(256 + tokenizer.specialTokens.length);
    expect(config).toMatchObject({ steps: 2000, batchSize: 12, lr: 1e-3, minLr: 1e-4, warmupSteps: 100 });
  });
});

describe("automatic choices", () => {
  const auto = { minLr: "auto", warmupSteps: "auto", model: { dFf: "auto", numKeyValueHeads: "auto" } };

  test("follow the values that they depend on, with a reason each", () => {
    const flags = { ...auto, lr: 6e-4, steps: 400, model: { ...auto.model, dModel: 96, numHeads: 6, ffn: "silu" } };
    const run = resolveConfig({ flags });
    const config = settled(chooseMachine(run));
    expect(config.minLr).toBe(6e-5);
    expect(config.warmupSteps).toBe(20);
    expect(config.model.dFf).toBe(4 * 96);
    expect(config.model.numKeyValueHeads).toBe(6);
    for (const { reason } of run.choices) expect(reason).not.toBe("");
  });

  test("make a one-step run possible", () => {
    expect(settled(chooseMachine(resolveConfig({ flags: { steps: 1 } }))).warmupSteps).toBe(0);
  });

  test("the name comes from the data file, as a plain directory name", () => {
    const nameOf = (data: string) => settled(chooseMachine(resolveConfig({ flags: { data } }))).name;
    expect(nameOf("/books/War and Peace.txt")).toBe("War-and-Peace");
    expect(nameOf("../..")).toBe("run");
    expect(nameOf("日本.txt")).toBe("run");
    expect(nameOf(".hidden/.x.txt")).toBe("x");
  });

  test("a later choice replaces an earlier one, and only automatic values are touched", () => {
    const run = chooseMachine(resolveConfig({ flags: { threads: 3 } }));
    choose(run, "device", "cuda", "found one");
    choose(run, "threads", 8, "cores");
    expect(run.choices.filter(({ path }) => path === "device")).toHaveLength(1);
    expect(settled(run)).toMatchObject({ device: "cuda", threads: 3 });
    expect(() => choose(run, "model.dff", 3, "typo")).toThrow("model.dff");
  });

  test("settling without a choice names what is open", () => {
    expect(() => settled(resolveConfig({ flags: { threads: 1 } }))).toThrow("device");
  });

  test("the batch is at least one sequence, however long", () => {
    expect(autoBatchSize("cpu", 1e6).value).toBe(1);
    expect(autoBatchSize("cuda", 128).value).toBeGreaterThan(autoBatchSize("cpu", 128).value);
  });
});

describe("refusals name the value, its origin and the fix", () => {
  const cases: [what: string, layers: () => ConfigLayers, message: string[], fix: string][] = [
    ["unknown preset", () => ({ preset: "tinny" }), ['"tinny"'], "--preset tiny"],
    ["prototype name as preset", () => ({ preset: "toString" }), ['"toString"'], "shakespeare"],
    ["missing file", () => ({ file: join(directory, "nope.json") }), ["nope.json", "does not exist"], "JSON file"],
    ["a directory as file", () => ({ file: directory }), [directory], "JSON file"],
    ["unknown key", () => ({ file: file({ stpes: 3 }) }), ['"stpes"', ".json"], '"steps"'],
    ["unknown nested key", () => ({ file: file({ model: { layers: 3 } }) }), ['"model.layers"'], '"model.numLayers"'],
    ["key at the wrong level", () => ({ file: file({ dModel: 64 }) }), ['"dModel"'], '"model.dModel"'],
    ["number for a group", () => ({ file: file({ model: 3 }) }), ['"model"', "3", "an object"], ""],
    ["object for a value", () => ({ file: file({ lr: {} }) }), ['"lr"', "{}", "number above 0"], ""],
    ["null", () => ({ file: file({ steps: null }) }), ['"steps"', "null"], ""],
    ["text for a number", () => ({ file: file({ steps: "many" }) }), ['"steps"', '"many"', "whole number"], ""],
    ["fraction of a step", () => ({ flags: { steps: 1.5 } }), ["--steps", "1.5", "whole number"], "--steps"],
    ["infinite", () => ({ flags: { lr: Number.POSITIVE_INFINITY } }), ["--lr", "number above 0"], ""],
    ["negative", () => ({ flags: { weightDecay: -0.1 } }), ["--weight-decay", "-0.1", "at least 0"], ""],
    ["beta of 1", () => ({ flags: { betas: [0.9, 1] } }), ["--betas", "[0.9,1]", "below 1"], "--betas 0.9,0.95"],
    ["one beta", () => ({ flags: { betas: [0.9] } }), ["--betas", "2 values"], ""],
    ["a path as name", () => ({ flags: { name: "../x" } }), ["--name", '"../x"'], ""],
    ["unknown norm", () => ({ flags: { model: { norm: "rms" } } }), ["--model.norm", "pre, post or none"], ""],
    [
      "width that heads do not divide",
      () => ({ flags: { model: { dModel: 128, numHeads: 3 } } }),
      ["--model.dModel = 128", "--model.numHeads = 3"],
      "--model.dModel 126 or 132",
    ],
    [
      "odd head size",
      () => ({ flags: { model: { dModel: 12, numHeads: 4 } } }),
      ["head size 3", "even"],
      "--model.numHeads 3 or 2",
    ],
    [
      "a head size beyond what the kernels have",
      () => ({ flags: { model: { dModel: 1024, numHeads: 2, position: "none" } } }),
      ["head size 512", "at most 256"],
      "--model.numHeads 4 or 8, or --model.dModel 512",
    ],
    [
      "key-value heads that do not divide the heads",
      () => ({ flags: { model: { dModel: 96, numHeads: 6, numKeyValueHeads: 4 } } }),
      ["--model.numHeads = 6", "--model.numKeyValueHeads = 4"],
      "1, 2, 3 or 6",
    ],
    ["minLr above lr", () => ({ flags: { lr: 1e-4, minLr: 1e-3 } }), ["--min-lr = 0.001", "--lr = 0.0001"], "auto"],
    [
      "all decay",
      () => ({ flags: { steps: 50, schedule: "wsd", decaySteps: 51 } }),
      ["--decay-steps = 51", "--steps = 50"],
      "auto",
    ],
    ["all warmup", () => ({ flags: { steps: 50, warmupSteps: 50 } }), ["--warmup-steps = 50", "--steps = 50"], "auto"],
    [
      "no room for the bytes",
      () => ({ flags: { tokenizer: { vocabSize: 256, specialTokens: ["<a>", "<b>"] } } }),
      ["--tokenizer.vocabSize = 256", "2 special tokens"],
      "--tokenizer.vocabSize 258",
    ],
    [
      "a special token twice",
      () => ({ flags: { tokenizer: { specialTokens: ["<a>", "<a>"] } } }),
      ["--tokenizer.specialTokens", '"<a>" twice'],
      "once",
    ],
    [
      "a model smaller than the tokenizer",
      () => ({ flags: { model: { vocabSize: 300 }, tokenizer: { vocabSize: 400 } } }),
      ["--model.vocabSize = 300", "--tokenizer.vocabSize = 400"],
      "--model.vocabSize auto",
    ],
    [
      "a batch that its parts do not divide",
      () => ({ flags: { batchSize: 12, microBatchSize: 5 } }),
      ["--batch-size = 12", "--micro-batch-size = 5"],
      "--micro-batch-size 4 or 6",
    ],
  ];

  test.each(cases)("%s", (_, layers, message, fix) => {
    const error = refusal(() => resolveConfig(layers()));
    for (const part of message) expect(error.message).toContain(part);
    expect(error.fix ?? "").toContain(fix);
    expect(error.exitCode).toBe(2);
  });

  test("a value of the preset is said to be the preset's", () => {
    const error = refusal(() => resolveConfig({ preset: "books", flags: { minLr: 1 } }));
    expect(error.message).toContain("lr (preset books) = 0.002");
  });

  test.each(["{", "[1]", "3", '{"choices":3}', '{"choices":[{"path":"lr"}]}', ""])("file with %p", (text) => {
    const path = file(text);
    expect(refusal(() => resolveConfig({ file: path })).message).toContain(path);
  });

  test("any numbers give a config that fits together or a UserError", () => {
    const size = fc.integer({ min: -1, max: 40 });
    fc.assert(
      fc.property(
        size,
        size,
        size,
        size,
        size,
        fc.double(),
        (dModel, numHeads, numKeyValueHeads, steps, warmupSteps, minLr) => {
          const flags = { steps, warmupSteps, minLr, model: { dModel, numHeads, numKeyValueHeads } };
          let run: ResolvedConfig;
          try {
            run = resolveConfig({ flags });
          } catch (error) {
            expect(error).toBeInstanceOf(UserError);
            return;
          }
          const { model, ...config } = settled(chooseMachine(run));
          expect((model.dModel / model.numHeads) % 2).toBe(0);
          expect(model.numHeads % model.numKeyValueHeads).toBe(0);
          expect(config.warmupSteps).toBeLessThan(config.steps);
          expect(config.minLr).toBeLessThanOrEqual(config.lr);
        },
      ),
    );
  });
});

describe("config.json", () => {
  test("gives back the very config the run was trained with", () => {
    const run = chooseMachine(resolveConfig({ flags: { data: "a.txt", lr: 3e-4, model: { dModel: 64 } } }));
    expect(loadRunConfig(file(configJson(run)))).toEqual(settled(run));
  });

  test("is a config file again, whose automatic values follow what is changed", () => {
    const path = file(configJson(chooseMachine(resolveConfig({ flags: { lr: 3e-4 } }))));
    const again = settled(chooseMachine(resolveConfig({ file: path, flags: { model: { numHeads: 8 } } })));
    expect(again.lr).toBe(3e-4);
    expect(again.model.numKeyValueHeads).toBe(8);
  });

  test("is refused as a run's config when a choice is missing or bad", () => {
    const run = chooseMachine(resolveConfig());
    const missing = { ...run, choices: run.choices.filter(({ path }) => path !== "device") };
    expect(refusal(() => loadRunConfig(file(configJson(missing)))).message).toContain("device");
    choose(run, "threads", -4, "corrupted");
    expect(refusal(() => loadRunConfig(file(configJson(run)))).message).toContain("threads");
  });
});
