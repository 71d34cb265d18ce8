/**
 * In which order the runs of a data set are seen. Both orders are functions of (seed, sample number) alone, so a resumed
 * run sees what the uninterrupted one would have seen, and any process can compute any sample.
 */
import { deriveSeed, uniform } from "@mantou/model";

/** `random`: every start equally likely, with repetition; `shuffled`: every window once an epoch. */
export type Order = "random" | "shuffled";

const ROUNDS = 4;

/**
 * Where element `index` of 0 … count - 1 goes in a permutation that `seed` picks: a Feistel network over the next power of
 * four, walked until it lands inside (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", §3).
 */
export function permute(seed: number, count: number, index: number): number {
  if (count <= 1) return 0;
  const half = 2 ** Math.ceil(Math.log2(count) / 2);
  let value = index;
  do {
    let [left, right] = [Math.floor(value / half), value % half];
    for (let round = 0; round < ROUNDS; round++) {
      [left, right] = [right, (left + Math.floor(uniform(seed, round * 2 ** 40 + right) * half)) % half];
    }
    value = left * half + right;
  } while (value >= count);
  return value;
}

/**
 * The first token of sample number `sample`, a run of `length` tokens and the one after, of `count` tokens in all.
 * Shuffled windows lie end to end; what is too short for a window at the end is never seen.
 */
export function startOf(order: Order, seed: number, sample: number, count: number, length: number): number {
  if (order === "random") return Math.floor(uniform(seed, sample) * (count - length));
  const windows = Math.floor((count - 1) / length);
  const epoch = Math.floor(sample / windows);
  return permute(epochSeed(seed, epoch), windows, sample % windows) * length;
}

let last = { seed: -1, epoch: -1, derived: 0 };

function epochSeed(seed: number, epoch: number): number {
  if (last.seed !== seed || last.epoch !== epoch) last = { seed, epoch, derived: deriveSeed(seed, `epoch ${epoch}`) };
  return last.derived;
}
