/**
 * Matrix products of the models' own shapes against PyTorch (oneDNN and MKL inside) on the same machine, in turns:
 * GFLOP/s of each, and our share of what the processor's multiply-add units can do at most.
 * Usage: bun bench/cpu/gemm.ts [--dtype float32|bfloat16] [--python PYTHON] [--threads 2] [--rounds 5]
 */
import { parseArgs } from "node:util";
import { Tensor, openDevice, operations } from "@mantou/model";
import { availableParallelism } from "node:os";
import { formatTable } from "../../packages/train/src/terminal/format.ts";
import { Peer, median } from "./peer.ts";

/** m, n, k and which operands are transposed: forward x Wᵀ (NT), gradient of x (NN), gradient of W (TN, accumulated). */
type Shape = [label: string, form: "NN" | "NT" | "TN", m: number, n: number, k: number];

const layer = (label: string, rows: number, dIn: number, dOut: number): Shape[] => [
  [`${label}: y = x Wᵀ`, "NT", rows, dOut, dIn],
  [`${label}: dx = dy W`, "NN", rows, dIn, dOut],
  [`${label}: dW += dyᵀ x`, "TN", dOut, dIn, rows],
];

const shapes: Shape[] = [
  ["square", "NN", 1536, 1536, 1536],
  ...layer("512 wide, qkv", 2048, 512, 1536),
  ...layer("512 wide, gate and up", 2048, 512, 2688),
  ...layer("512 wide, down", 2048, 1344, 512),
  ...layer("512 wide, head of 10,000", 419, 512, 10_000),
  ...layer("128 wide, qkv", 768, 128, 384),
  ...layer("128 wide, gate and up", 768, 128, 688),
];

const { values } = parseArgs({
  options: {
    dtype: { type: "string", default: "float32" },
    python: { type: "string" },
    threads: { type: "string", default: String(availableParallelism()) },
    rounds: { type: "string", default: "5" },
  },
});
const [threads, rounds] = [Number(values.threads), Number(values.rounds)];
const dtype = values.dtype as "float32" | "bfloat16";
using device = openDevice("cpu", { threads });

/** Repetitions that take about 50 ms at 200 GFLOP/s. */
const repeats = (flops: number) => Math.max(3, Math.round(1e10 / flops));

function ours([, form, m, n, k]: Shape): number {
  const random = (rows: number, columns: number) => {
    const data = Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5);
    using exact = Tensor.from(device, [rows, columns], data);
    const tensor = Tensor.zeros(device, [rows, columns], dtype);
    operations.cast(tensor, exact);
    return tensor;
  };
  const [transposeA, transposeB, accumulate] = [form === "TN", form === "NT", form === "TN"];
  using a = transposeA ? random(k, m) : random(m, k);
  using b = transposeB ? random(n, k) : random(k, n);
  using c = Tensor.zeros(device, [m, n], accumulate ? "float32" : dtype);
  operations.matmul(c, a, b, { transposeA, transposeB, accumulate });
  const count = repeats(2 * m * n * k);
  const started = performance.now();
  for (let i = 0; i < count; i++) operations.matmul(c, a, b, { transposeA, transposeB, accumulate });
  return (count * 2 * m * n * k) / ((performance.now() - started) * 1e6);
}

const peerScript = `
import sys, json, time, torch
torch.set_num_threads(${threads})
print(json.dumps(torch.__version__), flush=True)
for line in sys.stdin:
    form, m, n, k, count = json.loads(line)
    t = dict(dtype=torch.${dtype})
    a = (torch.rand((k, m)) - .5).to(**t).T if form == "TN" else (torch.rand((m, k)) - .5).to(**t)
    b = (torch.rand((n, k)) - .5).to(**t).T if form == "NT" else (torch.rand((k, n)) - .5).to(**t)
    c = torch.empty((m, n), **t)
    torch.mm(a, b, out=c)
    s = time.perf_counter()
    for _ in range(count): torch.mm(a, b, out=c)
    print(json.dumps(count * 2 * m * n * k / (time.perf_counter() - s) / 1e9), flush=True)
`;

await using peer = values.python ? await Peer.start([values.python, "-c", peerScript]) : null;
const peak = device.peaks()[dtype === "float32" ? "float32Flops" : "bfloat16Flops"] / 1e9;
const rows: string[][] = [];
for (const shape of shapes) {
  const [label, form, m, n, k] = shape;
  const [mine, theirs]: [number[], number[]] = [[], []];
  for (let round = 0; round < rounds; round++) {
    mine.push(ours(shape));
    if (peer) theirs.push(Number(await peer.ask([form, m, n, k, repeats(2 * m * n * k)])));
  }
  const [a, b] = [median(mine), peer ? median(theirs) : NaN];
  const share = `${Math.round((100 * a) / peak)} %`;
  rows.push([label, `${m} × ${n} × ${k}`, a.toFixed(0), share, b.toFixed(0), `${(a / b).toFixed(2)} ×`]);
}
const peerName = peer ? `PyTorch ${String(peer.greeting)}` : "no peer (--python)";
console.log(`${device.description}; ${dtype}, measured peak ${peak.toFixed(0)} GFLOP/s`);
console.log(`Bun ${Bun.version}; ${peerName}; median of ${rounds} rounds in turns, GFLOP/s`);
console.log(formatTable(rows, { header: ["product", "m × n × k", "Mantou", "of peak", "PyTorch", "ratio"] }));
