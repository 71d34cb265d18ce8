/** Requests that no client would send. */
import { connect } from "node:net";

/** The status that is answered to a request of these lines. */
export function statusOf(port: number, request: string): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  const socket = connect(port, "127.0.0.1", () => socket.write(`${request}\r\n\r\n`));
  let answer = "";
  socket.on("error", reject).on("data", (chunk) => {
    answer += chunk.toString();
    const status = /^HTTP\/1\.1 (\d+) .*\r\n/.exec(answer)?.[1];
    if (status === undefined) return;
    socket.destroy();
    resolve(Number(status));
  });
  return promise;
}
