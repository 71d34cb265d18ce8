/**
 * The operations that memory should limit, in float32 and bfloat16: bytes moved a second, beside a plain addition of
 * float32 (the yardstick of kernels/README.md) measured in turn with each.
 * Usage: bun bench/cpu/memory-bound.ts [--threads N] [--rounds 15] [--save]
 */
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { type FloatType, Tensor, openDevice, operations } from "@mantou/model";
import { median } from "./peer.ts";
import { report } from "./report.ts";

const { values } = parseArgs({
  options: {
    threads: { type: "string", default: "0" },
    rounds: { type: "string", default: "15" },
    save: { type: "boolean", default: false },
  },
});
using device = openDevice("cpu", { threads: Number(values.threads) });
const rounds = Number(values.rounds);

// Far more than the caches hold: 64 MiB and more an array.
const [rows, dim, vocab] = [16384, 1024, 10048];
const count = rows * dim;

function time(act: () => void): number {
  const started = performance.now();
  act();
  return (performance.now() - started) / 1000;
}

const random = (shape: number[], type: FloatType) => {
  const tensor = Tensor.zeros(device, shape, type);
  tensor.upload(Float32Array.from({ length: tensor.count }, (_, i) => ((i * 7919) % 1013) / 500 - 1));
  return tensor;
};
const [a, b, c] = [1, 2, 3].map(() => random([count], "float32")) as [Tensor, Tensor, Tensor];
const yardstick = () => operations.add(c, a, b);

const results: string[][] = [];
for (const type of ["float32", "bfloat16"] as const) {
  const size = type === "float32" ? 4 : 2;
  using x = random([rows, dim], type);
  using y = random([rows, dim], type);
  using out = random([rows, dim], type);
  using gain = random([dim], type);
  using rstd = random([rows], "float32");
  using dGain = random([dim], "float32");
  using packed = random([rows / 2, 2 * dim], type);
  using half = random([rows / 2, dim], type);
  using logits = random([2048, vocab], type);
  using losses = random([2048], "float32");
  using targets = Tensor.from(
    device,
    [2048],
    Int32Array.from({ length: 2048 }, (_, i) => i),
  );
  const bytes = device.size("mantou_rmsnorm_backward_workspace", rows, dim);
  using workspace = Tensor.zeros(device, [Math.ceil(bytes / 4)]);
  using master = random([count], "float32");
  const scalars = Tensor.from(device, [3], Float32Array.of(1e-3, 0.1, 0.05));
  const decays = Tensor.from(device, [1], Float32Array.of(0.1));
  const ends = BigInt64Array.of(BigInt(count));
  const [moment, second] = [random([count], "float32"), random([count], "float32")];
  second.zero();
  const dtype = type === "float32" ? 0 : 1;
  const forward = { output: out, sum: null, rstd };
  operations.rmsnormForward(forward, { input: x, residual: null, gain, eps: 1e-5 });
  const cases: Record<string, [bytes: number, act: () => void]> = {
    add: [3 * size * count, () => operations.add(out, x, y)],
    cast: [(4 + size) * count, () => device.run("mantou_cast", count, 0, master, dtype, out)],
    "SwiGLU forward": [(3 * size * count) / 2, () => operations.swigluForward(half, packed)],
    "SwiGLU backward": [(5 * size * count) / 2, () => operations.swigluBackward(packed, half, packed)],
    "RMSNorm + residual": [
      4 * size * count,
      () => operations.rmsnormForward({ ...forward, sum: y }, { input: x, residual: y, gain, eps: 1e-5 }),
    ],
    "RMSNorm backward": [
      4 * size * count,
      () => {
        const given = { dOutput: out, x, gain, rstd, dResidual: y, workspace };
        operations.rmsnormBackward({ dInput: out, dGain }, given);
      },
    ],
    "cross-entropy": [2 * size * logits.count, () => operations.crossEntropy(losses, logits, targets, 1e-3)],
    AdamW: [
      (type === "float32" ? 28 : 30) * count,
      () => {
        const [weights, copy] = type === "float32" ? [master, null] : [out, master];
        const state = [c, moment, second, scalars, null] as const;
        device.run("mantou_adamw", dtype, count, weights, copy, ...state, 0.9, 0.95, 1e-8, 1, ends, decays);
      },
    ],
  };
  for (const [name, [moved, act]] of Object.entries(cases)) {
    const [own, plain]: number[][] = [[], []];
    act();
    for (let round = 0; round < rounds; round++) {
      plain.push((12 * count) / time(yardstick));
      own.push(moved / time(act));
    }
    const rate = median(own);
    results.push([name, type, (rate / 1e9).toFixed(1), (rate / median(plain)).toFixed(2)]);
  }
  for (const tensor of [scalars, decays, moment, second]) tensor[Symbol.dispose]();
}
report(values.save && "memory-bound", {
  title: "Operations that memory limits",
  notes: [`${cpus()[0]?.model}; ${device.description}; median of ${rounds} rounds in turns`],
  header: ["", "type", "GB/s", "of a float32 addition's"],
  rows: results,
});
