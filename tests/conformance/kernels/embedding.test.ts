/** Rows of an embedding, and the gradients that are added to them. See ../workbench.ts. */
import { describe, test } from "bun:test";
import { operations } from "@mantou/model";
import * as ops from "../../reference/ops.ts";
import { randomInts, randomNormal } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { normalIn } from "../inputs.ts";
import { type Workbench, verify } from "../workbench.ts";

onEveryType((subject) => {
  const { type } = subject;
  const normal = normalIn(type);

  describe("embedding", () => {
    const cases: [rows: number, vocabSize: number, dim: number, inTurn?: boolean][] = [
      [1, 1, 1],
      [17, 3, 65],
      [203, 113, 17],
      [2000, 7, 33],
      [65, 4099, 3],
      [300, 7, 64],
      [40, 300, 1032],
      [97, 3, 64, true], // tokens that occur 33, 32 and 32 times
      [1360, 40, 8, true], // many tokens that occur often
    ];
    for (const [rows, vocabSize, dim, inTurn = false] of cases) {
      test(`${rows} rows of [${vocabSize}, ${dim}]; backward adds, repeated tokens too`, () => {
        const weights = normal([vocabSize, dim], 4);
        const [tokens, d] = [randomInts([rows], 1, vocabSize), normal([rows, dim], 2, 0.1)];
        if (inTurn) tokens.data.forEach((_, row) => (tokens.data[row] = row % vocabSize));
        const before = randomNormal([vocabSize, dim], 3);
        const expected = Float64Array.from(before.data);
        tokens.data.forEach((token, row) => {
          for (let i = 0; i < dim; i++) expected[token * dim + i] += d.data[row * dim + i];
        });
        const run = (bench: Workbench) => {
          const dWeight = bench.from(before, "float32");
          const bytes = bench.device.size("mantou_embedding_backward_workspace", rows, vocabSize, dim);
          operations.embeddingBackward(dWeight, bench.from(d), bench.from(tokens), bench.workspace(bytes));
          const [weight, output] = [bench.from(weights), bench.poisoned([rows, dim])];
          operations.embeddingForward(output, weight, bench.from(tokens));
          return { dWeight, output };
        };
        verify(subject, run, { dWeight: expected, output: ops.embedding(weights, tokens) });
      });
    }
  });
});
