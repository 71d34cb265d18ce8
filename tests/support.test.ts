/**
 * The suite's own tools: a comparison or an assertion that lets everything pass would make every other test worthless.
 */
import {
  assert,
  assertAlmostEquals,
  assertEquals,
  AssertionError,
  assertInstanceOf,
  assertMatch,
  assertNotEquals,
  assertRejects,
  assertStrictEquals,
  assertThrows,
} from "@std/assert";
import { describe, expect, test } from "bun:test";
import { difference, expectClose, type Numbers, type Tolerance } from "./support/close.ts";
import { floats, generator, ints, randomInts, randomNormal } from "./support/ndarray.ts";

describe("expectClose", () => {
  const refuse = (actual: Numbers, expected: Numbers, tolerance?: Tolerance) =>
    assertThrows(() => expectClose(actual, expected, tolerance), AssertionError).message;

  test("reports count, maximum, its place and the error in norm", () => {
    const expected = floats([2, 3], [3, 0, 0, 0, 4, 0]);
    const actual = floats([2, 3], [3, 0, 0, 0.5, 4, -2]);
    const message = refuse(actual, expected, { absolute: 0.25 });
    expect(message).toContain("2 of 6 elements fail");
    expect(message).toContain("maximum error 2.000e+0 at index 5 = [1, 2]: actual -2, expected 0");
    expect(message).toContain(`relative error in norm ${(Math.sqrt(4.25) / 5).toExponential(3)}`);
  });

  test("adds the absolute and the relative allowance", () => {
    expectClose([100.9], [100], { relative: 0.005, absolute: 0.5 });
    refuse([101.1], [100], { relative: 0.005, absolute: 0.5 });
    refuse([100.9], [100], { relative: 0.005 });
    refuse([100.9], [100], { absolute: 0.5 });
  });

  test("a bound on the norm alone judges the whole", () => {
    expectClose([100, 0.1], [100, 0], { norm: 1e-2 });
    refuse([100, 2], [100, 0], { norm: 1e-2 });
    refuse([100, 0.1], [100, 0], { norm: 1e-2, absolute: 0.05 });
  });

  test("NaN never passes, infinities only against themselves", () => {
    expect(refuse([1, NaN, 1e9], [1, 2, 3])).toContain("at index 1");
    refuse([NaN], [NaN], { absolute: Infinity });
    refuse([NaN], [1], { norm: Infinity });
    refuse([Infinity], [-Infinity]);
    refuse([Infinity], [1], { norm: 1 });
    expectClose([Infinity, -Infinity], [Infinity, -Infinity]);
  });

  test("shapes and lengths must agree", () => {
    expect(refuse(floats([2, 1], [1, 2]), floats([1, 2], [1, 2]))).toContain("shape is [2,1], expected [1,2]");
    expect(refuse([1], [1, 2])).toContain("1 elements, expected 2");
    expect(difference([], [], {}).index).toBe(-1);
  });
});

describe("arrays", () => {
  test("values must fill the shape", () => {
    expect(() => ints([2, 2], [1, 2, 3])).toThrow("shape [2,2] holds 4 values, but 3 were given");
    expect(floats([], [7]).data).toEqual(Float32Array.of(7));
  });

  test("random arrays repeat with the seed and have the stated distribution", () => {
    expect(randomNormal([4, 5], 1)).toEqual(randomNormal([4, 5], 1));
    expect(randomNormal([4, 5], 1)).not.toEqual(randomNormal([4, 5], 2));
    const { data } = randomNormal([20_000], 3, 2);
    const mean = data.reduce((sum, x) => sum + x, 0) / data.length;
    const variance = data.reduce((sum, x) => sum + (x - mean) ** 2, 0) / data.length;
    assertAlmostEquals(mean, 0, 5 * (2 / Math.sqrt(data.length)));
    assertAlmostEquals(Math.sqrt(variance), 2, 0.05);
    expect(new Set(randomInts([1000], 4, 7).data)).toEqual(new Set([0, 1, 2, 3, 4, 5, 6]));
    const uniform = generator(5);
    for (let i = 0; i < 1000; i++) {
      const u = uniform();
      assert(u >= 0 && u < 1);
    }
  });
});

describe("@std/assert", () => {
  const refuse = (assertion: () => void) => assertThrows(assertion, AssertionError);

  test("assertEquals compares deeply", () => {
    const cyclic: { self?: unknown } = {};
    cyclic.self = cyclic;
    const same: [unknown, unknown][] = [
      [NaN, NaN],
      [0, -0],
      [{ a: [1, { b: 2 }] }, { a: [1, { b: 2 }] }],
      [Float32Array.of(1, 2), Float32Array.of(1, 2)],
      [new Map([[{ k: 1 }, 2]]), new Map([[{ k: 1 }, 2]])],
      [new Set([1, 2]), new Set([2, 1])],
      [new Date(5), new Date(5)],
      [cyclic, cyclic],
    ];
    const different: [unknown, unknown][] = [
      [1, "1"],
      [null, undefined],
      [{ a: undefined }, {}],
      [{ a: undefined }, { b: undefined }],
      [[1, 2], [1]],
      [Float32Array.of(1), Int32Array.of(1)],
      [new Map([[1, 2]]), new Map([[1, 3]])],
      [new Set([1]), new Set([2])],
      [new Date(5), new Date(6)],
      [/a/g, /a/i],
    ];
    for (const [a, b] of same) {
      assertEquals(a, b);
      refuse(() => assertNotEquals(a, b));
    }
    for (const [a, b] of different) {
      assertNotEquals(a, b);
      refuse(() => assertEquals(a, b));
    }
  });

  test("the simple ones", () => {
    refuse(() => assert(0));
    refuse(() => assertStrictEquals([1], [1]));
    refuse(() => assertStrictEquals(0, -0));
    assertStrictEquals(NaN, NaN);
    assertAlmostEquals(1, 1 + 0.9e-7);
    refuse(() => assertAlmostEquals(1, 1 + 1.1e-7));
    refuse(() => assertAlmostEquals(1, NaN, 10));
    assertInstanceOf(new TypeError(), Error);
    refuse(() => assertInstanceOf(new Error(), TypeError));
    assertMatch("abc", /b/);
    refuse(() => assertMatch("abc", /d/));
  });

  test("assertThrows checks class and message and returns the error", () => {
    const error = new RangeError("7 is too many");
    const fn = () => {
      throw error;
    };
    assertStrictEquals(assertThrows(fn), error);
    assertStrictEquals(assertThrows(fn, Error, "too many"), error);
    refuse(() => assertThrows(fn, TypeError));
    refuse(() => assertThrows(fn, RangeError, "too few"));
    refuse(() => assertThrows(() => 1));
  });

  test("assertRejects wants a rejected promise, not a throw", async () => {
    const rejects = (fn: () => PromiseLike<unknown>) => assertRejects(fn, RangeError, "too many");
    const error = new RangeError("7 is too many");
    assertStrictEquals(await rejects(() => Promise.reject(error)), error);
    await assertRejects(() => rejects(() => Promise.reject(new RangeError("few"))), AssertionError);
    await assertRejects(() => rejects(() => Promise.resolve(1)), AssertionError, "Expected function to reject");
    const throwing = () => {
      throw error;
    };
    await assertRejects(() => rejects(throwing), AssertionError, "Function throws");
  });
});
