/**
 * `bun run sweep`: trains the runs of a sweep file and compares them.
 * Usage: bun run sweep --config sweep.json
 */
import { join } from "node:path";
import { openDevice } from "@mantou/model";
import { z } from "zod";
import { UserError } from "../errors.ts";
import { checkSweep, executeSweep } from "../sweep/execute.ts";
import { readSweep } from "../sweep/sweep-file.ts";
import { writeResults } from "../sweep/results.ts";
import { formatTable, shellWord } from "../terminal/format.ts";
import { ProgressBar } from "../terminal/progress.ts";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  config: z.string().min(1).meta({ description: "JSON file of the sweep", placeholder: "FILE" }),
  runsDir: z
    .string()
    .min(1)
    .default("runs")
    .meta({ description: "where the sweep's directory is made", placeholder: "DIR" }),
  parallel: z
    .union([z.int().min(1), z.literal("auto")])
    .default("auto")
    .meta({ description: "runs at once; auto: as many as have their --threads and memory" }),
});

const command: Command<typeof options> = {
  usage: "bun run sweep",
  summary: "Trains the runs of a sweep file and compares them; repeated after a stop, it goes on where it was",
  options,
  examples: ["bun run sweep --config docs/experiments/handout.json"],
};

await runCommand(async (argv) => {
  const { config: file, runsDir, parallel } = parseOptions(command, argv).options;
  const sweep = readSweep(file);
  const total = checkSweep(sweep);
  const directory = join(runsDir, sweep.name);
  using device = openDevice("cpu");
  const stop = new AbortController();
  const onSignal = () => {
    stop.abort(new UserError("stopped", { fix: `go on with: bun run sweep --config ${shellWord(file)}`, exitCode: 1 }));
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  const bars = new Map<string, ProgressBar>();
  let bar: ProgressBar | undefined;
  const outcomes = await executeSweep(
    sweep,
    { directory, parallel, device, signal: stop.signal },
    {
      onProgress(label, done, all) {
        const each = bars.get(label) ?? new ProgressBar({ total: all, label });
        bars.set(label, each);
        each.update(done, {});
        if (done >= all) each.finish();
      },
      onSteps(done, running) {
        bar ??= new ProgressBar({ total, start: done, label: "steps" });
        bar.update(Math.min(done, total - 1), { runs: running.join(" ") });
      },
      onEnd({ name }, { status, message }) {
        const why = status === "failed" ? `: ${message?.split("\n")[0] ?? ""}` : "";
        const line = `${name}: ${status}${why}`;
        if (bar === undefined) console.log(line);
        else bar.print(line);
      },
    },
  );
  bar?.finish();
  process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  const about = `${sweep.runs.length} runs of \`bun run sweep --config ${file}\` on: ${device.description}.`;
  const path = writeResults(directory, sweep, outcomes, about);
  console.log(`\n${formatTable(sweep.runs.map(({ name }) => [name, outcomes[name]?.status ?? "unfinished"]))}`);
  console.log(`compare them: ${path}, ${join(directory, "results.html")}`);
  if (Object.values(outcomes).some(({ status }) => status === "failed")) {
    throw new UserError("some runs failed", { fix: `see ${join(directory, "logs")} and outcomes.json`, exitCode: 1 });
  }
});
