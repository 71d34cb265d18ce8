/**
 * Work that is captured, to do it again by one call: the operations themselves, steps of training and of generation. The
 * first pass over a shape is done, the second one captured, and those that follow are replays.
 */
import { describe, expect, test } from "bun:test";
import { AdamW, Decoder, type Device, Profile, Stepper, Tensor, TransformerLM, operations } from "@mantou/model";
import { type Backend, openBackend } from "../adapters.ts";
import { goldenModels } from "../support/golden.ts";
import { randomInts } from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";

const ones = (count: number) => new Float32Array(count).fill(1);

/** A device that calls every operation by itself, and one that replays; how often it did is counted. */
function devices(backend: Backend) {
  const [direct, replaying] = [openBackend(backend, 2), openBackend(backend, 2)];
  direct.capture = () => undefined;
  let count = 0;
  const replay = replaying.replay.bind(replaying);
  replaying.replay = (graph) => {
    count++;
    replay(graph);
  };
  /** What `work` gives on the second, after it was seen to give the same on the first. */
  const expectSame = (work: (device: Device) => unknown) => expect(work(replaying)).toEqual(work(direct));
  const dispose = () => [direct, replaying].forEach((device) => device[Symbol.dispose]());
  return { expectSame, replays: () => count, [Symbol.dispose]: dispose };
}

