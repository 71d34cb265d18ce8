/**
 * Matrix products of the models' own shapes against PyTorch (oneDNN and MKL inside) or OpenBLAS (numpy's, float32) on
 * the same machine, in turns: GFLOP/s of each, and our share of what the processor's multiply-add units can do at most.
 * Usage: bun bench/cpu/gemm.ts [--dtype float32|bfloat16] [--python PYTHON] [--peer torch|openblas] [--threads 2]
 *        [--rounds 5] [--save]
 *        --python takes one that has the peer; --save keeps the table in bench/results/.
 */
import { parseArgs } from "node:util";
import { Tensor, openDevice, operations } from "@mantou/model";
import { availableParallelism } from "node:os";
import { Peer, median } from "./peer.ts";
import { report } from "./report.ts";

/** m, n, k and which operands are transposed: forward x Wᵀ (NT), gradient of x (NN), gradient of W (TN, accumulated). */
type Shape = [label: string, form: "NN" | "NT" | "TN", m: number, n: number, k: number];

const layer = (label: string, rows: number, dIn: number, dOut: number): Shape[] => [
  [`${label}: y = x Wᵀ`, "NT", rows, dOut, dIn],
  [`${label}: dx = dy W`, "NN", rows, dIn, dOut],
  [`${label}: dW += dyᵀ x`, "TN", dOut, dIn, rows],
];

const { values } = parseArgs({
  options: {
    dtype: { type: "string", default: "float32" },
    python: { type: "string" },
    peer: { type: "string", default: "torch" },
    save: { type: "boolean", default: false },
    threads: { type: "string", default: String(availableParallelism()) },
    rounds: { type: "string", default: "5" },
  },
});
const [threads, rounds] = [Number(values.threads), Number(values.rounds)];
const dtype = values.dtype as "float32" | "bfloat16";

const shapes: Shape[] = [
  ["square", "NN", 1536, 1536, 1536],
  ...layer("512 wide, qkv", 2048, 512, 1536),
  ...layer("512 wide, gate and up", 2048, 512, 2688),
  ...layer("512 wide, down", 2048, 1344, 512),
  // A chunk of the head's rows, as packages/model/src/layers/head.ts cuts it.
  ...layer("512 wide, head of 10,000", dtype === "bfloat16" ? 683 : 410, 512, 10_000),
  ...layer("128 wide, qkv", 768, 128, 384),
  ...layer("128 wide, gate and up", 768, 128, 688),
  ...layer("128 wide, head of 65", 768, 128, 65),
];

using device = openDevice("cpu", { threads });

/** Repetitions that take about 50 ms at 200 GFLOP/s. */
const repeats = (flops: number) => Math.max(3, Math.round(1e10 / flops));

/**
 * Before each timing, while the processor's clock and the threads find their places. After the pause behind a peer, 20 ms left
 * small products at half the speed that they have without a peer; the likely cause, two threads on one core, is not shown.
 */
const WARM_UP_MS = 150;

/** Makes the operands; every call then measures GFLOP/s. */
function prepare([, form, m, n, k]: Shape): { measure: () => number; [Symbol.dispose]: () => void } {
  const random = (rows: number, columns: number) => {
    const data = new Float32Array(rows * columns);
    for (let i = 0; i < data.length; i++) data[i] = Math.random() - 0.5;
    using exact = Tensor.from(device, [rows, columns], data);
    const tensor = Tensor.zeros(device, [rows, columns], dtype);
    operations.cast(tensor, exact);
    return tensor;
  };
  const [transposeA, transposeB, accumulate] = [form === "TN", form === "NT", form === "TN"];
  const a = transposeA ? random(k, m) : random(m, k);
  const b = transposeB ? random(n, k) : random(k, n);
  const c = Tensor.zeros(device, [m, n], accumulate ? "float32" : dtype);
  const count = repeats(2 * m * n * k);
  const multiply = () => operations.matmul(c, a, b, { transposeA, transposeB, accumulate });
  const measure = () => {
    for (const until = performance.now() + WARM_UP_MS; performance.now() < until;) multiply();
    const started = performance.now();
    for (let i = 0; i < count; i++) multiply();
    return (count * 2 * m * n * k) / ((performance.now() - started) * 1e6);
  };
  return { measure, [Symbol.dispose]: () => [a, b, c].forEach((tensor) => tensor[Symbol.dispose]()) };
}

