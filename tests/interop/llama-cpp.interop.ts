/** GGUF files in llama.cpp itself: its ids are the tokenizer's, its logits the model's. Skipped where it has no build. */
import { beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type ModelConfig, TransformerLM, openDevice } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { type GgufType, exportGguf } from "../../packages/train/src/llama/export-gguf.ts";
import { DIGITS_GPT2 } from "../../packages/train/src/llama/tokenizer.ts";
import { documentMarks } from "../../packages/train/src/prompt.ts";
import { storyText } from "../train/support/workplace.ts";
import type { Answer, Question } from "./llama-cpp.ts";
import { difference, folder, prompts, python, texts } from "./python.ts";

async function llamaCpp(questions: Question[]): Promise<Answer[]> {
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "llama-cpp.ts")], {
    stdin: new TextEncoder().encode(JSON.stringify(questions)),
    stdout: "pipe",
    stderr: "pipe",
    env: process.env,
  });
  const [output, errors] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
  if ((await child.exited) !== 0) throw new Error(`llama.cpp failed:\n${errors}`);
  return JSON.parse(output.trimEnd().split("\n").at(-1)!) as Answer[];
}

const story = storyText(60_000);
const specialTokens = ["<|endoftext|>"];
const marked = { specialTokens: ["<|begin_of_text|>", "<|end_of_text|>"] };
const size = 500;

describe.skipIf(process.env.MANTOU_LLAMA_CPP === undefined)("llama.cpp", () => {
  const device = openDevice("cpu", { threads: 1 });
  const sizes = { vocabSize: 810, contextLength: 64, dModel: 64, numLayers: 2, numHeads: 4, dFf: 96, ropeTheta: 1e4 };
  const llama3 = { ropeFactor: 8, ropeLowFreqFactor: 1, ropeHighFreqFactor: 4, ropeOriginalContext: 32 };
  const models: Record<string, { config?: Partial<ModelConfig>; type?: GgufType; tokenizer: () => Tokenizer }> = {
    gpt2: { tokenizer: () => Tokenizer.train(story, { vocabSize: size, specialTokens }) },
    "llama3, grouped-query, tied": {
      tokenizer: () => Tokenizer.train(story, { vocabSize: size, pattern: "llama3", ...marked }),
      config: { numKeyValueHeads: 2, tieEmbeddings: true, ropeScaling: "llama3", ropeTheta: 5e5, ...llama3 },
    },
    "smollm, linear frequencies": {
      tokenizer: () => Tokenizer.train(story, { vocabSize: size, specialTokens, pattern: DIGITS_GPT2 }),
      config: { ropeScaling: "linear", ropeFactor: 4 },
    },
    "qwen2, no special tokens, q8_0": {
      tokenizer: () => Tokenizer.train(story, { vocabSize: size, specialTokens: [], pattern: "qwen2" }),
      type: "q8_0",
    },
    sentencepiece: { tokenizer: () => loadTokenizer(join(folder, "tokenizer.json")) },
  };
  const given = prompts(sizes.vocabSize, [1, 7, 60], 5);
  const built: { model: TransformerLM; tokenizer: Tokenizer }[] = [];
  let pieces: { tokens: string[]; scores: number[]; types: number[] };
  let answers: Answer[];
  const path = (index: number) => join(folder, `llama-cpp-${index}.gguf`);

  beforeAll(async () => {
    pieces = await python("make_tokenizer_model.py", { text: story.replaceAll("<|endoftext|>", "\n"), folder });
    for (const { config, type = "f32", tokenizer: make } of Object.values(models)) {
      const model = new TransformerLM({ ...sizes, ...config }, { device, seed: 7 });
      const tokenizer = make();
      exportGguf(path(built.length), model, tokenizer, { type, name: "test" });
      built.push({ model, tokenizer });
    }
    answers = await llamaCpp(
      built.map((_, i) => ({ path: path(i), texts, prompts: given.map(({ data }) => Array.from(data)) })),
    );
  });

  for (const [i, [name, { type }]] of Object.entries(models).entries()) {
    test(`${name}: our ids and our logits`, () => {
      const { model, tokenizer } = built[i];
      // A tokenizer.json has a blank in front where there is none already; SentencePiece and llama.cpp always have one.
      const isAlike = (text: string) => name !== "sentencepiece" || !/^[ ▁]|<\|/.test(text);
      for (const [t, text] of texts.entries()) {
        if (isAlike(text)) expect([text, answers[i].ids[t]]).toEqual([text, [...tokenizer.encode(text)]]);
      }
      const most = Math.max(
        ...given.map((prompt, p) => {
          const { data } = model.logits(prompt);
          return difference(data.subarray(-sizes.vocabSize), answers[i].logits[p]);
        }),
      );
      console.log(`  ${name}: logits differ by at most ${most.toExponential(1)}`);
      expect(most).toBeLessThan(type === "q8_0" ? 0.1 : 1e-4);
      const marks = documentMarks(tokenizer);
      expect(answers[i]).toMatchObject({ shouldPrependBosToken: marks !== undefined });
      if (marks) expect(answers[i]).toMatchObject({ bos: marks.begin.id, eos: marks.end.id });
    });
  }

  test("tokens, scores and types are those of SentencePiece's own model", async () => {
    const read = { do: "read_gguf", path: path(Object.keys(models).indexOf("sentencepiece")) };
    const [{ fields }] = await python<{ fields: Record<string, unknown[]> }[]>("read_files.py", [read]);
    const ours = (key: string) => fields[`tokenizer.ggml.${key}`].slice(0, pieces.tokens.length);
    expect({ tokens: ours("tokens"), scores: ours("scores"), types: ours("token_type") }).toEqual(pieces);
    expect(fields).toMatchObject({ "tokenizer.ggml.model": "llama", "tokenizer.ggml.unknown_token_id": 0 });
    expect(fields["tokenizer.ggml.tokens"]).toHaveLength(sizes.vocabSize);
  });
});
