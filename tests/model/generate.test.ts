/** Text generation: the key/value cache against full recomputation, sampling, and what ends a text. */
import { describe, expect, test } from "bun:test";
import {
  Decoder,
  type GenerateOptions,
  GenerationBatch,
  type ModelConfig,
  NativeError,
  OUT_OF_MEMORY,
  type Precision,
  Random,
} from "@mantou/model";
import { TransformerLM, generate, sampleToken } from "@mantou/model";
import { onEveryBackend } from "../conformance/backends.ts";
import { transformerLm } from "../reference/transformer.ts";
import { type Tolerance, expectClose } from "../support/close.ts";
import { goldenModels } from "../support/golden.ts";
import { randomInts } from "../support/ndarray.ts";

/** Logits may differ by this much of the norm. */
const tolerances: Record<Precision, Tolerance> = { fp32: { norm: 1e-5 }, bf16: { norm: 3e-2 } };

onEveryBackend((_backend, device) => {
  describe("key/value cache", () => {
    for (const [name, { config, weights }] of Object.entries(goldenModels())) {
      const [batch, length] = [3, config.contextLength];
      const tokens = randomInts([batch, length], 1, config.vocabSize);
      const expected = transformerLm(config, weights, tokens);
      /** Tokens first … first + count − 1 of every sequence. */
      const part = (first: number, count: number) =>
        Int32Array.from({ length: batch * count }, (_, i) => {
          return tokens.data[Math.floor(i / count) * length + first + (i % count)];
        });

      for (const [precision, allowed] of Object.entries(tolerances) as [Precision, Tolerance][]) {
        test(`${name}, ${precision}: step by step, in chunks and at once, as the float64 reference`, () => {
          using model = new TransformerLM(config, { device, weights, precision });
          using decoder = new Decoder(model, { batchSize: batch });
          for (const chunk of [1, 5, length]) {
            decoder.reset();
            while (decoder.positions[0] < length) {
              const first = decoder.positions[0];
              const count = Math.min(chunk, length - first);
              // All logits of a chunk one time, the last alone the next.
              const allLogits = first % 2 === 0;
              const logits = decoder.forward(part(first, count), { allLogits });
              const wanted: number[] = [];
              for (let b = 0; b < batch; b++) {
                const [from, to] = [allLogits ? first : first + count - 1, first + count];
                const at = (position: number) => (b * length + position) * config.vocabSize;
                wanted.push(...expected.data.subarray(at(from), at(to)));
              }
              expectClose(logits, wanted, allowed, `logits ${first} … ${first + count - 1}`);
            }
          }
        });

        test(`${name}, ${precision}: sequences that begin and end one by one, in slots in any order`, () => {
          using model = new TransformerLM(config, { device, weights, precision });
          using decoder = new Decoder(model, { batchSize: batch + 1 });
          const at = (b: number, position: number) => (b * length + position) * config.vocabSize;
          const take = (members: [sequence: number, slot: number][], count: number) => {
            const starts = members.map(([, slot]) => decoder.positions[slot]);
            const ids = members.flatMap(([b], i) => {
              return Array.from(tokens.data.subarray(b * length + starts[i], b * length + starts[i] + count));
            });
            const logits = decoder.forward(Int32Array.from(ids), { slots: members.map(([, slot]) => slot) });
            const wanted = members.flatMap(([b], i) => {
              const last = at(b, starts[i] + count - 1);
              return Array.from(expected.data.subarray(last, last + config.vocabSize));
            });
            expectClose(logits, wanted, allowed, `logits of ${JSON.stringify(members)}`);
          };
          // One is read in a piece, a second joins it, a third; the first ends and its slot is used again.
          take([[0, 3]], 7);
          take([[0, 3]], 1);
          take([[1, 0]], 3);
          take(
            [
              [1, 0],
              [0, 3],
            ],
            1,
          );
          take([[2, 1]], 5);
          const all: [number, number][] = [
            [0, 3],
            [2, 1],
            [1, 0],
          ];
          take(all, 1);
          take(all, 4);
          decoder.reset(3);
          expect([...decoder.positions]).toEqual([9, 10, 0, 0]);
          take([[0, 3]], 2);
          take(all, 3);
          expect([...decoder.positions]).toEqual([12, 13, 0, 5]);
        });
      }

      test(`${name}: greedy generation is the argmax of full recomputation`, () => {
        using model = new TransformerLM(config, { device, weights });
        const prompt = Array.from(tokens.data.subarray(0, 3));
        const text = [...prompt];
        while (text.length < length) {
          const logits = model.logits({ shape: [text.length], data: Int32Array.from(text) }).data;
          text.push(argmax(logits.subarray(-config.vocabSize)));
        }
        const generated = generate(model, prompt, { maxTokens: length - prompt.length, temperature: 0 });
        expect([...prompt, ...generated]).toEqual(text);
      });
    }

    test("gives the softmax of each sequence that has a temperature, and the logits of the others", () => {
      const { config, weights } = Object.values(goldenModels())[0];
      using model = new TransformerLM(config, { device, weights });
      const temperatures = [0, 1, 0.25];
      const [plain, softened] = [[], temperatures].map((given) => {
        using decoder = new Decoder(model, { batchSize: 3 });
        // A prompt, and steps that are replayed.
        return [4, 1, 1, 1].map((length, i) => {
          return decoder.forward(randomInts([3 * length], i, config.vocabSize).data, { temperatures: given });
        });
      });
      plain.forEach((logits, i) => {
        const wanted = temperatures.flatMap((temperature, b) => {
          const row = Array.from(logits.subarray(b * config.vocabSize, (b + 1) * config.vocabSize));
          if (temperature === 0) return row;
          const exponentials = row.map((logit) => Math.exp((logit - Math.max(...row)) / temperature));
          const sum = exponentials.reduce((a, b) => a + b);
          return exponentials.map((value) => value / sum);
        });
        expectClose(softened[i], wanted, { norm: 1e-6 }, `forward ${i}`);
      });
    });

    test("refuses temperatures that it could not keep to", () => {
      const { config, weights } = goldenModels().base;
      using model = new TransformerLM({ ...config, logitSoftCap: 5 }, { device, weights });
      using decoder = new Decoder(model, { batchSize: 2 });
      const forward = (options: Parameters<Decoder["forward"]>[1]) => () =>
        decoder.forward(Int32Array.of(1, 2), options);
      expect(forward({ temperatures: [1] })).toThrow("1 temperatures for 2 sequences");
      expect(forward({ temperatures: [0, 0], allLogits: true })).toThrow("not with allLogits");
      expect(forward({ temperatures: [0, 0.5] })).toThrow("logitSoftCap is 5");
      expect(forward({ temperatures: [0, 0] })()).toHaveLength(2 * config.vocabSize);
    });

    test("refuses more than its capacity, ids outside the vocabulary and ragged batches, and goes on unharmed", () => {
      const { config, weights } = goldenModels().base;
      using model = new TransformerLM(config, { device, weights });
      using decoder = new Decoder(model, { batchSize: 2, capacity: 4 });
      const first = decoder.forward(Int32Array.of(1, 2, 3, 4));
      expect(() => decoder.forward(new Int32Array(6))).toThrow("2 + 3 tokens exceed the cache's capacity 4");
      expect(() => decoder.forward(Int32Array.of(0, 97))).toThrow("token 97");
      expect(() => decoder.forward(new Int32Array(3))).toThrow("3 tokens for 2 sequences");
      expect(() => decoder.forward(new Int32Array(0))).toThrow("0 tokens");
      for (const wrong of [0, -1, 1.5, Number.NaN]) {
        expect(() => new Decoder(model, { batchSize: wrong })).toThrow(
          `batchSize must be a whole number of at least 1`,
        );
        expect(() => new Decoder(model, { capacity: wrong })).toThrow(`capacity must be a whole number of at least 1`);
        expect(() => new GenerationBatch(model, wrong)).toThrow(`slots must be a whole number of at least 1`);
      }
      expect(() => decoder.reset(2)).toThrow("there is no slot 2");
      for (const temperature of [-1, Number.NaN, Infinity]) {
        const options = { slots: [0], temperatures: [temperature] };
        expect(() => decoder.forward(Int32Array.of(1), options)).toThrow(`numbers ≥ 0, not ${temperature}`);
      }
      expect(() => new Decoder(model, { capacity: 25 })).toThrow("contextLength 24");
      expect(() => decoder.forward(Int32Array.of(1, 2), { slots: [0, 2] })).toThrow("there is no slot 2");
      expect(() => decoder.forward(Int32Array.of(1, 2), { slots: [1, 1] })).toThrow("slot 1 is given twice");
      expect(() => decoder.forward(Int32Array.of(), { slots: [] })).toThrow("0 tokens for 0 sequences");
      expect([...decoder.positions]).toEqual([2, 2]);
      const rest = decoder.forward(Int32Array.of(5, 6, 7, 8), { allLogits: true });
      decoder.reset();
      expect(decoder.forward(Int32Array.of(1, 2, 3, 4))).toEqual(first);
      expect(decoder.forward(Int32Array.of(5, 6, 7, 8), { allLogits: true })).toEqual(rest);
    });
  });

  test("refuses tokens that are not whole, and logits of tokens that do not fill their shape", () => {
    const { config, weights } = goldenModels().base;
    using model = new TransformerLM(config, { device, weights });
    for (const token of [1.5, Number.NaN, 2 ** 32, -0.5, undefined, "1"]) {
      const prompt = [2, token] as number[];
      expect(() => [...generate(model, prompt, { maxTokens: 1 })]).toThrow(`token ${token} at position 1`);
      if (typeof token !== "number") continue;
      const data = Float32Array.from(prompt);
      expect(() => model.logits({ shape: [2], data })).toThrow(`token ${token} at position 1`);
    }
    for (const [shape, count] of [
      [[2, 3], 12],
      [[2, 3], 5],
      [[], 1],
    ] as const) {
      const given = { shape: [...shape], data: new Int32Array(count) };
      expect(() => model.logits(given)).toThrow(`not [${shape.join(", ")}] with ${count} values`);
    }
  });

  describe("generate", () => {
    const { config, weights } = goldenModels().base;
    const withModel =
      (body: (model: TransformerLM) => void, changed: Partial<ModelConfig> = {}) =>
      () => {
        using model = new TransformerLM({ ...config, ...changed }, { device, weights });
        body(model);
      };

    test(
      "is deterministic in the seed",
      withModel((model) => {
        const run = (seed?: number) => [...generate(model, [1, 2], { maxTokens: 20, seed })];
        expect(run(1)).toEqual(run(1));
        expect(run()).toEqual(run(0));
        expect(run(2)).not.toEqual(run(1));
        expect(run(1).length).toBe(20);
      }),
    );

    test(
      "draws as sampleToken does from the reference's logits",
      withModel((model) => {
        const options = { temperature: 0.7, topP: 0.9 };
        const [random, text] = [new Random(5), [4, 8]];
        for (let i = 0; i < 15; i++) {
          const logits = transformerLm(config, weights, { shape: [text.length], data: text }).data;
          text.push(sampleToken(Float32Array.from(logits.subarray(-config.vocabSize)), options, random.next()));
        }
        expect([4, 8, ...generate(model, [4, 8], { maxTokens: 15, seed: 5, ...options })]).toEqual(text);
      }),
    );

    test(
      "ends before a stop token and at maxTokens",
      withModel((model) => {
        const whole = [...generate(model, [1], { maxTokens: 12, seed: 3 })];
        const stop = whole[7];
        const until = whole.indexOf(stop);
        expect([...generate(model, [1], { maxTokens: 12, seed: 3, stopTokens: [stop] })]).toEqual(
          whole.slice(0, until),
        );
        expect([...generate(model, [1], { maxTokens: 0 })]).toEqual([]);
      }),
    );

    test(
      "goes on past the context, from its second half",
      withModel((model) => {
        const length = config.contextLength;
        const run = (prompt: number[]) => [...generate(model, prompt, { maxTokens: 3 * length, temperature: 0 })];
        // A prompt that fills all but one place: after the first token and the one it leads to, the context is full.
        const prompt = Array.from(randomInts([length - 1], 1, config.vocabSize).data);
        const text = [...prompt, ...run(prompt)];
        expect(text.length).toBe(4 * length - 1);
        const half = text.slice(length + 1 - length / 2, length + 1);
        const expected = transformerLm(config, weights, { shape: [half.length], data: half }).data;
        expect(text[length + 1]).toBe(argmax(expected.subarray(-config.vocabSize)));
        // Of a prompt longer than the context only its end counts.
        expect(run([...randomInts([50], 2, config.vocabSize).data, ...prompt.slice(-1), ...prompt])).toEqual(
          run([...prompt.slice(-1), ...prompt]),
        );
      }),
    );

    test(
      "a context of one token",
      withModel(
        (model) => {
          expect([...generate(model, [1, 2], { maxTokens: 5 })].length).toBe(5);
        },
        { contextLength: 1 },
      ),
    );

    test(
      "a repetition penalty counts the prompt and what was generated",
      withModel((model) => {
        const run = (repetitionPenalty: number) => {
          return [...generate(model, [1, 2, 3], { maxTokens: 20, temperature: 0, repetitionPenalty })];
        };
        // A penalty without end: no token a second time.
        const all = [1, 2, 3, ...run(1e30)];
        expect(new Set(all).size).toBe(all.length);
        expect(new Set(run(1)).size).toBeLessThan(20);
      }),
    );

    test("what there is not enough memory for leaves none of it behind", () => {
      const { allocate } = device;
      /** Runs `work` with memory for one allocation, two, three …, until that is enough. */
      const expectNothingLeft = (work: () => void) => {
        let isEnough = false;
        for (let most = 0; !isEnough; most++) {
          const [before, left] = [device.memory.total, { count: most }];
          device.allocate = (...given) => {
            if (left.count-- === 0) throw new NativeError("no memory", OUT_OF_MEMORY);
            return allocate.apply(device, given);
          };
          try {
            work();
            isEnough = true;
          } catch (error) {
            expect(error).toBeInstanceOf(NativeError);
            expect(device.memory.total).toBe(before);
          } finally {
            device.allocate = allocate;
          }
        }
      };
      using model = new TransformerLM({ ...config, qkNorm: true }, { device, weights });
      expectNothingLeft(() => new Decoder(model)[Symbol.dispose]());
      expectNothingLeft(() => model.prepare());
      const before = device.memory.total;
      expect(() => new TransformerLM(config, { device, seed: -1 })).toThrow("seed must be");
      expect(device.memory.total).toBe(before);
    });

    test(
      "the cache is freed when a text is not read to its end",
      withModel((model) => {
        const { allocate } = device;
        let live = 0;
        device.allocate = (bytes) => {
          const memory = allocate.call(device, bytes);
          const free = memory[Symbol.dispose].bind(memory);
          live++;
          memory[Symbol.dispose] = () => {
            live--;
            free();
          };
          return memory;
        };
        try {
          for (const token of generate(model, [1], { maxTokens: 10 })) {
            expect(token).toBeGreaterThanOrEqual(0);
            expect(live).toBeGreaterThan(0);
            break;
          }
          expect(live).toBe(0);
        } finally {
          device.allocate = allocate;
        }
      }),
    );

    test(
      "names what it cannot do",
      withModel((model) => {
        const run = (prompt: number[], options: object) => () =>
          generate(model, prompt, { maxTokens: 1, ...options }).next();
        expect(run([], {})).toThrow("the prompt is empty");
        expect(run([97], {})).toThrow("token 97");
        expect(run([1], { temperature: -1 })).toThrow("temperature must be a number ≥ 0, not -1");
        expect(run([1], { temperature: Number.NaN })).toThrow("temperature");
        expect(run([1], { topP: 0 })).toThrow("topP must lie in (0, 1], not 0");
        expect(run([1], { topP: 1.1 })).toThrow("topP");
        expect(run([1], { topK: -1 })).toThrow("topK must be a whole number ≥ 0, not -1");
        expect(run([1], { topK: 1.5 })).toThrow("topK");
        expect(run([1], { minP: 1.5 })).toThrow("minP must lie in [0, 1], not 1.5");
        expect(run([1], { repetitionPenalty: 0 })).toThrow("repetitionPenalty must be a number > 0, not 0");
        expect(run([1], { maxTokens: 1.5 })).toThrow("maxTokens");
        expect(run([1], { seed: -1 })).toThrow("seed");
      }),
    );
  });
});

