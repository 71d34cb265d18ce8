/** What a run needs, told before it starts: the plan against what is then allocated, and what running out of it says. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { Decoder, type MemoryKind, NativeError, OUT_OF_MEMORY, Stepper, TransformerLM } from "@mantou/model";
import { PlanningDevice, Tensor, Uploads, buildEmulatedLibrary, hasGpu, openDevice } from "@mantou/model";
import { openPlanningDevice } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { saveTokenizer } from "@mantou/tokenizer/files";
import { takeSnapshot } from "../../packages/train/src/checkpoint.ts";
import type { SettledConfig } from "../../packages/train/src/config.ts";
import { estimateSeconds } from "../../packages/train/src/estimate.ts";
import { formatPlan, outOfMemory, planTraining } from "../../packages/train/src/plan.ts";
import { measurePeak } from "../../packages/train/src/measure.ts";
import { modelOptions } from "../../packages/train/src/run.ts";
import { formatBytes } from "../../packages/train/src/terminal/format.ts";
import { createOptimizer } from "../../packages/train/src/trainer.ts";
import { smallConfig } from "./support/training.ts";
import { Workplace, smallFlags, storyText } from "./support/workplace.ts";

// Compiled here, where no test waits for it.
beforeAll(() => void buildEmulatedLibrary("plain"), 240_000);

const choices = (["fp32", "bf16"] as const).flatMap((precision) =>
  (["keep", "recompute"] as const).map((activations) => [precision, activations] as const),
);

function configOf(settings: Partial<SettledConfig> = {}): SettledConfig {
  return { ...smallConfig({ microBatchSize: 4 }), ...settings };
}

function bytesOf(config: SettledConfig): Map<MemoryKind, number> {
  return new Map(planTraining(config).memory);
}

describe("plan", () => {
  for (const [precision, activations] of choices) {
    test(`is what training steps, evaluation and a sample take: ${precision}, ${activations}`, () => {
      const config = configOf({ precision, activations });
      using device = openDevice("cpu", { threads: 1 });
      using model = new TransformerLM(config.model, { device, ...modelOptions(config) });
      using optimizer = createOptimizer(model, config);
      const { contextLength } = config.model;
      const tokens = new Int32Array(config.microBatchSize * contextLength).fill(3);
      for (let step = 0; step < 2; step++) {
        model.lossAndGradients(tokens, tokens);
        optimizer.clipAndStep(1e-3, 1);
        model.loss(tokens, tokens);
      }
      using decoder = new Decoder(model);
      decoder.forward(tokens.subarray(0, contextLength / 2));
      const plan = planTraining(config);
      expect(new Map(plan.memory)).toEqual(new Map(device.memory.entries()));
      expect(plan.total).toBe(device.memory.total);
      const snapshot = takeSnapshot({ model, optimizer, iteration: 2 });
      expect(plan.checkpointCopy).toBe(snapshot.tensors.reduce((sum, { values }) => sum + values.byteLength, 0));
    });
  }

  test.each(choices)("for a GPU is what the same takes there: %s, %s", (precision, activations) => {
    const config = configOf({ device: "cuda", precision, activations });
    using device = openDevice("emulated");
    using model = new TransformerLM(config.model, { device, ...modelOptions(config) });
    model.prepare();
    using optimizer = createOptimizer(model, config);
    using _stepper = new Stepper(model, optimizer, { parts: 2, maxNorm: 1 });
    using _validation = new Uploads(model);
    using decoder = new Decoder(model);
    decoder.forward(new Int32Array(config.model.contextLength / 2));
    const plan = planTraining(config);
    expect(new Map(plan.memory)).toEqual(new Map(device.memory.entries()));
    expect(formatPlan(plan, "no GPU")).toContain("what CUDA itself takes");
  });

  test("for a GPU misses nothing that the library allocates unasked", () => {
    const folder = join(import.meta.dir, "../../kernels/cuda");
    const found = readdirSync(folder).flatMap((name) => {
      const calls = readFileSync(join(folder, name), "utf8").match(/\bcudaMalloc\w*\(&?[\w>-]+/g) ?? [];
      return calls.map((call) => `${name}: ${call}`);
    });
    expect(found.sort()).toEqual([
      "context.cu: cudaMalloc(&context->scratch", // mantou_context_bytes
      "cublaslt.cu: cudaMalloc(&c", // to time a product, where there is room; freed at once
      "memory.cu: cudaMalloc(memory", // mantou_malloc
    ]);
  });

  test("counts parameters, gradients, moments and the float32 copy at their size", () => {
    const { parameters } = planTraining(configOf());
    for (const precision of ["fp32", "bf16"] as const) {
      const bytes = bytesOf(configOf({ precision }));
      const padded = bytes.get("gradients")! / 4;
      // Groups are padded to 128 elements.
      expect(padded).toBeGreaterThanOrEqual(parameters);
      expect(padded).toBeLessThan(parameters + 128 * 14);
      expect(bytes.get("moments")).toBe(8 * padded);
      expect(bytes.get("parameters")).toBe((precision === "bf16" ? 2 : 4) * padded);
      expect(bytes.get("master weights")).toBe(precision === "bf16" ? 4 * padded : undefined);
    }
  });

  test("recomputing keeps one input of a block in place of its interior", () => {
    const model = { ...configOf().model, numLayers: 6 };
    for (const precision of ["fp32", "bf16"] as const) {
      const [kept, again] = (["keep", "recompute"] as const).map((activations) =>
        bytesOf(configOf({ precision, activations, model })).get("activations")!,
      );
      const [keptOfTwo, againOfTwo] = (["keep", "recompute"] as const).map((activations) =>
        bytesOf(configOf({ precision, activations, model: { ...model, numLayers: 2 } })).get("activations")!,
      );
      expect(again!).toBeLessThan(kept! / 2);
      const input = 4 * model.contextLength * model.dModel * (precision === "bf16" ? 2 : 4);
      expect(again! - againOfTwo!).toBe(4 * input);
      expect(kept! - keptOfTwo!).toBeGreaterThan(4 * 8 * input);
    }
  });

  test("estimates a time in proportion to the steps, and within a factor of 5 of what they take", () => {
    // Timings of a busy machine: how close the estimate comes on a quiet one is measured in estimate.ts.
    const { model } = configOf();
    const config = configOf({ evalInterval: 0, evalBatches: 1, model: { ...model, dModel: 128, contextLength: 64 } });
    using device = openDevice("cpu", { threads: 1 });
    const [from, to] = estimateSeconds({ ...config, steps: 1000 }, device).map((seconds) => seconds / 1000);
    using trained = new TransformerLM(config.model, { device, ...modelOptions(config) });
    using optimizer = createOptimizer(trained, config);
    const tokens = new Int32Array(config.microBatchSize * 64).fill(3);
    let best = Number.POSITIVE_INFINITY;
    for (let i = 0; i < 6; i++) {
      const started = performance.now();
      optimizer.zeroGrad();
      trained.lossAndGradients(tokens, tokens);
      optimizer.clipAndStep(1e-3, 1);
      best = Math.min(best, (performance.now() - started) / 1000);
    }
    best *= config.batchSize / config.microBatchSize;
    expect(to!).toBeGreaterThan(from!);
    expect(to! / best).toBeGreaterThan(1 / 5);
    expect(from! / best).toBeLessThan(5);
  });

  test("holds nothing, so that a model of any size is planned in no time", () => {
    using device = openPlanningDevice("cuda");
    expect(device).toBeInstanceOf(PlanningDevice);
    const before = device.memory.total;
    const tensor = Tensor.zeros(device, [1e6, 1e6], "bfloat16", "activations");
    expect(device.memory.of("activations")).toBe(2e12);
    expect(() => {
      using cpu = openDevice("cpu", { threads: 1 });
      cpu.run("mantou_fill", tensor, 0, 4);
    }).toThrow("only planned");
    tensor[Symbol.dispose]();
    expect(device.memory.total).toBe(before);
  });

  test("is printed as a table with its sum, arithmetic and tokens", () => {
    const config = configOf();
    const plan = planTraining(config);
    const text = formatPlan(plan, "no GPU");
    for (const [kind, bytes] of plan.memory) {
      expect(text).toMatch(new RegExp(`^  ${kind} +${formatBytes(bytes)}$`, "m"));
    }
    expect(plan.memory.reduce((sum, [, bytes]) => sum + bytes, 0)).toBe(plan.total);
    expect(text).toMatch(new RegExp(`^  total +${formatBytes(plan.total)}$`, "m"));
    expect(text).toMatch(/^  tokens +64 a step, 1\.28k in all$/m);
  });
});

/** What a device says when it does not have so many bytes. */
function refusal(name: "cpu" | "emulated", bytes: number): NativeError {
  using device = openDevice(name, { threads: 1 });
  try {
    device.allocate(bytes);
  } catch (error) {
    return error as NativeError;
  }
  throw new Error(`there were ${bytes} bytes`);
}

