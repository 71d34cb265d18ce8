/** The adapters of training: clipping, AdamW, batches and checkpoints. The schedule is in tests/model/adamw.test.ts. */
import { describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AdamW, TransformerLM } from "@mantou/model";
import { CheckpointError } from "@mantou/train";
import * as adapters from "../adapters.ts";
import * as ops from "../reference/ops.ts";
import { AdamWReference, clipGradients } from "../reference/optimizer.ts";
import { expectClose } from "../support/close.ts";
import { goldenModels } from "../support/golden.ts";
import { type FloatArray, randomInts, randomNormal, zeros } from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";

onEveryBackend((backend, device) => {
  describe("gradient clipping", () => {
    test("combined norm over many arrays, in place", () => {
      for (const [deviation, maxL2Norm] of [
        [1, 1],
        [1e-3, 1],
        [1e3, 0.01],
      ]) {
        const gradients = [[113, 203], [1], [17], [3, 65], []].map((shape, i) => randomNormal(shape, i, deviation));
        const expected = clipGradients(
          gradients.map(({ data }) => data),
          maxL2Norm,
        );
        adapters.runGradientClipping({ backend, gradients, maxL2Norm });
        gradients.forEach(({ data }, i) => expectClose(data, expected.gradients[i], { relative: 1e-5 }));
      }
    });

    test("no gradients at all", () => {
      adapters.runGradientClipping({ backend, gradients: [], maxL2Norm: 1 });
      adapters.runGradientClipping({ backend, gradients: [zeros([0])], maxL2Norm: 1 });
    });
  });

  describe("AdamW", () => {
    test("follows the reference over arrays of any size; null gradients leave a parameter alone", () => {
      const shapes = [[113, 203], [1], [17], [3, 65]];
      const settings = { lr: 0.02, betas: [0.8, 0.95] as [number, number], eps: 1e-6, weightDecay: 0.1 };
      const parameters = shapes.map((shape, i) => ({ value: randomNormal(shape, i), grad: null as FloatArray | null }));
      const reference = parameters.map(({ value }) => ({
        value: ops.toFloat64(value).data,
        grad: null as null | Float32Array,
      }));
      const mine = new (adapters.getAdamWClass())(parameters, { backend, ...settings });
      const theirs = new AdamWReference(reference, settings);
      for (let step = 0; step < 7; step++) {
        parameters.forEach((parameter, i) => {
          parameter.grad = i === 1 || (i === 2 && step % 2 === 0) ? null : randomNormal(shapes[i], 10 * step + i, 0.5);
          reference[i].grad = parameter.grad?.data ?? null;
        });
        mine.step();
        theirs.step();
      }
      parameters.forEach(({ value }, i) =>
        expectClose(value.data, reference[i].value, { relative: 1e-6, absolute: 1e-6 }, `${i}`),
      );
      expect(parameters[1].value).toEqual(randomNormal([1], 1));
    });

    test("PyTorch's defaults", () => {
      const value = randomNormal([5], 1);
      const grad = randomNormal([5], 2);
      const reference = { value: ops.toFloat64(value).data, grad: grad.data };
      const mine = new (adapters.getAdamWClass())([{ value, grad }], { backend });
      const theirs = new AdamWReference([reference]);
      for (let step = 0; step < 3; step++) {
        mine.step();
        theirs.step();
      }
      expectClose(value.data, reference.value, { absolute: 1e-6 });
    });
  });

  describe("batches", () => {
    test("targets are inputs shifted by one, of any width of token, deterministic in the seed", () => {
      for (const dataset of [
        Uint16Array.from({ length: 200 }, (_, i) => i),
        Uint32Array.from({ length: 9 }, (_, i) => 7 * i),
      ]) {
        const options = { dataset, batchSize: 5, contextLength: 8, device: backend };
        const { x, y } = adapters.runGetBatch({ ...options, seed: 3 });
        expect([x.shape, y.shape]).toEqual([
          [5, 8],
          [5, 8],
        ]);
        const step = dataset[1];
        expect(Array.from(y.data)).toEqual(Array.from(x.data, (token) => token + step));
        const again = adapters.runGetBatch({ ...options, seed: 3 });
        expect(again.x.data).toEqual(x.data);
      }
    });

    test("every valid start, the last one too, is equally likely", () => {
      const [starts, draws] = [10, 20_000];
      const dataset = Uint16Array.from({ length: starts + 4 }, (_, i) => i);
      const { x } = adapters.runGetBatch({ dataset, batchSize: draws, contextLength: 4, device: backend, seed: 1 });
      const counts = new Float64Array(starts);
      for (let row = 0; row < draws; row++) counts[x.data[row * 4]]++;
      const expected = draws / starts;
      const chiSquare = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
      // 9 degrees of freedom: the 99.9th percentile is 27.9.
      expect(chiSquare).toBeLessThan(27.9);
    });

    test("refuses data that are too short", () => {
      const options = { dataset: new Uint16Array(8), batchSize: 1, contextLength: 8, device: backend };
      expect(() => adapters.runGetBatch(options)).toThrow("8 tokens");
    });
  });

  describe("checkpoints", () => {
    const { config } = goldenModels().base;
    const [inputs, targets] = [1, 2].map((seed) => randomInts([config.contextLength], seed, config.vocabSize).data);
    const setUp = (seed: number) => {
      const model = new TransformerLM(config, { device, seed });
      const optimizer = new AdamW(model.parameters(), { betas: [0.9, 0.95], weightDecay: 0.1 });
      const train = (steps: number) =>
        Array.from({ length: steps }, () => {
          optimizer.zeroGrad();
          const loss = model.lossAndGradients(inputs, targets);
          optimizer.step(1e-2);
          return loss;
        });
      return {
        model,
        optimizer,
        train,
        [Symbol.dispose]: () => [optimizer, model].forEach((o) => o[Symbol.dispose]()),
      };
    };

    test("a loaded model goes on bit for bit, from bytes and from a file", () => {
      using first = setUp(1);
      first.train(3);
      const chunks: Uint8Array[] = [];
      // A sink may not keep what it is given, so it takes copies.
      adapters.runSaveCheckpoint({ ...first, iteration: 3, out: { write: (chunk) => chunks.push(chunk.slice()) } });
      const folder = mkdtempSync(join(tmpdir(), "mantou-checkpoint-"));
      const path = join(folder, "checkpoint");
      adapters.runSaveCheckpoint({ ...first, iteration: 4, out: path });
      const losses = first.train(3);
      for (const [src, iteration] of [
        [Buffer.concat(chunks), 3],
        [path, 4],
      ] as const) {
        using second = setUp(2);
        second.train(1);
        expect(adapters.runLoadCheckpoint({ src, ...second })).toBe(iteration);
        expect(second.train(3)).toEqual(losses);
        for (const { name, value } of first.model.parameters().values()) {
          expect(second.model.parameters().get(name)!.value.toFloat32Array()).toEqual(value.toFloat32Array());
        }
      }
      rmSync(folder, { recursive: true });
    });

    test("a damaged one is refused and changes nothing", () => {
      using first = setUp(1);
      const chunks: Uint8Array[] = [];
      adapters.runSaveCheckpoint({ ...first, iteration: 0, out: { write: (chunk) => chunks.push(chunk.slice()) } });
      const bytes = Uint8Array.from(Buffer.concat(chunks));
      const damaged = bytes.slice();
      damaged[bytes.length - 5] ^= 1;
      using second = setUp(2);
      const before = second.model.store.values.toFloat32Array();
      for (const src of [bytes.subarray(0, -1), damaged, new Uint8Array(0)]) {
        expect(() => adapters.runLoadCheckpoint({ src, ...second })).toThrow(CheckpointError);
        expect(second.model.store.values.toFloat32Array()).toEqual(before);
      }
    });
  });
});
