/** Learning rate schedules: a linear warmup from 0, then what the schedule's name says. */

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

/**
 * After the warmup: half a cosine to the minimum; a straight line to it; the maximum and a straight line in the last
 * `decaySteps` (warmup-stable-decay: Hu et al. 2024, "MiniCPM", §4; linear as in Hägele et al. 2024); the maximum alone.
 */
export type ScheduleName = "cosine" | "linear" | "wsd" | "constant";

export interface ScheduleSettings {
  schedule: ScheduleName;
  lr: number;
  minLr: number;
  warmupSteps: number;
  /** Length of the decay of `wsd`. */
  decaySteps: number;
  steps: number;
}

/** The learning rate of step `it`, from 1 to `steps`. */
export function learningRate(it: number, settings: ScheduleSettings): number {
  const { schedule, lr, minLr, warmupSteps, decaySteps, steps } = settings;
  if (it < warmupSteps) return (it / warmupSteps) * lr;
  if (schedule === "constant") return lr;
  if (schedule === "cosine") {
    const range = { maxLearningRate: lr, minLearningRate: minLr };
    return cosineLearningRate(it, { ...range, warmupIters: warmupSteps, cosineCycleIters: steps });
  }
  const begin = schedule === "linear" ? warmupSteps : Math.max(warmupSteps, steps - decaySteps);
  if (it <= begin) return lr;
  return it >= steps ? minLr : minLr + (lr - minLr) * ((steps - it) / (steps - begin));
}
