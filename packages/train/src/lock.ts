/**
 * One process at a time writes in a directory: it keeps a file `lock.tmp-PID` there. A process that is killed leaves its
 * file behind. Its number may be another's by then, after a restart or in a container, so the file says since when the
 * process has run, as far as the system tells.
 */
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { UserError } from "./errors.ts";
import { isAlive } from "./temporaries.ts";

const LOCK = /^lock\.tmp-(\d+)$/;

export class DirectoryLock implements Disposable {
  readonly #path: string;

  /**
   * @param directory made if it is not there
   * @param fix what to do where another process has it
   * @throws UserError naming that process
   */
  constructor(directory: string, fix: string) {
    mkdirSync(directory, { recursive: true });
    this.#path = join(directory, `lock.tmp-${process.pid}`);
    try {
      // Everyone writes first and looks afterwards, so of two that come at once at most one goes on.
      writeFileSync(this.#path, startOf(process.pid) ?? "");
      for (const name of readdirSync(directory)) {
        const pid = Number(LOCK.exec(name)?.[1] ?? process.pid);
        if (pid === process.pid) continue;
        if (isHeld(join(directory, name), pid)) {
          throw new UserError(`process ${pid} is at work in ${directory}`, { fix, exitCode: 1 });
        }
        rmSync(join(directory, name), { force: true });
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.#path, { force: true });
  }
}

function isHeld(path: string, pid: number): boolean {
  if (!isAlive(pid)) return false;
  let recorded: string;
  try {
    recorded = readFileSync(path, "utf8");
  } catch {
    return false; // given back meanwhile
  }
  const start = startOf(pid);
  return recorded === "" || start === undefined || start === recorded;
}

/** Since when a process has run, and since which start of the machine; undefined where there is no /proc to say so. */
function startOf(pid: number): string | undefined {
  try {
    // The name of the program, in parentheses, may hold anything.
    const fields = readFileSync(`/proc/${pid}/stat`, "latin1").split(") ").at(-1)!.split(" ");
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "latin1").trim();
    return `${boot} ${fields[19]}${fields[0] === "Z" ? " ended" : ""}`;
  } catch {
    return undefined;
  }
}
