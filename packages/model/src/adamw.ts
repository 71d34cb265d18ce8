/**
 * AdamW with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2; decay first, as in PyTorch), one native pass
 * over the flat buffers. It updates the float32 values and rounds them into the weights that layers compute with.
 */
import { gradientNorm, scale } from "./operations.ts";
import type { Parameter, ParameterStore } from "./parameters.ts";
import type { Slice } from "./native.ts";
import { Repeated } from "./repeated.ts";
import { Tensor } from "./tensor.ts";

export interface AdamWOptions {
  /** Decay rates of the moving averages of the gradient and of its square. Default [0.9, 0.999]. */
  betas?: [number, number];
  /** Default 1e-8. */
  eps?: number;
  /** Default 0.01. */
  weightDecay?: number;
  /** Which parameters decay. Default: all, as torch.optim.AdamW does. */
  decays?: (parameter: Parameter) => boolean;
  /** Which parameters are left to a subclass (see `updateOthers`). Default: none. */
  leaves?: (parameter: Parameter) => boolean;
}

/** A part of the flat buffers that one native call updates, with the ends of its ranges of equal decay. */
interface Segment {
  offset: number;
  count: number;
  ranges: number;
  ends: Slice;
  decays: Tensor;
}

export class AdamW implements Disposable {
  readonly store: ParameterStore;
  readonly betas: [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  /** Moving averages of the gradient and of its square, laid out as the parameters. */
  readonly firstMoments: Tensor;
  readonly secondMoments: Tensor;
  /** float32 [3] on the device: learning rate, 1 − β₁ᵗ, 1 − β₂ᵗ of the step that comes. */
  readonly scalars: Tensor;
  /** float32 [2]: norm of the gradients and what they were scaled by, of the step before. */
  readonly norm: Tensor;
  /** Steps taken so far: t of the bias correction. */
  stepCount = 0;
  #workspace: Tensor;
  #segments: Segment[];
  /** What `queueStep` does for its `maxNorm`. */
  #queued: { maxNorm: number; work: Repeated } | undefined;

  /** @param parameters all parameters of one model. @throws RangeError for a value outside its range */
  constructor(parameters: Map<string, Parameter>, options: AdamWOptions = {}) {
    const [first] = parameters.values();
    if (!first) throw new RangeError("AdamW needs at least one parameter");
    this.store = first.store;
    for (const parameter of parameters.values()) {
      if (parameter.store !== this.store) throw new RangeError("AdamW takes the parameters of one model");
    }
    const [known, given] = [this.store.byName.size, parameters.size];
    if (given !== known) throw new RangeError(`AdamW takes all ${known} parameters of a model, not ${given} of them`);
    this.betas = options.betas ?? [0.9, 0.999];
    this.eps = options.eps ?? 1e-8;
    this.weightDecay = options.weightDecay ?? 0.01;
    if (this.betas.length !== 2) throw new RangeError(`betas must be two numbers, not [${this.betas.join(", ")}]`);
    for (const beta of this.betas) {
      // In float32, as the kernels take it, 0.99999999 is 1.
      if (!(beta >= 0 && Math.fround(beta) < 1)) throw new RangeError(`betas must lie in [0, 1), not ${beta}`);
    }
    for (const name of ["eps", "weightDecay"] as const) {
      if (!(this[name] >= 0 && Number.isFinite(this[name]))) {
        throw new RangeError(`${name} must be a finite number ≥ 0, not ${this[name]}`);
      }
    }
    const { device, values, gradients } = this.store;
    this.firstMoments = Tensor.zeros(device, values.shape, "float32", "moments");
    this.secondMoments = Tensor.zeros(device, values.shape, "float32", "moments");
    this.scalars = Tensor.zeros(device, [3]);
    this.norm = Tensor.zeros(device, [2]);
    const bytes = device.size("mantou_gradient_norm_workspace", gradients.count);
    this.#workspace = Tensor.zeros(device, [Math.ceil(bytes / 4)], "float32", "workspace");
    this.#segments = this.#plan(options.decays ?? (() => true), options.leaves ?? (() => false));
  }

  /** Global L2 norm of all gradients, as it was before they were scaled to at most `maxNorm`, in place. */
  clipGradients(maxNorm: number): number {
    if (!(maxNorm > 0)) throw new RangeError(`maxNorm must be positive, not ${maxNorm}`);
    gradientNorm(this.norm, this.store.gradients, maxNorm, this.#workspace);
    const [norm, factor] = this.norm.toFloat32Array() as unknown as [number, number];
    if (factor !== 1) scale(this.store.gradients, this.norm.view([1], 1));
    return norm;
  }

  /** One step with learning rate `lr`, using and keeping the gradients. */
  step(lr: number): void {
    this.scalars.upload(this.nextScalars(lr));
    this.#update(null);
  }

  /**
   * clipGradients and step in one: the gradients are scaled as they are read, or not at all where `maxNorm` is not positive.
   * Returns the norm before clipping.
   */
  clipAndStep(lr: number, maxNorm: number): number {
    checkMaxNorm(maxNorm);
    this.scalars.upload(this.nextScalars(lr));
    this.queueStep(maxNorm);
    return this.norm.toFloat32Array()[0]!;
  }

  /**
   * Counts one step more and gives what `scalars` must hold when it is done: the learning rate and the bias corrections.
   */
  nextScalars(lr: number): Float32Array {
    if (!Number.isFinite(lr)) throw new RangeError(`lr must be a finite number, not ${lr}`);
    this.stepCount++;
    const [beta1, beta2] = this.betas;
    return Float32Array.of(lr, 1 - beta1 ** this.stepCount, 1 - beta2 ** this.stepCount);
  }

  /** The device's part of `clipAndStep`, without waiting: leaves the norm in `norm`. */
  queueStep(maxNorm: number): void {
    if (this.#queued?.maxNorm !== maxNorm) {
      this.#queued?.work[Symbol.dispose]();
      const work = new Repeated(this.store.device, () => {
        gradientNorm(this.norm, this.store.gradients, maxNorm, this.#workspace);
        this.#update(this.norm.view([1], 1));
      });
      this.#queued = { maxNorm, work };
    }
    this.#queued.work.run();
  }

  zeroGrad(): void {
    this.store.gradients.zero();
  }

  [Symbol.dispose](): void {
    this.#queued?.work[Symbol.dispose]();
    for (const tensor of [this.firstMoments, this.secondMoments, this.scalars, this.norm, this.#workspace]) {
      tensor[Symbol.dispose]();
    }
    for (const { ends, decays } of this.#segments) {
      ends.memory[Symbol.dispose]();
      decays[Symbol.dispose]();
    }
  }

  /**
   * Updates what `leaves` named, by device operations alone: `scalars` hold the learning rate, and `factor`, of one
   * element, scales the gradients unless it is null.
   */
  protected updateOthers(_factor: Tensor | null): void {}

  #update(factor: Tensor | null): void {
    const [beta1, beta2] = this.betas;
    const { device, values, weights, gradients, dtype } = this.store;
    for (const { offset, count, ranges, ends, decays } of this.#segments) {
      const [value, weight, gradient, first, second] = [
        values,
        weights,
        gradients,
        this.firstMoments,
        this.secondMoments,
      ].map((tensor) => tensor.view([count], offset)) as [Tensor, Tensor, Tensor, Tensor, Tensor];
      const master = weights === values ? null : value;
      const state = [gradient, first, second, this.scalars, factor] as const;
      const constants = [beta1, beta2, this.eps, ranges, ends, decays] as const;
      device.run("mantou_adamw", dtype, count, weight, master, ...state, ...constants);
    }
    this.updateOthers(factor);
  }

  /** Neighbouring parameters make a segment, and those that decay alike one range of it. */
  #plan(decays: (parameter: Parameter) => boolean, leaves: (parameter: Parameter) => boolean): Segment[] {
    const segments: { offset: number; ranges: { end: number; decay: number }[] }[] = [];
    const parameters = [...this.store.byName.values()];
    let isOpen = false;
    parameters.forEach((parameter, i) => {
      if (leaves(parameter)) {
        isOpen = false;
        return;
      }
      if (!isOpen) segments.push({ offset: parameter.offset, ranges: [] });
      isOpen = true;
      const { offset, ranges } = segments.at(-1)!;
      const decay = decays(parameter) ? this.weightDecay : 0;
      const end = (parameters[i + 1]?.offset ?? this.store.values.count) - offset;
      const last = ranges.at(-1);
      if (last?.decay === decay) last.end = end;
      else ranges.push({ end, decay });
    });
    const { device } = this.store;
    return segments.map(({ offset, ranges }) => {
      const ends = { memory: device.allocate(ranges.length * 8), byteOffset: 0 };
      device.run("mantou_copy", ends, BigInt64Array.from(ranges.map(({ end }) => BigInt(end))), ranges.length * 8);
      const rates = Tensor.from(device, [ranges.length], Float32Array.from(ranges.map(({ decay }) => decay)));
      return { offset, count: ranges.at(-1)!.end, ranges: ranges.length, ends, decays: rates };
    });
  }
}

/** Before anything is counted or queued. @throws RangeError for NaN */
export function checkMaxNorm(maxNorm: number): void {
  if (Number.isNaN(maxNorm)) throw new RangeError("maxNorm must be a number, 0 for no clipping, not NaN");
}
