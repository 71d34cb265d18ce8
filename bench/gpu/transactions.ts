/**
 * What the kernels ask of a GPU's memory, counted on the emulator at the shapes of the 17M and the 124M model, with few
 * rows. Then the lines that ask for more than they need. No GPU is needed, and nothing is timed.
 *
 * Counted is what the source says, in accesses of at most 16 bytes: how nvcc merges and splits them, and what the caches
 * hold, is not known here.
 * Usage: bun bench/gpu/transactions.ts [PATTERN]   (only the operations whose names match)
 */
import { type Device, Tensor, openDevice, operations, ropeTable } from "@mantou/model";
import { formatTable } from "../../packages/train/src/terminal/format.ts";
import { type Launch, buildCountingLibrary, countLaunches, total } from "../../tests/emulator/transactions.ts";
import { randomInts, randomNormal } from "../../tests/support/ndarray.ts";

interface Case {
  /** Bytes that must move (kernels/cuda/README.md), without statistics, losses and tables. */
  floor: number;
  /** Prepares the operation; what it returns does it. */
  prepare(device: Device): () => void;
}

const bf16 = (device: Device, ...shape: number[]) =>
  Tensor.from(device, shape, randomNormal(shape, shape[0]!).data, "bfloat16");
const fp32 = (device: Device, ...shape: number[]) => Tensor.from(device, shape, randomNormal(shape, shape[0]!).data);
const ids = (device: Device, rows: number, limit: number) =>
  Tensor.from(device, [rows], randomInts([rows], 1, limit).data);
const scratch = (device: Device, bytes: number) => Tensor.zeros(device, [bytes / 4]);

const cases: Record<string, Case> = {};

for (const [rows, dim] of [
  [128, 512],
  [128, 768],
] as const) {
  cases[`RMSNorm with residual [${rows}, ${dim}]`] = {
    floor: 8 * rows * dim,
    prepare(device) {
      const [input, residual, sum, output] = Array.from({ length: 4 }, () => bf16(device, rows, dim));
      const [gain, rstd] = [bf16(device, dim), fp32(device, rows)];
      const given = { input: input!, residual: residual!, gain, eps: 1e-5 };
      return () => operations.rmsnormForward({ output: output!, sum: sum!, rstd }, given);
    },
  };
  cases[`RMSNorm backward [${rows}, ${dim}]`] = {
    floor: 8 * rows * dim,
    prepare(device) {
      const [dOutput, x, dResidual, dInput] = Array.from({ length: 4 }, () => bf16(device, rows, dim));
      const [gain, rstd, dGain] = [bf16(device, dim), fp32(device, rows), fp32(device, dim)];
      const workspace = scratch(device, device.size("mantou_rmsnorm_backward_workspace", rows, dim));
      const given = { dOutput: dOutput!, x: x!, gain, rstd, dResidual: dResidual!, workspace };
      return () => operations.rmsnormBackward({ dInput: dInput!, dGain }, given);
    },
  };
}

for (const [rows, dim] of [
  [32, 1344],
  [32, 2048],
] as const) {
  cases[`SwiGLU [${rows}, ${dim}]`] = {
    floor: 6 * rows * dim,
    prepare(device) {
      const [gateUp, output] = [bf16(device, rows, 2 * dim), bf16(device, rows, dim)];
      return () => operations.swigluForward(output, gateUp);
    },
  };
  cases[`SwiGLU backward [${rows}, ${dim}]`] = {
    floor: 10 * rows * dim,
    prepare(device) {
      const [gateUp, dOutput, dGateUp] = [
        bf16(device, rows, 2 * dim),
        bf16(device, rows, dim),
        bf16(device, rows, 2 * dim),
      ];
      return () => operations.swigluBackward(dGateUp, dOutput, gateUp);
    },
  };
}

for (const [rows, vocabSize, columns] of [
  [4, 10_000, 10_112],
  [2, 50_257, 50_304],
] as const)
  cases[`cross-entropy [${rows}, ${vocabSize}]`] = {
    floor: 4 * rows * vocabSize,
    prepare(device) {
      const [losses, logits, targets] = [fp32(device, rows), bf16(device, rows, columns), ids(device, rows, vocabSize)];
      return () => operations.crossEntropy(losses, logits, targets, 1 / rows, { vocabSize });
    },
  };

