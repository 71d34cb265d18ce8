/** Models and tokenizers that leave for transformers and come from it: the same logits, the same ids. */
import { beforeAll, describe, expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Device, type ModelConfig, SafetensorsFile, TransformerLM, openDevice } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { exportHuggingFace } from "../../packages/train/src/llama/export-hf.ts";
import { readMetrics } from "../../packages/train/src/metrics.ts";
import { encodePrompt } from "../../packages/train/src/prompt.ts";
import { loadRun } from "../../packages/train/src/run.ts";
import { Workplace, flags, smallFlags, storyText } from "../train/support/workplace.ts";
import { difference, folder, prompts, python, texts } from "./python.ts";

interface Answer {
  type: string;
  logits: number[][];
  ids: number[][];
  decoded: string[];
  eos: string | null;
  loss: number;
}

/** The figure: logits equal to this much. */
const TOLERANCE = 1e-4;

const device: Device = openDevice("cpu", { threads: 2 });
const story = storyText(60_000);

/** The largest difference between our logits and theirs over all prompts. */
function compare(model: TransformerLM, given: ReturnType<typeof prompts>, logits: number[][]): number {
  return Math.max(...given.map((prompt, i) => difference(model.logits(prompt).data, logits[i])));
}

describe("export", () => {
  const sizes = { vocabSize: 600, contextLength: 96, dModel: 64, numLayers: 3, dFf: 100, ropeTheta: 1e4 };
  const llama3 = { ropeFactor: 8, ropeLowFreqFactor: 1, ropeHighFreqFactor: 4, ropeOriginalContext: 32 };
  const models: Record<string, ModelConfig> = {
    plain: { ...sizes, numHeads: 4 },
    "grouped-query, tied": { ...sizes, numHeads: 8, numKeyValueHeads: 2, tieEmbeddings: true, rmsNormEps: 1e-3 },
    "llama3 frequencies": { ...sizes, numHeads: 2, ropeTheta: 5e5, ropeScaling: "llama3", ...llama3 },
    "linear frequencies": { ...sizes, numHeads: 4, ropeScaling: "linear", ropeFactor: 4 },
  };
  const tokenizers = [
    Tokenizer.train(story, { vocabSize: 500, specialTokens: ["<|endoftext|>"] }),
    Tokenizer.train(story, { vocabSize: 500, specialTokens: [], pattern: String.raw`\p{N}{1,3}|\s+|[^\s\p{N}]+` }),
  ];
  const given = prompts(600, [1, 7, 96], 1);
  let answers: Answer[];
  const directory = (index: number) => join(folder, `export-${index}`);
  const built = Object.values(models).map((config, i) => new TransformerLM(config, { device, seed: i + 1 }));

  beforeAll(async () => {
    built.forEach((model, i) =>
      exportHuggingFace(directory(i), model, tokenizers[i % 2], {
        dtype: "f32",
        maxShardBytes: i % 2 === 0 ? undefined : 60_000,
      }),
    );
    exportHuggingFace(directory(10), built[1], tokenizers[0], { dtype: "bf16" });
    answers = await python<Answer[]>("logits.py", [
      ...built.map((_, i) => ({ path: directory(i), prompts: given.map(({ data }) => Array.from(data)), texts })),
      { path: directory(10), prompts: given.map(({ data }) => Array.from(data)) },
    ]);
  });

  for (const [i, name] of Object.keys(models).entries()) {
    test(`${name}: LlamaForCausalLM gives our logits, its tokenizer our ids`, () => {
      expect(answers[i].type).toBe("LlamaForCausalLM");
      expect(existsSync(join(directory(i), "model.safetensors.index.json"))).toBe(i % 2 === 1); // in shards
      const most = compare(built[i], given, answers[i].logits);
      console.log(`  ${name}: logits differ by at most ${most.toExponential(1)}`);
      expect(most).toBeLessThan(TOLERANCE);
      const tokenizer = tokenizers[i % 2];
      expect(answers[i].ids).toEqual(texts.map((text) => [...tokenizer.encode(text)]));
      expect(answers[i].decoded).toEqual(texts);
      expect([answers[i].eos]).toEqual([i % 2 === 0 ? "<|endoftext|>" : null]);
    });
  }

  test("in bfloat16: the weights rounded, nothing else", () => {
    const most = compare(built[1], given, answers.at(-1)!.logits);
    expect(most).toBeGreaterThan(TOLERANCE);
    const range = Math.max(...answers[1].logits.flat().map(Math.abs));
    expect(most).toBeLessThan(0.02 * range);
  });
});

