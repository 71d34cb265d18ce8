/** One completion request at work: its texts in the scheduler, and the answer, whole or as a stream of events. */
import type { Finish } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { TextStream } from "../text-stream.ts";
import { type CompletionRequest, RequestError } from "./request.ts";
import type { Job, Scheduler } from "./scheduler.ts";

/** A part of a text as it comes; `finish` with the last. */
export interface Piece {
  index: number;
  text: string;
  finish: Finish | null;
}

/** OpenAI's count of tokens. */
export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}

/**
 * The pieces of all texts of a request, in the order in which they come. Leaving off early takes its texts out of the
 * scheduler, and so does `signal`.
 * @throws QueueFullError from the call itself, nothing having begun; the signal's reason
 */
export function complete(
  request: CompletionRequest,
  served: { scheduler: Scheduler; tokenizer: Tokenizer },
  signal: AbortSignal,
): { pieces: AsyncGenerator<Piece>; usage: Usage } {
  const { scheduler, tokenizer } = served;
  const { prompts, n, stop, stopTokens, echo } = request;
  const usage = { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 };
  for (const { tokens } of prompts) usage.prompt_tokens += tokens.length;
  usage.total_tokens = usage.prompt_tokens;
  const seed = request.seed ?? Math.floor(Math.random() * 2 ** 32);
  const ready: Piece[] = [];
  let failure: { error: unknown } | undefined;
  let wake = () => {};

  const jobs: Job[] = prompts.flatMap(({ tokens, text }, p) =>
    Array.from({ length: n }, (_, i) => {
      const index = p * n + i;
      const stream = new TextStream(tokenizer, stop, text !== "");
      const give = (piece: string, finish: Finish | null) => {
        if (piece !== "" || finish !== null) ready.push({ index, text: piece, finish });
        wake();
      };
      if (echo) ready.push({ index, text, finish: null });
      const job: Job = {
        tokens,
        options: {
          maxTokens: request.max_tokens,
          temperature: request.temperature,
          topK: request.top_k,
          topP: request.top_p,
          minP: request.min_p,
          repetitionPenalty: request.repetition_penalty,
          // The sum must be a number that is exact.
          seed: (Math.abs(seed) % 2 ** 52) + index,
          stopTokens,
        },
        onToken(token) {
          usage.completion_tokens++;
          usage.total_tokens++;
          give(stream.push(token), stream.stopped ? "stop" : null);
          if (stream.stopped) scheduler.cancel(job);
        },
        onEnd(finish) {
          const rest = stream.finish();
          give(rest, stream.stopped ? "stop" : finish);
        },
        onError(error) {
          failure = { error };
          wake();
        },
      };
      return job;
    }),
  );
  const fail = () => {
    failure ??= { error: signal.reason };
    for (const job of jobs) scheduler.cancel(job);
    wake();
  };
  scheduler.submit(jobs);
  signal.addEventListener("abort", fail, { once: true });

  async function* run(): AsyncGenerator<Piece> {
    try {
      let open = jobs.length;
      while (open > 0) {
        if (failure !== undefined) throw failure.error;
        const piece = ready.shift();
        if (piece === undefined) {
          await new Promise<void>((resolve) => (wake = resolve));
          continue;
        }
        if (piece.finish !== null) open--;
        yield piece;
      }
    } finally {
      signal.removeEventListener("abort", fail);
      for (const job of jobs) scheduler.cancel(job);
    }
  }
  return { pieces: run(), usage };
}

/** OpenAI's error object. */
export function errorBody(error: RequestError): Record<string, unknown> {
  const { param = null, code = null, type = "invalid_request_error" } = error.details;
  return { error: { message: error.message, type, param, code } };
}
