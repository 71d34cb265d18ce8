/** Fetching from the hub, against a server here that drops connections, has no time, forgets ranges and lies. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { type IncomingMessage, type ServerResponse, createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type HubDataset, type HubFile, fetchHubFile, listHubFiles } from "../../packages/train/src/data/hub.ts";
import { readManifest } from "../../packages/train/src/shards.ts";
import { Workplace, storyText } from "./support/workplace.ts";
import { rejection } from "./support/refusal.ts";

const content = Buffer.from(Array.from({ length: 400_000 }, (_, i) => (i * i * 31 + i) % 251));
const sha256 = createHash("sha256").update(content).digest("hex");
const dataset: HubDataset = { repository: "some/data", files: /^data\/.*\.bin$/, field: "text" };
const file: HubFile = { path: "data/part-0.bin", size: content.length, sha256 };

/** What the server does with one request after the other; after the last, it behaves. */
type Behaviour = (request: IncomingMessage, response: ServerResponse) => void;
let behaviours: Behaviour[] = [];
let requests: { url: string; range: string | undefined; authorization: string | undefined }[] = [];

const good: Behaviour = (request, response) => {
  const begin = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  if (begin > 0) response.setHeader("content-range", `bytes ${begin}-${content.length - 1}/${content.length}`);
  response.writeHead(begin > 0 ? 206 : 200, { "content-length": content.length - begin });
  response.end(content.subarray(begin));
};
/** Sends some bytes and cuts the line. */
const drop =
  (bytes: number): Behaviour =>
  (request, response) => {
    const begin = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
    if (begin > 0) response.setHeader("content-range", `bytes ${begin}-${content.length - 1}/${content.length}`);
    response.writeHead(begin > 0 ? 206 : 200, { "content-length": content.length - begin });
    response.write(content.subarray(begin, begin + bytes), () => setTimeout(() => response.destroy(), 5));
  };
const answer =
  (status: number, headers: Record<string, string> = {}): Behaviour =>
  (_, response) => {
    response.writeHead(status, headers);
    response.end("no");
  };
const lie: Behaviour = (_, response) => {
  const wrong = Buffer.from(content);
  wrong[1000] ^= 1;
  response.end(wrong);
};
/** Ignores the range. */
const whole: Behaviour = (_, response) => void response.end(content);
const json =
  (value: unknown, headers: Record<string, string> = {}): Behaviour =>
  (_, response) => {
    response.writeHead(200, { "content-type": "application/json", ...headers });
    response.end(typeof value === "string" ? value : JSON.stringify(value));
  };

const server = createServer((request, response) => {
  const { range, authorization } = request.headers;
  requests.push({ url: request.url ?? "", range, authorization });
  (behaviours.shift() ?? good)(request, response);
});
server.listen(0, "127.0.0.1");
const endpoint = () => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

const base = mkdtempSync(join(tmpdir(), "mantou-hub-"));
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(base, "test-"));
  requests = [];
  behaviours = [];
});
afterAll(() => {
  server.close();
  rmSync(base, { recursive: true });
});

const retries: string[] = [];
const options = () => ({
  endpoint: endpoint(),
  patience: 0.001,
  attempts: 4,
  token: "",
  onRetry: (m: string) => void retries.push(m),
});

async function fetched(...plan: Behaviour[]): Promise<Buffer> {
  behaviours = plan;
  const path = await fetchHubFile(dataset, file, folder, options());
  expect(readdirSync(folder)).toEqual(["part-0.bin"]);
  return readFileSync(path);
}

