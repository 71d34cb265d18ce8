/**
 * Counter-based random numbers: number `counter` of stream `seed` is a pure function of the two, so nothing has to be
 * saved to go on where a run stopped, and any process can compute any number.
 */

function rotate(word: number, places: number): number {
  return (word << places) | (word >>> (32 - places));
}

/**
 * Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 64 random bits.
 * Written out, because this is what initialising a large model waits for.
 */
export function threefry(key0: number, key1: number, counter0: number, counter1: number): [number, number] {
  mix(key0, key1, counter0, counter1);
  return [first >>> 0, second >>> 0];
}

/** What `mix` computed. No pair is returned: a large model's initialisation would leave millions of them behind. */
let first = 0;
let second = 0;

function mix(key0: number, key1: number, counter0: number, counter1: number): void {
  const key2 = key0 ^ key1 ^ 0x1bd11bda;
  let a = (counter0 + key0) | 0;
  let b = (counter1 + key1) | 0;
  b = rotate(b, 13) ^ (a = (a + b) | 0);
  b = rotate(b, 15) ^ (a = (a + b) | 0);
  b = rotate(b, 26) ^ (a = (a + b) | 0);
  b = rotate(b, 6) ^ (a = (a + b) | 0);
  a = (a + key1) | 0;
  b = (b + key2 + 1) | 0;
  b = rotate(b, 17) ^ (a = (a + b) | 0);
  b = rotate(b, 29) ^ (a = (a + b) | 0);
  b = rotate(b, 16) ^ (a = (a + b) | 0);
  b = rotate(b, 24) ^ (a = (a + b) | 0);
  a = (a + key2) | 0;
  b = (b + key0 + 2) | 0;
  b = rotate(b, 13) ^ (a = (a + b) | 0);
  b = rotate(b, 15) ^ (a = (a + b) | 0);
  b = rotate(b, 26) ^ (a = (a + b) | 0);
  b = rotate(b, 6) ^ (a = (a + b) | 0);
  a = (a + key0) | 0;
  b = (b + key1 + 3) | 0;
  b = rotate(b, 17) ^ (a = (a + b) | 0);
  b = rotate(b, 29) ^ (a = (a + b) | 0);
  b = rotate(b, 16) ^ (a = (a + b) | 0);
  b = rotate(b, 24) ^ (a = (a + b) | 0);
  a = (a + key1) | 0;
  b = (b + key2 + 4) | 0;
  b = rotate(b, 13) ^ (a = (a + b) | 0);
  b = rotate(b, 15) ^ (a = (a + b) | 0);
  b = rotate(b, 26) ^ (a = (a + b) | 0);
  b = rotate(b, 6) ^ (a = (a + b) | 0);
  a = (a + key2) | 0;
  b = (b + key0 + 5) | 0;
  first = a;
  second = b;
}

/** 53 random bits as a whole number. `seed` and `counter`: whole numbers from 0 to 2⁵³ − 1. */
function bits(seed: number, counter: number): number {
  mix(seed | 0, (seed / 2 ** 32) | 0, counter | 0, (counter / 2 ** 32) | 0);
  return (first >>> 5) * 0x400_0000 + (second >>> 6);
}

/** A uniform number in [0, 1) with 53 bits. `seed` and `counter`: whole numbers from 0 to 2⁵³ − 1. */
export function uniform(seed: number, counter: number): number {
  return bits(seed, counter) / 0x20_0000_0000_0000;
}

/** A stream of numbers that keeps its own counter. */
export class Random {
  #counter = 0;

  constructor(readonly seed: number) {
    if (!Number.isSafeInteger(seed) || seed < 0) throw new RangeError(`seed must be a whole number ≥ 0, not ${seed}`);
  }

  /** Uniform in [0, 1). */
  next(): number {
    return uniform(this.seed, this.#counter++);
  }

  /** Fills `target` with normal numbers of standard deviation `sigma`, redrawn outside ±3σ (Box & Muller 1958). */
  truncatedNormal(target: Float32Array, sigma: number): void {
    let index = 0;
    const place = (value: number) => {
      if (Math.abs(value) <= 3 && index < target.length) target[index++] = value * sigma;
    };
    while (index < target.length) {
      const radius = Math.sqrt(-2 * Math.log(1 - this.next()));
      const angle = 2 * Math.PI * this.next();
      place(radius * Math.cos(angle));
      place(radius * Math.sin(angle));
    }
  }
}

/** A seed for stream `name` under `seed`, so that different uses of one seed do not share their numbers. */
export function deriveSeed(seed: number, name: string): number {
  let derived = seed;
  for (const character of name) derived = bits(derived, character.codePointAt(0)!);
  return bits(derived, name.length);
}
