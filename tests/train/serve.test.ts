/** The HTTP server, asked by the real OpenAI client and by requests that no client would send. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { TransformerLM, generate, openDevice } from "@mantou/model";
import { Tokenizer } from "@mantou/tokenizer";
import fc from "fast-check";
import OpenAI from "openai";
import { encodePrompt } from "../../packages/train/src/prompt.ts";
import { CompletionServer, type ServeOptions } from "../../packages/train/src/serve/server.ts";
import { statusOf } from "./support/http.ts";
import { Workplace, environmentOf, flags, smallFlags, storyText } from "./support/workplace.ts";

const device = openDevice("cpu", { threads: 1 });
const tokenizer = Tokenizer.train(storyText(20_000), { vocabSize: 400, specialTokens: ["<|endoftext|>"] });
/** Without a token that could end a text early. */
const endless = Tokenizer.train(storyText(20_000), { vocabSize: 400, specialTokens: [] });
const sizes = { dModel: 32, numLayers: 2, numHeads: 4, numKeyValueHeads: 2, dFf: 48, ropeTheta: 1e4 };
const model = new TransformerLM({ ...sizes, vocabSize: 400, contextLength: 64 }, { device, seed: 1 });
/** A context so long that a text fills seconds. */
const slow = new TransformerLM({ ...sizes, vocabSize: 400, contextLength: 16384 }, { device, seed: 1 });

const errors: unknown[] = [];
const serve = (options: Partial<ServeOptions> = {}) =>
  new CompletionServer({
    name: "small",
    model,
    tokenizer,
    host: "127.0.0.1",
    port: 0,
    slots: 2,
    queue: 100,
    timeout: 60,
    onError: (error) => errors.push(error),
    ...options,
  });
const clientOf = (server: CompletionServer) =>
  new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });

let server: CompletionServer;
let client: OpenAI;
beforeAll(() => {
  server = serve();
  client = clientOf(server);
});
afterAll(async () => {
  await server[Symbol.asyncDispose]();
  expect(errors).toEqual([]);
});

const ask = (body: Partial<OpenAI.CompletionCreateParamsNonStreaming> & Record<string, unknown> = {}) =>
  client.completions.create({ model: "small", prompt: "Once upon", ...body });

/** What the model says by itself. */
function alone(prompt: string, maxTokens: number, options: object = {}): string {
  const { tokens, stopTokens } = encodePrompt(tokenizer, prompt);
  return tokenizer.decode(generate(model, tokens, { maxTokens, stopTokens, ...options }));
}

/** Waits until so many texts run and wait. */
async function reached(url: string, running: number, waiting: number): Promise<void> {
  for (;;) {
    const health = (await (await fetch(`${url}/health`)).json()) as { running: number; waiting: number };
    if (health.running === running && health.waiting === waiting) return;
    await Bun.sleep(2);
  }
}

const idle = (url: string) => reached(url, 0, 0);

