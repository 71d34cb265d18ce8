/**
 * The body of a completion request (https://platform.openai.com/docs/api-reference/completions), and what of it we have.
 * Beyond OpenAI's there are `top_k`, `min_p` and `repetition_penalty`, as other servers have them.
 */
import type { Tokenizer } from "@mantou/tokenizer";
import { z } from "zod";
import { encodePrompt } from "../prompt.ts";

/** An answer that is an error: an HTTP status, and the fields of OpenAI's error object. */
export class RequestError extends Error {
  override name = "RequestError";
  constructor(
    readonly status: number,
    message: string,
    readonly details: { param?: string; code?: string; type?: string } = {},
  ) {
    super(message);
  }
}

/** Most texts of one request: prompts × n. */
const MAX_TEXTS = 128;

const ids = z.array(z.int().min(0)).min(1);

const bodySchema = z.strictObject({
  model: z.string(),
  prompt: z
    .union([z.string(), z.array(z.string()).min(1), ids, z.array(ids).min(1)])
    .nullish()
    .transform((prompt) => prompt ?? ""),
  max_tokens: z
    .int()
    .min(0)
    .nullish()
    .transform((value) => value ?? 16),
  temperature: z
    .number()
    .min(0)
    .max(2)
    .nullish()
    .transform((value) => value ?? 1),
  top_p: z
    .number()
    .gt(0)
    .max(1)
    .nullish()
    .transform((value) => value ?? 1),
  top_k: z
    .int()
    .min(0)
    .nullish()
    .transform((value) => value ?? 0),
  min_p: z
    .number()
    .min(0)
    .max(1)
    .nullish()
    .transform((value) => value ?? 0),
  repetition_penalty: z
    .number()
    .gt(0)
    .nullish()
    .transform((value) => value ?? 1),
  n: z
    .int()
    .min(1)
    .max(MAX_TEXTS)
    .nullish()
    .transform((value) => value ?? 1),
  stop: z
    .union([z.string().min(1), z.array(z.string().min(1)).max(4)])
    .nullish()
    .transform((stop) => (typeof stop === "string" ? [stop] : (stop ?? []))),
  seed: z.int().nullish(),
  echo: z.boolean().nullish(),
  stream: z.boolean().nullish(),
  stream_options: z.strictObject({ include_usage: z.boolean().optional() }).nullish(),
  user: z.string().nullish(),
  // Accepted where they ask for nothing.
  best_of: z.literal(1).nullish(),
  logprobs: z.null().optional(),
  suffix: z.null().optional(),
  logit_bias: z.strictObject({}).nullish(),
  presence_penalty: z.literal(0).nullish(),
  frequency_penalty: z.literal(0).nullish(),
});

export interface CompletionRequest extends Omit<z.output<typeof bodySchema>, "prompt"> {
  /** Tokens to go on from, and the text they stand for. */
  prompts: { tokens: number[]; text: string }[];
  stopTokens: number[];
}

/**
 * Reads and checks a request.
 * @param served the model's name, its context and its tokenizer
 * @throws RequestError
 */
export function readRequest(
  body: unknown,
  served: { name: string; contextLength: number; tokenizer: Tokenizer },
): CompletionRequest {
  const parsed = bodySchema.safeParse(body);
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    const param = issue.code === "unrecognized_keys" ? issue.keys[0] : issue.path.map(String).join(".");
    const where = param === undefined || param === "" ? "the body" : `"${param}"`;
    throw new RequestError(400, `${where}: ${issue.message}`, { param });
  }
  const { prompt, ...rest } = parsed.data;
  const { name, tokenizer, contextLength } = served;
  if (rest.model !== name) {
    const code = "model_not_found";
    throw new RequestError(404, `there is no model ${JSON.stringify(rest.model)} here, only ${JSON.stringify(name)}`, {
      param: "model",
      code,
    });
  }
  const list = typeof prompt === "string" || typeof prompt[0] === "number" ? [prompt] : prompt;
  const prompts = (list as (string | number[])[]).map((each) => {
    if (typeof each === "string") return { tokens: encodePrompt(tokenizer, each).tokens, text: each };
    const wrong = each.find((id) => id >= tokenizer.vocabSize || !tokenizer.vocab.has(id));
    if (wrong !== undefined) throw new RequestError(400, `"prompt": there is no token ${wrong}`, { param: "prompt" });
    return { tokens: each, text: tokenizer.decode(each) };
  });
  if (prompts.length * rest.n > MAX_TEXTS) {
    throw new RequestError(400, `${prompts.length} prompts × n ${rest.n} are more than ${MAX_TEXTS} texts`, {
      param: "n",
    });
  }
  const longest = Math.max(...prompts.map(({ tokens }) => tokens.length));
  if (longest + rest.max_tokens > contextLength) {
    const need = `${longest} tokens of prompt and max_tokens ${rest.max_tokens}`;
    throw new RequestError(400, `${need} are more than the model's context of ${contextLength}`, {
      param: "max_tokens",
      code: "context_length_exceeded",
    });
  }
  return { ...rest, prompts, stopTokens: encodePrompt(tokenizer, "").stopTokens };
}
