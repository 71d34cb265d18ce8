/**
 * A run's metrics on Weights & Biases, while it trains. W&B keeps one SDK up, Python's (that for JavaScript, @wandb/sdk, was
 * last released in 2024), so a Python process beside the training, `wandb_log.py`, logs what it is sent. Nothing of it
 * touches the training: where it ends early there is a warning, and the run goes on.
 */
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { writeAtomically } from "@mantou/model";
import type { SettledConfig } from "./config.ts";
import { UserError } from "./errors.ts";
import type { StepMetrics } from "./metrics.ts";
import type { RunDirectory } from "./run.ts";
import { scalarsOf } from "./tensorboard.ts";

export interface WandbOptions {
  /** W&B's project. */
  project: string;
  /** The Python that has wandb. Default: $MANTOU_PYTHON, or python3. */
  python?: string;
  onWarning: (message: string) => void;
}

const pythonByDefault = () => process.env.MANTOU_PYTHON ?? "python3";

/** Looks for Python and wandb, as long as nothing has been written. @throws UserError when one is missing */
export function checkWandb(project: string, python = pythonByDefault()): void {
  if (Bun.which(python) === null) {
    throw new UserError(`--wandb ${project} needs Python, and there is no ${python}`, {
      fix: "install it and wandb (pip install wandb), or name another in MANTOU_PYTHON",
    });
  }
  const look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('wandb') is None)";
  if (Bun.spawnSync([python, "-c", look]).exitCode === 0) return;
  throw new UserError(`--wandb ${project}: ${python} has no wandb`, {
    fix: `${python} -m pip install wandb, or name another Python in MANTOU_PYTHON`,
  });
}

export class WandbLog {
  #isOver = false;

  private constructor(
    readonly child: Bun.Subprocess<"pipe", "pipe", "pipe">,
    /** URL of the run's page, or the directory of an offline run. */
    readonly where: string,
    onWarning: (message: string) => void,
  ) {
    void child.exited.then(() => {
      if (!this.#isOver) onWarning("wandb ended before the run: what follows is in metrics.jsonl alone");
      this.#isOver = true;
    });
  }

  /** Begins the W&B run, or goes on with it. @throws UserError when wandb does not begin, for want of a login say */
  static async start(run: RunDirectory, config: SettledConfig, options: WandbOptions): Promise<WandbLog> {
    const { project, onWarning, python = pythonByDefault() } = options;
    const child = Bun.spawn([python, join(import.meta.dir, "wandb_log.py")], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
      env: { ...process.env, WANDB_SILENT: "true" },
    });
    const errors = new Response(child.stderr).text();
    const init = { project, id: runId(run), name: config.name, dir: run.path, config };
    send(child, init);
    const answer = await firstLine(child.stdout);
    if (answer === "") {
      const why = (await errors).trim().split("\n").at(-1);
      throw new UserError(`--wandb ${project}: ${why || `${python} ended without a word`}`, {
        fix: "wandb login, or set WANDB_MODE=offline and wandb sync later; MANTOU_PYTHON names another Python",
      });
    }
    return new WandbLog(child, (JSON.parse(answer) as { where: string }).where, onWarning);
  }

  log(metrics: StepMetrics): void {
    if (!this.#isOver) send(this.child, { step: metrics.step, ...Object.fromEntries(scalarsOf(metrics)) });
  }

  /** Waits until everything is sent, or in offline mode written. */
  async finish(): Promise<void> {
    this.#isOver = true;
    await this.child.stdin.end();
    await this.child.exited;
  }
}

/** W&B's id of a run, drawn when it is first logged, so that a run that is resumed goes on there too. */
function runId(run: RunDirectory): string {
  const directory = join(run.path, "wandb");
  const path = join(directory, "id");
  if (existsSync(path)) return readFileSync(path, "utf8").trim();
  const id = crypto.randomUUID().replaceAll("-", "").slice(0, 12);
  mkdirSync(directory, { recursive: true });
  writeAtomically(path, [new TextEncoder().encode(`${id}\n`)]);
  return id;
}

/** What cannot be sent is dropped: the process has ended, which is said elsewhere. */
function send({ stdin }: Bun.Subprocess<"pipe", "pipe", "pipe">, message: object): void {
  try {
    stdin.write(`${JSON.stringify(message)}\n`);
    void Promise.resolve(stdin.flush()).catch(() => {});
  } catch {}
}

async function firstLine(stream: ReadableStream<Uint8Array>): Promise<string> {
  const decoder = new TextDecoder();
  let text = "";
  for await (const chunk of stream) {
    text += decoder.decode(chunk, { stream: true });
    if (text.includes("\n")) break;
  }
  return text.split("\n")[0]!;
}
