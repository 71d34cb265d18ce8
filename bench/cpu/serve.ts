/**
 * `bun run serve` with 1, 4, 8 and 16 clients at once, each asking for one streamed completion after the other: requests
 * and tokens a second, and how long the first token takes. The server is a process of its own on the same processor.
 * Usage: bun bench/cpu/serve.ts --run runs/NAME [--seconds 8] [--max-tokens 64]
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { formatTable } from "../../packages/train/src/terminal/format.ts";
import { median } from "./peer.ts";

const { values } = parseArgs({
  options: {
    run: { type: "string", default: "runs/tiny" },
    seconds: { type: "string", default: "8" },
    "max-tokens": { type: "string", default: "64" },
  },
});
const serve = join(import.meta.dir, "../../packages/train/src/cli/serve.ts");
const server = Bun.spawn([process.execPath, serve, "--run", values.run, "--port", "0", "--slots", "16"], {
  stdout: "pipe",
});
try {
  const [first] = await server.stdout
    .values()
    .next()
    .then(({ value }) => new TextDecoder().decode(value).split("\n"));
  const [, name, url] = /^(.+), step \d+, at (\S+)/.exec(first!)!;

  /** One streamed completion. @returns its tokens, and milliseconds to the first */
  const ask = async (seed: number) => {
    const started = performance.now();
    const body = {
      model: name,
      prompt: "Once upon a time",
      max_tokens: Number(values["max-tokens"]),
      seed,
      stream: true,
    };
    const options = { ...body, stream_options: { include_usage: true } };
    const answer = await fetch(`${url}/completions`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(options),
    });
    let [text, toFirst] = ["", 0];
    for await (const chunk of answer.body!.pipeThrough(new TextDecoderStream())) {
      toFirst ||= performance.now() - started;
      text += chunk;
    }
    return { tokens: Number(/"completion_tokens":(\d+)/.exec(text)![1]), toFirst };
  };

  await ask(0);
  const rows = [];
  for (const clients of [1, 4, 8, 16]) {
    const answers: Awaited<ReturnType<typeof ask>>[] = [];
    const begun = performance.now();
    const end = begun + 1000 * Number(values.seconds);
    const client = async (seed: number) => {
      while (performance.now() < end) answers.push(await ask((seed += 1000)));
    };
    await Promise.all(Array.from({ length: clients }, (_, i) => client(i)));
    const seconds = (performance.now() - begun) / 1000;
    const tokens = answers.reduce((sum, answer) => sum + answer.tokens, 0);
    rows.push([
      String(clients),
      (answers.length / seconds).toFixed(1),
      (tokens / seconds).toFixed(0),
      (tokens / seconds / clients).toFixed(0),
      median(answers.map(({ toFirst }) => toFirst)).toFixed(1),
    ]);
  }
  const header = ["clients", "requests/s", "tokens/s", "tokens/s a client", "ms to the first token (median)"];
  console.log(formatTable(rows, { header }));
} finally {
  server.kill();
}
