/** A model's configuration: what is filled in, and that every wrong value is named together with its field. */
import { describe, expect, test } from "bun:test";
import { type ModelConfig, ParameterStore, TransformerLM, resolveModelConfig } from "@mantou/model";
import { onEveryBackend } from "../conformance/backends.ts";
import { weightShapes } from "../reference/transformer.ts";

const config: ModelConfig = {
  vocabSize: 11,
  contextLength: 5,
  dModel: 12,
  numLayers: 2,
  numHeads: 6,
  dFf: 7,
  ropeTheta: 1e4,
};

test("defaults", () => {
  expect(resolveModelConfig(config)).toEqual({
    ...config,
    numKeyValueHeads: 6,
    rmsNormEps: 1e-5,
    ropeScaling: "none",
    ropeFactor: 1,
    ropeLowFreqFactor: 1,
    ropeHighFreqFactor: 4,
    ropeOriginalContext: 8192,
    norm: "pre",
    position: "rope",
    ffn: "swiglu",
    qkNorm: false,
    logitSoftCap: 0,
    tieEmbeddings: false,
  });
});

describe("refuses", () => {
  const cases: [Partial<Record<keyof ModelConfig, unknown>>, string][] = [
    [{ vocabSize: 0 }, "model.vocabSize must be a whole number of at least 1, not 0"],
    [{ contextLength: 2.5 }, "model.contextLength must be a whole number of at least 1, not 2.5"],
    [{ numLayers: -1 }, "model.numLayers"],
    [{ dFf: Number.NaN }, "model.dFf must be a whole number of at least 1, not NaN"],
    [{ dModel: undefined }, "model.dModel"],
    [{ numHeads: "4" }, "model.numHeads"],
    [{ numHeads: 5 }, "model.dModel 12 is not a multiple of model.numHeads 5"],
    [{ numHeads: 4 }, "model.dModel / model.numHeads = 3: the head size must be even"],
    [{ dModel: 514, numHeads: 1 }, "= 514: the head size must be even and at most 256"],
    [{ numKeyValueHeads: 4 }, "model.numKeyValueHeads 4 does not divide model.numHeads 6"],
    [{ numKeyValueHeads: 0 }, "model.numKeyValueHeads must be a whole number of at least 1, not 0"],
    [{ ropeTheta: 1 }, "model.ropeTheta must be a number greater than 1, not 1"],
    [{ ropeTheta: Infinity }, "model.ropeTheta"],
    [{ rmsNormEps: 0 }, "model.rmsNormEps must be a number greater than 0, not 0"],
    [{ ropeScaling: "yarn" }, "model.ropeScaling must be one of none, linear, llama3, not yarn"],
    [{ ropeFactor: Number.NaN }, "model.ropeFactor must be a number greater than 0, not NaN"],
    [{ ropeLowFreqFactor: 4 }, "model.ropeLowFreqFactor 4 must be less than model.ropeHighFreqFactor 4"],
    [{ ropeOriginalContext: 0.5 }, "model.ropeOriginalContext must be a whole number"],
    [{ logitSoftCap: -1 }, "model.logitSoftCap must be a number ≥ 0, not -1"],
    [{ norm: "middle" }, "model.norm must be one of pre, post, none, not middle"],
    [{ position: "sine" }, "model.position must be one of rope, none, not sine"],
    [{ qkNorm: 1 }, "model.qkNorm must be true or false, not 1"],
    [{ tieEmbeddings: "false" }, "model.tieEmbeddings must be true or false, not false"],
    [{ ffn: "relu" }, "model.ffn must be one of swiglu, silu, not relu"],
  ];
  for (const [change, message] of cases) {
    test(JSON.stringify(change), () => {
      expect(() => resolveModelConfig({ ...config, ...change } as ModelConfig)).toThrow(message);
    });
  }
});

onEveryBackend((_backend, device) => {
  test("parameters: names, shapes and order of the reference, for every combination", () => {
    for (const norm of ["pre", "post", "none"] as const) {
      for (const ffn of ["swiglu", "silu"] as const) {
        for (const tieEmbeddings of [false, true]) {
          for (const numKeyValueHeads of [6, 2, 1]) {
            const changed = { ...config, norm, ffn, tieEmbeddings, numKeyValueHeads };
            using model = new TransformerLM(changed, { device });
            const shapes = [...model.parameters().values()].map(({ name, shape }) => [name, [...shape]] as const);
            expect(Object.fromEntries(shapes)).toEqual(weightShapes(changed));
            expect(shapes[0][0]).toBe("token_embeddings.weight");
            const count = shapes.reduce((sum, [, shape]) => sum + shape.reduce((a, b) => a * b), 0);
            expect(model.store.count).toBe(count);
          }
        }
      }
    }
  });

  test("weights given are the weights kept, as a copy", () => {
    using first = new TransformerLM(config, { device, seed: 1 });
    const weights = Object.fromEntries(
      [...first.parameters().values()].map(({ name, shape, value }) => {
        return [name, { shape: [...shape], data: value.toFloat32Array() }];
      }),
    );
    using second = new TransformerLM(config, { device, weights });
    weights["ln_final.weight"].data.fill(9);
    for (const { name, value } of first.parameters().values()) {
      expect(second.parameters().get(name)!.value.toFloat32Array()).toEqual(value.toFloat32Array());
    }
    expect(() => new TransformerLM(config, { device, batchSize: 0 })).toThrow("batchSize must be a whole number");
    const activations = "drop" as "keep";
    expect(() => new TransformerLM(config, { device, activations })).toThrow("activations must be keep or recompute");
    for (const vocabularyMultiple of [0, -4, 1.5, Number.NaN]) {
      expect(() => new TransformerLM(config, { device, vocabularyMultiple })).toThrow(`1, not ${vocabularyMultiple}`);
    }
    for (const gradientScale of [Number.NaN, Infinity, 1e-46]) {
      const step = () => first.lossAndGradients(Int32Array.of(1), Int32Array.of(2), { length: 1, gradientScale });
      expect(step).toThrow(`gradientScale must be a finite number, and not tiny: ${gradientScale}`);
    }
  });

  test("groups are aligned, their parameters adjacent", () => {
    using store = new ParameterStore(device, [
      [{ name: "a", shape: [3, 5] }],
      [
        { name: "b", shape: [2, 7] },
        { name: "c", shape: [4, 7] },
      ],
    ]);
    const { a, b, c } = Object.fromEntries(store.byName) as Record<
      string,
      { offset: number; value: { byteOffset: number } }
    >;
    expect(b.value.byteOffset % 256).toBe(0);
    expect([a.offset, c.offset - b.offset]).toEqual([0, 14]);
    expect(store.stacked(["b", "c"]).weight.shape).toEqual([6, 7]);
    expect(() => store.stacked(["a", "b"])).toThrow("a, b are not one group");
    expect(() => store.get("d")).toThrow("no parameter d");
  });
});
