/** The thread of the live dashboard. */
import { type ServeReply, type ServeRequest, serveDashboard } from "./server.ts";

declare const self: Worker;

self.onmessage = ({ data }: MessageEvent<ServeRequest>) => {
  let reply: ServeReply;
  try {
    reply = { port: serveDashboard(data).port ?? 0 };
  } catch (error) {
    reply = { error: (error as Error).message };
  }
  self.postMessage(reply);
};
