/** Calls that an operation refuses, leaving memory as it was. */
import { describe, expect, test } from "bun:test";
import { type Device, Tensor } from "@mantou/model";
import { expectClose } from "../../support/close.ts";
import { zeros } from "../../support/ndarray.ts";
import { onEveryType } from "../backends.ts";
import { DTYPES, Workbench } from "../workbench.ts";

onEveryType((subject) => {
  const { device, type } = subject;
  const DTYPE = DTYPES[type];

  describe("refuses", () => {
    const refuses = (name: string, call: (on: Device, tensor: Tensor) => void, text: RegExp) => {
      test(name, () => {
        using bench = new Workbench(device);
        const tensor = bench.from(zeros([64]));
        expect(() => call(device, tensor)).toThrow(text);
        expectClose(tensor.toFloat32Array(), new Float32Array(64), { absolute: 0 }, "memory after a refused call");
      });
    };

    const tokens = (values: number[]) => Int32Array.from(values);

    refuses("negative sizes", (on, t) => on.run("mantou_add", DTYPE, -1, t, t, t), /mantou_add.*-1/);
    refuses("null pointers", (on, t) => on.run("mantou_add", DTYPE, 4, t, null, t), /mantou_add.*null/);
    refuses("an unknown dtype", (on, t) => on.run("mantou_add", 7, 4, t, t, t), /mantou_add.*dtype.*7/);
    refuses(
      "row strides shorter than rows",
      (on, t) => {
        on.run("mantou_matmul", 0, 0, 2, 3, 4, DTYPE, t, 3, t, 3, DTYPE, t, 3, 0);
      },
      /mantou_matmul.*lda.*3/,
    );
    refuses(
      "a token outside the vocabulary, backward too",
      (on, t) => {
        const ids = new Int32Array(1025); // a GPU sorts 1,024 at a time, and the last row's counters follow token 3's
        ids[1] = 4;
        using given = Tensor.from(on, [ids.length], ids);
        using workspace = Tensor.zeros(on, [2048]);
        using dOutput = Tensor.zeros(on, [ids.length * 2]);
        on.run("mantou_embedding_backward", DTYPE, ids.length, 4, 2, given, dOutput, t, workspace);
        on.synchronize(); // a GPU says so when it has come to it
      },
      /mantou_embedding_backward.*4/,
    );
    refuses("a fill value that is no byte", (on, t) => on.run("mantou_fill", t, 256, 4), /mantou_fill.*256/);
    refuses(
      "key/value heads that do not divide the heads",
      (on, t) => {
        on.run("mantou_attention_forward", DTYPE, 1, 1, 3, 2, 2, 1, t, 6, t, t, 4, null, null, t, t);
      },
      /mantou_attention_forward.*(3.*2|2.*3)/,
    );
    refuses(
      "a cache that is full",
      (on, t) => {
        const sizes = [1, 4, 1, 1, 2, 1] as const;
        using starts = Tensor.from(on, [1], Int32Array.of(3));
        on.run("mantou_attention_cached", DTYPE, 1, 2, starts, null, ...sizes, t, 2, t, t, 2, null, t, t, t);
        on.synchronize();
      },
      /mantou_attention_cached.*4/,
    );
    refuses(
      "a slot that the cache does not have",
      (on, t) => {
        const sizes = [2, 1024, 1, 1, 2, 1] as const;
        using starts = Tensor.from(on, [1], Int32Array.of(0));
        using slots = Tensor.from(on, [1], Int32Array.of(2));
        on.run("mantou_attention_cached", DTYPE, 1, 1, starts, slots, ...sizes, t, 2, t, t, 2, null, t, t, t);
        on.synchronize();
      },
      /mantou_attention_cached.*slot 2/,
    );
    refuses(
      "an update of bfloat16 weights without their float32 copy",
      (on, t) => {
        on.run("mantou_adamw", DTYPES.bfloat16, 4, t, null, t, t, t, t, null, 0.9, 0.9, 1e-8, 1, tokens([4, 0]), t);
      },
      /mantou_adamw.*master/,
    );
    // The CPU would go through them.
    if (subject.backend !== "cpu") {
      const most = 2 ** 30;
      refuses(
        "more sequences than a grid has blocks, with the operation, its sizes and the grid",
        // Five heads of 2^30 sequences are 2^30 blocks more than 32 bits count.
        (on, t) => on.run("mantou_attention_forward", DTYPE, most, 1, 5, 5, 2, 1, t, 10, t, t, 10, null, null, t, t),
        /^mantou_attention_forward: .*4294967295.*, called as mantou_attention_forward\([01], 1073741824, 1, 5, 5, 2, /,
      );
      refuses(
        "more rows than a grid has blocks",
        (on, t) => on.run("mantou_softmax", DTYPE, 2 * most, 1, 1, t, t),
        /^mantou_softmax: .*4294967295.*, called as mantou_softmax\([01], 2147483648, 1, 1, …, …\)$/,
      );
    }
  });
});