onEveryBackend((_backend, device) => {
  describe("a batch of sequences", () => {
    const { config, weights } = goldenModels()["grouped-query"];
    const length = config.contextLength;
    /** Prompts of many lengths, one longer than the context, each with options of its own. */
    const jobs: [number[], GenerateOptions][] = [3, 1, 2 * length, 7, length - 1, 3, 12].map((count, i) => [
      Array.from(randomInts([count], i, config.vocabSize).data),
      { maxTokens: [9, 40, 5, 1, 20, 9, 0][i], seed: i, temperature: i % 2 === 0 ? 0.9 : 0, topK: [0, 0, 5][i % 3] },
    ]);

    test("says what each would say alone, whenever they come and go", () => {
      using model = new TransformerLM(config, { device, weights });
      const alone = jobs.map(([prompt, options]) => [...generate(model, prompt, options)]);
      // A stop token cuts the second one short.
      jobs[1][1].stopTokens = [alone[1][6]];
      const cut = alone[1].indexOf(alone[1][6]);
      alone[1].length = cut;
      using batch = new GenerationBatch(model, 3);
      const texts: number[][] = jobs.map(() => []);
      const sequences: (ReturnType<typeof batch.add> | undefined)[] = jobs.map(() => undefined);
      let next = 0;
      while (next < jobs.length || batch.size > 0) {
        // One joins at most every other step.
        if (next < jobs.length && batch.size < batch.slots) sequences[next] = batch.add(...jobs[next++]);
        for (let i = 0; i < 2; i++) {
          for (const { sequence, token } of batch.step()) texts[sequences.indexOf(sequence)].push(token);
        }
      }
      expect(texts).toEqual(alone);
      expect(sequences.map((sequence) => sequence?.finish)).toEqual(jobs.map((_, i) => (i === 1 ? "stop" : "length")));
      sequences.forEach((sequence, i) => expect(sequence?.tokens).toEqual([...jobs[i][0], ...alone[i]]));
    });

    test("has room again when one ends or is taken away, and refuses more than its slots", () => {
      using model = new TransformerLM(config, { device, weights });
      using batch = new GenerationBatch(model, 2);
      const first = batch.add([1], { maxTokens: 50 });
      batch.add([2], { maxTokens: 2 });
      expect(() => batch.add([3], { maxTokens: 1 })).toThrow("all 2 slots are taken");
      expect(() => batch.add([], { maxTokens: 1 })).toThrow("the prompt is empty");
      batch.step();
      batch.step();
      expect(batch.size).toBe(1);
      batch.add([3], { maxTokens: 50 });
      batch.remove(first);
      batch.remove(first);
      expect(batch.size).toBe(1);
      expect(first.finish).toBeUndefined();
      batch.add([4], { maxTokens: 50 });
      expect(batch.step()).toHaveLength(2);
      expect(() => batch.add([5], { maxTokens: 1 })).toThrow("all 2 slots");
    });

    test("a long prompt is read in pieces while the others go on", () => {
      const long = { ...config, contextLength: 700 };
      using model = new TransformerLM(long, { device, seed: 3 });
      const prompt = Array.from(randomInts([600], 9, config.vocabSize).data);
      const logits = model.logits({ shape: [600], data: Int32Array.from(prompt) }).data.subarray(-config.vocabSize);
      using batch = new GenerationBatch(model, 2);
      const other = batch.add([1], { maxTokens: 9 });
      const reader = batch.add(prompt, { maxTokens: 1, temperature: 0 });
      expect([0, 1, 2].map(() => batch.step().length)).toEqual([1, 1, 2]);
      expect(other.tokens).toHaveLength(4);
      expect(reader.tokens.at(-1)).toBe(argmax(logits));
    });
  });
});

function argmax(values: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