describe("import", () => {
  const sizes = { hidden_size: 64, num_hidden_layers: 3, intermediate_size: 96, vocab_size: 700 };
  const rope = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
  const models = [
    {
      name: "like Llama 3.1",
      tokenizer: "llama3",
      special: ["<|end_of_text|>", "<|begin_of_text|>"],
      dtype: "bfloat16",
      config: {
        ...sizes,
        num_attention_heads: 8,
        num_key_value_heads: 2,
        max_position_embeddings: 128,
        rms_norm_eps: 1e-5,
        rope_theta: 500000,
        rope_scaling: { ...rope, original_max_position_embeddings: 32 },
      },
    },
    {
      name: "like SmolLM2",
      tokenizer: "smollm",
      special: ["<|endoftext|>", "<|im_start|>"],
      dtype: "float32",
      shard: "60KB",
      config: {
        ...sizes,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 96,
        rms_norm_eps: 1e-5,
        rope_theta: 100000,
        tie_word_embeddings: true,
      },
    },
    {
      name: "like TinyLlama, with linear frequencies",
      tokenizer: "llama2",
      special: ["</s>", "<s>", "<unk>"],
      dtype: "float16",
      config: {
        ...sizes,
        num_attention_heads: 4,
        max_position_embeddings: 96,
        rms_norm_eps: 1e-6,
        rope_theta: 10000,
        rope_scaling: { rope_type: "linear", factor: 2 },
      },
    },
  ].map((model, i) => ({ ...model, path: join(folder, `import-${i}`) }));
  const given = prompts(700, [1, 9, 96], 2);
  const place = new Workplace();
  const words = place.file("words.txt", story.slice(0, 6000).replaceAll("<|endoftext|>", "\n"));
  let answers: Answer[];
  const run = (index: number) => place.path(`runs/import-${index}`);

  beforeAll(async () => {
    await python("make_models.py", { models, text: story.split("<|endoftext|>") });
    for (const { path } of models) await place.succeed("import", "--from", path);
    const jobs = models.map(({ path, config }, i) => {
      const ids = [...loadTokenizer(join(run(i), "tokenizer.json")).encode(readFileSync(words, "utf8"))];
      const window = config.max_position_embeddings;
      return { path, prompts: given.map(({ data }) => Array.from(data)), texts, ids, window };
    });
    answers = await python<Answer[]>("logits.py", jobs);
  });

  for (const [i, { name, path, special, dtype }] of models.entries()) {
    test(`${name}: the same logits and ids`, () => {
      const { model, tokenizer } = loadRun(run(i), device, expect.unreachable);
      const most = compare(model, given, answers[i].logits);
      console.log(`  ${name}: logits differ by at most ${most.toExponential(1)}`);
      expect(most).toBeLessThan(TOLERANCE);
      expect(texts.map((text) => [...tokenizer.encode(text)])).toEqual(answers[i].ids);
      expect(texts.map((_, t) => tokenizer.decode(answers[i].ids[t]))).toEqual(texts);
      expect([...tokenizer.specialTokens.keys()].sort()).toEqual([...special].sort());
    });

    test(`${name}: eval gives the loss that transformers gives on the same windows`, async () => {
      const { stdout } = await place.succeed("eval", "--run", run(i), "--data", words);
      const loss = Number(/^loss +([\d.]+)/m.exec(stdout)?.[1]);
      expect(Math.abs(loss - answers[i].loss)).toBeLessThan(TOLERANCE);
    });

    test(`${name}: training goes on from there`, async () => {
      const own = { init: run(i), data: words, name: `on-${i}`, steps: 40, batchSize: 4, lr: 5e-3, threads: 1 };
      await place.succeed("train", ...flags({ ...own, "model.contextLength": 48, evalBatches: 4 }));
      const losses = readMetrics(place.path(`runs/on-${i}/metrics.jsonl`)).map(({ loss }) => loss);
      // The first batch is judged by the imported weights, whose loss is known; then it is learnt.
      expect(Math.abs(losses[0] - answers[i].loss)).toBeLessThan(0.1 * answers[i].loss);
      expect(losses.at(-1)!).toBeLessThan(losses[0] - 0.5);
    });

    test(`${name}: out again, every weight as it came`, async () => {
      const back = place.path(`back-${i}`);
      const argv = ["--run", run(i), "--format", "hf", "--out", back];
      await place.succeed("export", ...argv, "--dtype", { bfloat16: "bf16", float16: "f16", float32: "f32" }[dtype]!);
      using ours = new SafetensorsFile(join(back, "model.safetensors"));
      const index = join(path, "model.safetensors.index.json");
      const shards =
        name === "like SmolLM2" ? Object.entries<string>(JSON.parse(readFileSync(index, "utf8")).weight_map) : [];
      expect(shards.length > 0).toBe(name === "like SmolLM2");
      const files = shards.length > 0 ? [...new Set(shards.map(([, file]) => file))] : ["model.safetensors"];
      if (shards.length > 0) expect(files.length).toBeGreaterThan(1);
      let count = 0;
      for (const file of files) {
        using theirs = new SafetensorsFile(join(path, file));
        for (const [tensor, { dtype: kind }] of theirs.tensors) {
          expect(ours.toFloat32(tensor)).toEqual(theirs.toFloat32(tensor));
          expect(ours.tensors.get(tensor)!.dtype).toBe(kind);
          count++;
        }
      }
      expect(ours.tensors.size).toBe(count);
    });
  }

  test("generate and data know the marks of a TinyLlama", async () => {
    const { tokenizer } = loadRun(run(2), device, expect.unreachable);
    const [begin, end] = ["<s>", "</s>"].map((mark) => tokenizer.specialTokens.get(mark)!);
    const { tokens, stopTokens } = encodePrompt(tokenizer, "Once upon");
    expect([tokens[0], ...stopTokens]).toEqual([begin, end]);
    expect(tokens).toEqual([...tokenizer.encode("<s>Once upon")]);
    const trained = place.path("runs/on-2"); // a model that knows its words, and none of the ids without a token
    const argv = ["--prompt", "Once upon", "--max-tokens", "12", "--temperature", "0"];
    const said = await place.succeed("generate", "--run", trained, ...argv);
    expect(said.stdout).toMatch(/^Once upon( \w+|[.,])/);
    const prepared = place.path("prepared");
    const documents = place.file("documents.txt", story.slice(0, 20_000));
    await place.succeed("data", "prepare", documents, "--out", prepared, "--tokenizer", join(run(2), "tokenizer.json"));
    const manifest = JSON.parse(readFileSync(join(prepared, "manifest.json"), "utf8"));
    expect(manifest.endOfDocument).toBe(end);
    const ids = new Uint16Array(readFileSync(join(prepared, manifest.train.shards[0].file)).buffer);
    expect([ids[0], ids.at(-1)]).toEqual([begin, end]);
    expect(story.split("<|endoftext|>")).toContain(tokenizer.decode(ids.subarray(1, ids.indexOf(end))));
    const own = { init: run(2), data: prepared, name: "prepared", steps: 2, batchSize: 2, threads: 1 };
    await place.succeed("train", ...flags({ ...own, "model.contextLength": 48, evalBatches: 2 }));
  });

  test("a trained run there and back is the same run", async () => {
    const data = place.file("stories.txt", story);
    await place.succeed(
      "train",
      ...smallFlags,
      ...flags({ data, name: "own", steps: 40, precision: "fp32", "model.numKeyValueHeads": 1 }), // as an import computes
    );
    await place.succeed("export", "--run", place.path("runs/own"), "--format", "hf", "--out", place.path("own-hf"));
    await place.succeed("import", "--from", place.path("own-hf"), "--out", place.path("runs/own-back"));
    const argv = ["--prompt", "Once", "--max-tokens", "60"];
    const said = await Promise.all(
      ["own", "own-back"].map((name) => place.succeed("generate", "--run", place.path("runs", name), ...argv)),
    );
    expect(said[1].stdout).toBe(said[0].stdout);
  });
});
