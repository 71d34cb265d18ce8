/**
 * `bun run serve`: a trained run behind an HTTP interface like OpenAI's (/v1/completions, /v1/models).
 * Usage: bun run serve --run runs/NAME [--port N]
 */
import { openDevice } from "@mantou/model";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { loadRun } from "../run.ts";
import { CompletionServer } from "../serve/server.ts";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  run: z.string().meta({ description: "directory of a run", placeholder: "DIR" }),
  host: z.string().default("127.0.0.1").meta({ description: "address to listen on; there is no authentication" }),
  port: z.int().min(0).max(65535).default(8080).meta({ description: "port to listen on; 0: any that is free" }),
  slots: z.int().min(1).default(8).meta({ description: "texts generated at once; each takes a cache of the context" }),
  queue: z.int().min(0).default(64).meta({ description: "texts that may wait; beyond, requests are refused (429)" }),
  timeout: z.number().gt(0).max(86400).default(300).meta({ description: "seconds that a request may take" }),
  device: z.enum(["auto", "cpu", "cuda"]).default("auto").meta({ description: "where to compute" }),
  threads: z.int().min(0).max(4096).default(0).meta({ description: "CPU threads; 0: one a core" }),
});

const command: Command<typeof options> = {
  usage: "bun run serve",
  summary: "Serves a trained run over HTTP, as OpenAI's completions",
  options,
  examples: ["bun run serve --run runs/tiny", "bun run serve --run runs/tiny --port 0 --slots 16"],
};

await runCommand(async (argv) => {
  const { run: path, host, port, slots, queue, timeout, device: name, threads } = parseOptions(command, argv).options;
  using device = openDevice(name, { threads });
  const { config, model, tokenizer, step } = loadRun(path, device, (text) => console.error(`warning: ${text}`));
  const onError = (error: unknown) => console.error(error);
  const limits = { slots, queue, timeout };
  await using server = listen({ name: runName(path, config.name), model, tokenizer, host, port, ...limits, onError });
  console.log(`${server.options.name}, step ${step}, at ${server.url}/v1 (Ctrl-C ends it)`);
  await new Promise<void>((resolve) => process.once("SIGINT", resolve).once("SIGTERM", resolve));
});

/** A run with an automatic name is called as its directory. */
function runName(path: string, name: string): string {
  return name === "auto" ? (path.split("/").filter(Boolean).at(-1) ?? path) : name;
}

function listen(given: ConstructorParameters<typeof CompletionServer>[0]): CompletionServer {
  try {
    return new CompletionServer(given);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code !== "EADDRINUSE" && code !== "EACCES" && code !== "EADDRNOTAVAIL") throw cause;
    throw new UserError(`cannot listen on ${given.host}:${given.port}: ${message}`, {
      fix: "choose another --port, or 0 for any that is free",
      exitCode: 1,
      cause,
    });
  }
}
