/**
 * Files are written as `NAME.tmp-PID` (`NAME.PID.tmp` by the tokenizer) and renamed when they are complete, so a process
 * that is killed while it writes leaves only such a file behind: nothing reads it, and the next one to come removes it.
 */
import { existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";

const TEMPORARY = /\.tmp-(\d+)$|\.(\d+)\.tmp$/;

export function isTemporary(name: string): boolean {
  return TEMPORARY.test(name);
}

/** Removes what processes that are gone left in a directory; locks look after themselves (`lock.ts`). */
export function removeTemporaries(directory: string): void {
  if (!existsSync(directory)) return;
  for (const name of readdirSync(directory)) {
    const match = TEMPORARY.exec(name);
    if (!match || name.startsWith("lock.")) continue;
    // Our own number on a file that we are not writing was that of a process before us.
    const pid = Number(match[1] ?? match[2]);
    if (pid === process.pid || !isAlive(pid)) rmSync(join(directory, name), { force: true });
  }
}

export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
