/**
 * Files of data sets from the Hugging Face hub: listed by its API with size and SHA-256, fetched with as many attempts as
 * it takes, each going on where the one before broke off, and checked before they get their names.
 *
 * Environment, as Hugging Face's own tools read it: HF_ENDPOINT (default https://huggingface.co) and HF_TOKEN.
 */
import { createHash } from "node:crypto";
import { closeSync, createReadStream, existsSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync } from "node:fs";
import { statSync, truncateSync, writeSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { z } from "zod";
import { UserError } from "../errors.ts";

/** A data set on the hub: which files of it, and where their text is. */
export interface HubDataset {
  repository: string;
  /** Which files of the repository. */
  files: RegExp;
  field: string;
}

export const hubDatasets: Record<string, HubDataset> = {
  /** 2.2 GB of children's stories by GPT-4 (Eldan & Li 2023). */
  tinystories: {
    repository: "roneneldan/TinyStories",
    files: /^TinyStoriesV2-GPT4-train\.txt$/,
    field: "text",
  },
  /** 100,000 documents of OpenWebText. */
  "openwebtext-sample": {
    repository: "Elriggs/openwebtext-100k",
    files: /^data\/train-.*\.parquet$/,
    field: "text",
  },
  /** 10 billion tokens of educational web pages, 27 GB. */
  "fineweb-edu-10B": {
    repository: "HuggingFaceFW/fineweb-edu",
    files: /^sample\/10BT\/.*\.parquet$/,
    field: "text",
  },
};

export interface HubFile {
  path: string;
  size: number;
  /** Known for large files. */
  sha256: string | undefined;
}

export interface HubOptions {
  endpoint?: string;
  token?: string;
  /** Attempts without any progress before it gives up. Default 6. */
  attempts?: number;
  /** Seconds to wait after the first failed attempt; each further one doubles it. Default 1. */
  patience?: number;
  signal?: AbortSignal;
  onProgress?: (bytes: number) => void;
  onRetry?: (message: string) => void;
}

const treeSchema = z.array(
  z.object({
    type: z.string(),
    path: z.string(),
    size: z.int().min(0).optional(),
    lfs: z.object({ oid: z.string().regex(/^[0-9a-f]{64}$/) }).optional(),
  }),
);

/** The files of a data set. @throws UserError when the hub cannot be reached, refuses, or has none of them */
export async function listHubFiles(dataset: HubDataset, options: HubOptions = {}): Promise<HubFile[]> {
  const { repository, files } = dataset;
  let url: string | null = `${endpointOf(options)}/api/datasets/${repository}/tree/main?recursive=true`;
  const found: HubFile[] = [];
  while (url !== null) {
    const page: string = url;
    const { body, next } = await persist(page, options, async () => {
      const response = await request(page, options);
      const link = /<([^>]+)>;\s*rel="next"/.exec(response.headers.get("link") ?? "")?.[1];
      return { body: (await response.json()) as unknown, next: link ?? null };
    });
    const parsed = treeSchema.safeParse(body);
    if (!parsed.success) {
      throw new UserError(`${page} gave no list of files: ${z.prettifyError(parsed.error)}`, {
        fix: "check HF_ENDPOINT",
        exitCode: 1,
      });
    }
    for (const { type, path, size = 0, lfs } of parsed.data) {
      if (type === "file" && files.test(path)) found.push({ path, size, sha256: lfs?.oid });
    }
    url = next;
  }
  if (found.length === 0) {
    throw new UserError(`${repository} on the hub has no file ${files.source}`, {
      fix: "fetch the files yourself and give their paths",
      exitCode: 1,
    });
  }
  return found.toSorted((a, b) => (a.path < b.path ? -1 : 1));
}

/**
 * Fetches a file into a directory, unless it is there, and returns its path. What an interrupted call leaves,
 * `NAME.part`, is where the next one goes on.
 * @throws UserError when it gives up, or when the contents are twice not what the hub says they are
 */
export async function fetchHubFile(
  dataset: HubDataset,
  file: HubFile,
  directory: string,
  options: HubOptions = {},
): Promise<string> {
  const target = join(directory, basename(file.path));
  if (existsSync(target) && statSync(target).size === file.size) return target;
  mkdirSync(directory, { recursive: true });
  const part = `${target}.part`;
  const url = `${endpointOf(options)}/datasets/${dataset.repository}/resolve/main/${file.path}`;
  for (let attempt = 1; ; attempt++) {
    await persist(
      url,
      options,
      () => fetchRest(url, part, file.size, options),
      () => sizeOf(part),
    );
    const wrong = await whatIsWrong(part, file);
    if (wrong === undefined) break;
    rmSync(part);
    if (attempt === 2) {
      throw new UserError(`${url} ${wrong}, twice; nothing was kept`, {
        fix: "try again later: the hub's copy or the line is damaged",
        exitCode: 1,
      });
    }
    options.onRetry?.(`${url} ${wrong}: fetching it again from the start`);
  }
  const handle = openSync(part, "r");
  fsyncSync(handle);
  closeSync(handle);
  renameSync(part, target);
  const parent = openSync(dirname(target), "r");
  fsyncSync(parent);
  closeSync(parent);
  return target;
}

function endpointOf({ endpoint }: HubOptions): string {
  return (endpoint ?? process.env.HF_ENDPOINT ?? "https://huggingface.co").replace(/\/$/, "");
}

/** A failure after which trying again may help, and how long the server asks to wait. */
class Transient extends Error {
  constructor(
    message: string,
    readonly waitSeconds?: number,
  ) {
    super(message);
  }
}

async function request(url: string, { token, signal }: HubOptions, headers: Record<string, string> = {}) {
  const bearer = token ?? process.env.HF_TOKEN;
  if (bearer !== undefined && bearer !== "") headers.authorization = `Bearer ${bearer}`;
  const response = await fetch(url, { headers, signal });
  const { status } = response;
  if (status === 429 || status >= 500) {
    const wait = Number(response.headers.get("retry-after"));
    throw new Transient(`the server answered ${status}`, Number.isFinite(wait) && wait > 0 ? wait : undefined);
  }
  if (status === 401 || status === 403) {
    throw new UserError(`${url} may not be read: the server answered ${status}`, {
      fix: "accept the data set's terms on its page, and set HF_TOKEN",
      exitCode: 1,
    });
  }
  if (!response.ok && status !== 416) {
    throw new UserError(`${url}: the server answered ${status}`, { fix: "check HF_ENDPOINT", exitCode: 1 });
  }
  return response;
}

/** Tries until it works, or until `attempts` in a row have brought nothing. @throws UserError */
async function persist<T>(
  url: string,
  options: HubOptions,
  act: () => Promise<T>,
  progress: () => number = () => 0,
): Promise<T> {
  const { attempts = 6, patience = 1, signal } = options;
  let failures = 0;
  for (;;) {
    const before = progress();
    try {
      return await act();
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof UserError) throw error;
      const { message, code } = error as NodeJS.ErrnoException;
      if (code === "ENOSPC" || code === "EACCES") throw error;
      failures = progress() > before ? 1 : failures + 1;
      if (failures >= attempts) {
        throw new UserError(`${url} cannot be fetched: ${message} (${attempts} attempts)`, {
          fix: "check the network, and repeat the command: it goes on where it stopped",
          exitCode: 1,
          cause: error,
        });
      }
      const asked = error instanceof Transient ? error.waitSeconds : undefined;
      const seconds = asked ?? patience * 2 ** (failures - 1);
      options.onRetry?.(`${message}; trying again in ${seconds} s`);
      await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    }
  }
}

