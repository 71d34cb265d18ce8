/** Models that leave the house and enter it: what needs no Python to be proven. See tests/interop for the rest. */
import { afterAll, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { cpSync, existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type ModelConfig, SafetensorsFile, fromFloat16, openDevice, resolveModelConfig } from "@mantou/model";
import { safetensorsChunks, writeAtomically } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { toHuggingFace } from "@mantou/tokenizer/formats";
import fc from "fast-check";
import { checkLlama, fromHuggingFaceConfig, toHuggingFaceConfig } from "../../packages/train/src/llama/config.ts";
import { exportHuggingFace } from "../../packages/train/src/llama/export-hf.ts";
import { quantizeQ8 } from "../../packages/train/src/llama/export-gguf.ts";
import { importedConfig, saveImported } from "../../packages/train/src/llama/import-run.ts";
import { readHuggingFaceTokenizer } from "../../packages/train/src/llama/tokenizer.ts";
import { llamaTensors, toHalfSplit, toNeighbours } from "../../packages/train/src/llama/weights.ts";
import { RunDirectory, loadRun } from "../../packages/train/src/run.ts";
import { Workplace, flags, smallFlags, storyText, temporariesIn } from "./support/workplace.ts";
import { refusal } from "./support/refusal.ts";

const place = new Workplace();
afterAll(() => place[Symbol.dispose]());
const run = place.path("runs/main");

const config = resolveModelConfig({
  vocabSize: 300,
  contextLength: 64,
  dModel: 32,
  numLayers: 2,
  numHeads: 4,
  numKeyValueHeads: 2,
  dFf: 48,
  ropeTheta: 1e4,
});

describe("rows of rotary projections", () => {
  test("pairs of neighbours become pairs half a head apart", () => {
    const rows = Float32Array.of(0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15);
    expect(Array.from(toHalfSplit(rows, 2, 1))).toEqual([0, 2, 4, 1, 3, 5, 10, 12, 14, 11, 13, 15]);
  });

  test("there and back is nothing", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 4 }), fc.integer({ min: 1, max: 5 }), fc.nat(6), (heads, half, columns) => {
        const rows = Float32Array.from({ length: heads * 2 * half * (columns + 1) }, (_, i) => i);
        expect(toNeighbours(toHalfSplit(rows, heads, columns + 1), heads, columns + 1)).toEqual(rows);
      }),
    );
  });
});

