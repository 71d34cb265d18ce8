/** Every adapter of the model side against what PyTorch gives. */
import { describe, test } from "bun:test";
import * as adapters from "../adapters.ts";
import { expectClose } from "../support/close.ts";
import { type OperationCases, goldenOperation } from "../support/golden.ts";
import type { NdArray } from "../support/ndarray.ts";
import { onEveryBackend } from "./backends.ts";
import { rounding } from "./inputs.ts";

onEveryBackend((backend) => {
  describe("PyTorch's goldens", () => {
    type WithOutput = Exclude<keyof OperationCases, "crossEntropy" | "gradientClipping" | "adamw" | "lrCosineSchedule">;
    const run: { [Name in WithOutput]: (options: OperationCases[Name]["options"]) => NdArray } = {
      linear: (options) => adapters.runLinear({ backend, ...options }),
      embedding: (options) => adapters.runEmbedding({ backend, ...options }),
      rmsnorm: (options) => adapters.runRmsnorm({ backend, ...options }),
      silu: (options) => adapters.runSilu({ backend, ...options }),
      swiglu: (options) => adapters.runSwiglu({ backend, ...options }),
      softmax: (options) => adapters.runSoftmax({ backend, ...options }),
      scaledDotProductAttention: (options) => adapters.runScaledDotProductAttention({ backend, ...options }),
      rope: (options) => adapters.runRope({ backend, ...options }),
      multiheadSelfAttention: (options) => adapters.runMultiheadSelfAttention({ backend, ...options }),
      multiheadSelfAttentionWithRope: (options) => adapters.runMultiheadSelfAttentionWithRope({ backend, ...options }),
      transformerBlock: (options) => adapters.runTransformerBlock({ backend, ...options }),
    };
    for (const operation of Object.keys(run) as WithOutput[]) {
      // One operation's own types are lost in this loop over all of them; the table above has checked them.
      const adapter = run[operation] as (options: unknown) => NdArray;
      for (const [name, { options, output }] of Object.entries(goldenOperation(operation))) {
        test(`${operation}: ${name}`, () => {
          expectClose(adapter(options), output, rounding);
        });
      }
    }

    for (const [name, { options, output }] of Object.entries(goldenOperation("crossEntropy"))) {
      test(`crossEntropy: ${name}`, () => {
        expectClose([adapters.runCrossEntropy({ backend, ...options })], [output], { relative: 1e-6 });
      });
    }

    for (const [name, { options, output }] of Object.entries(goldenOperation("gradientClipping"))) {
      test(`gradientClipping: ${name}`, () => {
        adapters.runGradientClipping({ backend, ...options });
        options.gradients.forEach((gradient, i) => expectClose(gradient, output[i], { relative: 1e-6 }));
      });
    }

    for (const [name, { settings, parameters }] of Object.entries(goldenOperation("adamw"))) {
      test(`AdamW: ${name}`, () => {
        const mine = parameters.map(({ value }) => ({ value, grad: null as NdArray | null }));
        const optimizer = new (adapters.getAdamWClass())(mine, { backend, ...settings });
        for (let step = 0; step < parameters[0].grads.length; step++) {
          parameters.forEach(({ grads }, p) => (mine[p].grad = grads[step]));
          optimizer.step();
          parameters.forEach(({ values }, p) => expectClose(mine[p].value, values[step], { absolute: 1e-6 }));
        }
      });
    }

    for (const [name, { options, rates }] of Object.entries(goldenOperation("lrCosineSchedule"))) {
      test(`cosine schedule: ${name}`, () => {
        const mine = rates.map((_, it) => adapters.runGetLrCosineSchedule({ it, ...options }));
        expectClose(mine, rates, { absolute: 1e-15 });
      });
    }
  });
});