describe("OpenAI's client", () => {
  test("lists the model", async () => {
    const { data } = await client.models.list();
    expect(data.map(({ id, object }) => [id, object])).toEqual([["small", "model"]]);
    expect((await client.models.retrieve("small")).id).toBe("small");
  });

  test("gets what the model says, with the tokens counted", async () => {
    const answer = await ask({ max_tokens: 20, temperature: 0 });
    expect(answer).toMatchObject({ object: "text_completion", model: "small" });
    expect(answer.choices).toEqual([
      { index: 0, text: alone("Once upon", 20, { temperature: 0 }), logprobs: null, finish_reason: "length" },
    ]);
    const prompt = encodePrompt(tokenizer, "Once upon").tokens.length;
    expect(answer.usage).toEqual({ prompt_tokens: prompt, completion_tokens: 20, total_tokens: prompt + 20 });
  });

  test("several prompts, several texts of each, in their order; the same seed gives the same", async () => {
    const body = { prompt: ["Once", "The"], n: 2, max_tokens: 12, seed: 5, temperature: 1.2, top_p: 0.9 };
    const [first, second] = [await ask(body), await ask(body)];
    expect(second.choices).toEqual(first.choices);
    expect(first.choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
    const expected = ["Once", "Once", "The", "The"].map((prompt, i) => {
      return alone(prompt, 12, { seed: 5 + i, temperature: 1.2, topP: 0.9 });
    });
    expect(first.choices.map(({ text }) => text)).toEqual(expected);
    expect(new Set(expected).size).toBe(4);
  });

  test("any whole number is a seed, and each text of the request has its own", async () => {
    for (const seed of [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER]) {
      const { choices } = await ask({ seed, n: 4, max_tokens: 12, temperature: 1.2 });
      expect(new Set(choices.map(({ text }) => text)).size).toBe(4);
    }
  });

  test("prompts of ids, echo, no tokens at all", async () => {
    const ids = [...tokenizer.encode("Once upon")];
    const body = { temperature: 0, max_tokens: 8 };
    const { choices } = await ask({ ...body, prompt: [ids, ids.slice(0, 1)] });
    expect(choices[0].text).toBe(tokenizer.decode(generate(model, ids, { maxTokens: 8, temperature: 0 })));
    expect((await ask({ ...body, prompt: ids })).choices[0].text).toBe(choices[0].text);
    const echoed = await ask({ ...body, echo: true });
    expect(echoed.choices[0].text).toBe(`Once upon${alone("Once upon", 8, { temperature: 0 })}`);
    const none = await ask({ max_tokens: 0, echo: true });
    expect(none.choices).toMatchObject([{ text: "Once upon", finish_reason: "length" }]);
  });

  test("a stop string ends the text", async () => {
    const whole = alone("Once upon", 40, { temperature: 0 });
    const stop = whole.slice(5, 8);
    const { choices, usage } = await ask({ max_tokens: 40, temperature: 0, stop: ["~~~", stop] });
    expect(choices).toMatchObject([{ text: whole.slice(0, whole.indexOf(stop)), finish_reason: "stop" }]);
    expect(usage!.completion_tokens).toBeLessThan(40);
  });

  test("a stream has the same text in pieces, one finish, and the usage where it is asked for", async () => {
    const body = { max_tokens: 30, seed: 3, n: 2, stop: "e" };
    const whole = await ask(body);
    const stream = await client.completions.create({
      model: "small",
      prompt: "Once upon",
      ...body,
      stream: true,
      stream_options: { include_usage: true },
    });
    const [texts, finishes]: [string[], string[]] = [["", ""], []];
    let [pieces, usage]: [number, unknown] = [0, undefined];
    for await (const chunk of stream) {
      usage = chunk.usage ?? usage;
      for (const { index, text, finish_reason } of chunk.choices) {
        texts[index] += text;
        pieces++;
        if (finish_reason) finishes[index] = finish_reason;
      }
    }
    expect(texts).toEqual(whole.choices.map(({ text }) => text));
    expect(finishes).toEqual(whole.choices.map((choice) => String(choice.finish_reason)));
    expect(usage).toEqual(whole.usage);
    expect(pieces).toBeGreaterThan(3);
  });

  test("twelve at once on two slots: each gets its own text", async () => {
    const jobs = Array.from({ length: 12 }, (_, i) => ({ prompt: `${i} Once`, max_tokens: 5 + 3 * i, seed: i }));
    const answers = await Promise.all(jobs.map((job) => ask(job)));
    const expected = jobs.map(({ prompt, max_tokens, seed }) => alone(prompt, max_tokens, { seed }));
    expect(answers.map(({ choices }) => choices[0].text)).toEqual(expected);
  });
});

describe("limits", () => {
  test("no more than the slots run, no more than the queue wait, the rest is refused with 429", async () => {
    await using busy = serve({ model: slow, tokenizer: endless, slots: 2, queue: 1 });
    const own = clientOf(busy);
    const leave = new AbortController();
    const body = { model: "small", prompt: "Once", max_tokens: 16000, stream: true as const };
    // The answer to the one that waits does not begin before it runs.
    const requests = [1, 2, 3].map(() =>
      own.completions.create(body, { signal: leave.signal }).catch((error: unknown) => error),
    );
    await reached(busy.url, 2, 1);
    const refused = await own.completions.create({ ...body, stream: false }).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(OpenAI.RateLimitError);
    expect(refused).toMatchObject({ status: 429, code: "queue_full" });
    // What never fits is not to be tried again.
    const many = await own.completions.create({ ...body, stream: false, n: 4 }).catch((error: unknown) => error);
    expect(many).toMatchObject({ status: 400, message: "400 4 texts are more than the 3 that fit here at once" });
    // All of them go: the slots are free again.
    leave.abort();
    await Promise.all(requests);
    await idle(busy.url);
    const { choices } = await own.completions.create({ model: "small", prompt: "Once", max_tokens: 2 });
    expect(choices[0].finish_reason).toBe("length");
  });

  test("a client that leaves, with or without a stream, frees its slot", async () => {
    await using busy = serve({ model: slow, tokenizer: endless, slots: 1, queue: 0 });
    for (const stream of [true, false]) {
      const leave = new AbortController();
      const request = fetch(`${busy.url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: "small", prompt: "Once", max_tokens: 16000, stream }),
        signal: leave.signal,
      });
      const ended = request.then((response) => response.text()).catch((error: Error) => error.name);
      await reached(busy.url, 1, 0);
      leave.abort();
      expect(await ended).toBe("AbortError");
      await idle(busy.url);
    }
  });

  test("a request that takes too long ends with 504, a stream with an error in it", async () => {
    await using late = serve({ model: slow, tokenizer: endless, timeout: 0.05 });
    const own = clientOf(late);
    const body = { model: "small", prompt: "Once", max_tokens: 16000 };
    const error = await own.completions.create(body).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ status: 504, code: "timeout" });
    await idle(late.url);
    const read = async () => {
      let text = "";
      for await (const { choices } of await own.completions.create({ ...body, stream: true })) text += choices[0].text;
      return text;
    };
    const thrown = await read().catch((each: unknown) => each);
    expect(thrown).toBeInstanceOf(OpenAI.APIError);
    expect(thrown).toMatchObject({ code: "timeout" });
    await idle(late.url);
  });

  test("a step that fails is the server's fault, and the next request is served", async () => {
    const broken = new TransformerLM({ ...sizes, vocabSize: 400, contextLength: 64 }, { device, seed: 1 });
    const seen: unknown[] = [];
    await using bad = serve({ model: broken, tokenizer: endless, onError: (error) => seen.push(error) });
    const check = broken.checkTokens.bind(broken);
    let calls = 0;
    broken.checkTokens = (tokens) => {
      if (++calls === 4) throw new Error("out of order");
      check(tokens);
    };
    const own = clientOf(bad);
    const body = { model: "small", prompt: "Once", max_tokens: 20, temperature: 0 };
    const failure = await own.completions.create(body).catch((error: unknown) => error);
    expect(failure).toMatchObject({ status: 500, type: "server_error" });
    expect(seen).toEqual([new Error("out of order")]);
    const expected = endless.decode(generate(model, [...endless.encode("Once")], { maxTokens: 20, temperature: 0 }));
    expect((await own.completions.create(body)).choices[0].text).toBe(expected);
  });
});

describe("refuses", () => {
  const post = (body: BodyInit, headers: Record<string, string> = { "content-type": "application/json" }) =>
    fetch(`${server.url}/v1/completions`, { method: "POST", headers, body });

  test("values out of range, unknown fields and what is not supported, each by its name", async () => {
    for (const [body, status, param, message] of [
      [{ model: "gpt-4" }, 404, "model", 'there is no model "gpt-4" here, only "small"'],
      [{ max_tokens: -1 }, 400, "max_tokens", "max_tokens"],
      [{ max_tokens: 64 }, 400, "max_tokens", "are more than the model's context of 64"],
      [{ prompt: "word ".repeat(100) }, 400, "max_tokens", "context of 64"],
      [{ prompt: [400] }, 400, "prompt", "there is no token 400"],
      [{ prompt: [] }, 400, "prompt", "prompt"],
      [{ prompt: { text: "x" } }, 400, "prompt", "prompt"],
      [{ temperature: 3 }, 400, "temperature", "temperature"],
      [{ temperature: "hot" }, 400, "temperature", "temperature"],
      [{ top_p: 0 }, 400, "top_p", "top_p"],
      [{ n: 0 }, 400, "n", '"n"'],
      [{ n: 100, prompt: ["a", "b"] }, 400, "n", "2 prompts × n 100 are more than 128 texts"],
      [{ stop: ["a", "b", "c", "d", "e"] }, 400, "stop", "stop"],
      [{ stop: "" }, 400, "stop", "stop"],
      [{ logprobs: 3 }, 400, "logprobs", "logprobs"],
      [{ frequency_penalty: 0.5 }, 400, "frequency_penalty", "frequency_penalty"],
      [{ best_of: 2 }, 400, "best_of", "best_of"],
      [{ maxTokens: 3 }, 400, "maxTokens", "maxTokens"],
    ] as [object, number, string, string][]) {
      const error = await ask({ ...body }).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(status === 404 ? OpenAI.NotFoundError : OpenAI.BadRequestError);
      expect(error).toMatchObject({ status, param, message: expect.stringContaining(message) });
    }
  });

  test("what is no request at all", async () => {
    const json = { "content-type": "application/json" };
    for (const [response, status] of [
      [await post("{"), 400],
      [await post(""), 400],
      [await post("null"), 400],
      [await post("[]"), 400],
      [await post("{}", { "content-type": "text/plain" }), 415],
      [await post(`{"model":"small","prompt":"${"x".repeat(5_000_000)}"}`), 413],
      [await fetch(`${server.url}/v1/completions`), 405],
      [await fetch(`${server.url}/v1/models`, { method: "DELETE" }), 405],
      [await fetch(`${server.url}/v1/chat/completions`, { method: "POST", headers: json, body: "{}" }), 404],
      [await fetch(`${server.url}/v1/models/other`), 404],
      [await fetch(`${server.url}/`), 404],
      [await fetch(`${server.url}/v1/models`, { headers: { host: "evil.example" } }), 403],
    ] as [Response, number][]) {
      expect(response.status).toBe(status);
      if (status === 413) continue; // Bun's own answer
      const { error } = (await response.json()) as { error: Record<string, unknown> };
      expect(error).toMatchObject({ type: "invalid_request_error", message: expect.any(String) });
    }
  });

  test("a request without a host, or with one that is none", async () => {
    await using open = serve({ host: "0.0.0.0" });
    for (const [{ url }, request, expected] of [
      [server, "GET /health HTTP/1.0", 403],
      [server, "GET /health HTTP/1.1\r\nhost: x:y:z", 403],
      [open, "GET /health HTTP/1.0", 200],
      [open, "GET /health HTTP/1.1\r\nhost: x:y:z", 400],
    ] as [CompletionServer, string, number][]) {
      expect(await statusOf(Number(new URL(url).port), request)).toBe(expected);
    }
  });

  test("any JSON whatever: an answer or a refusal, never a failure of ours", async () => {
    const value = fc.oneof(fc.jsonValue({ maxDepth: 2 }), fc.integer({ min: -2, max: 20 }), fc.constant("Once"));
    const names = ["prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "stop", "seed", "echo"];
    const more = ["stream", "stream_options", "logprobs", "user", "repetition_penalty", "__proto__", "constructor"];
    const body = fc.dictionary(fc.constantFrom(...names, ...more), value, { maxKeys: 4 });
    await fc.assert(
      fc.asyncProperty(fc.oneof(value, body), async (content) => {
        const isObject = typeof content === "object" && content !== null && !Array.isArray(content);
        const whole = isObject ? { ...content, model: "small" } : content;
        const response = await post(JSON.stringify(whole));
        expect([200, 400]).toContain(response.status);
        await response.text();
      }),
      { numRuns: 150 },
    );
    await idle(server.url);
  });
});

describe("bun run serve", () => {
  test("serves a run until it is told to end, and says where a port is taken", async () => {
    using place = new Workplace();
    const data = place.file("stories.txt", storyText(20_000));
    await place.succeed("train", ...smallFlags, ...flags({ data, name: "main", steps: 2 }));
    const argv = ["--run", place.path("runs/main"), "--threads", "1"];
    const program = [process.execPath, new URL("../../packages/train/src/cli/serve.ts", import.meta.url).pathname];
    const child = Bun.spawn([...program, ...argv, "--port", "0"], {
      env: environmentOf(place.folder),
      stdout: "pipe",
      stderr: "inherit",
      timeout: 60_000,
    });
    try {
      let [line, url] = ["", ""];
      for await (const chunk of child.stdout) {
        line += new TextDecoder().decode(chunk);
        url = /at (http:\S+)\/v1/.exec(line)?.[1] ?? "";
        if (url !== "") break;
      }
      expect(line).toStartWith("main, step 2, at http://127.0.0.1:");
      const own = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
      const { choices } = await own.completions.create({ model: "main", prompt: "Once", max_tokens: 5 });
      expect(choices).toHaveLength(1);
      const taken = await place.run("serve", ...argv, "--port", new URL(url).port);
      expect([taken.code, taken.stderr]).toEqual([1, expect.stringContaining("cannot listen on 127.0.0.1:")]);
      child.kill("SIGTERM");
      expect(await child.exited).toBe(0);
    } finally {
      child.kill("SIGKILL");
      await child.exited;
    }
  });
});
