/** Runs with a tokenizer of SentencePiece's family, as Llama 2 and TinyLlama have: trained, sampled, served, exported. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { generate, openDevice } from "@mantou/model";
import { saveTokenizer } from "@mantou/tokenizer/files";
import { type SentencePieceOptions, SentencePieceTokenizer } from "@mantou/tokenizer/formats";
import OpenAI from "openai";
import { tokenizerMetadata } from "../../packages/train/src/llama/gguf-tokenizer.ts";
import { encodePrompt } from "../../packages/train/src/prompt.ts";
import { type LoadedRun, loadRun } from "../../packages/train/src/run.ts";
import { CompletionServer } from "../../packages/train/src/serve/server.ts";
import { Workplace, flags, smallFlags } from "./support/workplace.ts";

const merges: [string, string][] = [
  ["▁", "t"],
  ["h", "e"],
  ["▁t", "he"],
  ["a", "t"],
  ["▁", "s"],
  ["▁s", "at"],
  ["▁", "m"],
  ["▁m", "at"],
];
const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
const texts = [...bytes, ...merges.map((pair) => pair.join("")), ..."▁abcdehmnost."];
const options: SentencePieceOptions = {
  specialTokens: new Map([
    ["<unk>", 0],
    ["<s>", 1],
    ["</s>", 2],
  ]),
  vocab: new Map(texts.map((text, i) => [i + 3, text])),
  merges,
  blankInFront: "stretches",
  stripsBlank: true,
  splitsAtBlanks: false,
};
const place = new Workplace();
afterAll(() => place[Symbol.dispose]());
const run = place.path("runs/words");
let loaded: LoadedRun;

beforeAll(async () => {
  const path = place.path("tokenizer.json");
  saveTokenizer(new SentencePieceTokenizer(options), path, "huggingface");
  const data = place.file("words.txt", "the cat sat on the mat. ".repeat(400));
  const settings = {
    data,
    name: "words",
    steps: 60,
    lr: 1e-2,
    precision: "fp32",
    "tokenizer.path": path,
    "tokenizer.vocabSize": 280,
    "model.contextLength": 32,
  };
  await place.succeed("train", ...smallFlags, ...flags(settings));
  loaded = loadRun(run, openDevice("cpu", { threads: 1 }), expect.unreachable);
});

/** What the model goes on with, by other means than the stream of the commands: all ids decoded together. */
function goesOn(prompt: string): string {
  const { tokens, stopTokens } = encodePrompt(loaded.tokenizer, prompt);
  const said = generate(loaded.model, tokens, { maxTokens: 20, temperature: 0, stopTokens });
  return loaded.tokenizer.decode([...tokens.slice(1), ...said]);
}

test("generate: blanks where the text has them, none in front", async () => {
  expect(goesOn("the cat")).toStartWith("the cat sat on the mat. the cat");
  for (const prompt of ["the cat", "", "the mat. "]) {
    const argv = ["--run", run, "--prompt", prompt, "--max-tokens", "20", "--temperature", "0"];
    expect((await place.succeed("generate", ...argv)).stdout).toBe(`${goesOn(prompt)}\n`);
  }
});

test("serve: the same, whole and in pieces", async () => {
  const { model, tokenizer } = loaded;
  const onError = (error: unknown) => expect.unreachable(String(error));
  const limits = { slots: 2, queue: 10, timeout: 60, onError };
  await using server = new CompletionServer({ name: "words", model, tokenizer, host: "127.0.0.1", port: 0, ...limits });
  const { completions } = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
  for (const prompt of ["the cat", ""]) {
    const body = { model: "words", prompt, max_tokens: 20, temperature: 0 };
    const expected = goesOn(prompt).slice(prompt.length);
    expect((await completions.create(body)).choices[0].text).toBe(expected);
    let streamed = "";
    for await (const { choices } of await completions.create({ ...body, stream: true })) streamed += choices[0].text;
    expect(streamed).toBe(expected);
  }
});

test("eval counts the bytes of the text", async () => {
  const data = place.file("other.txt", "the mat sat on the cat.");
  expect((await place.succeed("eval", "--run", run, "--data", data)).stdout).toMatch(/bits per byte +\d/);
});

test("export to GGUF: SentencePiece's types and scores", async () => {
  const out = place.path("words.gguf");
  await place.succeed("export", "--run", run, "--format", "gguf", "--out", out);
  expect(readFileSync(out).subarray(0, 4).toString()).toBe("GGUF");
  const rows = 3 + texts.length + 1;
  const { "tokenizer.ggml.model": model, ...fields } = tokenizerMetadata(loaded.tokenizer, rows);
  expect(model.value).toBe("llama");
  const [names, types, scores] = ["tokens", "token_type", "scores"].map((key) => fields[`tokenizer.ggml.${key}`].value);
  const at = (id: number) => [names, types, scores].map((column) => (column as unknown[])[id]);
  expect([0, 1, 2].map(at)).toEqual([
    ["<unk>", 2, 0],
    ["<s>", 3, 0],
    ["</s>", 3, 0],
  ]);
  expect(at(3 + 10)).toEqual(["<0x0A>", 6, 0]);
  expect([0, 2, 7, 8].map((i) => at(3 + 256 + i))).toEqual([
    ["▁t", 1, -0],
    ["▁the", 1, -2],
    ["▁mat", 1, -7],
    ["▁", 1, -8],
  ]);
  expect(at(rows - 1)).toEqual([`[UNUSED${rows - 1}]`, 5, 0]);
  expect(fields["tokenizer.ggml.add_space_prefix"].value).toBe(true);
});

test("a tokenizer from which llama.cpp would make other ids is no GGUF", () => {
  const with_ = (changes: Partial<SentencePieceOptions>) => {
    return () => tokenizerMetadata(new SentencePieceTokenizer({ ...options, ...changes }), 300);
  };
  const more = (...added: string[]) => new Map([...options.vocab, ...added.map((text, i) => [400 + i, text] as const)]);
  expect(with_({ vocab: more("the"), merges: [...merges, ["t", "he"]] })).toThrow(
    'it does not merge "▁" and "the", which together are a token',
  );
  const apart: [string, string][] = [...merges, ["t", "he"], ["▁", "the"]];
  expect(with_({ vocab: more("the"), merges: apart })).toThrow('merges that make "▁the" are apart');
  const across: [string, string][] = [...merges, ["t", "▁"]];
  expect(with_({ vocab: more("t▁"), merges: across })).not.toThrow();
  expect(with_({ vocab: more("t▁"), merges: across, splitsAtBlanks: true })).toThrow('merges across blanks to "t▁"');
});
