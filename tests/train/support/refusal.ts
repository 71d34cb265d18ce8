/** What a command's user would be told: the `UserError` of something that must fail with one. */
import { UserError } from "../../../packages/train/src/errors.ts";

export function refusal(act: () => unknown): UserError {
  try {
    act();
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

/** The same of a promise. */
export async function rejection(act: () => Promise<unknown>): Promise<UserError> {
  try {
    await act();
  } catch (error) {
    if (error instanceof UserError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}
