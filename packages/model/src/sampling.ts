/**
 * Drawing a token from logits. The steps, in the order that Hugging Face's transformers and llama.cpp use: repetition
 * penalty, temperature, top-k, top-p, min-p.
 */
export interface SamplingOptions {
  /** Logits are divided by it; 0 takes the most likely token. Default 1. */
  temperature?: number;
  /** Sample from this many of the most likely tokens (Fan et al. 2018). Default 0: from all. */
  topK?: number;
  /** Sample from the smallest set of tokens with at least this probability together (Holtzman et al. 2020). Default 1. */
  topP?: number;
  /** Leave out tokens less likely than this share of the most likely one (Nguyen et al. 2024). Default 0. */
  minP?: number;
  /**
   * Makes tokens that occur already less likely: their logits are divided by it where positive, multiplied where
   * negative (Keskar et al. 2019, §4.1). Default 1: as likely as ever.
   */
  repetitionPenalty?: number;
}

/** @throws RangeError naming the option and its range */
export function checkSampling(options: SamplingOptions): void {
  const { temperature = 1, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1 } = options;
  if (!(temperature >= 0) || !Number.isFinite(temperature)) {
    throw new RangeError(`temperature must be a number ≥ 0, not ${temperature}`);
  }
  if (!Number.isSafeInteger(topK) || topK < 0) throw new RangeError(`topK must be a whole number ≥ 0, not ${topK}`);
  if (!(topP > 0 && topP <= 1)) throw new RangeError(`topP must lie in (0, 1], not ${topP}`);
  if (!(minP >= 0 && minP <= 1)) throw new RangeError(`minP must lie in [0, 1], not ${minP}`);
  if (!(repetitionPenalty > 0) || !Number.isFinite(repetitionPenalty)) {
    throw new RangeError(`repetitionPenalty must be a number > 0, not ${repetitionPenalty}`);
  }
}

/**
 * Draws a token from logits [vocabSize]; `u`, uniform in [0, 1), decides which.
 * @param seen the tokens that the repetition penalty is for
 */
export function sampleToken(
  logits: Float32Array,
  options: SamplingOptions,
  u: number,
  seen: Iterable<number> = [],
): number {
  const { temperature = 1, repetitionPenalty = 1 } = options;
  const scores = repetitionPenalty === 1 ? logits : penalised(logits, repetitionPenalty, seen);
  let best = 0;
  for (let i = 1; i < scores.length; i++) if (scores[i]! > scores[best]!) best = i;
  if (temperature === 0) return best;
  // Plain loops: with `from` and `reduce` this would take as long as a small model's forward pass.
  const weights = new Float32Array(scores.length);
  for (let i = 0; i < weights.length; i++) weights[i] = Math.exp((scores[i]! - scores[best]!) / temperature);
  return drawToken(weights, options, u);
}

/**
 * Draws a token by weights [vocabSize] that stand for its probability; `u`, uniform in [0, 1), decides which.
 * @param weights those of tokens that top-k, top-p and min-p leave out become 0
 */
export function drawToken(weights: Float32Array, options: SamplingOptions, u: number): number {
  keepFirst(weights, options);
  keepNear(weights, options);
  let rest = u * total(weights);
  // Rounding may leave a remainder: the last token that can be drawn takes it.
  let last = 0;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i] === 0) continue;
    rest -= weights[i]!;
    if (rest < 0) return i;
    last = i;
  }
  return last;
}

function total(values: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]!;
  return sum;
}

function penalised(logits: Float32Array, penalty: number, seen: Iterable<number>): Float32Array {
  const scores = logits.slice();
  for (const token of new Set(seen)) scores[token]! *= scores[token]! > 0 ? 1 / penalty : penalty;
  return scores;
}

/** Sets the weights of the tokens that top-k and top-p leave out to 0; of equals the first are kept. */
function keepFirst(weights: Float32Array, { topK = 0, topP = 1 }: SamplingOptions): void {
  if (topK === 0 && topP === 1) return;
  // All the tokens below this together have less than 1 − topP: the others alone reach topP, and are few as a rule.
  const least = topK === 0 ? ((1 - topP) * total(weights)) / weights.length : 0;
  const sorted = atLeast(weights, least).sort().reverse();
  let kept = topK === 0 ? sorted.length : Math.min(topK, sorted.length);
  if (topP < 1) {
    const goal = topP * total(topK === 0 ? weights : sorted.subarray(0, kept));
    let [count, reached] = [0, 0];
    while (count < kept && reached < goal) reached += sorted[count++]!;
    kept = Math.max(1, count);
  }
  const threshold = sorted[kept - 1]!;
  let equals = 0;
  while (equals < kept && sorted[kept - 1 - equals] === threshold) equals++;
  for (let i = 0; i < weights.length; i++) {
    if (weights[i]! < threshold || (weights[i] === threshold && equals-- <= 0)) weights[i] = 0;
  }
}

/** Sets the weights of the tokens that min-p leaves out to 0. */
function keepNear(weights: Float32Array, { minP = 0 }: SamplingOptions): void {
  if (minP === 0) return;
  let most = 0;
  for (let i = 0; i < weights.length; i++) if (weights[i]! > most) most = weights[i]!;
  for (let i = 0; i < weights.length; i++) if (weights[i]! < minP * most) weights[i] = 0;
}

function atLeast(values: Float32Array, least: number): Float32Array {
  const found = new Float32Array(values.length);
  let count = 0;
  for (let i = 0; i < values.length; i++) if (values[i]! >= least) found[count++] = values[i]!;
  return found.subarray(0, count);
}
