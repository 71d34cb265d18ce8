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
