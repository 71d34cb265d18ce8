/** Muon against the float64 reference: matrices of every form, AdamW for the rest, bfloat16 weights, what it refuses. */
import { describe, expect, test } from "bun:test";
import { type Device, Muon, ParameterStore } from "@mantou/model";
import { onEveryBackend } from "../conformance/backends.ts";
import { AdamWReference, MuonReference } from "../reference/optimizer.ts";
import { expectClose } from "../support/close.ts";
import { randomNormal } from "../support/ndarray.ts";

const groups = [
  [{ name: "token_embeddings.weight", shape: [9, 6] }],
  [{ name: "ln.weight", shape: [13] }],
  [
    { name: "q", shape: [8, 8] },
    { name: "k", shape: [3, 8] },
    { name: "v", shape: [17, 8] },
  ],
  [{ name: "ln2.weight", shape: [5] }],
  [{ name: "w", shape: [33, 65] }],
  [{ name: "lm_head.weight", shape: [9, 6] }],
];
const isMuon = (name: string) => ["q", "k", "v", "w"].includes(name);

function setUp(device: Device, type: "float32" | "bfloat16" = "float32") {
  const store = new ParameterStore(device, groups, type);
  const parameters = [...store.byName.values()];
  const values = parameters.map((parameter, i) => {
    const { data } = randomNormal([...parameter.shape], i);
    parameter.set(data);
    return Float64Array.from(data);
  });
  return { store, parameters, values };
}

onEveryBackend((_backend, device) => {
  describe("Muon", () => {
    test("follows the reference on matrices, and AdamW on the rest", () => {
      const { store, parameters, values } = setUp(device);
      const options = { betas: [0.8, 0.9] as [number, number], eps: 1e-5, weightDecay: 0.3, momentum: 0.9 };
      using optimizer = new Muon(store.byName, options);
      const theirs = parameters.map(({ name, value }, i) => {
        if (isMuon(name)) return new MuonReference(values[i], value.rows, value.columns, options);
        return new AdamWReference([{ value: values[i], grad: null }], options);
      });
      for (let step = 0; step < 4; step++) {
        const lr = 0.1 / (step + 1);
        parameters.forEach(({ shape, grad }, i) => {
          const { data } = randomNormal([...shape], 100 * step + i);
          grad.upload(data);
          const reference = theirs[i];
          if (reference instanceof MuonReference) reference.step(data, lr);
          else {
            const own = reference as unknown as { parameters: { grad: ArrayLike<number> }[] };
            own.parameters[0].grad = data;
            reference.step(lr);
          }
        });
        optimizer.step(lr);
      }
      parameters.forEach(({ name, value }, i) =>
        expectClose(value.toFloat32Array(), values[i], { absolute: 2e-4 }, name),
      );
      const flat = store.values.toFloat32Array();
      for (const { offset, value } of parameters) flat.fill(0, offset, offset + value.count);
      expect(flat.every((element) => element === 0)).toBe(true);
      store[Symbol.dispose]();
    });

    test("an update has singular values near one, whatever the gradient's size; clipping changes nothing", () => {
      for (const size of [1e-5, 1, 1e6]) {
        const { store, parameters } = setUp(device);
        using optimizer = new Muon(store.byName, { weightDecay: 0 });
        const before = parameters.map(({ value }) => value.toFloat32Array());
        for (const { shape, grad } of parameters) {
          grad.upload(randomNormal([...shape], shape[0]).data.map((value) => value * size) as Float32Array);
        }
        optimizer.clipAndStep(1, 0.5);
        parameters.forEach(({ name, value }, i) => {
          if (!isMuon(name)) return;
          const after = value.toFloat32Array();
          const scale = 0.2 * Math.sqrt(Math.max(value.rows, value.columns));
          const squares = after.reduce((sum, each, j) => sum + ((each - before[i][j]) / scale) ** 2, 0);
          // The squares of the singular values add up to the rank.
          const mean = squares / Math.min(value.rows, value.columns);
          expect(mean).toBeGreaterThan(0.5);
          expect(mean).toBeLessThan(1.3);
        });
        store[Symbol.dispose]();
      }
    });

    test("weights in bfloat16 are the rounded values", () => {
      const { store, parameters } = setUp(device, "bfloat16");
      using optimizer = new Muon(store.byName);
      for (const { shape, grad } of parameters) grad.upload(randomNormal([...shape], 7).data);
      optimizer.step(0.01);
      for (const { value, weight } of parameters) {
        expectClose(weight.toFloat32Array(), value.toFloat32Array(), { relative: 2 ** -8 });
        expect(weight.toFloat32Array()).not.toEqual(value.toFloat32Array());
      }
      store[Symbol.dispose]();
    });

    test("names a momentum outside its range", () => {
      const { store } = setUp(device);
      expect(() => new Muon(store.byName, { momentum: 1 })).toThrow("momentum must lie in [0, 1), not 1");
      store[Symbol.dispose]();
    });
  });
});