for (const [rows, vocabSize, dim] of [
  [2048, 400, 512],
  [256, 50_304, 768],
] as const) {
  const tokens = randomInts([rows], 1, vocabSize).data;
  cases[`embedding [${rows}, ${dim}] of ${vocabSize}`] = {
    floor: 4 * rows * dim,
    prepare(device) {
      const [output, weight] = [bf16(device, rows, dim), bf16(device, vocabSize, dim)];
      const given = ids(device, rows, vocabSize);
      return () => operations.embeddingForward(output, weight, given);
    },
  };
  cases[`embedding backward [${rows}, ${dim}] of ${vocabSize}`] = {
    floor: 2 * rows * dim + 8 * new Set(tokens).size * dim,
    prepare(device) {
      const [dOutput, dWeight] = [bf16(device, rows, dim), fp32(device, vocabSize, dim)];
      const workspace = scratch(device, device.size("mantou_embedding_backward_workspace", rows, vocabSize, dim));
      const given = ids(device, rows, vocabSize);
      return () => operations.embeddingBackward(dWeight, dOutput, given, workspace);
    },
  };
}

const COUNT = 1 << 16;
cases["gradient norm"] = {
  floor: 4 * COUNT,
  prepare(device) {
    const [result, gradients] = [fp32(device, 2), fp32(device, COUNT)];
    const workspace = scratch(device, device.size("mantou_gradient_norm_workspace", COUNT));
    return () => operations.gradientNorm(result, gradients, 1, workspace);
  },
};
cases["AdamW"] = {
  floor: 30 * COUNT,
  prepare(device) {
    const [master, gradients, first, second] = Array.from({ length: 4 }, () => fp32(device, COUNT));
    const [weights, scalars, decays] = [bf16(device, COUNT), fp32(device, 3), fp32(device, 16)];
    const ends = Tensor.zeros(device, [32], "int32");
    const values = BigInt64Array.from({ length: 16 }, (_, i) => BigInt((i + 1) * (COUNT / 16)));
    device.run("mantou_copy", ends, values, values.byteLength);
    const state = [weights, master!, gradients!, first!, second!, scalars, null] as const;
    return () => device.run("mantou_adamw", 1, COUNT, ...state, 0.9, 0.95, 1e-8, 16, ends, decays);
  },
};

for (const [length, heads, headDim] of [
  [256, 4, 32],
  [1024, 2, 64],
  [1024, 1, 128],
] as const) {
  const elements = length * heads * headDim;
  const name = `${length} x ${heads} heads of ${headDim}`;
  const make = (device: Device) => {
    const rope = ropeTable(device, length, headDim, { ropeTheta: 10_000 } as Parameters<typeof ropeTable>[3]);
    const shape = { batch: 1, length, heads, kvHeads: heads, headDim, rope };
    const qkv = bf16(device, length, operations.packedWidth(shape));
    const [output, lse] = [bf16(device, length, heads * headDim), fp32(device, heads, length)];
    const rotated = operations.rotatesFirst(device, shape);
    return { shape, qkv, output, lse, rotated };
  };
  cases[`attention ${name}`] = {
    floor: 8 * elements,
    prepare(device) {
      const { shape, qkv, output, lse, rotated } = make(device);
      return () => operations.attentionForward(output, lse, qkv, rotated ? { ...shape, rope: null } : shape);
    },
  };
  cases[`attention backward ${name}`] = {
    floor: 16 * elements,
    prepare(device) {
      const { shape, qkv, output, lse, rotated } = make(device);
      const [dQkv, dOutput] = [bf16(device, ...qkv.shape), bf16(device, ...output.shape)];
      const { batch, kvHeads } = shape;
      const sizes = [batch, length, heads, kvHeads, headDim] as const;
      const workspace = scratch(device, device.size("mantou_attention_backward_workspace", ...sizes));
      return () => operations.attentionBackward(dQkv, { dOutput, qkv, output, lse, workspace, rotated }, shape);
    },
  };
  if (length > 256)
    cases[`rotation ${name}`] = {
      floor: 8 * elements,
      prepare(device) {
        const { shape, qkv } = make(device);
        return () => operations.rotatePacked(qkv, shape);
      },
    };
}

