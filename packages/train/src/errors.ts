/**
 * The one error that every command shows to its user: what is wrong, and what to do about it.
 *
 * Convention: a `UserError` is something the person at the keyboard can mend (a flag, a file, a missing compiler), so
 * it is printed as `error: …` and `fix: …` without a stack. Anything else that is thrown is a defect of ours and
 * keeps its stack.
 */

export interface UserErrorOptions {
  /** What to do about it, as an imperative sentence or a command line. */
  fix?: string;
  /** 2 for a wrong command line or config (the default), 1 for a failure while working. */
  exitCode?: 1 | 2;
  cause?: unknown;
}

export class UserError extends Error {
  override readonly name = "UserError";
  readonly fix: string | undefined;
  readonly exitCode: 1 | 2;

  constructor(message: string, options: UserErrorOptions = {}) {
    super(message, { cause: options.cause });
    this.fix = options.fix;
    this.exitCode = options.exitCode ?? 2;
  }
}

/** Thrown by the flag parser on `--help`; `runCommand` prints the text on standard output and exits with 0. */
export class HelpRequest extends Error {
  override readonly name = "HelpRequest";

  constructor(readonly text: string) {
    super("help requested");
  }
}