test.each(["cpu", "emulated"] as const)(
  "running out of memory says what was asked, needed, and shrinks it: %s",
  (name) => {
    const config = configOf({ precision: "fp32" });
    const refused = refusal(name, 2 ** 50);
    expect(refused.status).toBe(OUT_OF_MEMORY);
    const error = outOfMemory(refused, config);
    expect(error.message).toMatch(/^mantou_malloc: no .*1125899906842624 .*MiB/);
    const { total } = planTraining(config);
    expect(error.message).toMatch(new RegExp(`^  total +${formatBytes(total)}$`, "m"));
    for (const part of [
      "--micro-batch-size 2 (",
      "--activations recompute (",
      "--precision bf16 (",
      "--model.contextLength 4 (",
    ]) {
      expect(error.fix).toContain(part);
    }
    const smallest = outOfMemory(error.cause as NativeError, {
      ...config,
      precision: "bf16",
      activations: "recompute",
    });
    expect(smallest.fix).not.toMatch(/--precision|--activations/);
  },
);

test("what is left of memory is enough to measure the device by", () => {
  using device = openDevice("emulated");
  const before = device.memory.total;
  const allocate = device.allocate.bind(device);
  const asked: number[] = [];
  device.allocate = (bytes, kind) => {
    asked.push(bytes);
    if (bytes > 1000) throw new NativeError("no memory", OUT_OF_MEMORY);
    return allocate(bytes, kind);
  };
  expect(measurePeak(device, "float32")).toBeGreaterThan(0);
  expect(asked).toEqual([16384, 4096, 1024, 256, 256, 256]);
  expect(device.memory.total).toBe(before);
  device.allocate = () => {
    throw new NativeError("no memory", OUT_OF_MEMORY);
  };
  expect(() => measurePeak(device, "float32")).toThrow("no memory");
});