onEveryBackend((backend) => {
  describe("captured operations", () => {
    test("are done by every replay, on what their memory holds then, and not before", () => {
      using device = openBackend(backend, 2);
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

    test("are refused once memory that they use is freed", () => {
      using device = openBackend(backend, 1);
      using values = Tensor.from(device, [3], ones(3));
      const others = Tensor.from(device, [3], ones(3));
      using graph = device.capture(() => operations.add(values, values, others))!;
      device.replay(graph);
      others[Symbol.dispose]();
      expect(() => device.replay(graph)).toThrow("native memory was used after it was freed");
      expect([...values.toFloat32Array()]).toEqual([2, 2, 2]);
    });

    test("take the time that passes between marks around them", () => {
      using device = openBackend(backend, 1);
      using values = Tensor.from(device, [3], ones(3));
      using graph = device.capture(() => operations.add(values, values, values))!;
      const milliseconds = Float64Array.of(Number.NaN);
      const started = performance.now();
      device.run("mantou_mark", 0);
      device.replay(graph);
      device.run("mantou_mark", 1);
      device.run("mantou_time_between_marks", milliseconds);
      expect(milliseconds[0]).toBeLessThanOrEqual(performance.now() - started);
      // On the emulator no time passes.
      if (backend === "emulated") expect(milliseconds[0]).toBe(0);
      else expect(milliseconds[0]).toBeGreaterThan(0);
    });

    test.skipIf(backend !== "cpu")("are profiled one by one", () => {
      using device = openBackend(backend, 1);
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
      using device = openBackend(backend, 1);
      using table = Tensor.from(device, [2, 1], ones(2));
      using tokens = Tensor.from(device, [1], Int32Array.of(1));
      using output = Tensor.zeros(device, [1, 1]);
      using graph = device.capture(() => operations.embeddingForward(output, table, tokens))!;
      const replay = () => {
        device.replay(graph);
        device.synchronize();
      };
      replay();
      expect(output.toFloat32Array()[0]).toBe(1);
      tokens.upload(Int32Array.of(2));
      expect(replay).toThrow(/^mantou_embedding_forward.*2/);
    });

    test("do not wait: what does is refused, and the device goes on as before", () => {
      using device = openBackend(backend, 1);
      using values = Tensor.from(device, [3], ones(3));
      const refused: [string, () => unknown][] = [
        ["mantou_copy", () => values.toFloat32Array()],
        ["mantou_capture_begin", () => device.capture(() => {})],
      ];
      if (backend === "cpu") refused.push(["mantou_measure_peaks", () => device.peaks()]);
      else {
        refused.push(
          ["mantou_malloc", () => device.allocate(1)],
          ["mantou_malloc_host", () => device.allocateHost(1)],
          ["mantou_synchronize", () => device.synchronize()],
          ["mantou_mark", () => device.run("mantou_mark", 0)],
          ["mantou_wait_for_mark", () => device.run("mantou_wait_for_mark", 0)],
          ["mantou_time_between_marks", () => device.run("mantou_time_between_marks", new Float64Array(1))],
          ["mantou_stream_wait", () => device.run("mantou_stream_wait", 0, 1)],
          ["mantou_copy_async", () => device.run("mantou_copy_async", values, values, 4, 1)],
          ["mantou_free", () => values[Symbol.dispose]()],
        );
      }
      for (const [name, call] of refused) {
        expect(() => device.capture(() => void call())).toThrow(`${name}: called during a capture`);
      }
      using others = Tensor.from(device, [3], ones(3));
      using graph = device.capture(() => operations.add(others, others, others))!;
      const replay = () => device.replay(graph);
      expect(() => device.capture(replay)).toThrow("mantou_graph_replay: called during a capture");
      replay();
      expect([...others.toFloat32Array()]).toEqual([2, 2, 2]);
      graph[Symbol.dispose]();
      expect(replay).toThrow("a graph was used after it was freed");
    });
  });

  describe.each(Object.entries(goldenModels()))("%s", (name, { config, weights }) => {
    const slow = backend === "emulated";
    const trains = !slow || name === "base";

    test.each(trains ? (["keep", "recompute"] as const) : [])(
      "training steps, %s, have the bits of steps that are not replayed",
      (activations) => {
        using pair = devices(backend);
        // More shapes and scales than are kept recorded.
        const [steps, lengths] = slow ? [4, 1] : [12, 3];
        pair.expectSame((device) => {
          using model = new TransformerLM(config, { device, weights, batchSize: 2, precision: "bf16", activations });
          using optimizer = new AdamW(model.parameters());
          const losses: number[] = [];
          for (let step = 0; step < steps; step++) {
            const length = config.contextLength - (step % lengths);
            const [inputs, targets] = [0, 1].map((i) => randomInts([2 * length], 2 * step + i, config.vocabSize).data);
            optimizer.zeroGrad();
            const gradientScale = step % 2 === 0 ? 1 : 0.5;
            losses.push(model.loss(inputs!, targets!, { length }));
            for (let part = 0; part < 2; part++) {
              losses.push(model.lossAndGradients(inputs!, targets!, { length, gradientScale }));
            }
            losses.push(optimizer.clipAndStep(1e-2, step < steps / 2 ? 1 : 2));
          }
          return { losses, values: model.store.values.toFloat32Array() };
        });
        expect(pair.replays()).toBeGreaterThan(steps);
      },
    );

    if (trains)
      test.each([1, 2])("steps of %i parts that are queued have the bits of steps that are not replayed", (parts) => {
        using pair = devices(backend);
        pair.expectSame((device) => {
          const options = { device, weights, batchSize: 2, precision: "bf16" } as const;
          using model = new TransformerLM(config, options);
          using optimizer = new AdamW(model.parameters());
          using stepper = new Stepper(model, optimizer, { parts, maxNorm: 1 });
          const results: unknown[] = [];
          for (let step = 0; step < 4; step++) {
            const tokens = (seed: number) => randomInts([2 * config.contextLength], seed, config.vocabSize).data;
            stepper.queue((part) => ({ inputs: tokens(4 * step + part), targets: tokens(4 * step + part + 2) }), 1e-2);
            if (step > 0) results.push(stepper.finish());
          }
          results.push(stepper.finish());
          return { results, values: model.store.values.toFloat32Array() };
        });
        // A replay for each part, of the last with the update; in the first step that is new, and so is the first part.
        expect(pair.replays()).toBe(3 * parts + parts - 1);
      });

    test("tokens have the logits of tokens that are not generated by replays, whatever comes between", () => {
      using pair = devices(backend);
      pair.expectSame((device) => {
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
      expect(pair.replays()).toBeGreaterThanOrEqual(3);
    });
  });
});
