/**
 * Runs one operation the way the conformance suite wants it: outputs and workspaces full of NaN beforehand, twice on
 * every device that owes the same bits, compared with what is expected.
 */
import { type Device, Tensor } from "@mantou/model";
import type { Backend } from "../adapters.ts";
import { AssertionError } from "../support/assert.ts";
import { type Numbers, type Tolerance, expectClose } from "../support/close.ts";
import { type FloatArray, type IntArray, sizeOf } from "../support/ndarray.ts";
import { equalDevices } from "./backends.ts";

/** Elements before and behind every tensor of a workbench: 256 bytes, so that tensors stay aligned. */
const GUARD = 64;

/**
 * Makes tensors that are freed together. Each lies between guards of NaN: what is read there spoils the result, and what
 * is written there is found by `checkGuards`.
 */
export class Workbench implements Disposable {
  #guarded: Tensor[] = [];

  constructor(readonly device: Device) {}

  /** A copy of a host array. */
  from({ shape, data }: FloatArray | IntArray): Tensor {
    const tensor = this.#make(shape, data instanceof Int32Array ? "int32" : "float32");
    tensor.upload(data);
    return tensor;
  }

  /** NaN everywhere: for outputs that an operation must write as a whole. */
  poisoned(shape: number[]): Tensor {
    return this.#make(shape, "float32");
  }

  /** Scratch memory of `bytes` bytes, NaN everywhere. */
  workspace(bytes: number): Tensor {
    return this.poisoned([Math.ceil(bytes / 4)]);
  }

  /** Fails if anything was written outside a tensor. */
  checkGuards(): void {
    for (const whole of this.#guarded) {
      const words = new Int32Array(new ArrayBuffer(whole.count * 4));
      this.device.run("mantou_copy", words, whole, words.byteLength);
      const touched = words.findIndex((word, i) => word !== -1 && (i < GUARD || i >= words.length - GUARD));
      if (touched >= 0) {
        throw new AssertionError(`element ${touched - GUARD} of a tensor of ${words.length - 2 * GUARD} was written`);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const whole of this.#guarded) whole[Symbol.dispose]();
  }

  #make(shape: readonly number[], dtype: "float32" | "int32"): Tensor {
    const whole = Tensor.zeros(this.device, [sizeOf(shape) + 2 * GUARD], dtype);
    this.device.run("mantou_fill", whole, 255, whole.count * 4);
    this.#guarded.push(whole);
    return whole.view(shape, GUARD);
  }
}

/**
 * Fails unless `run` gives what is expected, and the same bits every time, with one thread and with several.
 *
 * @param run does the operation and returns its outputs
 * @param expected by the names of the outputs; an output without an expectation is held to equal bits only
 */
export function verify(
  backend: Backend,
  run: (bench: Workbench) => Record<string, Tensor>,
  expected: Record<string, Numbers>,
  tolerance: Tolerance = { relative: 1e-5, absolute: 1e-5 },
): void {
  let first: Record<string, Float32Array> | undefined;
  for (const device of equalDevices(backend)) {
    for (let attempt = 0; attempt < 2; attempt++) {
      using bench = new Workbench(device);
      const results = Object.fromEntries(
        Object.entries(run(bench)).map(([name, tensor]) => [name, tensor.toFloat32Array()]),
      );
      bench.checkGuards();
      if (!first) {
        first = results;
        for (const [name, values] of Object.entries(expected))
          expectClose(results[name], dataOf(values), tolerance, name);
      }
      for (const [name, values] of Object.entries(results))
        sameBits(values, first[name], `${name} on ${device.description}`);
    }
  }
}

/** Fails unless two arrays of float32 are equal bit for bit, NaN and signed zeros included. */
export function sameBits(actual: Float32Array, expected: Float32Array, what: string): void {
  const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);
  const [a, e] = [bits(actual), bits(expected)];
  const at = a.length === e.length ? a.findIndex((value, i) => value !== e[i]) : 0;
  if (at >= 0) throw new AssertionError(`${what}: not the same bits at ${at}: ${actual[at]} and ${expected[at]}`);
}

function dataOf(numbers: Numbers): ArrayLike<number> {
  return "data" in numbers ? numbers.data : numbers;
}
