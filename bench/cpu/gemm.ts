/**
 * float32 matrix products against OpenBLAS (numpy's) on the same machine, in turns: GFLOP/s of each and our share.
 * Usage: bun bench/cpu/gemm.ts [--python PYTHON] [--threads 2] [--rounds 5]
 */
import { cpus } from "node:os";
import { parseArgs } from "node:util";
import { Tensor, openDevice, operations } from "@mantou/model";
import { formatTable } from "../../packages/train/src/terminal/format.ts";

/** m, n, k and which operands are transposed: forward x Wᵀ (NT), gradient of x (NN), gradient of W (TN). */
type Shape = [label: string, form: "NN" | "NT" | "TN", m: number, n: number, k: number];

const layer = (label: string, rows: number, dIn: number, dOut: number): Shape[] => [
  [`${label}: y = x Wᵀ`, "NT", rows, dOut, dIn],
  [`${label}: dx = dy W`, "NN", rows, dIn, dOut],
  [`${label}: dW = dyᵀ x`, "TN", dOut, dIn, rows],
];

const shapes: Shape[] = [
  ...[512, 1024, 1536, 2048].map((n): Shape => [`square ${n}`, "NN", n, n, n]),
  ...layer("128 wide, qkv", 768, 128, 384),
  ...layer("128 wide, gate and up", 768, 128, 688),
  ...layer("128 wide, head of 65", 768, 128, 65),
  ...layer("512 wide, qkv", 2048, 512, 1536),
  ...layer("512 wide, gate and up", 2048, 512, 2688),
  ...layer("512 wide, head of 10,000", 419, 512, 10_000),
];

const { values } = parseArgs({
  options: {
    python: { type: "string", default: "python3" },
    threads: { type: "string", default: String(cpus().length) },
    rounds: { type: "string", default: "5" },
  },
});
const [threads, rounds] = [Number(values.threads), Number(values.rounds)];
using device = openDevice("cpu", { threads });

/** Repetitions that take about 50 ms at 50 GFLOP/s. */
const repeats = (flops: number) => Math.max(1, Math.round(2.5e9 / flops));

function ours([, form, m, n, k]: Shape): number {
  const random = (rows: number, columns: number) => {
    const data = Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5);
    return Tensor.from(device, [rows, columns], data);
  };
  const [transposeA, transposeB] = [form === "TN", form === "NT"];
  using a = transposeA ? random(k, m) : random(m, k);
  using b = transposeB ? random(n, k) : random(k, n);
  using c = Tensor.zeros(device, [m, n]);
  operations.matmul(c, a, b, { transposeA, transposeB });
  const count = repeats(2 * m * n * k);
  const started = performance.now();
  for (let i = 0; i < count; i++) operations.matmul(c, a, b, { transposeA, transposeB });
  return (count * 2 * m * n * k) / ((performance.now() - started) * 1e6);
}

const peerScript = `
import sys, json, time, numpy as np
form, m, n, k, count = sys.argv[1], *map(int, sys.argv[2:6])
a = np.random.rand(*((k, m) if form == "TN" else (m, k))).astype(np.float32)
b = np.random.rand(*((n, k) if form == "NT" else (k, n))).astype(np.float32)
a, b = (a.T if form == "TN" else a), (b.T if form == "NT" else b)
c = np.empty((m, n), np.float32)
np.matmul(a, b, out=c)
s = time.perf_counter()
for _ in range(count): np.matmul(a, b, out=c)
print(json.dumps([count * 2 * m * n * k / (time.perf_counter() - s) / 1e9, np.__version__]))
`;

let numpyVersion = "";
function openblas([, form, m, n, k]: Shape): number {
  const sizes = [m, n, k, repeats(2 * m * n * k)].map(String);
  // A core type that was forced for old versions of OpenBLAS would slow a current one.
  const { OPENBLAS_CORETYPE: _, OPENBLAS_L2_SIZE: __, ...environment } = process.env;
  const env = { ...environment, OPENBLAS_NUM_THREADS: String(threads) };
  const run = Bun.spawnSync([values.python, "-c", peerScript, form, ...sizes], { env });
  if (!run.success) throw new Error(run.stderr.toString());
  const [gflops, version] = JSON.parse(run.stdout.toString()) as [number, string];
  numpyVersion = version;
  return gflops;
}

const median = (numbers: number[]) => numbers.toSorted((x, y) => x - y)[Math.floor(numbers.length / 2)]!;
const rows = shapes.map((shape) => {
  const [mine, theirs]: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    mine.push(ours(shape));
    theirs.push(openblas(shape));
  }
  const [label, , m, n, k] = shape;
  const [a, b] = [median(mine), median(theirs)];
  return [label, `${m} × ${n} × ${k}`, a.toFixed(0), b.toFixed(0), `${Math.round((100 * a) / b)} %`];
});
console.log(`${device.description}; OpenBLAS of numpy ${numpyVersion}; median of ${rounds} rounds, GFLOP/s`);
console.log(formatTable(rows, { header: ["product", "m × n × k", "Mantou", "OpenBLAS", "share"] }));
