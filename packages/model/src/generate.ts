/**
 * Text generation, token by token: temperature and nucleus sampling (Holtzman et al. 2020) over a key/value cache.
 */
import { Decoder } from "./decoder.ts";
import { Random } from "./random.ts";
import type { TransformerLM } from "./transformer.ts";

export interface SamplingOptions {
  /** Logits are divided by it; 0 takes the most likely token. Default 1. */
  temperature?: number;
  /** Sample from the smallest set of tokens with at least this probability together. Default 1: from all. */
  topP?: number;
}

export interface GenerateOptions extends SamplingOptions {
  /** Most tokens to generate. */
  maxTokens: number;
  /** Deterministic in the seed. Default 0. */
  seed?: number;
  /** Tokens that end the text; they are not returned. */
  stopTokens?: number[];
}

/**
 * Yields the tokens that follow `prompt`. When the context is full, generation goes on from its second half.
 * @throws RangeError for an empty prompt, a token that is not in the vocabulary or an option outside its range
 */
export function* generate(model: TransformerLM, prompt: number[], options: GenerateOptions): Generator<number> {
  checkSampling(options);
  if (!Number.isSafeInteger(options.maxTokens) || options.maxTokens < 0) {
    throw new RangeError(`maxTokens must be a whole number ≥ 0, not ${options.maxTokens}`);
  }
  if (prompt.length === 0) throw new RangeError("the prompt is empty: give at least one token");
  const random = new Random(options.seed ?? 0);
  const { contextLength } = model.config;
  const tokens = [...prompt];
  model.checkTokens(Int32Array.from(tokens));
  using decoder = new Decoder(model);
  let unread = tokens.slice(-contextLength);
  for (let count = 0; count < options.maxTokens; count++) {
    if (decoder.positions[0]! + unread.length > contextLength) {
      decoder.reset();
      unread = tokens.slice(-Math.max(1, Math.floor(contextLength / 2)));
    }
    const token = sampleToken(decoder.forward(Int32Array.from(unread)), options, random.next());
    if (options.stopTokens?.includes(token)) return;
    yield token;
    tokens.push(token);
    unread = [token];
  }
}

/** @throws RangeError naming the option and its range */
function checkSampling({ temperature = 1, topP = 1 }: SamplingOptions): void {
  if (!(temperature >= 0) || !Number.isFinite(temperature)) {
    throw new RangeError(`temperature must be a number ≥ 0, not ${temperature}`);
  }
  if (!(topP > 0 && topP <= 1)) throw new RangeError(`topP must lie in (0, 1], not ${topP}`);
}

/** Draws a token from logits [vocabSize]; `u`, uniform in [0, 1), decides which. */
export function sampleToken(logits: Float32Array, options: SamplingOptions, u: number): number {
  const { temperature = 1, topP = 1 } = options;
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i]! > logits[best]!) best = i;
  if (temperature === 0) return best;
  const weights = Float64Array.from(logits, (logit) => Math.exp((logit - logits[best]!) / temperature));
  let total = weights.reduce((sum, weight) => sum + weight, 0);
  const order = Uint32Array.from(weights.keys());
  let kept = order.length;
  if (topP < 1) {
    order.sort((a, b) => weights[b]! - weights[a]! || a - b);
    const goal = topP * total;
    total = 0;
    kept = 0;
    while (kept < order.length && total < goal) total += weights[order[kept++]!]!;
  }
  let rest = u * total;
  for (let i = 0; i < kept; i++) {
    rest -= weights[order[i]!]!;
    if (rest < 0) return order[i]!;
  }
  // Rounding may leave a remainder: the last token that can be drawn takes it.
  return order[kept - 1]!;
}