/** Appends what is missing to `part`. */
async function fetchRest(url: string, part: string, size: number, options: HubOptions): Promise<void> {
  let have = sizeOf(part);
  if (have > size) {
    truncateSync(part, 0);
    have = 0;
  }
  options.onProgress?.(have);
  if (have === size && have > 0) return;
  const response = await request(url, options, have > 0 ? { range: `bytes=${have}-` } : {});
  const begins = /^bytes (\d+)-/.exec(response.headers.get("content-range") ?? "")?.[1];
  // A server that does not give the rest gives the whole, or something that we cannot use.
  if (have > 0 && (response.status !== 206 || Number(begins) !== have)) {
    truncateSync(part, 0);
    have = 0;
    if (response.status !== 200)
      throw new Transient(`the server answered ${response.status} to a request for the rest`);
  }
  const file = openSync(part, "a");
  try {
    for await (const chunk of response.body ?? []) {
      for (let done = 0; done < chunk.length;) done += writeSync(file, chunk, done);
      have += chunk.length;
      options.onProgress?.(have);
      if (have > size) return;
    }
  } finally {
    closeSync(file);
  }
  if (have < size) throw new Transient(`the connection ended after ${have} of ${size} bytes`);
}

async function whatIsWrong(path: string, { size, sha256 }: HubFile): Promise<string | undefined> {
  const actual = sizeOf(path);
  if (actual !== size) return `has ${actual} bytes, the hub says ${size}`;
  if (sha256 === undefined) return undefined;
  const hash = createHash("sha256");
  if (size > 0)
    for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Uint8Array);
  const digest = hash.digest("hex");
  return digest === sha256 ? undefined : `has the SHA-256 ${digest}, the hub says ${sha256}`;
}

function sizeOf(path: string): number {
  return existsSync(path) ? statSync(path).size : 0;
}