describe("config.json", () => {
  test("there and back is the same model, whatever its settings", () => {
    for (const change of [
      {},
      { tieEmbeddings: true, rmsNormEps: 1e-6, numKeyValueHeads: 4 },
      { ropeScaling: "linear", ropeFactor: 2.5 },
      { ropeScaling: "llama3", ropeFactor: 32, ropeLowFreqFactor: 2, ropeHighFreqFactor: 5, ropeOriginalContext: 99 },
    ] satisfies Partial<ModelConfig>[]) {
      const model = resolveModelConfig({ ...config, ...change });
      expect(fromHuggingFaceConfig(toHuggingFaceConfig(model, "float32"), "config.json")).toEqual(model);
    }
  });

  test("older and newer ways to write the rotary settings", () => {
    const base = { ...toHuggingFaceConfig(config, "float32"), rope_theta: undefined, rope_scaling: undefined };
    const read = (changes: object) => fromHuggingFaceConfig({ ...base, ...changes }, "config.json");
    expect(read({})).toMatchObject({ ropeTheta: 10000, ropeScaling: "none" });
    expect(read({ rope_theta: 5e5, rope_scaling: { type: "linear", factor: 2 } })).toMatchObject({
      ropeTheta: 5e5,
      ropeScaling: "linear",
      ropeFactor: 2,
    });
    expect(read({ rope_parameters: { rope_type: "default", rope_theta: 1e6 } })).toMatchObject({ ropeTheta: 1e6 });
    expect(read({ num_key_value_heads: null })).toMatchObject({ numKeyValueHeads: 4 });
  });

  test("what we do not have is refused by its name", () => {
    const base = toHuggingFaceConfig(config, "float32");
    for (const [changes, message] of [
      [{ model_type: "mistral" }, 'a model of type "mistral", not "llama"'],
      [{ model_type: undefined }, "a model of type unknown"],
      [{ hidden_act: "gelu" }, 'hidden_act "gelu"'],
      [{ attention_bias: true }, "attention_bias"],
      [{ mlp_bias: true }, "mlp_bias"],
      [{ head_dim: 16 }, "head_dim 16 where hidden_size / num_attention_heads is 8"],
      [{ rope_scaling: { rope_type: "yarn", factor: 2 } }, 'rotary scaling of type "yarn"'],
      [{ rope_scaling: { rope_type: "toString" } }, 'rotary scaling of type "toString"'],
      [{ rope_scaling: { rope_type: "linear", factor: -1 } }, "model.ropeFactor must be a number greater than 0"],
      [{ hidden_size: 33, head_dim: null }, "model.dModel 33 is not a multiple"],
      [{ hidden_size: "64" }, "hidden_size"],
      [{ num_hidden_layers: 0 }, "num_hidden_layers"],
      [{ vocab_size: undefined }, "vocab_size"],
    ] as [object, string][]) {
      expect(refusal(() => fromHuggingFaceConfig({ ...base, ...changes }, "DIR/config.json")).message).toContain(
        message,
      );
    }
    for (const content of [null, 3, "llama", []]) refusal(() => fromHuggingFaceConfig(content, "config.json"));
  });

  test("a model that is no Llama stays", () => {
    for (const [changes, message] of [
      [{ norm: "post" }, 'norm "post" is no Llama model, which has "pre"'],
      [{ logitSoftCap: 30 }, "logitSoftCap 30 is no Llama model, which has 0"],
      [{ position: "none" }, 'position "none"'],
      [{ ffn: "silu" }, 'ffn "silu"'],
    ] as const) {
      expect(refusal(() => checkLlama(resolveModelConfig({ ...config, ...changes }))).message).toContain(message);
    }
  });
});

describe("tokenizer.json", () => {
  const own = Tokenizer.train(storyText(20_000), { vocabSize: 400, specialTokens: ["<|endoftext|>"] });
  const file = () => JSON.parse(toHuggingFace(own));
  const read = (json: object) => readHuggingFaceTokenizer(JSON.stringify(json), "DIR/tokenizer.json");

  test("a split into digits before GPT-2's is one pattern that splits alike", () => {
    const json = file();
    const digits = { type: "Digits", individual_digits: true };
    json.pre_tokenizer = { type: "Sequence", pretokenizers: [digits, { type: "ByteLevel", add_prefix_space: false }] };
    const tokenizer = read(json);
    const byDigits = new RegExp(tokenizer.pattern, "gu");
    const gpt2 = /'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;
    const texts = fc.string({ unit: fc.constantFrom("a", "é", "1", "٣", " ", "\n", ".", "'", "s"), maxLength: 20 });
    fc.assert(
      fc.property(texts, (text) => {
        const expected = text.split(/(\p{N})/u).flatMap((part) => part.match(gpt2) ?? []);
        expect([...(text.match(byDigits) ?? [])]).toEqual(expected);
      }),
      { numRuns: 500 },
    );
  });

  test("other families are refused, with the name of the file", () => {
    const cases: [(json: ReturnType<typeof file>) => void, string][] = [
      [(json) => (json.model.type = "Unigram"), 'DIR/tokenizer.json: the model is "Unigram"'],
      [(json) => (json.model.byte_fallback = true), "with byte fallback"],
      [(json) => (json.normalizer = { type: "NFKC" }), 'the normalizer "NFKC" is not supported'],
      [(json) => (json.pre_tokenizer = { type: "Metaspace" }), "only byte-level BPE"],
      [(json) => (json.pre_tokenizer = { type: "Sequence", pretokenizers: [{ type: "Digits" }] }), "Digits"],
      [(json) => delete json.model.vocab.a, "DIR/tokenizer.json: "],
    ];
    for (const [damage, message] of cases) {
      const json = file();
      damage(json);
      expect(refusal(() => read(json)).message).toContain(message);
    }
  });
});

