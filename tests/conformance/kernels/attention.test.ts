/**
 * Causal attention over packed rows, forward, backward and with a cache: every head size and length, grouped-query,
 * rotated or not, at given positions, against float64, in every type. See ../workbench.ts for how each is run.
 */
import { describe, expect, test } from "bun:test";
import { type Tensor, operations, ropeTable } from "@mantou/model";
import { type PackedAttention, packedAttention, packedAttentionBackward } from "../../reference/gradients.ts";
import * as ops from "../../reference/ops.ts";
import { type FloatArray, floats, ints, randomInts } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { normalIn } from "../inputs.ts";
import { DTYPES, Workbench, verify } from "../workbench.ts";

const THETA = 1e4;

/** The operation's shape for the reference's, with the table of angles up to `positions` that it needs. */
function shapeOn(bench: Workbench, shape: PackedAttention, positions: number) {
  const { batch, length, heads, kvHeads, headDim, rope } = shape;
  const table = rope ? ropeTable(bench.device, positions, headDim, { ropeTheta: rope.theta }) : null;
  const given = rope?.positions ? bench.from(ints([batch, length], rope.positions)) : null;
  return {
    shape: { batch, length, heads, kvHeads, headDim, rope: table, positions: given },
    [Symbol.dispose]: () => table?.[Symbol.dispose](),
  };
}

