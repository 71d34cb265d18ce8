/**
 * Text generation, token by token, over a key/value cache: one sequence (`generate`), or several side by side that come
 * and go as they please (`GenerationBatch`).
 */
import { checkCount } from "./config.ts";
import { Decoder } from "./decoder.ts";
import { Random } from "./random.ts";
import { type SamplingOptions, checkSampling, drawToken, sampleToken } from "./sampling.ts";
import type { TransformerLM } from "./transformer.ts";

/** Most tokens of a prompt read in one go, so that one long prompt does not hold up the other sequences for long. */
const CHUNK = 256;

/** Logits divided by less might leave float32. */
const LEAST_TEMPERATURE = 1e-3;

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
  using batch = new GenerationBatch(model, 1);
  batch.add(prompt, options);
  while (batch.size > 0) {
    for (const { token } of batch.step()) yield token;
  }
}

/** Why a sequence ended: at a stop token, or after maxTokens. */
export type Finish = "stop" | "length";

/** A sequence of a `GenerationBatch`. */
export interface Sequence {
  /** The prompt and what was generated so far. */
  readonly tokens: readonly number[];
  /** Undefined while it goes on. */
  readonly finish: Finish | undefined;
}

class Member implements Sequence {
  tokens: number[];
  finish: Finish | undefined;
  /** Tokens that the cache does not hold yet. */
  unread: number[];
  readonly random: Random;
  readonly end: number;

  constructor(
    readonly slot: number,
    prompt: number[],
    readonly options: GenerateOptions,
    contextLength: number,
  ) {
    this.tokens = [...prompt];
    this.unread = prompt.slice(-contextLength);
    this.random = new Random(options.seed ?? 0);
    this.end = prompt.length + options.maxTokens;
  }
}

/**
 * Sequences side by side in one cache (continuous batching, Yu et al. 2022): each step reads what is unread and draws one
 * token for every sequence whose prompt has been read; one may be added or taken away between any two steps. What a
 * sequence says depends on its own prompt and options, not on its neighbours, up to rounding.
 */
export class GenerationBatch implements Disposable {
  #decoder: Decoder;
  #members = new Set<Member>();
  #free: number[];

  /** @param slots most sequences at a time, each with a cache of contextLength tokens */
  constructor(
    readonly model: TransformerLM,
    readonly slots: number,
  ) {
    checkCount("slots", slots);
    this.#decoder = new Decoder(model, { batchSize: slots });
    this.#free = Array.from({ length: slots }, (_, i) => i);
  }

  /** Sequences that go on. */
  get size(): number {
    return this.#members.size;
  }

  /**
   * Begins a sequence.
   * @throws RangeError for an empty prompt, a token that is not in the vocabulary, an option outside its range, and when
   *   all slots are taken
   */
  add(prompt: number[], options: GenerateOptions): Sequence {
    checkSampling(options);
    if (!Number.isSafeInteger(options.maxTokens) || options.maxTokens < 0) {
      throw new RangeError(`maxTokens must be a whole number ≥ 0, not ${options.maxTokens}`);
    }
    if (prompt.length === 0) throw new RangeError("the prompt is empty: give at least one token");
    this.model.checkTokens(prompt);
    const slot = this.#free[0];
    if (slot === undefined) throw new RangeError(`all ${this.slots} slots are taken`);
    const member = new Member(slot, prompt, options, this.model.config.contextLength);
    if (options.maxTokens === 0) {
      member.finish = "length";
      return member;
    }
    this.#free.shift();
    this.#decoder.reset(slot);
    this.#members.add(member);
    return member;
  }

  /** Ends a sequence before its time; one that has ended already is left alone. */
  remove(sequence: Sequence): void {
    if (this.#members.delete(sequence as Member)) this.#free.push((sequence as Member).slot);
  }

  /** One step. @returns the tokens drawn, each with its sequence; a sequence that ended at a stop token has none */
  step(): { sequence: Sequence; token: number }[] {
    // Sequences with as much to read go through the model together: usually all of them, one token each.
    const groups = new Map<number, Member[]>();
    for (const member of this.#members) {
      this.#makeRoom(member);
      const length = Math.min(member.unread.length, CHUNK);
      groups.set(length, [...(groups.get(length) ?? []), member]);
    }
    const drawn: { sequence: Sequence; token: number }[] = [];
    for (const [length, members] of groups) {
      const tokens = Int32Array.from(members.flatMap(({ unread }) => unread.slice(0, length)));
      const { vocabSize, logitSoftCap } = this.model.config;
      const temperatures = members.map(({ options }) => (logitSoftCap > 0 ? 0 : deviceTemperature(options)));
      const rows = this.#decoder.forward(tokens, { slots: members.map(({ slot }) => slot), temperatures });
      members.forEach((member, i) => {
        member.unread.splice(0, length);
        if (member.unread.length > 0) return;
        const row = rows.subarray(i * vocabSize, (i + 1) * vocabSize);
        const token = this.#draw(member, row, temperatures[i]! > 0);
        if (token !== undefined) drawn.push({ sequence: member, token });
      });
    }
    return drawn;
  }

  [Symbol.dispose](): void {
    this.#decoder[Symbol.dispose]();
  }

  /** When the context is full, its second half is read again into an empty slot. */
  #makeRoom(member: Member): void {
    const { contextLength } = this.model.config;
    if (this.#decoder.positions[member.slot]! + member.unread.length <= contextLength) return;
    this.#decoder.reset(member.slot);
    member.unread = member.tokens.slice(-Math.max(1, Math.floor(contextLength / 2)));
  }

  /** @param row the softmax, or else the logits, of a member's next token */
  #draw(member: Member, row: Float32Array, isSoftmax: boolean): number | undefined {
    const { options, tokens } = member;
    const u = member.random.next();
    const token = isSoftmax ? drawToken(row, options, u) : sampleToken(row, options, u, tokens);
    if (options.stopTokens?.includes(token)) member.finish = "stop";
    else {
      tokens.push(token);
      member.unread.push(token);
      if (tokens.length === member.end) member.finish = "length";
    }
    if (member.finish) this.remove(member);
    return member.finish === "stop" ? undefined : token;
  }
}

/** The temperature of a softmax on the device, which is faster, or 0 where the host needs logits. */
function deviceTemperature({ temperature = 1, repetitionPenalty = 1 }: SamplingOptions): number {
  return repetitionPenalty === 1 && temperature >= LEAST_TEMPERATURE ? temperature : 0;
}
