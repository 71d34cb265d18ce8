/**
 * A model's parameters: values and gradients each lie in one flat buffer, so that the optimizer, the norm and a
 * checkpoint are each one pass. Parameters of one group are stacked without a gap (q, k, v; w1, w3) and can be used as
 * one matrix; groups start at multiples of 256 bytes, and the padding stays zero.
 *
 * Values and gradients are float32. A store whose layers compute in bfloat16 (Micikevicius et al. 2018, "Mixed precision
 * training", §3.1) keeps a second buffer, laid out alike, with the values rounded: the weights. The optimizer writes
 * both; who writes values otherwise does so by `Parameter.set`.
 */
import type { Device } from "./device.ts";
import { cast } from "./operations.ts";
import { type FloatType, MANTOU_DTYPES, Tensor, elementCount } from "./tensor.ts";

/** Group starts are aligned to this many elements (256 bytes of bfloat16). */
const ALIGNMENT = 128;

export interface ParameterSpec {
  name: string;
  shape: number[];
  /** Rows of zeros after a matrix that stands alone in its group: up to a multiple of this (see `padded`). */
  rowMultiple?: number;
}

/** A named part of the flat buffers. */
export class Parameter {
  constructor(
    readonly name: string,
    readonly shape: readonly number[],
    /** float32: what the optimizer updates and a checkpoint holds. */
    readonly value: Tensor,
    /** What layers compute with: `value` itself, or in bfloat16 its rounded copy. */
    readonly weight: Tensor,
    readonly grad: Tensor,
    /** First element in the flat buffers. */
    readonly offset: number,
    readonly store: ParameterStore,
  ) {}

  /** Replaces value and weight. */
  set(data: Float32Array): void {
    this.value.upload(data);
    if (this.weight !== this.value) cast(this.weight, this.value);
  }
}

export class ParameterStore implements Disposable {
  /** float32 [count]: all parameters, and zeros between groups. */
  readonly values: Tensor;
  /** The values in the type that layers compute in; `values` itself if that is float32. */
  readonly weights: Tensor;
  readonly gradients: Tensor;
  readonly byName = new Map<string, Parameter>();
  readonly device: Device;
  #paddedRows = new Map<string, number>();

  /** @param type of the weights that layers compute with */
  constructor(
    device: Device,
    groups: ParameterSpec[][],
    readonly type: FloatType = "float32",
  ) {
    this.device = device;
    const placed: { spec: ParameterSpec; offset: number }[] = [];
    let end = 0;
    for (const group of groups) {
      end = Math.ceil(end / ALIGNMENT) * ALIGNMENT;
      for (const spec of group) {
        placed.push({ spec, offset: end });
        const [rows, ...columns] = spec.shape as [number, ...number[]];
        const multiple = spec.rowMultiple ?? 1;
        const paddedRows = Math.ceil(rows / multiple) * multiple;
        if (group.length === 1) this.#paddedRows.set(spec.name, paddedRows);
        end += elementCount([paddedRows, ...columns]);
      }
    }
    const isMixed = type !== "float32";
    this.values = Tensor.zeros(device, [end], "float32", isMixed ? "master weights" : "parameters");
    this.weights = isMixed ? Tensor.zeros(device, [end], type, "parameters") : this.values;
    this.gradients = Tensor.zeros(device, [end], "float32", "gradients");
    for (const { spec, offset } of placed) {
      const part = (of: Tensor) => of.view(spec.shape, offset);
      const value = part(this.values);
      const weight = isMixed ? part(this.weights) : value;
      this.byName.set(
        spec.name,
        new Parameter(spec.name, spec.shape, value, weight, part(this.gradients), offset, this),
      );
    }
  }

  /** Number of parameters, padding not counted. */
  get count(): number {
    let count = 0;
    for (const parameter of this.byName.values()) count += parameter.value.count;
    return count;
  }

  /** The ABI's number of the weights' type. */
  get dtype(): number {
    return MANTOU_DTYPES[this.type];
  }

  get(name: string): Parameter {
    const parameter = this.byName.get(name);
    if (!parameter) throw new Error(`the model has no parameter ${name}`);
    return parameter;
  }

  /** The parameters named, which must be one group, as one matrix [sum of their rows, columns]. */
  stacked(names: string[]): { weight: Tensor; dWeight: Tensor } {
    const parts = names.map((name) => this.get(name));
    const shape = [parts.reduce((rows, part) => rows + part.value.rows, 0), parts[0]!.value.columns];
    let expected = parts[0]!.offset;
    for (const part of parts) {
      if (part.offset !== expected) throw new Error(`${names.join(", ")} are not one group`);
      expected += part.value.count;
    }
    return this.#at(parts[0]!.offset, shape);
  }

  /** A matrix with the rows of zeros behind it (`rowMultiple`). Whoever uses it sees to it that their gradient is 0. */
  padded(name: string): { weight: Tensor; dWeight: Tensor } {
    const { offset, value } = this.get(name);
    return this.#at(offset, [this.#paddedRows.get(name) ?? value.rows, value.columns]);
  }

  #at(offset: number, shape: number[]): { weight: Tensor; dWeight: Tensor } {
    return { weight: this.weights.view(shape, offset), dWeight: this.gradients.view(shape, offset) };
  }

  [Symbol.dispose](): void {
    for (const buffer of new Set([this.values, this.weights, this.gradients])) buffer[Symbol.dispose]();
  }
}
