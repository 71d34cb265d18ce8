/**
 * Inputs that the conformance tests share.
 */
import { type FloatType, fromBfloat16, toBfloat16 } from "@mantou/model";
import type { Tolerance } from "../support/close.ts";
import { type FloatArray, floats, randomNormal } from "../support/ndarray.ts";

/** Room for the rounding of float32 sums of a few hundred terms of about 1. */
export const rounding: Tolerance = { relative: 1e-5, absolute: 1e-5 };

/** Leading dimensions: none, one, several, and ones among them. */
export const leads = [[], [3], [1, 17], [2, 1, 3]];

/** A matrix whose products with unit normal vectors are about 1. */
export function matrix(rows: number, columns: number, seed: number): FloatArray {
  return randomNormal([rows, columns], seed, 1 / Math.sqrt(columns));
}

/** Near 1 but not 1, so that a forgotten gain shows. */
export function gain(size: number, seed: number): FloatArray {
  return floats(
    [size],
    randomNormal([size], seed, 0.2).data.map((value) => 1 + value),
  );
}

/** The sum of two arrays, in float64. */
export function plus(a: ArrayLike<number>, b: ArrayLike<number>): Float64Array {
  return Float64Array.from(a, (value, i) => value + b[i]);
}

/** The four projections of an attention layer of that width. */
export function projections(dModel: number, seed: number) {
  const [q, k, v, o] = [0, 1, 2, 3].map((i) => matrix(dModel, dModel, seed + i));
  return { qProjWeight: q, kProjWeight: k, vProjWeight: v, oProjWeight: o };
}

/** What bfloat16 keeps of numbers. */
export function roundToBfloat16(values: ArrayLike<number>): Float32Array {
  return fromBfloat16(toBfloat16(Float32Array.from(values)));
}

/** What a tensor of that type keeps of float32 values: the numbers that operation and reference both start from. */
export function kept(type: FloatType, array: FloatArray): FloatArray {
  return type === "float32" ? array : { ...array, data: roundToBfloat16(array.data) };
}

/** Makes arrays of normal numbers that the type holds exactly. */
export function normalIn(type: FloatType): typeof randomNormal {
  return (...args) => kept(type, randomNormal(...args));
}
