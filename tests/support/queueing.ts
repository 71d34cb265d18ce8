/**
 * A CPU device that behaves as badly as a GPU may: it does nothing before it must, or copies as early as it may, and
 * replays what was captured. What is overtaken, or depends on the host's being in step, comes out wrong.
 */
import type { Device } from "@mantou/model";
import { AssertionError } from "./assert.ts";

type Run = Device["run"];
type Operation = () => void;
type Entry = Operation | { stream: number; until: number };

const [COMPUTE, COPY] = [0, 1];

/** Makes a CPU device queue its work on two streams. @returns how often it captured and replayed, counted on */
export function queueing(device: Device, copies: "late" | "early"): { captured: number; replayed: number } {
  const counts = { captured: 0, replayed: 0 };
  const run = device.run.bind(device) as (...args: unknown[]) => void;
  const queues: [Entry[], Entry[]] = [[], []];
  const done = [0, 0];
  const marks = [0, 0];
  let recording: Operation[] | undefined;
  /** Does what `stream` was given, up to its entry `until`. */
  const drain = (stream: number, until: number) => {
    while (done[stream] < until) {
      const entry = queues[stream][done[stream]++];
      if (typeof entry === "function") entry();
      else drain(entry.stream, entry.until);
    }
  };
  /** Copies that wait for nothing that is still to do. */
  const copyEarly = () => {
    for (let next = queues[COPY][done[COPY]]; next; next = queues[COPY][done[COPY]]) {
      if (typeof next !== "function" && done[next.stream] < next.until) return;
      drain(COPY, done[COPY] + 1);
    }
  };
  const push = (stream: number, entry: Entry) => {
    queues[stream].push(entry);
    if (copies === "early") copyEarly();
  };
  const all = () => [COMPUTE, COPY].forEach((stream) => drain(stream, queues[stream].length));
  device.run = ((name: string, ...args: unknown[]) => {
    const waits = ["mantou_copy", "mantou_synchronize", "mantou_wait_for_mark"].includes(name);
    if (recording) {
      const isOther = waits || name === "mantou_mark" || name === "mantou_stream_wait";
      if (isOther) throw new AssertionError(`${name} was called during a capture`);
      recording.push(() => run(name, ...args));
    } else if (name === "mantou_copy_async") push(args[3] as number, () => run(name, ...args));
    else if (name === "mantou_stream_wait") {
      const [waiting, signalling] = args as [number, number];
      push(waiting, { stream: signalling, until: queues[signalling].length });
    } else if (name === "mantou_mark") marks[args[0] as number] = queues[COMPUTE].length;
    else if (name === "mantou_wait_for_mark") drain(COMPUTE, marks[args[0] as number]);
    else if (waits) {
      all();
      run(name, ...args);
    } else push(COMPUTE, () => run(name, ...args));
  }) as Run;
  Object.defineProperty(device, "isAsynchronous", { value: true });
  const graphs = new Map<object, Operation[]>();
  device.capture = (body) => {
    recording = [];
    body();
    const graph = { [Symbol.dispose]() {} };
    graphs.set(graph, recording);
    recording = undefined;
    counts.captured++;
    return graph as ReturnType<Device["capture"]>;
  };
  device.replay = (graph) => {
    for (const operation of graphs.get(graph)!) push(COMPUTE, operation);
    counts.replayed++;
  };
  return counts;
}