test("q8_0: every number within half a step of its block's scale, zeros exactly", () => {
  const values = Float32Array.from({ length: 96 }, (_, i) => (i < 32 ? 0 : Math.sin(i * i) * 10 ** ((i % 7) - 3)));
  const bytes = quantizeQ8(values);
  expect(bytes.length).toBe(3 * 34);
  for (let block = 0; block < 3; block++) {
    const scale = fromFloat16(new Uint16Array(bytes.slice(block * 34, block * 34 + 2).buffer))[0];
    const numbers = new Int8Array(bytes.buffer, block * 34 + 2, 32);
    numbers.forEach((number, i) => {
      // The scale itself is rounded to float16.
      expect(Math.abs(number * scale - values[block * 32 + i])).toBeLessThanOrEqual(scale * (0.5 + 127 * 2 ** -11));
    });
    if (block === 0) expect([...numbers, scale]).toEqual(Array.from({ length: 33 }, () => 0));
    else expect(Math.max(...numbers.map(Math.abs))).toBe(127);
  }
});

describe("export and import", () => {
  const hf = place.path("hf");

  beforeAll(async () => {
    const data = place.file("stories.txt", storyText(30_000));
    await place.succeed("train", ...smallFlags, ...flags({ data, name: "main", "model.numKeyValueHeads": 1 }));
    await place.succeed("export", "--run", run, "--format", "hf", "--out", hf);
  });

  test("write what they say, and the names that transformers has", async () => {
    const { model } = loadRun(run, openDevice("cpu", { threads: 1 }), expect.unreachable);
    using file = new SafetensorsFile(join(hf, "model.safetensors"));
    expect([...file.tensors.keys()].sort()).toEqual(
      llamaTensors(model.config)
        .map((t) => t.huggingFace)
        .sort(),
    );
    expect(file.tensors.get("model.layers.0.self_attn.k_proj.weight")?.shape).toEqual([16, 32]);
    const gguf = place.path("main.gguf");
    const { stdout } = await place.succeed(
      "export",
      "--run",
      run,
      "--format",
      "gguf",
      "--out",
      gguf,
      "--dtype",
      "q8_0",
    );
    expect(stdout).toContain(gguf);
    expect(readFileSync(gguf).subarray(0, 4).toString()).toBe("GGUF");
  });

  test("an export that fails half-way leaves nothing that would stand in the way of the next", () => {
    using device = openDevice("cpu", { threads: 1 });
    const { model, tokenizer } = loadRun(run, device, () => {});
    const values = model.store.get("ln_final.weight").value;
    const broken = spyOn(values, "toFloat32Array").mockImplementation(() => {
      throw new Error("no more");
    });
    const out = place.path("half");
    for (const maxShardBytes of [5e9, 1]) {
      expect(() => exportHuggingFace(out, model, tokenizer, { dtype: "f32", maxShardBytes })).toThrow("no more");
      expect(existsSync(out)).toBe(false);
    }
    broken.mockRestore();
    expect(exportHuggingFace(out, model, tokenizer, { dtype: "f32" })).toContain("model.safetensors");
  });

  test("an import that fails half-way leaves nothing, and one that is killed there no run", () => {
    using device = openDevice("cpu", { threads: 1 });
    const { model, tokenizer } = loadRun(run, device, () => {});
    const half = new RunDirectory(place.path("runs/half"));
    const values = model.store.get("ln_final.weight").value;
    const broken = spyOn(values, "toFloat32Array").mockImplementation(() => {
      expect([existsSync(half.tokenizer), existsSync(half.config)]).toEqual([true, false]);
      throw new Error("no more");
    });
    const save = () => saveImported(half, importedConfig(half.path, model.config), model, tokenizer);
    expect(save).toThrow("no more");
    expect(half.exists).toBe(false);
    broken.mockRestore();
    save();
    expect(loadRun(half.path, device, expect.unreachable).step).toBe(0);
  });

  test("an import is a run: it generates, is evaluated, exported and refuses to be resumed", async () => {
    const imported = place.path("runs/imported");
    await place.succeed("import", "--from", hf, "--out", imported, "--context-length", "24");
    expect(readdirSync(imported).sort()).toEqual(["checkpoints", "config.json", "tokenizer.json"]);
    const text = await place.succeed("generate", "--run", imported, "--max-tokens", "9", "--seed", "3");
    expect(text.stdout).toBe(
      (await place.succeed("generate", "--run", run, "--max-tokens", "9", "--seed", "3")).stdout,
    );
    const noData = await place.run("eval", "--run", imported);
    expect([noData.code, noData.stderr]).toEqual([2, expect.stringContaining("has no validation data")]);
    const resumed = await place.run("train", "--resume", imported);
    expect(resumed.code).toBe(2);
    expect(resumed.stderr).toContain("holds weights alone");
    expect(resumed.stderr).toContain(`fix: begin a run with them: bun run train --init ${imported} --data FILE`);
    expect(readdirSync(imported).sort()).toEqual(["checkpoints", "config.json", "tokenizer.json"]);
    await place.succeed("export", "--run", imported, "--format", "hf", "--out", place.path("again"));
    expect(readFileSync(place.path("again/model.safetensors"))).toEqual(readFileSync(join(hf, "model.safetensors")));
  });

  test("in shards: none larger than asked for but with a tensor that is, and the same weights in again", async () => {
    const [out, back] = [place.path("shards"), place.path("runs/from-shards")];
    const argv = ["--run", run, "--format", "hf", "--out", out, "--max-shard-size", "20KB"];
    const { stdout } = await place.succeed("export", ...argv);
    const { metadata, weight_map: places } = JSON.parse(
      readFileSync(join(out, "model.safetensors.index.json"), "utf8"),
    ) as { metadata: { total_size: number }; weight_map: Record<string, string> };
    const names = [...new Set(Object.values(places))];
    expect(names.length).toBeGreaterThan(2);
    expect(names[0]).toBe(`model-00001-of-${String(names.length).padStart(5, "0")}.safetensors`);
    expect(existsSync(join(out, "model.safetensors"))).toBe(false);
    let total = 0;
    for (const name of names) {
      expect(stdout).toContain(name);
      using file = new SafetensorsFile(join(out, name));
      const sizes = [...file.tensors.values()].map(({ begin, end }) => end - begin);
      const bytes = sizes.reduce((a, b) => a + b, 0);
      expect(sizes.length === 1 || bytes <= 20_000).toBe(true);
      total += bytes;
      for (const tensor of file.tensors.keys()) expect(places[tensor]).toBe(name);
    }
    expect(metadata.total_size).toBe(total);
    await place.succeed("import", "--from", out, "--out", back, "--context-length", "16");
    await place.succeed("export", "--run", back, "--format", "hf", "--out", place.path("whole"));
    expect(readFileSync(place.path("whole/model.safetensors"))).toEqual(readFileSync(join(hf, "model.safetensors")));
  });

  test("a tokenizer that is refused can be replaced by another one", async () => {
    const other = place.path("other");
    cpSync(hf, other, { recursive: true });
    const json = JSON.parse(readFileSync(join(hf, "tokenizer.json"), "utf8"));
    json.model.byte_fallback = true;
    writeFileSync(join(other, "tokenizer.json"), JSON.stringify(json));
    const out = place.path("runs/replaced");
    const refused = await place.run("import", "--from", other, "--out", out);
    expect([refused.code, refused.stderr]).toEqual([2, expect.stringContaining("with byte fallback")]);
    expect(refused.stderr).toContain("--tokenizer");
    const argv = ["--from", other, "--out", out, "--tokenizer", join(hf, "tokenizer.json")];
    const { stdout } = await place.succeed("import", ...argv);
    expect(stdout).toContain("not the tokenizer that the model was trained with");
    expect(loadTokenizer(join(out, "tokenizer.json")).hash).toBe(loadTokenizer(join(run, "tokenizer.json")).hash);
  });

  test("nothing is written over, and what cannot be is refused first", async () => {
    for (const [argv, message] of [
      [["export", "--run", run, "--format", "hf", "--out", hf], "exists already"],
      [["export", "--run", run, "--format", "hf", "--out", place.path("x"), "--dtype", "q8_0"], "has no --dtype q8_0"],
      [["export", "--run", run, "--format", "gguf", "--out", place.path("no/x.gguf")], "there is no directory"],
      [["export", "--run", run, "--format", "hf", "--out", place.path("x"), "--max-shard-size", "5"], "5GB"],
      [["export", "--run", run, "--format", "onnx", "--out", place.path("x")], "it must be hf or gguf"],
      [["export", "--run", place.path("none"), "--format", "hf", "--out", place.path("x")], "there is no run"],
      [["import", "--from", place.path("none")], "is no directory"],
      [["import", "--from", hf, "--out", run], "exists already"],
    ] as [["export" | "import", ...string[]], string][]) {
      const { code, stderr } = await place.run(...argv);
      expect([code, stderr]).toEqual([2, expect.stringContaining(message)]);
      expect(stderr).toContain("fix: ");
    }
    expect(existsSync(place.path("x"))).toBe(false);
  });

  test("a damaged checkpoint of theirs is refused by what is wrong with it, and leaves nothing", async () => {
    const entries = [...new SafetensorsFile(join(hf, "model.safetensors")).tensors].map(([name, { shape }]) => {
      return { name, shape, dtype: "F32" as const, data: () => new Float32Array(shape.reduce((a, b) => a * b, 1)) };
    });
    const weights = (changed: typeof entries) => (folder: string) =>
      writeAtomically(join(folder, "model.safetensors"), safetensorsChunks(changed, {}));
    const json = (name: string, content: unknown) => (folder: string) =>
      writeFileSync(join(folder, name), typeof content === "string" ? content : JSON.stringify(content));
    const settings = JSON.parse(readFileSync(join(hf, "config.json"), "utf8"));
    const index = (file: string) => json("model.safetensors.index.json", { weight_map: { "lm_head.weight": file } });
    const cases: [(folder: string) => void, string][] = [
      [json("config.json", "{"), "config.json is not valid JSON"],
      [json("config.json", { ...settings, num_hidden_layers: 2 }), "has no tensor model.layers.1."],
      [json("config.json", { ...settings, vocab_size: 301 }), "tensor model.embed_tokens.weight is [300, 32]"],
      [json("config.json", { ...settings, vocab_size: 100 }), "has 300 ids, the model knows 100"],
      [json("tokenizer.json", "[]"), "tokenizer.json: it is not an object"],
      [json("model.safetensors", "not a tensor in sight"), "is not a whole safetensors file"],
      [weights(entries.slice(1)), `has no tensor ${entries[0].name}`],
      [
        weights([...entries, { ...entries[0], name: "model.layers.0.self_attn.q_proj.bias" }]),
        "q_proj.bias is no part of a Llama model",
      ],
      [index("missing.safetensors"), "which is not there"],
      [index("../hf/model.safetensors"), "not a file beside it"],
      [json("model.safetensors.index.json", { weight_map: 3 }), "index.json is not valid"],
    ];
    for (const [i, [damage, message]] of cases.entries()) {
      const folder = place.path(`damaged-${i}`);
      cpSync(hf, folder, { recursive: true });
      damage(folder);
      const { code, stderr } = await place.run("import", "--from", folder, "--out", place.path("runs/none"));
      expect([i, code, stderr]).toEqual([i, 2, expect.stringContaining(message)]);
      expect(stderr).toContain("\n  fix: ");
      expect(existsSync(place.path("runs/none"))).toBe(false);
    }
    expect(temporariesIn(place.folder)).toEqual([]);
  });
});
