/** GGUF files read back with the real package: header, vocabulary, and every number format as ggml rounds it. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { type ModelConfig, TransformerLM, openDevice, ropeFrequencies } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { type GgufType, exportGguf } from "../../packages/train/src/llama/export-gguf.ts";
import { llamaTensors } from "../../packages/train/src/llama/weights.ts";
import { saveCheckpoint } from "../../packages/train/src/checkpoint.ts";
import { storyText } from "../train/support/workplace.ts";
import { difference, folder, prompts, python } from "./python.ts";

interface Report {
  fields: Record<string, unknown>;
  tensors: Record<string, { type: string; shape: number[]; same: boolean; error: number; data: number[] }>;
}

const tokenizer = Tokenizer.train(storyText(30_000), { vocabSize: 300, specialTokens: ["<|endoftext|>"] });
const sizes = {
  vocabSize: 310,
  contextLength: 64,
  dModel: 64,
  numLayers: 2,
  numHeads: 4,
  numKeyValueHeads: 2,
  dFf: 80,
};
const config: ModelConfig = { ...sizes, ropeTheta: 1e4, rmsNormEps: 2e-5 };
const device = openDevice("cpu", { threads: 1 });

/** Writes a model as GGUF and as safetensors, for the package to compare. */
function write(name: string, settings: ModelConfig, type: GgufType) {
  const model = new TransformerLM(settings, { device, seed: 4 });
  const [path, weights] = [join(folder, `${name}.gguf`), join(folder, `${name}.safetensors`)];
  exportGguf(path, model, tokenizer, { type, name });
  saveCheckpoint(weights, { model, optimizer: null, iteration: 0 });
  const names = Object.fromEntries(llamaTensors(model.config).map((tensor) => [tensor.gguf, tensor.name]));
  return { model, job: { do: "read_gguf", path, weights, names } };
}

test("f32, f16, bf16 and q8_0: each tensor as ggml would write it", async () => {
  const types = ["f32", "f16", "bf16", "q8_0"] as const;
  // Rows of 80 are no multiple of q8_0's blocks of 32.
  const reports = await python<Report[]>(
    "read_files.py",
    types.map((type) => write(`type-${type}`, config, type).job),
  );
  for (const [i, type] of types.entries()) {
    const { tensors } = reports[i];
    expect(Object.keys(tensors)).toHaveLength(3 + 9 * 2);
    for (const [name, { type: stored, shape, same, error }] of Object.entries(tensors)) {
      const isRagged = type === "q8_0" && name.includes("ffn_down");
      expect([name, stored]).toEqual([name, shape.length === 1 ? "F32" : isRagged ? "F16" : type.toUpperCase()]);
      expect([name, same]).toEqual([name, true]);
      expect(error).toBeLessThan({ f32: 1e-9, f16: 4e-3, bf16: 2e-2, q8_0: 2e-2 }[type]);
    }
    expect(tensors["blk.1.attn_k.weight"].shape).toEqual([32, 64]);
    const { fields } = reports[i];
    expect(fields).toMatchObject({
      "general.architecture": "llama",
      "general.file_type": { f32: 0, f16: 1, bf16: 32, q8_0: 7 }[type],
      "llama.context_length": 64,
      "llama.embedding_length": 64,
      "llama.block_count": 2,
      "llama.feed_forward_length": 80,
      "llama.attention.head_count": 4,
      "llama.attention.head_count_kv": 2,
      "llama.rope.dimension_count": 16,
      "llama.rope.freq_base": 10000,
      "llama.vocab_size": 310,
      "tokenizer.ggml.model": "gpt2",
      "tokenizer.ggml.pre": "gpt-2",
    });
    expect(fields["llama.attention.layer_norm_rms_epsilon"] as number).toBeCloseTo(2e-5, 9);
    const tokens = fields["tokenizer.ggml.tokens"] as string[];
    const end = tokenizer.specialTokens.get("<|endoftext|>")!;
    expect(tokens).toHaveLength(310);
    expect(new Set(tokens).size).toBe(310);
    expect(tokens[end]).toBe("<|endoftext|>");
    const kinds = fields["tokenizer.ggml.token_type"] as number[];
    expect([kinds[0], kinds[end], kinds[309]]).toEqual([1, 3, 5]);
    expect(fields["tokenizer.ggml.merges"]).toHaveLength(tokenizer.merges.length);
    expect(fields["tokenizer.ggml.eos_token_id"]).toBe(end);
  }
});

test("scaled rotary frequencies: a factor, or one divisor each", async () => {
  const llama3 = { ropeScaling: "llama3", ropeFactor: 8, ropeOriginalContext: 32, ropeTheta: 5e5 } as const;
  const [linear, scaled] = await python<Report[]>("read_files.py", [
    write("linear", { ...config, ropeScaling: "linear", ropeFactor: 4 }, "f16").job,
    write("llama3", { ...config, ...llama3 }, "f16").job,
  ]);
  expect(linear.fields).toMatchObject({ "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4 });
  const factors = scaled.tensors["rope_freqs.weight"].data;
  const plain = ropeFrequencies(16, { ropeTheta: 5e5 });
  const expected = ropeFrequencies(16, llama3);
  expect(
    difference(
      factors.map((factor, i) => plain[i] / factor),
      expected,
    ),
  ).toBeLessThan(1e-7);
});

test("transformers, which reads GGUF of Llama models, gives our logits", async () => {
  const { model } = write("logits", config, "f32");
  const given = prompts(310, [1, 20, 64], 3);
  const [{ logits }] = await python<{ logits: number[][] }[]>("logits.py", [
    { path: folder, gguf: "logits.gguf", prompts: given.map(({ data }) => Array.from(data)) },
  ]);
  const most = Math.max(...given.map((prompt, i) => difference(model.logits(prompt).data, logits[i])));
  console.log(`  GGUF through transformers: logits differ by at most ${most.toExponential(1)}`);
  expect(most).toBeLessThan(1e-4);
});
