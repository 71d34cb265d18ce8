/** Tokenizers in files that somebody gave. */
import { type Tokenizer, TokenizerError } from "@mantou/tokenizer";
import { loadTokenizer } from "@mantou/tokenizer/files";
import { UserError } from "./errors.ts";

/**
 * Reads a tokenizer.
 * @param fix what to do about a file that is damaged or something else
 * @throws UserError for such a file; the system's error for one that cannot be read
 */
export function readTokenizer(
  path: string,
  fix = "give a whole tokenizer.json, such as `bun run tokenizer train` writes",
): Tokenizer {
  try {
    return loadTokenizer(path);
  } catch (cause) {
    const isSystems = (cause as { cause?: NodeJS.ErrnoException }).cause?.code !== undefined;
    if (!(cause instanceof TokenizerError) || isSystems) throw cause;
    throw new UserError(cause.message, { fix, cause });
  }
}
