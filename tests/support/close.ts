/**
 * Comparison of arrays of floats that says how far off they are, not only that they differ.
 *
 * An element passes when |actual - expected| <= absolute + relative * |expected| (numpy's rule); an array passes when
 * all of its elements do and, where `norm` is given, ‖actual - expected‖ <= norm * ‖expected‖ in the Euclidean norm.
 * The norm is the right measure for gradients, whose small elements are differences of large terms.
 */
import { AssertionError } from "./assert.ts";

/** Anything with row-major numbers; a bare list of numbers has no shape to compare. */
export type Numbers = ArrayLike<number> | { shape: readonly number[]; data: ArrayLike<number> };

/** What may differ. With nothing given: relative 1e-4, absolute 1e-5. */
export interface Tolerance {
  /** Allowed fraction of each expected element. */
  relative?: number;
  /** Allowed difference of each element. */
  absolute?: number;
  /** Allowed fraction of the norm of the whole; alone, it is the only criterion. */
  norm?: number;
}

/** How two arrays differ. */
export interface Difference {
  /** Largest |actual - expected|; NaN when an element is NaN in either. */
  maximum: number;
  /** Flat index of the largest difference, of the first NaN where there is one; -1 for empty arrays. */
  index: number;
  /** Number of elements that fail the elementwise criterion. */
  failures: number;
  /** ‖actual - expected‖ / ‖expected‖ (the numerator alone where the expected norm is 0). */
  relativeInNorm: number;
}

/** Measures the difference of two lists of equal length. */
export function difference(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance: Tolerance): Difference {
  const { relative, absolute } = elementwise(tolerance);
  let maximum = 0;
  let index = expected.length === 0 ? -1 : 0;
  let failures = 0;
  let squaredError = 0;
  let squaredNorm = 0;
  for (let i = 0; i < expected.length; i++) {
    // Equal infinities have no difference; any NaN is one, even where NaN was expected.
    const error = actual[i] === expected[i] ? 0 : Math.abs(actual[i] - expected[i]);
    if (!(error <= absolute + relative * Math.abs(expected[i])) || error === Infinity) failures++;
    if (error > maximum || (Number.isNaN(error) && !Number.isNaN(maximum))) {
      maximum = error;
      index = i;
    }
    squaredError += error * error;
    squaredNorm += expected[i] * expected[i];
  }
  const relativeInNorm = Math.sqrt(squaredError) / (squaredNorm > 0 ? Math.sqrt(squaredNorm) : 1);
  return { maximum, index, failures, relativeInNorm };
}

/**
 * Fails unless the two agree in shape and, within the tolerance, in every element.
 *
 * @param what names the quantity in the message
 * @returns the measured difference, for tests that report it
 */
export function expectClose(actual: Numbers, expected: Numbers, tolerance: Tolerance = {}, what = "array"): Difference {
  if ("shape" in actual && "shape" in expected && `${actual.shape}` !== `${expected.shape}`) {
    throw new AssertionError(`${what}: shape is [${actual.shape}], expected [${expected.shape}]`);
  }
  const a = "data" in actual ? actual.data : actual;
  const e = "data" in expected ? expected.data : expected;
  if (a.length !== e.length) {
    throw new AssertionError(`${what}: ${a.length} elements, expected ${e.length}`);
  }

  const found = difference(a, e, tolerance);
  const normTooLarge = tolerance.norm !== undefined && !(found.relativeInNorm <= tolerance.norm);
  if (found.failures > 0 || normTooLarge) {
    const { relative, absolute } = elementwise(tolerance);
    const criteria = [
      Number.isFinite(absolute) ? `absolute ${absolute}, relative ${relative}` : "",
      tolerance.norm === undefined ? "" : `norm ${tolerance.norm}`,
    ];
    throw new AssertionError(
      `${what}: ${found.failures} of ${e.length} elements fail (${criteria.filter(Boolean).join(", ")})\n` +
        `  maximum error ${found.maximum.toExponential(3)} at ${position(found.index, expected)}: ` +
        `actual ${a[found.index]}, expected ${e[found.index]}\n` +
        `  relative error in norm ${found.relativeInNorm.toExponential(3)}`,
    );
  }
  return found;
}

function elementwise({ relative, absolute, norm }: Tolerance): { relative: number; absolute: number } {
  if (relative === undefined && absolute === undefined) {
    return norm === undefined ? { relative: 1e-4, absolute: 1e-5 } : { relative: 0, absolute: Infinity };
  }
  return { relative: relative ?? 0, absolute: absolute ?? 0 };
}

/** "index 17 = [1, 5]", so that a failing row or head can be read off. */
function position(index: number, array: Numbers): string {
  if (!("shape" in array)) return `index ${index}`;
  const coordinates: number[] = [];
  let rest = index;
  for (const length of [...array.shape].reverse()) {
    coordinates.unshift(rest % length);
    rest = Math.floor(rest / length);
  }
  return `index ${index} = [${coordinates.join(", ")}]`;
}