describe("train", () => {
  const place = new Workplace();
  const data = place.file("stories.txt", storyText(20_000));
  afterAll(() => place[Symbol.dispose]());

  test("--plan estimates the time on a device that is there", async () => {
    const { stdout } = await place.succeed("train", "--device", "cpu", "--steps", "1000000", "--plan");
    expect(stdout).toMatch(/^ {2}time +\d+[dhm] \d+[hms] to \d+[dhm] \d+[hms], by the speed of this device/m);
  });

  test("--plan prints the config and the plan, leaves nothing behind, and needs no GPU", async () => {
    const { stdout } = await place.succeed("train", "--preset", "1.5b", "--device", "cuda", "--plan");
    expect(stdout).toMatch(/^ +precision +bf16 +what a GPU is fastest in$/m);
    expect(stdout).toMatch(/^ +master weights +5\.\d+ GiB$/m);
    expect(stdout).toMatch(/^ +parameters +1\.\d+B$/m);
    expect(stdout).toMatch(hasGpu() ? /^ +time +/m : /^ +time +not known: .*no NVIDIA GPU found/m);
    expect(stdout).toMatch(/^ +and what CUDA itself takes/m);
    expect(existsSync(place.path("runs"))).toBe(false);
  });

  test("--plan knows the ids of a tokenizer that is there", async () => {
    const path = place.path("tokenizer.json");
    saveTokenizer(Tokenizer.train(storyText(20_000), { vocabSize: 400, specialTokens: [] }), path);
    const { stdout } = await place.succeed("train", ...smallFlags, "--plan", "--data", data, "--tokenizer.path", path);
    expect(stdout).toMatch(/^ +model\.vocabSize +400 +as many ids as .*tokenizer\.json has$/m);
  });

  test("without enough memory: the plan, and no checkpoint", async () => {
    const tooMany = ["--batch-size", "200000000", "--micro-batch-size", "200000000"];
    const { code, stderr } = await place.run("train", ...smallFlags, "--data", data, ...tooMany);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^error: mantou_malloc: no memory for \d+ bytes/m);
    expect(stderr).toMatch(/^  activations +\d+(\.\d+)? TiB$/m);
    expect(stderr).toMatch(/fix.*--micro-batch-size 100000000 \(/);
  });
});
