/** Learning rate schedules. */

export interface CosineSchedule {
  maxLearningRate: number;
  minLearningRate: number;
  /** Steps of linear warmup from 0. */
  warmupIters: number;
  /** Step at which the minimum is reached; it stays from there on. */
  cosineCycleIters: number;
}

/** Linear warmup, then half a cosine from the maximum to the minimum (Loshchilov & Hutter 2017; CS336 §4.4). */
export function cosineLearningRate(it: number, schedule: CosineSchedule): number {
  const { maxLearningRate, minLearningRate, warmupIters, cosineCycleIters } = schedule;
  if (it < warmupIters) return (it / warmupIters) * maxLearningRate;
  if (it >= cosineCycleIters) return it === warmupIters ? maxLearningRate : minLearningRate;
  const progress = (it - warmupIters) / (cosineCycleIters - warmupIters);
  return minLearningRate + 0.5 * (1 + Math.cos(Math.PI * progress)) * (maxLearningRate - minLearningRate);
}
