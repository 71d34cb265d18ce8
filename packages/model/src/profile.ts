/**
 * Where a step's time goes: what every native operation took, the arithmetic and the bytes that it cannot do without,
 * and, from that, its speed as a share of what the device can do at most. On the CPU an operation has ended when its
 * call returns, so the rest of the time is TypeScript and the calls themselves.
 */
import type { Peaks } from "./device.ts";
import type { SymbolName } from "./symbols.ts";

/** An operation with its arguments, the context left out. */
export interface Call {
  name: SymbolName;
  args: readonly unknown[];
}

interface Cost {
  flops: number;
  /** Read or written at least, if nothing is in a cache. */
  bytes: number;
}

/** Operations of one name and type. */
export interface ProfileRow extends Cost {
  name: string;
  calls: number;
  ms: number;
  /** Of the peak of the unit that bounds it: arithmetic for products and attention, else memory. */
  share: number;
}

const size = (dtype: number) => (dtype === 1 ? 2 : 4);

/** What an operation costs by its arguments, which come as in kernels/mantou.h, without the context. */
const costs: Partial<Record<SymbolName, (...args: number[]) => Cost>> = {
  mantou_cast: (count, from, _a, to) => ({ flops: 0, bytes: count! * (size(from!) + size(to!)) }),
  mantou_add: (dtype, count) => ({ flops: 0, bytes: 3 * count! * size(dtype!) }),
  mantou_fill: (_memory, _value, bytes) => ({ flops: 0, bytes: bytes! }),
  mantou_sum: (count) => ({ flops: 0, bytes: 4 * count! }),
  mantou_silu_forward: (dtype, count) => ({ flops: 0, bytes: 2 * count! * size(dtype!) }),
  mantou_silu_backward: (dtype, count) => ({ flops: 0, bytes: 3 * count! * size(dtype!) }),
  mantou_swiglu_forward: (dtype, rows, dim) => ({ flops: 0, bytes: 3 * rows! * dim! * size(dtype!) }),
  mantou_swiglu_backward: (dtype, rows, dim) => ({ flops: 0, bytes: 5 * rows! * dim! * size(dtype!) }),
  mantou_matmul: (_ta, _tb, m, n, k, input, _a, _lda, _b, _ldb, output, _c, _ldc, accumulate) => ({
    flops: 2 * m! * n! * k!,
    bytes: (m! * k! + k! * n!) * size(input!) + m! * n! * size(output!) * (accumulate ? 2 : 1),
  }),
  mantou_embedding_forward: (dtype, rows, _vocab, dim) => ({ flops: 0, bytes: 2 * rows! * dim! * size(dtype!) }),
  mantou_embedding_backward: (dtype, rows, _vocab, dim) => ({ flops: 0, bytes: rows! * dim! * (8 + size(dtype!)) }),
  mantou_rmsnorm_forward: (dtype, rows, dim) => ({ flops: 0, bytes: 4 * rows! * dim! * size(dtype!) }),
  mantou_rmsnorm_backward: (dtype, rows, dim) => ({ flops: 0, bytes: 4 * rows! * dim! * size(dtype!) }),
  mantou_rope: (dtype, rows, _length, heads, dim) => ({ flops: 0, bytes: 2 * rows! * heads! * dim! * size(dtype!) }),
  mantou_attention_forward: (dtype, batch, length, heads, _kv, dim) => ({
    flops: 2 * batch! * heads! * length! ** 2 * dim!,
    bytes: 4 * batch! * heads! * length! * dim! * size(dtype!),
  }),
  mantou_attention_backward: (dtype, batch, length, heads, _kv, dim) => ({
    flops: 5 * batch! * heads! * length! ** 2 * dim!,
    bytes: 8 * batch! * heads! * length! * dim! * size(dtype!),
  }),
  mantou_cross_entropy: (dtype, rows, vocab) => ({ flops: 0, bytes: 2 * rows! * vocab! * size(dtype!) }),
  mantou_gradient_norm: (count) => ({ flops: 0, bytes: 4 * count! }),
  mantou_adamw: (dtype, count) => ({ flops: 0, bytes: count! * (dtype === 1 ? 30 : 28) }),
};

