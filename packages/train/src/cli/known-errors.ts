/**
 * Errors of the other packages and of the system that the person at the keyboard can mend, as `UserError`s. Whatever is
 * not recognised stays as it is: a defect, shown with its stack.
 */
import { BuildError, NativeError, SafetensorsError } from "@mantou/model";
import { TokenizerError } from "@mantou/tokenizer";
import { CheckpointError } from "../checkpoint.ts";
import { UserError } from "../errors.ts";

const systemFixes: Record<string, string> = {
  ENOSPC: "free some space, or write to another place; what was complete before is kept",
  EDQUOT: "free some of your quota, or write to another place; what was complete before is kept",
  EACCES: "check the permissions of that path",
  EPERM: "check the permissions of that path",
  EROFS: "choose a place that can be written",
  ENOENT: "check the path",
  EEXIST: "choose another path, or take away what is there",
  EISDIR: "give a file, not a directory",
  ENOTDIR: "check the path: part of it is a file",
};

export function toUserError(thrown: unknown): unknown {
  let error = thrown;
  // What went wrong first: on a GPU that has failed, freeing its memory fails as well.
  while (error instanceof SuppressedError) error = error.suppressed;
  if (error instanceof UserError || !(error instanceof Error)) return error;
  // The tokenizer's error on a file has the system's as its cause.
  const { code } = (error instanceof TokenizerError ? (error.cause ?? error) : error) as NodeJS.ErrnoException;
  const options = { exitCode: 1 as const, cause: error };
  if (code !== undefined && Object.hasOwn(systemFixes, code)) {
    return new UserError(error.message, { ...options, fix: systemFixes[code] });
  }
  if (error instanceof CheckpointError) {
    return new UserError(error.message, { ...options, fix: "take it away to begin again, or take another --name" });
  }
  const isOurs = [BuildError, NativeError, SafetensorsError, TokenizerError].some((type) => error instanceof type);
  // A RangeError of ours says what is out of range; one of the engine (stack, array length) is a defect.
  const isRange = error instanceof RangeError && !/call stack|array (length|buffer)/i.test(error.message);
  if (isOurs || isRange) return new UserError(error.message, options);
  return error;
}