onEveryType((subject) => {
  const { device, type } = subject;
  const DTYPE = DTYPES[type];
  const normal = normalIn(type);
  const single = new Float32Array(1);
  const word = new Uint32Array(single.buffer);
  /** The reference with every intermediate result in bfloat16. */
  const naively = (shape: PackedAttention): PackedAttention => ({
    ...shape,
    round: (value) => {
      single[0] = value;
      word[0] = (word[0]! + 0x7fff + ((word[0]! >>> 16) & 1)) & 0xffff0000;
      return single[0]!;
    },
  });

  const shapes: (Omit<PackedAttention, "rope"> & { note?: string })[] = [
    { batch: 1, length: 1, heads: 1, kvHeads: 1, headDim: 2 },
    { batch: 3, length: 1, heads: 4, kvHeads: 2, headDim: 16 },
    { batch: 2, length: 17, heads: 3, kvHeads: 1, headDim: 6 },
    { batch: 2, length: 64, heads: 4, kvHeads: 4, headDim: 16 },
    { batch: 1, length: 65, heads: 4, kvHeads: 2, headDim: 32 },
    { batch: 3, length: 65, heads: 3, kvHeads: 1, headDim: 6 }, // a GPU takes them together by five: five, and four
    { batch: 2, length: 77, heads: 2, kvHeads: 1, headDim: 64 },
    { batch: 1, length: 128, heads: 1, kvHeads: 1, headDim: 32 },
    { batch: 5, length: 33, heads: 2, kvHeads: 1, headDim: 32 },
    { batch: 1, length: 129, heads: 2, kvHeads: 1, headDim: 64 },
    { batch: 1, length: 193, heads: 2, kvHeads: 2, headDim: 128 },
    { batch: 1, length: 193, heads: 6, kvHeads: 3, headDim: 10 },
    { batch: 1, length: 300, heads: 1, kvHeads: 1, headDim: 34 },
    { batch: 1, length: 256, heads: 6, kvHeads: 6, headDim: 16 },
    { batch: 1, length: 257, heads: 2, kvHeads: 1, headDim: 16 },
    { batch: 1, length: 257, heads: 1, kvHeads: 1, headDim: 32 },
    { batch: 3, length: 33, heads: 8, kvHeads: 2, headDim: 8 },
    { batch: 1, length: 40, heads: 1, kvHeads: 1, headDim: 256 },
  ];
  for (const sizes of shapes) {
    const { batch, length, heads, kvHeads, headDim } = sizes;
    const rows = batch * length;
    const width = (heads + 2 * kvHeads) * headDim;
    describe(`[${batch}, ${length}], ${heads} heads on ${kvHeads} of ${headDim}`, () => {
      const qkv = normal([rows, width], 1, 1.5);
      const d = normal([rows, heads * headDim], 2);
      const positions = randomInts([rows], 3, 500).data;
      const ropes = {
        "no rope": undefined,
        rope: { theta: THETA },
        "rope at given positions": { theta: THETA, positions },
        "rope at given positions, beforehand": { theta: THETA, positions },
      };
      for (const [name, rope] of Object.entries(ropes)) {
        const rotated = name.endsWith("beforehand");
        if (rotated && ![17, 65, 77, 193].includes(length)) continue;
        test(`forward and backward, ${name}`, () => {
          const shape = { ...sizes, rope };
          const run = (bench: Workbench) => {
            using on = shapeOn(bench, shape, 500);
            const output = bench.poisoned([rows, heads * headDim]);
            const lse = bench.poisoned([batch, heads, length], "float32");
            const packed = bench.from(qkv);
            if (rotated) operations.rotatePacked(packed, on.shape);
            operations.attentionForward(output, lse, packed, rotated ? { ...on.shape, rope: null } : on.shape);
            const dims = [batch, length, heads, kvHeads, headDim] as const;
            const workspace = bench.workspace(bench.device.size("mantou_attention_backward_workspace", ...dims));
            const dQkv = bench.poisoned([rows, width]);
            operations.attentionBackward(
              dQkv,
              { dOutput: bench.from(d), qkv: packed, output, lse, workspace, rotated },
              on.shape,
            );
            return { output, lse, dQkv };
          };
          const reference = (of: PackedAttention) => ({
            ...packedAttention(qkv, of),
            dQkv: packedAttentionBackward(d, qkv, of),
          });
          const naive = type === "float32" ? {} : reference(naively(shape));
          verify(subject, run, reference(shape), { relative: 1e-4, absolute: 3e-5 }, naive);
        });
      }

      // The emulator takes seconds for hundreds of steps.
      for (const rotated of subject.backend === "emulated" && length > 100 ? [] : [false, true]) {
        test(`with a cache, token by token and in chunks, ${rotated ? "rope" : "no rope"}`, () => {
          const shape = { ...sizes, rope: rotated ? { theta: THETA } : undefined };
          const capacity = length + 3;
          const chunks = [length, 1, 5, Math.ceil(length / 2)].filter((chunk) => chunk <= length);
          const run = (bench: Workbench) => {
            using on = shapeOn(bench, shape, capacity);
            const results: Record<string, Tensor> = {};
            // Short sequences go through in every way; of long ones only the last tokens come one by one.
            for (const chunk of new Set(chunks)) {
              const cache = [0, 1].map(() => bench.poisoned([batch, capacity, kvHeads * headDim]));
              const output = bench.poisoned([rows, heads * headDim]);
              let start = 0;
              while (start < length) {
                const rest = length - start;
                const count = start === 0 && chunk === 1 && length > 40 ? length - 20 : Math.min(chunk, rest);
                const [part, attended] = [
                  bench.poisoned([batch * count, width]),
                  bench.poisoned([batch * count, heads * headDim]),
                ];
                const part32 = new Float32Array(part.count);
                for (let b = 0; b < batch; b++) {
                  const from = (b * length + start) * width;
                  part32.set(qkv.data.subarray(from, from + count * width), b * count * width);
                }
                part.upload(part32);
                const starts = bench.from({ shape: [batch], data: new Int32Array(batch).fill(start) });
                const given = { qkv: part, kCache: cache[0], vCache: cache[1], capacity, starts };
                operations.attentionCached(attended, given, { ...on.shape, length: count });
                for (let b = 0; b < batch; b++) {
                  output.slice(b * length + start, count).copyFrom(attended.slice(b * count, count));
                }
                start += count;
              }
              results[`chunks of ${chunk}`] = output;
            }
            return results;
          };
          const forEach = ({ output }: ReturnType<typeof packedAttention>) =>
            Object.fromEntries([...new Set(chunks)].map((chunk) => [`chunks of ${chunk}`, output]));
          const naive = type === "float32" ? {} : forEach(packedAttention(qkv, naively(shape)));
          verify(subject, run, forEach(packedAttention(qkv, shape)), undefined, naive);
        });
      }
    });
  }

  test("rows that start at no multiple of 16 bytes", () => {
    const sizes = { batch: 1, length: 40, heads: 2, kvHeads: 1, headDim: 32 };
    const shape: PackedAttention = { ...sizes, rope: { theta: THETA } };
    const [qkv, d] = [normal([40, 128], 1), normal([40, 64], 2)];
    const run = (bench: Workbench) => {
      using on = shapeOn(bench, shape, 40);
      const odd = (rows: number, width: number) => bench.poisoned([rows * width + 1]).view([rows, width], 1);
      const [packed, dOutput, output, dQkv] = [odd(40, 128), odd(40, 64), odd(40, 64), odd(40, 128)];
      packed.upload(qkv.data);
      dOutput.upload(d.data);
      const lse = bench.poisoned([1, 2, 40], "float32");
      operations.attentionForward(output, lse, packed, on.shape);
      const workspace = bench.workspace(bench.device.size("mantou_attention_backward_workspace", 1, 40, 2, 1, 32));
      operations.attentionBackward(dQkv, { dOutput, qkv: packed, output, lse, workspace }, on.shape);
      return { output, lse, dQkv };
    };
    const reference = (of: PackedAttention) => ({
      ...packedAttention(qkv, of),
      dQkv: packedAttentionBackward(d, qkv, of),
    });
    const naive = type === "float32" ? {} : reference(naively(shape));
    verify(subject, run, reference(shape), { relative: 1e-4, absolute: 3e-5 }, naive);
  });

  /** Forward and backward of heads without rope. */
  const forwardAndBackward = (bench: Workbench, shape: PackedAttention, qkv: FloatArray, d: FloatArray) => {
    const { batch, length, heads, kvHeads, headDim } = shape;
    using on = shapeOn(bench, shape, length);
    const [output, dQkv] = [bench.poisoned(d.shape), bench.poisoned(qkv.shape)];
    const [lse, packed] = [bench.poisoned([batch, heads, length], "float32"), bench.from(qkv)];
    operations.attentionForward(output, lse, packed, on.shape);
    const sizes = [batch, length, heads, kvHeads, headDim] as const;
    const workspace = bench.workspace(bench.device.size("mantou_attention_backward_workspace", ...sizes));
    operations.attentionBackward(dQkv, { dOutput: bench.from(d), qkv: packed, output, lse, workspace }, on.shape);
    return { output, lse, dQkv };
  };

  // Kernels walk from a query's own key to the first one, and may follow the greatest score late.
  for (const headDim of [32, 64, 128]) {
    test(`scores that grow towards the first key, by little and by much, heads of ${headDim}`, () => {
      const [length, width] = [328, 3 * headDim];
      const shape: PackedAttention = { batch: 1, length, heads: 1, kvHeads: 1, headDim };
      const [qkv, d] = [normal([length, width], 1), normal([length, headDim], 2)];
      const greatest = [100, 12, 6, 4, 3, 0]; // in keys 0 to 63, 64 to 127 and so on, for queries of 1
      for (let row = 0; row < length; row++) {
        const query = 0.5 + (row % 3) / 2;
        for (let i = 0; i < headDim; i++) {
          qkv.data[row * width + i] = query;
          // one of 16 keys has the greatest score; a sixteenth is exact in bfloat16
          const score = row % 16 === 5 ? greatest[row >> 6]! : -1;
          qkv.data[row * width + headDim + i] = Math.round((16 * score) / Math.sqrt(headDim)) / 16;
        }
      }
      const run = (bench: Workbench) => forwardAndBackward(bench, shape, qkv, d);
      const reference = (of: PackedAttention) => ({
        ...packedAttention(qkv, of),
        dQkv: packedAttentionBackward(d, qkv, of),
      });
      const naive = type === "float32" ? {} : reference(naively(shape));
      verify(subject, run, reference(shape), { relative: 1e-4, absolute: 1e-4 }, naive);
    });
  }

  test("scores of 1e4, exact in float32: finite forward and backward", () => {
    const shape: PackedAttention = { batch: 1, length: 33, heads: 2, kvHeads: 1, headDim: 16 };
    const { data } = randomInts([33, 64], 1, 101);
    const qkv = floats(
      [33, 64],
      Float32Array.from(data, (value) => value - 50),
    );
    const d = normal([33, 32], 2);
    const run = (bench: Workbench) => forwardAndBackward(bench, shape, qkv, d);
    const dQkv = packedAttentionBackward(d, qkv, shape);
    // Where a score is all there is to a row, exp(score − lse) carries the rounding of lse, 1e-3 at 1e4.
    verify(subject, run, { ...packedAttention(qkv, shape), dQkv }, { relative: 1e-3, absolute: 0.05 });
  });

  // Heads of few sequences may be split among blocks, 256 keys of a full cache or more to each.
  for (const [headDim, capacity] of [
    [16, 1100],
    [64, 520],
    [34, 780],
    [64, 511],
  ] as const) {
    test(`single tokens behind 0 to ${capacity - 1} keys of ${headDim}`, () => {
      const edges = [0, 1, 31, 63, 127, 128, 255, 256, 511, 512, 767, 1023, 1098];
      const starts = [...edges.filter((start) => start < capacity - 1), capacity - 1];
      const [batch, heads] = [starts.length, 2];
      const qkv = normal([batch, 4 * headDim], 1, 1.5);
      const caches = [2, 3].map((seed) => normal([batch * capacity, headDim], seed, 1.5));
      // The last key of every second cache outweighs all others for the first head.
      starts.forEach((start, b) => {
        if (b % 2 === 0) return;
        const [query, at] = [4 * b * headDim, (b * capacity + start - 1) * headDim];
        for (let c = 0; c < headDim; c++) caches[0]!.data[at + c] = 32 * qkv.data[query + c]!;
      });
      const run = (bench: Workbench) => {
        const output = bench.poisoned([batch, heads * headDim]);
        const [kCache, vCache] = caches.map((cache) => bench.poisoned(cache.shape));
        // What lies behind the last key must not be read.
        starts.forEach((start, b) =>
          [kCache!, vCache!].forEach((tensor, i) => {
            if (start === 0) return;
            const from = b * capacity * headDim;
            tensor.slice(b * capacity, start).upload(caches[i]!.data.subarray(from, from + start * headDim));
          }),
        );
        const given = { qkv: bench.from(qkv), kCache: kCache!, vCache: vCache!, capacity };
        const shape = { batch, length: 1, heads, kvHeads: 1, headDim, rope: null };
        operations.attentionCached(output, { ...given, starts: bench.from(ints([batch], starts)) }, shape);
        return { output };
      };
      const outputs = starts.flatMap((start, b) => {
        const rows = (cache: number, column: number) =>
          Float32Array.of(
            ...caches[cache]!.data.subarray(b * capacity * headDim, (b * capacity + start) * headDim),
            ...qkv.data.subarray((4 * b + column) * headDim, (4 * b + column + 1) * headDim),
          );
        const [k, v] = [rows(0, 2), rows(1, 3)].map((data) => floats([1, start + 1, headDim], data));
        const q = floats([1, heads, headDim], qkv.data.slice(4 * b * headDim, (4 * b + heads) * headDim));
        return [...ops.scaledDotProductAttention(q, k!, v!).data];
      });
      const expected = floats([batch, heads * headDim], Float32Array.from(outputs));
      verify(subject, run, { output: expected }, { relative: 1e-4, absolute: 3e-5 });
    });
  }

  test("masked attention", () => {
    const [q, k, v] = [
      [3, 77, 33],
      [3, 65, 33],
      [3, 65, 129],
    ].map((shape, i) => normal(shape, i));
    const mask = Uint8Array.from(randomInts([3 * 77 * 65], 4, 2).data);
    verify(
      subject,
      (bench) => {
        const output = bench.poisoned([3, 77, 129]);
        operations.attentionMasked(output, bench.from(q), bench.from(k), bench.from(v), mask);
        return { output };
      },
      { output: ops.scaledDotProductAttention(q, k, v, { shape: [3, 77, 65], data: mask }) },
    );
  });

  test("rope turns back with the inverse angle", () => {
    using bench = new Workbench(device, type);
    using table = ropeTable(device, 50, 6, { ropeTheta: THETA });
    const x = normal([7, 12], 1);
    const [input, turned, back] = [bench.from(x), bench.poisoned([7, 12]), bench.poisoned([7, 12])];
    const positions = bench.from(randomInts([7], 2, 50));
    device.run("mantou_rope", DTYPE, 7, 7, 2, 6, table, positions, input, 12, turned, 12, 0);
    device.run("mantou_rope", DTYPE, 7, 7, 2, 6, table, positions, turned, 12, back, 12, 1);
    const values = back.toFloat32Array();
    x.data.forEach((value, i) => expect(Math.abs(values[i] - value)).toBeLessThan(type === "float32" ? 1e-5 : 2 ** -6));
    expect(turned.toFloat32Array()).not.toEqual(x.data);
  });
});