/** The argument that holds the type of the factors. */
const typeAt: Partial<Record<SymbolName, number>> = { mantou_matmul: 5, mantou_cast: 1 };
const typed = /silu|swiglu|embedding|rmsnorm|rope|attention|cross_entropy|add$|adamw/;

/** The argument that holds an operation's type, −1 where it has none. */
const typePositions = new Map<SymbolName, number>();

function typePosition(name: SymbolName): number {
  let at = typePositions.get(name);
  if (at === undefined) {
    at = typeAt[name] ?? (typed.test(name) ? 0 : -1);
    typePositions.set(name, at);
  }
  return at;
}

type Row = Omit<ProfileRow, "share"> & { bfloat16: boolean };

export class Profile {
  #float32 = new Map<SymbolName, Row>();
  #bfloat16 = new Map<SymbolName, Row>();
  /** Captured work that was replayed: how often, and milliseconds of every call. */
  #replays = new Map<readonly Call[], { times: number; ms: Float64Array }>();
  #started = performance.now();
  #totalMs = 0;

  /**
   * Counts a call, or `times` equal ones, that took `ms`; Device.run does. What this takes itself is counted as no
   * operation's: it is brief.
   */
  record({ name, args }: Call, ms: number, times = 1): void {
    const bfloat16 = args[typePosition(name)] === 1;
    const rows = bfloat16 ? this.#bfloat16 : this.#float32;
    let row = rows.get(name);
    if (!row) {
      const label = `${name.replace("mantou_", "")}${bfloat16 ? " bf16" : ""}`;
      row = { name: label, calls: 0, ms: 0, flops: 0, bytes: 0, bfloat16 };
      rows.set(name, row);
    }
    row.calls += times;
    row.ms += ms;
    const cost = costs[name];
    if (!cost) return;
    // The formulas look at the numbers among the arguments alone.
    const { flops, bytes } = cost(...(args as number[]));
    row.flops += times * flops;
    row.bytes += times * bytes;
  }

  /** Counts one replay of captured calls. @returns milliseconds of every call, to which it is to add its own */
  recordReplay(calls: readonly Call[]): Float64Array {
    let replay = this.#replays.get(calls);
    if (!replay) {
      replay = { times: 0, ms: new Float64Array(new ArrayBuffer(8 * calls.length)) };
      this.#replays.set(calls, replay);
    }
    replay.times++;
    return replay.ms;
  }

  /** Ends what is counted. */
  stop(): void {
    this.#totalMs = performance.now() - this.#started;
    for (const [calls, { times, ms }] of this.#replays) calls.forEach((call, i) => this.record(call, ms[i]!, times));
    this.#replays.clear();
  }

  /** Seconds that the operations would take at these speeds, each bound by its arithmetic if it has any, or else by memory. */
  secondsAt(peaks: Peaks): number {
    return this.#rows().reduce((sum, row) => sum + ideal(row, peaks), 0);
  }

  #rows(): Row[] {
    return [...this.#float32.values(), ...this.#bfloat16.values()];
  }

  /** From start to stop: operations by time, the time that no operation took, and all of it. */
  result(peaks: Peaks): { rows: ProfileRow[]; restMs: number; totalMs: number } {
    const totalMs = this.#totalMs;
    const rows = this.#rows().map(({ bfloat16, ...row }) => {
      return { ...row, share: (1000 * ideal({ bfloat16, ...row }, peaks)) / row.ms };
    });
    rows.sort((a, b) => b.ms - a.ms);
    return { rows, restMs: totalMs - rows.reduce((sum, { ms }) => sum + ms, 0), totalMs };
  }
}

/** Seconds at the peak of the unit that bounds it. */
function ideal({ flops, bytes, bfloat16 }: Cost & { bfloat16: boolean }, peaks: Peaks): number {
  if (flops === 0) return bytes / peaks.bytesRead;
  return flops / (bfloat16 ? peaks.bfloat16Flops : peaks.float32Flops);
}
