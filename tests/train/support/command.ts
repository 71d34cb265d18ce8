/** A program with subcommands that end in each way a command can; `options.test.ts` runs it. */
import { z } from "zod";
import { runCommand, runSubcommand, type Subcommand } from "../../../packages/train/src/cli/command.ts";
import { type Command, parseOptions } from "../../../packages/train/src/cli/options.ts";
import { UserError } from "../../../packages/train/src/errors.ts";

const options = z.strictObject({ times: z.int().min(1).default(1).meta({ description: "how often" }) });
const ok: Command<typeof options> = { usage: "program ok", summary: "Says hello", options };
const empty: Command = { usage: "program", summary: "Ends badly", options: z.strictObject({}) };

const subcommands: Record<string, Subcommand> = {
  ok: {
    command: ok,
    async run(argv) {
      const { times } = parseOptions(ok, argv).options;
      for (let i = 0; i < times; i++) {
        process.stdout.write("hello\n");
        if (i % 100 === 99) await new Promise((resolve) => setImmediate(resolve));
      }
    },
  },
  fail: {
    command: empty,
    run() {
      throw new UserError("the disk is full", { exitCode: 1 });
    },
  },
  defect: {
    command: empty,
    run() {
      throw new TypeError("a defect");
    },
  },
};

await runCommand((argv) => runSubcommand("program", "Ends in every way", subcommands, argv));
