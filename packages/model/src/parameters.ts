/**
 * A model's parameters: values and gradients each lie in one flat buffer, so that the optimizer, the norm and a
 * checkpoint are each one pass. Parameters of one group are stacked without a gap (q, k, v; w1, w3) and can be used as
 * one matrix; groups start at multiples of 256 bytes, and the padding stays zero.
 */
import type { Device } from "./device.ts";
import { Tensor, elementCount } from "./tensor.ts";

/** Group starts are aligned to this many elements (256 bytes). */
const ALIGNMENT = 64;

export interface ParameterSpec {
  name: string;
  shape: number[];
}

/** A named part of the flat buffers. */
export class Parameter {
  constructor(
    readonly name: string,
    readonly shape: readonly number[],
    readonly value: Tensor,
    readonly grad: Tensor,
    /** First element in the flat buffers. */
    readonly offset: number,
    readonly store: ParameterStore,
  ) {}
}

export class ParameterStore implements Disposable {
  /** float32 [count]: all parameters, and zeros between groups. */
  readonly values: Tensor;
  readonly gradients: Tensor;
  readonly byName = new Map<string, Parameter>();
  readonly device: Device;

  constructor(device: Device, groups: ParameterSpec[][]) {
    this.device = device;
    const placed: { spec: ParameterSpec; offset: number }[] = [];
    let end = 0;
    for (const group of groups) {
      end = Math.ceil(end / ALIGNMENT) * ALIGNMENT;
      for (const spec of group) {
        placed.push({ spec, offset: end });
        end += elementCount(spec.shape);
      }
    }
    this.values = Tensor.zeros(device, [end]);
    this.gradients = Tensor.zeros(device, [end]);
    for (const { spec, offset } of placed) {
      const [value, grad] = [this.values.view(spec.shape, offset), this.gradients.view(spec.shape, offset)];
      this.byName.set(spec.name, new Parameter(spec.name, spec.shape, value, grad, offset, this));
    }
  }

  /** Number of parameters, padding not counted. */
  get count(): number {
    let count = 0;
    for (const parameter of this.byName.values()) count += parameter.value.count;
    return count;
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
    const offset = parts[0]!.offset;
    return { weight: this.values.view(shape, offset), dWeight: this.gradients.view(shape, offset) };
  }

  [Symbol.dispose](): void {
    this.values[Symbol.dispose]();
    this.gradients[Symbol.dispose]();
  }
}
