/**
 * Runs one operation (the tests of kernels/) the way the conformance suite wants it: outputs and workspaces full of NaN
 * beforehand, twice on every device that owes the same bits, compared with what is expected.
 */
import { type DType, type Device, type FloatType, Tensor } from "@mantou/model";
import { AssertionError } from "../support/assert.ts";
import { type Numbers, type Tolerance, expectClose } from "../support/close.ts";
import { type FloatArray, type IntArray, sizeOf } from "../support/ndarray.ts";
import { type Subject, equalDevices } from "./backends.ts";
import { roundToBfloat16 } from "./inputs.ts";

/** The codes of types in the C ABI. */
export const DTYPES = { float32: 0, bfloat16: 1 } as const;

/** Elements before and behind every tensor of a workbench: 256 bytes or 512, so that tensors stay aligned. */
const GUARD = 128;

/**
 * Makes tensors that are freed together. Each lies between guards of NaN: what is read there spoils the result, and what
 * is written there is found by `checkGuards`.
 */
export class Workbench implements Disposable {
  #guarded: Tensor[] = [];

  constructor(
    readonly device: Device,
    /** Type of activations and weights. */
    readonly type: FloatType = "float32",
  ) {}

  /** A copy of a host array; of floats in the workbench's type unless another is given. */
  from({ shape, data }: FloatArray | IntArray, type: FloatType = this.type): Tensor {
    const tensor = this.#make(shape, data instanceof Int32Array ? "int32" : type);
    tensor.upload(data);
    return tensor;
  }

  /** NaN everywhere: for outputs that an operation must write as a whole. */
  poisoned(shape: number[], type: FloatType = this.type): Tensor {
    return this.#make(shape, type);
  }

  /** Scratch memory of `bytes` bytes, NaN everywhere. */
  workspace(bytes: number): Tensor {
    return this.poisoned([Math.ceil(bytes / 4)], "float32");
  }

  /** Fails if anything was written outside a tensor. */
  checkGuards(): void {
    for (const whole of this.#guarded) {
      const count = whole.count - 2 * GUARD;
      for (const start of [0, GUARD + count]) {
        const guard = whole.view([GUARD], start);
        const bytes = new Uint8Array(guard.bytes);
        this.device.run("mantou_copy", bytes, guard, bytes.length);
        const touched = bytes.findIndex((byte) => byte !== 255);
        if (touched < 0) continue;
        const element = start - GUARD + Math.floor(touched / (bytes.length / GUARD));
        throw new AssertionError(`element ${element} of a tensor of ${count} was written`);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const whole of this.#guarded) whole[Symbol.dispose]();
  }

  #make(shape: readonly number[], dtype: DType): Tensor {
    const whole = Tensor.zeros(this.device, [sizeOf(shape) + 2 * GUARD], dtype);
    this.device.run("mantou_fill", whole, 255, whole.bytes);
    this.#guarded.push(whole);
    return whole.view(shape, GUARD);
  }
}

/**
 * Fails unless `run` gives what is expected, and the same bits every time, with one thread and with several.
 *
 * A tensor in bfloat16 calibrates its own tolerance: no element may be further off than twice the largest error of the
 * same computation done naively in bfloat16, plus two units in the last place (and the absolute difference that float32
 * is allowed, since that is what the arithmetic is).
 *
 * @param run does the operation and returns its outputs
 * @param expected by the names of the outputs; an output without an expectation is held to equal bits only
 * @param tolerance of float32 outputs
 * @param naive what rounding every intermediate result to bfloat16 gives, where that is more than the expected values
 *   rounded; float32 outputs that depend on such results have their tolerance from it too
 * @returns the outputs
 */
export function verify(
  subject: Pick<Subject, "backend" | "type">,
  run: (bench: Workbench) => Record<string, Tensor>,
  expected: Record<string, Numbers>,
  tolerance: Tolerance = { relative: 1e-5, absolute: 1e-5 },
  naive: Record<string, Numbers> = {},
): Record<string, Float32Array> {
  let first: Record<string, Float32Array> | undefined;
  for (const device of equalDevices(subject.backend)) {
    for (let attempt = 0; attempt < 2; attempt++) {
      using bench = new Workbench(device, subject.type);
      const outputs = Object.entries(run(bench));
      const results = Object.fromEntries(outputs.map(([name, tensor]) => [name, tensor.toFloat32Array()]));
      bench.checkGuards();
      if (!first) {
        first = results;
        for (const [name, { dtype }] of outputs) {
          const values = expected[name];
          if (values === undefined) continue;
          if (subject.type === "bfloat16" && (dtype === "bfloat16" || naive[name] !== undefined)) {
            const given = { absolute: tolerance.absolute ?? 0, naive: naive[name] && dataOf(naive[name]) };
            expectCalibrated(results[name]!, dataOf(values), given, name);
          } else expectClose(results[name]!, dataOf(values), tolerance, name);
        }
      }
      for (const [name, values] of Object.entries(results))
        sameBits(values, first[name]!, `${name} on ${device.description}`);
    }
  }
  return first!;
}

/** Fails where an element is further off than 2 × the naive computation's largest error + 2 bfloat16 ulp + absolute. */
function expectCalibrated(
  actual: Float32Array,
  expected: ArrayLike<number>,
  { naive, absolute }: { naive: ArrayLike<number> | undefined; absolute: number },
  what: string,
): void {
  const rounded = roundToBfloat16(naive ?? expected);
  let worst = 0;
  for (let i = 0; i < expected.length; i++) worst = Math.max(worst, Math.abs(rounded[i]! - expected[i]!));
  const ulp = (value: number) => 2 ** (Math.floor(Math.log2(Math.max(Math.abs(value), 1e-30))) - 7);
  const always = 2 * worst + absolute; // most elements need no look at their ulp
  const allowed = (value: number) => always + 2 * ulp(value);
  for (let i = 0; i < expected.length; i++) {
    const error = actual.length === expected.length ? Math.abs(actual[i]! - expected[i]!) : NaN;
    if (error <= always || error <= allowed(expected[i]!)) continue;
    throw new AssertionError(
      `${what}: element ${i} of ${expected.length} (${actual.length}) is ${actual[i]}, expected ${expected[i]} ` +
        `± ${allowed(expected[i]!).toExponential(2)}; the naive computation is off by at most ${worst.toExponential(2)}`,
    );
  }
}

/** Fails unless two arrays of float32 are equal bit for bit, NaN and signed zeros included. */
export function sameBits(actual: Float32Array, expected: Float32Array, what: string): void {
  const bytes = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength);
  if (bytes(actual).equals(bytes(expected))) return;
  const bits = (values: Float32Array) => new Uint32Array(values.buffer, values.byteOffset, values.length);
  const [a, e] = [bits(actual), bits(expected)];
  const at = a.length === e.length ? a.findIndex((value, i) => value !== e[i]) : 0;
  throw new AssertionError(`${what}: not the same bits at ${at}: ${actual[at]} and ${expected[at]}`);
}

function dataOf(numbers: Numbers): ArrayLike<number> {
  return "data" in numbers ? numbers.data : numbers;
}
