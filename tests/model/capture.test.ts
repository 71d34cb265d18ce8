/** Work that the CPU captures, to do it again by one call: the operations themselves, steps of training and of generation. */
import { describe, expect, test } from "bun:test";
import { AdamW, Decoder, type Device, Profile, Tensor, TransformerLM, openDevice, operations } from "@mantou/model";
import { goldenModels } from "../support/golden.ts";
import { randomInts } from "../support/ndarray.ts";

// Outside any test, because the first device may have to compile its library.
openDevice("cpu")[Symbol.dispose]();

const models = Object.entries(goldenModels());
const ones = (count: number) => new Float32Array(count).fill(1);

describe("captured operations", () => {
  test("are done by every replay, on what their memory holds then, and not before", () => {
    using device = openDevice("cpu", { threads: 2 });
    using values = Tensor.from(device, [3], Float32Array.of(1, 2, 3));
    using copy = Tensor.zeros(device, [3]);
    using graph = device.capture(() => {
      operations.add(values, values, values);
      device.run("mantou_copy_async", copy, values, values.bytes, 0);
      values.view([1]).zero();
    })!;
    expect([...values.toFloat32Array(), ...copy.toFloat32Array()]).toEqual([1, 2, 3, 0, 0, 0]);
    device.replay(graph);
    expect([...values.toFloat32Array(), ...copy.toFloat32Array()]).toEqual([0, 4, 6, 2, 4, 6]);
    values.upload(Float32Array.of(5, 6, 7));
    device.replay(graph);
    expect([...values.toFloat32Array(), ...copy.toFloat32Array()]).toEqual([0, 12, 14, 10, 12, 14]);
  });

  test("are profiled one by one", () => {
    using device = openDevice("cpu", { threads: 1 });
    using values = Tensor.from(device, [3], ones(3));
    using graph = device.capture(() => {
      operations.add(values, values, values);
      values.view([0]).zero();
      operations.add(values, values, values);
    })!;
    device.profile = new Profile();
    for (let time = 0; time < 3; time++) device.replay(graph);
    operations.add(values, values, values);
    const { profile } = device;
    profile.stop();
    const { rows, restMs, totalMs } = profile.result({ float32Flops: 1, bfloat16Flops: 1, bytesRead: 1 });
    const counted = rows.map(({ name, calls, bytes }) => ({ name, calls, bytes })).sort((a, b) => b.calls - a.calls);
    expect(counted).toEqual([
      { name: "add", calls: 7, bytes: 7 * 36 },
      { name: "fill", calls: 3, bytes: 0 },
    ]);
    expect(rows.every(({ ms }) => ms > 0)).toBeTrue();
    expect(restMs + rows.reduce((sum, { ms }) => sum + ms, 0)).toBeCloseTo(totalMs, 6);
  });

  test("that fail do so when they are replayed, by name", () => {
    using device = openDevice("cpu", { threads: 1 });
    using table = Tensor.from(device, [2, 1], ones(2));
    using tokens = Tensor.from(device, [1], Int32Array.of(1));
    using output = Tensor.zeros(device, [1, 1]);
    using graph = device.capture(() => operations.embeddingForward(output, table, tokens))!;
    device.replay(graph);
    expect(output.toFloat32Array()[0]).toBe(1);
    tokens.upload(Int32Array.of(2));
    expect(() => device.replay(graph)).toThrow(/^mantou_embedding_forward.*2/);
  });

  test("do not wait: what does is refused, and the device goes on as before", () => {
    using device = openDevice("cpu", { threads: 1 });
    using values = Tensor.from(device, [3], ones(3));
    expect(() => device.capture(() => values.toFloat32Array())).toThrow("mantou_copy: called during a capture");
    expect(() => device.capture(() => void device.peaks())).toThrow("mantou_measure_peaks: called during a capture");
    expect(() => device.capture(() => void device.capture(() => {}))).toThrow("mantou_capture_begin: called during");
    using graph = device.capture(() => operations.add(values, values, values))!;
    const replay = () => device.replay(graph);
    expect(() => device.capture(replay)).toThrow("mantou_graph_replay: called during a capture");
    replay();
    expect([...values.toFloat32Array()]).toEqual([2, 2, 2]);
    graph[Symbol.dispose]();
    expect(replay).toThrow("a graph was used after it was freed");
  });
});

/** A device that calls every operation by itself, and one that replays; how often it did is counted. */
function devices(): { direct: Device; replaying: Device; replays: () => number; [Symbol.dispose](): void } {
  const [direct, replaying] = [openDevice("cpu", { threads: 2 }), openDevice("cpu", { threads: 2 })];
  direct.capture = () => undefined;
  let count = 0;
  const replay = replaying.replay.bind(replaying);
  replaying.replay = (graph) => {
    count++;
    replay(graph);
  };
  const dispose = () => [direct, replaying].forEach((device) => device[Symbol.dispose]());
  return { direct, replaying, replays: () => count, [Symbol.dispose]: dispose };
}

describe.each(models)("%s", (_, { config, weights }) => {
  test.each(["keep", "recompute"] as const)(
    "training steps, %s, have the bits of steps that are not replayed",
    (activations) => {
      using pair = devices();
      const [expected, actual] = [pair.direct, pair.replaying].map((device) => {
        using model = new TransformerLM(config, { device, weights, batchSize: 2, precision: "bf16", activations });
        using optimizer = new AdamW(model.parameters());
        const losses: number[] = [];
        for (let step = 0; step < 12; step++) {
          // More shapes and scales than are kept recorded.
          const length = config.contextLength - (step % 3);
          const [inputs, targets] = [0, 1].map((i) => randomInts([2 * length], 2 * step + i, config.vocabSize).data);
          optimizer.zeroGrad();
          const gradientScale = step % 2 === 0 ? 1 : 0.5;
          losses.push(model.loss(inputs, targets, { length }));
          for (let part = 0; part < 2; part++) {
            losses.push(model.lossAndGradients(inputs, targets, { length, gradientScale }));
          }
          losses.push(optimizer.clipAndStep(1e-2, step < 6 ? 1 : 2));
        }
        return { losses, values: model.store.values.toFloat32Array() };
      });
      expect(actual).toEqual(expected);
      expect(pair.replays()).toBeGreaterThan(12);
    },
  );

  test("tokens have the logits of tokens that are not generated by replays, whatever comes between", () => {
    using pair = devices();
    const [expected, actual] = [pair.direct, pair.replaying].map((device) => {
      using model = new TransformerLM(config, { device, weights });
      using decoder = new Decoder(model, { batchSize: 3 });
      const logits: Float32Array[] = [];
      // A longer prompt and more sequences move the buffers.
      for (const slots of [[1], [1], [1], [1, 0], [1, 0], [0, 1], [2, 0, 1], [2], [1]]) {
        logits.push(decoder.forward(randomInts([slots.length], logits.length, config.vocabSize).data, { slots }));
        if (logits.length === 3) logits.push(decoder.forward(Int32Array.of(1, 2, 3), { slots: [2] }));
        if (logits.length > 5) decoder.reset();
      }
      return logits;
    });
    expect(actual).toEqual(expected);
    expect(pair.replays()).toBeGreaterThanOrEqual(3);
  });
});
