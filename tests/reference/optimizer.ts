/**
 * AdamW, gradient clipping and the learning-rate schedule in float64, written from the formulas.
 */

/** Settings of {@link AdamWReference}, with PyTorch's defaults. */
export interface AdamWSettings {
  lr?: number;
  betas?: readonly [number, number];
  eps?: number;
  weightDecay?: number;
}

/** One tensor to optimise; a null gradient leaves the tensor, its moments and its step count alone. */
export interface ReferenceParameter {
  value: Float64Array;
  grad: ArrayLike<number> | null;
}

/**
 * Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2), the decay applied first:
 *
 *   θ ← θ - lr · weightDecay · θ
 *   m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
 *   θ ← θ - lr · (m / (1 - β₁ᵗ)) / (sqrt(v / (1 - β₂ᵗ)) + eps)
 */
export class AdamWReference {
  private readonly states: { m: Float64Array; v: Float64Array; t: number }[];

  constructor(
    private readonly parameters: ReferenceParameter[],
    private readonly settings: AdamWSettings = {},
  ) {
    this.states = parameters.map(({ value }) => ({
      m: new Float64Array(value.length),
      v: new Float64Array(value.length),
      t: 0,
    }));
  }

  /** Updates the values in place. */
  step(lr = this.settings.lr ?? 1e-3): void {
    const { betas = [0.9, 0.999], eps = 1e-8, weightDecay = 0.01 } = this.settings;
    const [beta1, beta2] = betas;
    this.parameters.forEach(({ value, grad }, p) => {
      if (grad === null) return;
      const state = this.states[p];
      state.t++;
      for (let i = 0; i < value.length; i++) {
        value[i] -= lr * weightDecay * value[i];
        state.m[i] = beta1 * state.m[i] + (1 - beta1) * grad[i];
        state.v[i] = beta2 * state.v[i] + (1 - beta2) * grad[i] ** 2;
        const mHat = state.m[i] / (1 - beta1 ** state.t);
        const vHat = state.v[i] / (1 - beta2 ** state.t);
        value[i] -= (lr * mHat) / (Math.sqrt(vHat) + eps);
      }
    });
  }
}

/**
 * Scales all gradients by maxL2Norm / (norm + 1e-6) where their combined norm exceeds maxL2Norm.
 *
 * @returns the scaled gradients and the norm before scaling
 */
export function clipGradients(
  gradients: readonly ArrayLike<number>[],
  maxL2Norm: number,
): { gradients: Float64Array[]; norm: number } {
  let squares = 0;
  for (const gradient of gradients) {
    for (let i = 0; i < gradient.length; i++) squares += gradient[i] ** 2;
  }
  const norm = Math.sqrt(squares);
  const scale = norm > maxL2Norm ? maxL2Norm / (norm + 1e-6) : 1;
  return { gradients: gradients.map((gradient) => Float64Array.from(gradient, (g) => g * scale)), norm };
}

/** Linear warmup from 0, a half cosine down to the minimum at `cosineCycleIters`, the minimum from there on. */
export function cosineSchedule(
  it: number,
  maxLearningRate: number,
  minLearningRate: number,
  warmupIters: number,
  cosineCycleIters: number,
): number {
  if (it < warmupIters) return (it / warmupIters) * maxLearningRate;
  if (it === warmupIters) return maxLearningRate; // also where the cycle ends with the warmup and has no length
  if (it > cosineCycleIters) return minLearningRate;
  const progress = (it - warmupIters) / (cosineCycleIters - warmupIters);
  return minLearningRate + 0.5 * (1 + Math.cos(Math.PI * progress)) * (maxLearningRate - minLearningRate);
}

/** Settings of {@link MuonReference}. */
export interface MuonSettings {
  momentum?: number;
  weightDecay?: number;
}

/**
 * Muon on one matrix [rows, columns] (Jordan et al. 2024), with the update scaled as by Liu et al. 2025:
 *
 *   M ← μ M + G;  X ← (G + μ M) / ‖G + μ M‖
 *   five times X ← a X + (b X Xᵀ + c (X Xᵀ)²) X
 *   θ ← (1 - lr · weightDecay) θ - 0.2 sqrt(max(rows, columns)) lr X
 */
export class MuonReference {
  private readonly moment: Float64Array;

  constructor(
    private readonly value: Float64Array,
    private readonly rows: number,
    private readonly columns: number,
    private readonly settings: MuonSettings = {},
  ) {
    this.moment = new Float64Array(value.length);
  }

  step(grad: ArrayLike<number>, lr: number): void {
    const { momentum = 0.95, weightDecay = 0.01 } = this.settings;
    const { rows, columns, value, moment } = this;
    let x = new Float64Array(value.length);
    for (let i = 0; i < value.length; i++) {
      moment[i] = momentum * moment[i] + grad[i];
      x[i] = grad[i] + momentum * moment[i];
    }
    const norm = Math.sqrt(x.reduce((sum, each) => sum + each * each, 0)) + 1e-6;
    x = x.map((each) => each / norm);
    for (let iteration = 0; iteration < 5; iteration++) {
      const gram = new Float64Array(rows * rows);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < rows; j++) {
          for (let k = 0; k < columns; k++) gram[i * rows + j] += x[i * columns + k] * x[j * columns + k];
        }
      }
      const polynomial = new Float64Array(rows * rows);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < rows; j++) {
          let square = 0;
          for (let k = 0; k < rows; k++) square += gram[i * rows + k] * gram[k * rows + j];
          polynomial[i * rows + j] = -4.775 * gram[i * rows + j] + 2.0315 * square;
        }
      }
      const next = x.map((each) => 3.4445 * each);
      for (let i = 0; i < rows; i++) {
        for (let j = 0; j < columns; j++) {
          for (let k = 0; k < rows; k++) next[i * columns + j] += polynomial[i * rows + k] * x[k * columns + j];
        }
      }
      x = next;
    }
    const size = 0.2 * Math.sqrt(Math.max(rows, columns));
    for (let i = 0; i < value.length; i++) value[i] = (1 - lr * weightDecay) * value[i] - lr * size * x[i];
  }
}
