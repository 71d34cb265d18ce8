/**
 * The live dashboard: a server on 127.0.0.1 that reads the runs' files. It runs on a thread of its own, so that the page
 * is answered while a step computes, and writes nothing.
 */
import { join } from "node:path";
import { RunDirectory } from "../run.ts";
import { listRuns, readRun, readUpdate } from "./data.ts";
import { pageHtml } from "./page.ts";

export interface ServeRequest {
  runsDir: string;
  /** The run that is being trained. */
  name: string;
  /** 0: any that is free. */
  port: number;
}

export type ServeReply = { port: number } | { error: string };

/** At most so many runs are drawn beside the main one: the newest names. */
const MOST = 8;

/** Starts to serve. @throws where the port is taken */
export function serveDashboard({ runsDir, name, port }: ServeRequest) {
  const json = (value: unknown, status = 200) =>
    Response.json(value, { status, headers: { "cache-control": "no-store" } });
  return Bun.serve({
    hostname: "127.0.0.1",
    port,
    fetch(request) {
      // A request may come without a host.
      const url = URL.parse(request.url, "http://unknown");
      // A page elsewhere must not read this one through a name that it has pointed at 127.0.0.1.
      if (url === null || !["127.0.0.1", "localhost"].includes(url.hostname))
        return json({ error: "unknown host" }, 403);
      if (request.method !== "GET") return json({ error: "only GET" }, 405);
      if (url.pathname === "/") {
        const others = listRuns(runsDir).filter((other) => other !== name);
        const runs = [name, ...others.slice(-MOST)].map((each) => readRun(join(runsDir, each), each));
        return new Response(pageHtml(`Mantou: ${name}`, { live: true, main: name, axis: "step", runs }), {
          headers: { "content-type": "text/html; charset=utf-8", "cache-control": "no-store" },
        });
      }
      const asked = /^\/api\/run\/([^/]+)$/.exec(url.pathname)?.[1];
      if (asked === undefined) return json({ error: "there is no such page" }, 404);
      const run = [name, ...listRuns(runsDir)].find((each) => encodeURIComponent(each) === asked);
      const from = Number(url.searchParams.get("from") ?? 0);
      if (run === undefined) return json({ error: "there is no such run" }, 404);
      if (!Number.isSafeInteger(from) || from < 0) return json({ error: "from must be a whole number" }, 400);
      return json(readUpdate(new RunDirectory(join(runsDir, run)), from));
    },
  });
}
