/** Checkpoints and other safetensors files against the real package, both ways. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { AdamW, type ModelConfig, SafetensorsFile, TransformerLM, openDevice } from "@mantou/model";
import { saveCheckpoint } from "../../packages/train/src/checkpoint.ts";
import { randomInts } from "../support/ndarray.ts";
import { folder, python } from "./python.ts";

type Stored = { metadata: Record<string, string>; tensors: Record<string, { shape: number[]; data: number[] }> };

test("a checkpoint: safetensors reads every tensor and the manifest, and its hash can be worked out from them", async () => {
  const config: ModelConfig = {
    vocabSize: 50,
    contextLength: 8,
    dModel: 16,
    numLayers: 2,
    numHeads: 4,
    numKeyValueHeads: 2,
    dFf: 24,
    ropeTheta: 1e4,
  };
  using device = openDevice("cpu", { threads: 1 });
  using model = new TransformerLM(config, { device, seed: 1 });
  using optimizer = new AdamW(model.parameters());
  for (let step = 0; step < 3; step++) {
    const [inputs, targets] = [0, 1].map((i) => randomInts([8], 2 * step + i, 50).data as Int32Array);
    optimizer.zeroGrad();
    model.lossAndGradients(inputs, targets);
    optimizer.step(0.01);
  }
  const path = join(folder, "checkpoint.safetensors");
  saveCheckpoint(path, { model, optimizer, iteration: 3 });
  const [stored, hash] = await python<[Stored, { computed: string; manifest: string }]>("read_files.py", [
    { do: "read_safetensors", path },
    { do: "hash_checkpoint", path },
  ]);
  const parameters = [...model.parameters().values()];
  expect(Object.keys(stored.tensors)).toHaveLength(3 * parameters.length);
  for (const { name, shape, value, offset } of parameters) {
    const expected = {
      [name]: value,
      [`optimizer.m.${name}`]: optimizer.firstMoments.view(shape, offset),
      [`optimizer.v.${name}`]: optimizer.secondMoments.view(shape, offset),
    };
    for (const [key, tensor] of Object.entries(expected)) {
      expect(stored.tensors[key].shape).toEqual([...shape]);
      expect(stored.tensors[key].data).toEqual(Array.from(tensor.toFloat32Array()));
    }
  }
  const manifest = JSON.parse(stored.metadata["mantou.checkpoint"]);
  expect(manifest).toMatchObject({ version: 1, iteration: 3, optimizerSteps: 3, model: { ...model.config } });
  expect(hash.computed).toBe(hash.manifest);
});

test("what safetensors writes we read, in each kind of float", async () => {
  const path = join(folder, "theirs.safetensors");
  const request = [{ do: "write_safetensors", path }];
  const [expected] = await python<[Record<string, number[]>]>("read_files.py", request);
  using file = new SafetensorsFile(path);
  expect(file.metadata).toEqual({ note: "by safetensors" });
  for (const [name, values] of Object.entries(expected)) {
    const { shape, data } = file.toFloat32(name);
    expect(shape).toEqual([5, 7]);
    expect(data).toEqual(Float32Array.from(values));
  }
});