const measureScript = `
for line in sys.stdin:
    form, m, n, k, count = json.loads(line)
    a = random(k, m).T if form == "TN" else random(m, k)
    b = random(n, k).T if form == "NT" else random(k, n)
    c = empty(m, n)
    until = time.perf_counter() + ${WARM_UP_MS / 1000}
    while time.perf_counter() < until: multiply(a, b, out=c)
    s = time.perf_counter()
    for _ in range(count): multiply(a, b, out=c)
    print(json.dumps(count * 2 * m * n * k / (time.perf_counter() - s) / 1e9), flush=True)
`;
const peerScripts: Record<string, string> = {
  torch: `
import sys, json, time, torch
torch.set_num_threads(${threads})
random = lambda *shape: (torch.rand(shape) - .5).to(torch.${dtype})
empty = lambda *shape: torch.empty(shape, dtype=torch.${dtype})
multiply = torch.mm
print(json.dumps("PyTorch " + torch.__version__), flush=True)`,
  openblas: `
import sys, json, time, numpy as np
random = lambda *shape: (np.random.rand(*shape) - .5).astype(np.float32)
empty = lambda *shape: np.empty(shape, np.float32)
multiply = np.matmul
print(json.dumps("OpenBLAS of numpy " + np.__version__), flush=True)`,
};

/** OpenBLAS's threads spin for up to 140 ms (measured) after a product, which must not fall into our time. */
const PEER_SLEEPS_MS = 200;

// A core type that was forced for old versions of OpenBLAS would slow a current one.
const { OPENBLAS_CORETYPE: _, OPENBLAS_L2_SIZE: __, ...environment } = process.env;
const script = peerScripts[values.peer];
if (!script || (values.peer === "openblas" && dtype !== "float32")) {
  throw new Error(`--peer ${values.peer} is not torch, or openblas with --dtype float32`);
}
await using peer = values.python
  ? await Peer.start([values.python, "-c", script + measureScript], {
      ...environment,
      OPENBLAS_NUM_THREADS: String(threads),
    })
  : null;
const peak = device.peaks()[dtype === "float32" ? "float32Flops" : "bfloat16Flops"] / 1e9;
const rows: string[][] = [];
for (const shape of shapes) {
  const [label, form, m, n, k] = shape;
  const [mine, theirs]: [number[], number[]] = [[], []];
  using product = prepare(shape);
  for (let round = 0; round < rounds; round++) {
    mine.push(product.measure());
    if (!peer) continue;
    theirs.push(Number(await peer.ask([form, m, n, k, repeats(2 * m * n * k)])));
    await Bun.sleep(PEER_SLEEPS_MS);
  }
  const [a, b] = [median(mine), peer ? median(theirs) : NaN];
  const share = `${Math.round((100 * a) / peak)} %`;
  rows.push([label, `${m} × ${n} × ${k}`, a.toFixed(0), share, b.toFixed(0), `${(a / b).toFixed(2)} ×`]);
}
const peerName = peer ? String(peer.greeting) : "no peer (--python)";
report(values.save && `gemm-${dtype}-${values.peer}`, {
  title: `Matrix products, ${dtype}, GFLOP/s`,
  notes: [
    `${device.description}; measured peak ${peak.toFixed(0)} GFLOP/s; ${peerName}`,
    `median of ${rounds} rounds in turns; the dW of ours is added to float32, the peer's overwrites its own type`,
  ],
  header: ["product", "m × n × k", "Mantou", "of peak", "peer", "ratio"],
  rows,
});
