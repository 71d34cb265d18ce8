/**
 * Gradients by central differences in float64: (f(x + h) - f(x - h)) / 2h, with an error of O(h²) + O(ε/h).
 *
 * Both functions perturb the given arrays in place, call `f`, which must read those very arrays, and restore them bit
 * for bit. With h = 1e-5 expect about 1e-9 of the scale of `f`.
 */

const h = 1e-5;

/** ∂f/∂values[index] for each of the chosen indices. */
export function numericalGradient(
  f: () => number,
  values: Float64Array,
  indices: Iterable<number> = values.keys(),
): Float64Array {
  return Float64Array.from(indices, (index) => {
    const original = values[index];
    values[index] = original + h;
    const above = f();
    values[index] = original - h;
    const below = f();
    values[index] = original;
    return (above - below) / (2 * h);
  });
}

/**
 * d/ds f(values + s · directions) at s = 0: two evaluations check all coordinates of a gradient g at once, since it
 * must equal Σ g · direction. Choose directions of a norm around 1.
 */
export function directionalDerivative(
  f: () => number,
  values: readonly Float64Array[],
  directions: readonly ArrayLike<number>[],
): number {
  const originals = values.map((array) => array.slice());
  const moveTo = (s: number) =>
    values.forEach((array, a) => originals[a].forEach((original, i) => (array[i] = original + s * directions[a][i])));
  moveTo(h);
  const above = f();
  moveTo(-h);
  const below = f();
  values.forEach((array, a) => array.set(originals[a]));
  return (above - below) / (2 * h);
}
