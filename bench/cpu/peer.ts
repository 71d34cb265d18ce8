/** What the CPU benches share: a peer in a process of its own that answers questions, and the median. */

export const median = (numbers: number[]) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!;

/** A process that greets with one line of JSON and answers every line of JSON with another. It sleeps in between. */
export class Peer implements AsyncDisposable {
  #lines: AsyncIterator<string>;

  private constructor(
    readonly process: Bun.Subprocess<"pipe", "pipe", "inherit">,
    lines: AsyncIterator<string>,
    readonly greeting: unknown,
  ) {
    this.#lines = lines;
  }

  static async start(command: string[], env: Record<string, string | undefined> = process.env): Promise<Peer> {
    const child = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit", env });
    const lines = linesOf(child.stdout);
    const first = await lines.next();
    if (first.done) throw new Error(`${command[0]} ended without a greeting`);
    return new Peer(child, lines, JSON.parse(first.value));
  }

  async ask(question: unknown): Promise<unknown> {
    this.process.stdin.write(`${JSON.stringify(question)}\n`);
    await this.process.stdin.flush();
    const answer = await this.#lines.next();
    if (answer.done) throw new Error("the peer ended");
    return JSON.parse(answer.value);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.stdin.end();
    await this.process.exited;
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true });
    for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n")) {
      yield text.slice(0, end);
      text = text.slice(end + 1);
    }
  }
}
