/**
 * What the tests of whole runs share: a folder that goes away afterwards, the commands as processes of their own with
 * nothing but PATH and HOME in their environment, and what a run leaves behind, in a form that can be compared.
 *
 * No process outlives its test: each is killed when the workplace is disposed of, and after a minute in any case.
 */
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { listCheckpoints } from "../../../packages/train/src/checkpoint.ts";
import { MACHINE_FIELDS } from "../../../packages/train/src/metrics.ts";
import { generateStories } from "../../../packages/train/src/stories.ts";

export const root = join(import.meta.dir, "../../..");

export type CommandName =
  "train" | "generate" | "eval" | "serve" | "export" | "import" | "tokenizer" | "build-kernels" | "data" | "sweep";

/** How a command ended. */
export interface Ended {
  /** Exit code; null when a signal ended it. */
  code: number | null;
  signal: string | null;
  stdout: string;
  stderr: string;
}

/** Flags of a model and a run so small that 60 steps take a few tenths of a second. */
export const smallFlags = flags({
  "model.dModel": 32,
  "model.numLayers": 1,
  "model.numHeads": 2,
  "model.contextLength": 16,
  "tokenizer.vocabSize": 300,
  batchSize: 4,
  steps: 12,
  evalBatches: 2,
  sampleTokens: 8,
  threads: 1,
});

export function flags(settings: Record<string, string | number>): string[] {
  return Object.entries(settings).flatMap(([name, value]) => [`--${name}`, String(value)]);
}

/** Stories, each with the end-of-document token behind it. */
export function storyText(bytes: number, seed = 1): string {
  return [...generateStories({ seed, bytes })].map((story) => `${story}<|endoftext|>`).join("");
}

/** A running command. */
class Running {
  readonly ended: Promise<Ended>;
  isOver = false;
  readonly #child: ReturnType<typeof spawn>;

  constructor(command: string[], directory: string, home: string, input: Uint8Array | undefined) {
    this.#child = spawn(command, directory, home, input);
    const texts = [this.#child.stdout, this.#child.stderr].map((stream) => new Response(stream).text());
    this.ended = this.#child.exited.then(async () => {
      this.isOver = true;
      const [stdout, stderr] = await Promise.all(texts);
      const { exitCode: code, signalCode } = this.#child;
      return { code, signal: signalCode === null ? null : String(signalCode), stdout, stderr };
    });
  }

  kill(signal: "SIGINT" | "SIGTERM" | "SIGKILL"): void {
    this.#child.kill(signal);
  }
}

/** What tests/sanitize.ts gives a process: commands run on its library too, which takes its time. */
const sanitizer = Object.fromEntries(
  ["MANTOU_LIBRARY", "LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS"].flatMap((name) => {
    const value = process.env[name];
    return value === undefined ? [] : [[name, value]];
  }),
);

/** The environment of a command: nothing of this process's but the path. */
export const environmentOf = (home: string) => ({ PATH: process.env.PATH, HOME: home, ...sanitizer });

function spawn(command: string[], directory: string, home: string, input: Uint8Array | undefined) {
  return Bun.spawn(command, {
    cwd: directory,
    env: environmentOf(home),
    stdin: input ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: sanitizer.MANTOU_LIBRARY ? 600_000 : 60_000,
    killSignal: "SIGKILL",
  });
}

export class Workplace implements Disposable {
  readonly folder = mkdtempSync(join(tmpdir(), "mantou-runs-"));
  #running: Running[] = [];

  path(...parts: string[]): string {
    return join(this.folder, ...parts);
  }

  /** Writes a file and returns its path. */
  file(name: string, content: string | Uint8Array): string {
    writeFileSync(this.path(name), content);
    return this.path(name);
  }

  start(command: CommandName, ...argv: string[]): Running {
    return this.startProgram([process.execPath, join(root, `packages/train/src/cli/${command}.ts`), ...argv]);
  }

  /** Any program, in this folder or another. */
  startProgram(program: string[], { directory = this.folder, input }: { directory?: string; input?: Uint8Array } = {}) {
    const running = new Running(program, directory, this.folder, input);
    this.#running.push(running);
    return running;
  }

  /** Runs a command to its end, whatever that is. */
  run(command: CommandName, ...argv: string[]): Promise<Ended> {
    return this.start(command, ...argv).ended;
  }

  /** Runs a command that must succeed. */
  async succeed(command: CommandName, ...argv: string[]): Promise<Ended> {
    return succeeded(await this.run(command, ...argv));
  }

  [Symbol.dispose](): void {
    for (const running of this.#running) if (!running.isOver) running.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export function succeeded(ended: Ended): Ended {
  if (ended.code !== 0) throw new Error(`the command failed (${ended.code ?? ended.signal}): ${ended.stderr}`);
  return ended;
}

/** Waits until a condition holds or the process is over, looking every millisecond. */
export async function until(condition: () => boolean, running: Running): Promise<void> {
  while (!condition() && !running.isOver) await new Promise((resolve) => setTimeout(resolve, 1));
}

/** The step of a run's newest checkpoint, 0 without one. */
export function newestStep(run: string): number {
  const [newest] = listCheckpoints(join(run, "checkpoints"));
  return newest === undefined ? 0 : Number(/(\d+)\.safetensors$/.exec(newest)![1]);
}

/** All that a run must have in common with another of the same config, down to the last bit. */
export function resultOf(run: string): { metrics: unknown[]; samples: string; checkpoint: Buffer } {
  const lines = readFileSync(join(run, "metrics.jsonl"), "utf8").trimEnd().split("\n");
  return {
    metrics: lines.map((line) => {
      const metrics = JSON.parse(line) as Record<string, unknown>;
      for (const field of MACHINE_FIELDS) delete metrics[field];
      return metrics;
    }),
    samples: readFileSync(join(run, "samples.txt"), "utf8"),
    checkpoint: readFileSync(listCheckpoints(join(run, "checkpoints"))[0]),
  };
}

/** Names of the unfinished files anywhere below a folder; the lock of a process that was killed is none. */
export function temporariesIn(folder: string): string[] {
  if (!existsSync(folder)) return [];
  const names = readdirSync(folder, { recursive: true }) as string[];
  return names.filter((name) => /tmp/.test(name) && !/(^|\/)lock\./.test(name));
}