for (const [m, n, k] of [[256, 256, 128]] as const)
  for (const transposeA of [false, true])
    for (const transposeB of [false, true])
      cases[
        `product ${m} x ${n} x ${k}${transposeA ? ", left transposed" : ""}${transposeB ? ", right transposed" : ""}`
      ] = {
        floor: 2 * (m * n + (m + n) * k),
        prepare(device) {
          const a = transposeA ? bf16(device, k, m) : bf16(device, m, k);
          const b = transposeB ? bf16(device, n, k) : bf16(device, k, n);
          const c = bf16(device, m, n);
          return () => operations.matmul(c, a, b, { transposeA, transposeB });
        },
      };

/** By code address: the kernel, where it can be told, and the places in the source, the innermost first. */
function locate(library: string, codes: string[]): Map<string, { kernel: string; place: string }> {
  const answer = Bun.spawnSync(["addr2line", "-fiaCe", library, ...codes]).stdout.toString();
  const found = answer
    .split(/^0x/m)
    .slice(1)
    .map((text, i) => {
      const [, ...lines] = text.trim().split("\n");
      const frames = lines.flatMap((line, at) =>
        at % 2 ? [{ name: lines[at - 1]!, place: line.replace(/.*\/| .*/g, "") }] : [],
      );
      const own = frames.filter(({ place }) => /\.(cu|h):/.test(place) && !place.startsWith("emulator.h"));
      const name =
        own
          .at(-1)
          ?.name.replace(/^void |\(anonymous namespace\)::|mantou::/g, "")
          .replace(/\(.*/, "") ?? "?";
      return [
        codes[i]!,
        { kernel: name === "operator" ? "" : name, place: own.map(({ place }) => place).join(" < ") },
      ] as const;
    });
  return new Map(found);
}

const ratio = (a: number, b: number) => (b === 0 ? "" : (a / b).toFixed(2));

function main(pattern: RegExp): void {
  const library = buildCountingLibrary();
  const rows: (string | number)[][] = [];
  const wasteful: (string | number)[][] = [];
  for (const [name, { floor }] of Object.entries(cases)) {
    if (!pattern.test(name)) continue;
    const command = [process.execPath, import.meta.path, "--run", name];
    const launches = countLaunches(command, { MANTOU_EMULATED_LIBRARY: library });
    const codes = launches.flatMap(({ accesses }) => accesses.map(({ code }) => code));
    const places = locate(library, [...new Set(codes)]);
    const sum = (of: (launch: Launch) => number) => launches.reduce((before, launch) => before + of(launch), 0);
    const asked = sum(({ accesses }) => total(accesses, "load", "store", "atomic").asked);
    rows.push([
      name,
      "",
      "",
      ratio(
        sum(({ read, written }) => read + written),
        floor,
      ),
      ratio(asked, floor),
      "",
      "",
    ]);
    for (const { blocks, threads, accesses } of launches) {
      const kernel = accesses.map(({ code }) => places.get(code)!.kernel).find((each) => each) ?? "?";
      const [device, shared] = [
        total(accesses, "load", "store", "atomic"),
        total(accesses, "shared load", "shared store"),
      ];
      const sizes = `${blocks} x ${threads}`;
      rows.push(["", kernel, sizes, "", "", ratio(device.moved, device.least), ratio(shared.moved, shared.least)]);
      const byPlace = Map.groupBy(accesses, ({ kind, code }) => `${kind}, ${places.get(code)!.place}`);
      for (const [place, list] of byPlace) {
        const { requests, moved, least } = total(list, list[0]!.kind);
        if (moved > 1.05 * least) wasteful.push([name, kernel, place, requests, ratio(moved, least)]);
      }
    }
  }
  const columns = ["touched / floor", "asked / floor", "sectors / least", "answers / least"];
  console.log(formatTable(rows, { header: ["operation", "kernel", "blocks", ...columns] }));
  console.log(`\n${formatTable(wasteful, { header: ["operation", "kernel", "line", "accesses", "moved / least"] })}`);
}

const [first = "", second] = process.argv.slice(2);
if (first !== "--run") main(new RegExp(first));
else {
  using device = openDevice("emulated");
  cases[second!]!.prepare(device)();
}
