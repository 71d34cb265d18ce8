/** 16-bit floats: rounding to the nearest, ties to even, the ends of the range, and every pattern there and back. */
import { expect, test } from "bun:test";
import { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from "@mantou/model";

const all = Uint16Array.from({ length: 65536 }, (_, i) => i);

for (const [name, from, to, exponent, mantissa] of [
  ["bfloat16", fromBfloat16, toBfloat16, 8, 7],
  ["float16", fromFloat16, toFloat16, 5, 10],
] as const) {
  test(`${name}: all 65,536 patterns mean what IEEE 754 says and come back`, () => {
    const values = from(all);
    const back = to(values);
    const bias = 2 ** (exponent - 1) - 1;
    let wrong = 0;
    for (const bits of all) {
      const e = (bits >> mantissa) & (2 ** exponent - 1);
      const m = bits & (2 ** mantissa - 1);
      const size = e === 0 ? (m / 2 ** mantissa) * 2 ** (1 - bias) : (1 + m / 2 ** mantissa) * 2 ** (e - bias);
      const magnitude = e < 2 ** exponent - 1 ? size : m === 0 ? Number.POSITIVE_INFINITY : Number.NaN;
      const expected = bits >> 15 ? -magnitude : magnitude;
      const isRight = Number.isNaN(expected)
        ? Number.isNaN(values[bits]) && Number.isNaN(from(back.subarray(bits, bits + 1))[0])
        : Object.is(values[bits], expected) && back[bits] === bits;
      if (!isRight) wrong++;
    }
    expect(wrong).toBe(0);
  });

  test(`${name}: between two neighbours the nearer, in the middle the even one`, () => {
    const [first, last] = [1, name === "float16" ? 0x7bff : 0x7f7f];
    const bits = Uint16Array.from({ length: last - first }, (_, i) => first + i);
    const values = from(bits);
    const above = from(bits.map((each) => each + 1));
    const at = (share: number) => Float32Array.from(values, (value, i) => value + (above[i] - value) * share);
    expect(to(at(0.25))).toEqual(bits);
    expect(to(at(0.75))).toEqual(bits.map((each) => each + 1));
    expect(to(at(0.5))).toEqual(bits.map((each) => each + (each & 1)));
  });
}

test("beyond the range", () => {
  expect(Array.from(fromFloat16(toFloat16(Float32Array.of(65519, 65520, -1e9, 1e-9))))).toEqual([
    65504,
    Number.POSITIVE_INFINITY,
    Number.NEGATIVE_INFINITY,
    0,
  ]);
  expect(fromBfloat16(toBfloat16(Float32Array.of(3.4e38)))[0]).toBe(Number.POSITIVE_INFINITY);
});