describe("a file", () => {
  test("comes whole, and is not fetched again", async () => {
    expect((await fetched()).equals(content)).toBe(true);
    await fetchHubFile(dataset, file, folder, options());
    expect(requests).toHaveLength(1);
    expect(requests[0].url).toBe("/datasets/some/data/resolve/main/data/part-0.bin");
  });

  test("is pieced together from connections that break", async () => {
    expect((await fetched(drop(100_000), drop(1), drop(50_000), drop(200_000))).equals(content)).toBe(true);
    expect(requests[0].range).toBeUndefined();
    for (const { range } of requests.slice(1)) expect(range).toMatch(/^bytes=\d+-$/);
  });

  test("goes on from what an earlier process left, and begins anew where that is too long", async () => {
    writeFileSync(join(folder, "part-0.bin.part"), content.subarray(0, 123_456));
    expect((await fetched()).equals(content)).toBe(true);
    expect(requests.map(({ range }) => range)).toEqual(["bytes=123456-"]);
    rmSync(join(folder, "part-0.bin"));
    writeFileSync(join(folder, "part-0.bin.part"), Buffer.alloc(content.length + 1));
    expect((await fetched()).equals(content)).toBe(true);
  });

  test("waits as long as a busy server asks", async () => {
    const started = performance.now();
    expect((await fetched(answer(429, { "retry-after": "1" }), answer(503), answer(500))).equals(content)).toBe(true);
    expect(performance.now() - started).toBeGreaterThan(990);
    expect(retries.some((message) => message.includes("429") && message.includes("in 1 s"))).toBe(true);
  });

  test("is fetched in one go from a server that knows no ranges", async () => {
    expect((await fetched(drop(100_000), whole)).equals(content)).toBe(true);
    expect((await fetched()).equals(content)).toBe(true);
  });

  test("that has another hash is fetched once more; twice wrong, nothing is kept", async () => {
    expect((await fetched(lie)).equals(content)).toBe(true);
    rmSync(join(folder, "part-0.bin"));
    behaviours = [lie, lie];
    const error = await rejection(() => fetchHubFile(dataset, file, folder, options()));
    expect(error.message).toContain(sha256);
    expect(error.message).toMatch(/has the SHA-256 [0-9a-f]{64}, the hub says/);
    expect(readdirSync(folder)).toEqual([]);
  });

  test("left damaged by an earlier process is found out by its hash", async () => {
    const damaged = Buffer.from(content.subarray(0, 50_000));
    damaged[7] ^= 1;
    writeFileSync(join(folder, "part-0.bin.part"), damaged);
    expect((await fetched()).equals(content)).toBe(true);
    expect(requests.map(({ range }) => range)).toEqual(["bytes=50000-", undefined]);
  });

  test("is given up after some attempts without progress; what came is kept", async () => {
    behaviours = [drop(100_000), ...Array.from({ length: 9 }, () => answer(502))];
    const error = await rejection(() => fetchHubFile(dataset, file, folder, options()));
    expect(error.message).toContain("cannot be fetched: the server answered 502 (4 attempts)");
    expect(error.fix).toContain("goes on where it stopped");
    expect(existsSync(join(folder, "part-0.bin.part"))).toBe(true);
  });

  test.each([401, 403, 404])("is not asked for again after %p", async (status) => {
    behaviours = [answer(status)];
    const error = await rejection(() => fetchHubFile(dataset, file, folder, { ...options(), token: "secret" }));
    expect(error.message).toContain(String(status));
    expect(error.message).not.toContain("secret");
    expect(requests).toHaveLength(1);
    expect(requests[0].authorization).toBe("Bearer secret");
  });

  test("of a server that is not there: the reason is said", async () => {
    const nowhere = { ...options(), endpoint: "http://127.0.0.1:9", attempts: 2 };
    expect((await rejection(() => fetchHubFile(dataset, file, folder, nowhere))).message).toContain("(2 attempts)");
  });
});

describe("the list of files", () => {
  const entry = (path: string) => ({ type: "file", path, size: 5, oid: "x", lfs: { oid: sha256, size: 5 } });

  test("comes from all pages, filtered and in order", async () => {
    const next = `<${endpoint()}/api/datasets/some/data/tree/main?cursor=2>; rel="next"`;
    behaviours = [
      json([entry("data/b.bin"), { type: "directory", path: "data" }, entry("other.bin")], { link: next }),
      json([{ type: "file", path: "data/a.bin", size: 7 }]),
    ];
    expect(await listHubFiles(dataset, options())).toEqual([
      { path: "data/a.bin", size: 7, sha256: undefined },
      { path: "data/b.bin", size: 5, sha256 },
    ]);
    expect(requests[1].url).toContain("cursor=2");
  });

  test.each([
    ["nonsense", [json({ error: "x" })], "gave no list of files"],
    ["no JSON, again and again", Array.from({ length: 9 }, () => json("<html>")), "cannot be fetched"],
    ["a hash that is none", [json([{ ...entry("data/a.bin"), lfs: { oid: "../x" } }])], "gave no list of files"],
    ["no such file", [json([entry("readme.md")])], "has no file"],
  ] as [string, Behaviour[], string][])("%s is refused", async (_, plan, message) => {
    behaviours = plan;
    expect((await rejection(() => listHubFiles(dataset, options()))).message).toContain(message);
  });
});

test("the command fetches a preset and prepares it", async () => {
  using place = new Workplace();
  const text = storyText(40_000);
  const body: Behaviour = (_, response) => void response.end(text);
  const hash = createHash("sha256").update(text).digest("hex");
  const listed = { type: "file", path: "TinyStoriesV2-GPT4-train.txt", size: text.length, lfs: { oid: hash } };
  behaviours = [json([listed]), body];
  const script = join(import.meta.dir, "../../packages/train/src/cli/data.ts");
  const argv = ["prepare", "--preset", "tinystories", "--vocab-size", "300", "--out", place.path("stories")];
  const program = ["env", `HF_ENDPOINT=${endpoint()}`, process.execPath, script, ...argv];
  const { code, stderr } = await place.startProgram(program).ended;
  expect(stderr).toBe("");
  expect(code).toBe(0);
  expect(readManifest(place.path("stories")).train.documents).toBeGreaterThan(10);
  expect((await place.run("data", "prepare", "--preset", "tinystory", "--out", "x")).stderr).toContain("tinystories");
});
