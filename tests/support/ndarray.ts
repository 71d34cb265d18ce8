/**
 * The array that crosses every boundary of the conformance suite: a shape and row-major data, nothing else.
 *
 * Random arrays come from a generator seeded by the caller, so that a failing test fails again.
 */

/** Row-major array; `data.length` is the product of `shape` (1 for the empty shape, a scalar). */
export interface NdArray {
  shape: number[];
  data: Float32Array | Int32Array | Uint8Array;
}

/** An {@link NdArray} of float32. */
export interface FloatArray extends NdArray {
  data: Float32Array;
}

/** An {@link NdArray} of int32. */
export interface IntArray extends NdArray {
  data: Int32Array;
}

/** Number of elements of a shape. */
export function sizeOf(shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, 1);
}

/** Array of float32 values. @throws when the number of values does not fit the shape */
export function floats(shape: number[], values: ArrayLike<number>): FloatArray {
  return { shape, data: Float32Array.from(checked(shape, values)) };
}

/** Array of int32 values. @throws when the number of values does not fit the shape */
export function ints(shape: number[], values: ArrayLike<number>): IntArray {
  return { shape, data: Int32Array.from(checked(shape, values)) };
}

/** Array of float32 zeros. */
export function zeros(shape: number[]): FloatArray {
  return { shape, data: new Float32Array(sizeOf(shape)) };
}

/** Deep copy, so that a function that works in place leaves the original alone. */
export function copyOf<T extends NdArray>(array: T): T {
  return { ...array, shape: [...array.shape], data: array.data.slice() };
}

/** Float32 values from a normal distribution of mean 0 and the given standard deviation. */
export function randomNormal(shape: number[], seed: number, deviation = 1): FloatArray {
  const uniform = generator(seed);
  const result = zeros(shape);
  for (let i = 0; i < result.data.length; i++) {
    // Box-Muller; 1 - u lies in (0, 1], so the logarithm is finite.
    result.data[i] = deviation * Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  }
  return result;
}

/** Int32 values, each of 0 … limit - 1 equally likely. */
export function randomInts(shape: number[], seed: number, limit: number): IntArray {
  const uniform = generator(seed);
  return { shape, data: Int32Array.from({ length: sizeOf(shape) }, () => Math.floor(uniform() * limit)) };
}

/** Uniform numbers in [0, 1), a 32-bit counter sent through a mixing function (splitmix32). */
export function generator(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x9e3779b9) | 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  };
}

function checked(shape: number[], values: ArrayLike<number>): ArrayLike<number> {
  if (values.length !== sizeOf(shape)) {
    throw new Error(`shape [${shape}] holds ${sizeOf(shape)} values, but ${values.length} were given`);
  }
  return values;
}
