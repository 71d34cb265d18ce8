/**
 * How every command starts and ends: errors printed in one style, exit codes, subcommands.
 *
 * Exit codes: 0 done, 1 failed while working, 2 a wrong command line or config.
 */

import { writeSync } from "node:fs";
import type { z } from "zod";
import { HelpRequest, UserError } from "../errors.ts";
import { joinOr, nearest } from "../schema.ts";
import { padEnd, type Style, styleFor } from "../terminal/style.ts";
import { toUserError } from "./known-errors.ts";
import type { Command } from "./options.ts";

/**
 * Runs a command's main function and ends the process with the right code. A `UserError` is printed as `error: …` and
 * `fix: …` on standard error; any other error is a defect and keeps its stack.
 */
export async function runCommand(main: (argv: string[]) => void | Promise<void>): Promise<void> {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    // A reader that has seen enough (`| head`) closes the pipe; that is no failure.
    if (error.code === "EPIPE") process.exit(0);
    // Thrown from here, it would leave the command waiting for a stream that takes nothing any more.
    const fix = "free some space where the output goes, or send it elsewhere";
    const full = new UserError(`standard output cannot be written: ${error.message}`, { fix, exitCode: 1 });
    writeSync(2, errorText(full, styleFor(process.stderr)));
    process.exit(full.exitCode);
  });
  try {
    await main(process.argv.slice(2));
  } catch (thrown) {
    if (thrown instanceof HelpRequest) {
      process.stdout.write(thrown.text);
      return;
    }
    const error = toUserError(thrown);
    const text = errorText(error, styleFor(process.stderr));
    // Written before exiting: process.exit does not wait for a pipe.
    await new Promise<void>((done) => process.stderr.write(text, () => done()));
    process.exit(error instanceof UserError ? error.exitCode : 1);
  }
}

/** Writes to standard output as fast as its reader reads. It ends the command if it cannot; `console.log` goes on. */
export async function print(chunk: string | Uint8Array): Promise<void> {
  if (!process.stdout.write(chunk)) await new Promise<void>((resolve) => process.stdout.once("drain", resolve));
}

/** What a failed command prints. */
function errorText(error: unknown, style: Style): string {
  if (!(error instanceof UserError)) {
    const stack = error instanceof Error ? (error.stack ?? String(error)) : String(error);
    return `${style.color("red", "unexpected error")}: ${stack}\n`;
  }
  const fix = error.fix === undefined ? "" : `  ${style.color("green", "fix")}: ${error.fix}\n`;
  return `${style.color("red", "error")}: ${error.message}\n${fix}`;
}

export interface Subcommand {
  command: Command<z.ZodObject>;
  run(argv: string[]): void | Promise<void>;
}

/**
 * Hands the command line to the subcommand that its first word names.
 *
 * @throws HelpRequest when there is no word or `--help`; UserError when no subcommand has that name.
 */
export async function runSubcommand(
  usage: string,
  summary: string,
  subcommands: Record<string, Subcommand>,
  argv: string[],
): Promise<void> {
  const names = Object.keys(subcommands);
  const [name, ...rest] = argv;
  if (name === undefined || name === "--help" || name === "-h") {
    const style = styleFor(process.stdout);
    const column = Math.max(...names.map((each) => each.length)) + 4;
    const rows = names.map((each) => {
      return `  ${style.color("cyan", padEnd(each, column))}${subcommands[each].command.summary}`;
    });
    const head = `${style.bold("usage")}  ${usage} <command> [options]\n\n${summary}\n\n${style.bold("Commands")}\n`;
    throw new HelpRequest(`${head}${rows.join("\n")}\n\nEach command has its own --help.\n`);
  }
  if (!names.includes(name)) {
    const near = nearest(name, names);
    throw new UserError(`${usage} has no command ${JSON.stringify(name)}`, {
      fix: near.length > 0 ? `did you mean ${joinOr(near)}?` : `use ${joinOr(names)}`,
    });
  }
  await subcommands[name].run(rest);
}
