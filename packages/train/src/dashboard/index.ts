/** The dashboard of a run while it trains, and the report that it leaves. */
import { basename, dirname, join } from "node:path";
import { writeAtomically } from "@mantou/model";
import { UserError } from "../errors.ts";
import type { RunDirectory } from "../run.ts";
import { readRun } from "./data.ts";
import { pageHtml } from "./page.ts";
import type { ServeReply, ServeRequest } from "./server.ts";

/** Points of a curve in a report. */
const REPORT_POINTS = 2000;

/**
 * Serves the dashboard of a run from a thread of its own, until it is disposed of.
 * @throws UserError when the port is taken
 */
export async function watchRun(run: RunDirectory, port: number): Promise<Disposable & { url: string }> {
  const worker = new Worker(new URL("./worker.ts", import.meta.url));
  const reply = await new Promise<ServeReply>((resolve) => {
    worker.onmessage = ({ data }: MessageEvent<ServeReply>) => resolve(data);
    worker.onerror = ({ message }) => resolve({ error: message });
    worker.postMessage({ runsDir: dirname(run.path), name: basename(run.path), port } satisfies ServeRequest);
  });
  if ("error" in reply) {
    worker.terminate();
    throw new UserError(`the dashboard cannot be served on port ${port}: ${reply.error}`, {
      fix: "choose another --watch-port, or 0 for any that is free",
      exitCode: 1,
    });
  }
  return { url: `http://127.0.0.1:${reply.port}/`, [Symbol.dispose]: () => worker.terminate() };
}

/** Writes `report.html`: the dashboard's page with the run's data in it, for a browser without anything else. */
export function writeReport(run: RunDirectory): string {
  const path = join(run.path, "report.html");
  const name = basename(run.path);
  const html = pageHtml(name, {
    live: false,
    main: name,
    axis: "step",
    runs: [readRun(run.path, name, REPORT_POINTS)],
  });
  writeAtomically(path, [new TextEncoder().encode(html)]);
  return path;
}
