/**
 * An HTTP server with OpenAI's completions interface over one model: POST /v1/completions, GET /v1/models, GET
 * /v1/models/NAME, GET /health.
 */
import type { TransformerLM } from "@mantou/model";
import type { Tokenizer } from "@mantou/tokenizer";
import { type Piece, complete, errorBody } from "./completion.ts";
import { type CompletionRequest, RequestError, readRequest } from "./request.ts";
import { QueueFullError, Scheduler } from "./scheduler.ts";

export interface ServeOptions {
  /** What clients call the model. */
  name: string;
  model: TransformerLM;
  tokenizer: Tokenizer;
  /** An address of this machine; others than loopback are for the caller to answer for. */
  host: string;
  /** 0 for any that is free. */
  port: number;
  /** Texts generated at once. */
  slots: number;
  /** Texts that may wait. */
  queue: number;
  /** Seconds that a request may take. */
  timeout: number;
  /** Told of each request that failed through no fault of the client. */
  onError?: (error: unknown) => void;
}

/** Bytes of a request's body. */
const MAX_BODY = 4 << 20;

const LOOPBACK = /^(127(\.\d+){3}|localhost|\[::1\])(:\d+)?$/;

export class CompletionServer implements AsyncDisposable {
  readonly url: string;
  #scheduler: Scheduler;
  #server: ReturnType<typeof Bun.serve>;
  #created = Math.floor(Date.now() / 1000);

  /** @throws the system's error when the port is taken */
  constructor(readonly options: ServeOptions) {
    const { model, host, port, slots, queue } = options;
    this.#scheduler = new Scheduler(model, { slots, queue });
    try {
      this.#server = Bun.serve({
        hostname: host,
        port,
        maxRequestBodySize: MAX_BODY,
        // A text may take its time; `timeout` is our own.
        idleTimeout: 0,
        fetch: (request) => this.#answer(request),
      });
    } catch (error) {
      this.#scheduler[Symbol.dispose]();
      throw error;
    }
    this.url = `http://${host}:${this.#server.port}`;
  }

  /** Ends what is under way and closes the port. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#scheduler[Symbol.dispose]();
    await this.#server.stop(true);
  }

  async #answer(request: Request): Promise<Response> {
    try {
      return await this.#route(request);
    } catch (thrown) {
      const error = thrown instanceof QueueFullError ? queueFull(thrown) : thrown;
      if (error instanceof RequestError) {
        const headers = error.status === 429 ? { "retry-after": "1" } : undefined;
        return Response.json(errorBody(error), { status: error.status, headers });
      }
      // Nobody reads the answer to a request that was given up.
      if (!request.signal.aborted) this.options.onError?.(error);
      return Response.json(errorBody(internal()), { status: 500 });
    }
  }

  async #route(request: Request): Promise<Response> {
    // A page in a browser may reach a loopback address under a name of its own (DNS rebinding).
    const host = request.headers.get("host") ?? "";
    if (LOOPBACK.test(this.options.host) && !LOOPBACK.test(host)) {
      throw new RequestError(403, `requests for host ${JSON.stringify(host)} are not answered here`);
    }
    // HTTP/1.0 may leave the host out.
    const pathname = URL.parse(request.url, "http://localhost")?.pathname;
    if (pathname === undefined) throw new RequestError(400, `${JSON.stringify(host)} is no host`);
    const allow = (method: string) => {
      if (request.method !== method) throw new RequestError(405, `${pathname} takes ${method}, not ${request.method}`);
    };
    if (pathname === "/v1/completions") {
      allow("POST");
      return this.#complete(request);
    }
    const { name } = this.options;
    const about = { id: name, object: "model", created: this.#created, owned_by: "mantou" };
    if (pathname === "/v1/models") {
      allow("GET");
      return Response.json({ object: "list", data: [about] });
    }
    if (pathname === `/v1/models/${encodeURIComponent(name)}`) {
      allow("GET");
      return Response.json(about);
    }
    if (pathname === "/health") {
      allow("GET");
      return Response.json({ status: "ok", running: this.#scheduler.running, waiting: this.#scheduler.waiting });
    }
    throw new RequestError(404, `there is no ${pathname} here`);
  }

  async #complete(request: Request): Promise<Response> {
    const body = readRequest(await readJson(request), {
      name: this.options.name,
      contextLength: this.options.model.config.contextLength,
      tokenizer: this.options.tokenizer,
    });
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(timedOut(this.options.timeout)), this.options.timeout * 1000);
    timer.unref();
    const signal = AbortSignal.any([request.signal, late.signal]);
    const served = { scheduler: this.#scheduler, tokenizer: this.options.tokenizer };
    const id = `cmpl-${crypto.randomUUID()}`;
    const head = { id, object: "text_completion", created: Math.floor(Date.now() / 1000), model: this.options.name };
    try {
      const { pieces, usage } = complete(body, served, signal);
      if (body.stream) {
        const events = this.#events(body, head, pieces, usage, request.signal);
        // The timer goes on: a text that streams for too long ends as well.
        const headers = { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache" };
        return new Response(streamOf(events), { headers });
      }
      const choices = Array.from({ length: body.prompts.length * body.n }, (_, index) => {
        return { index, text: "", logprobs: null, finish_reason: null as string | null };
      });
      for await (const { index, text, finish } of pieces) {
        choices[index]!.text += text;
        choices[index]!.finish_reason = finish;
      }
      clearTimeout(timer);
      return Response.json({ ...head, choices, usage });
    } catch (error) {
      clearTimeout(timer);
      throw error;
    }
  }

  /** Server-sent events: a chunk for each piece, the usage if it was asked for, and `[DONE]`; or an error in their place. */
  async *#events(
    body: CompletionRequest,
    head: Record<string, unknown>,
    pieces: AsyncGenerator<Piece>,
    usage: unknown,
    signal: AbortSignal,
  ): AsyncGenerator<string> {
    const event = (content: unknown) => `data: ${JSON.stringify(content)}\n\n`;
    try {
      for await (const { index, text, finish } of pieces) {
        yield event({ ...head, choices: [{ index, text, logprobs: null, finish_reason: finish }] });
      }
      if (body.stream_options?.include_usage) yield event({ ...head, choices: [], usage });
      yield "data: [DONE]\n\n";
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof RequestError)) this.options.onError?.(error);
      yield event(errorBody(error instanceof RequestError ? error : internal()));
    }
  }
}

/** The body as JSON. @throws RequestError */
async function readJson(request: Request): Promise<unknown> {
  // A page of another origin can send a body of any other type without asking first.
  if (!/^application\/json\b/i.test(request.headers.get("content-type") ?? "")) {
    throw new RequestError(415, "the content type must be application/json");
  }
  try {
    return await request.json();
  } catch (error) {
    throw new RequestError(400, `the body is not valid JSON: ${(error as Error).message}`);
  }
}

/** A stream that ends the generator when its reader leaves. */
function streamOf(events: AsyncGenerator<string>): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await events.next();
      if (done) controller.close();
      else controller.enqueue(encoder.encode(value));
    },
    async cancel() {
      await events.return(undefined);
    },
  });
}

function queueFull(error: QueueFullError): RequestError {
  return new RequestError(429, error.message, { type: "server_overloaded", code: "queue_full" });
}

function timedOut(seconds: number): RequestError {
  return new RequestError(504, `the request took more than ${seconds} seconds`, { type: "timeout", code: "timeout" });
}

function internal(): RequestError {
  return new RequestError(500, "the server failed; its log says why", { type: "server_error" });
}
