/** What a preparation that is under way has written down: the plan, and a record of every piece that is done. */
import { existsSync, mkdirSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { writeAtomically } from "@mantou/model";
import { sidecarPath } from "../dataset.ts";
import { UserError } from "../errors.ts";
import type { ShardInfo } from "../shards.ts";
import { isTemporary } from "../temporaries.ts";
import type { Piece } from "./documents.ts";

/** The shards that came out of a piece. */
export interface PieceRecord {
  train?: ShardInfo;
  val?: ShardInfo;
}

/** Everything that decides what comes out. */
export interface Plan {
  pieces: Piece[];
  field: string;
  heldOut: number;
  /** What the tokenizer was asked to be: a hash, or how it is trained. */
  tokenizer: unknown;
}

export function workDirectory(directory: string): string {
  return join(directory, "unfinished");
}

export function recordPath(directory: string, index: number): string {
  return join(workDirectory(directory), `${shardNumber(index)}.json`);
}

export function shardName(part: "train" | "val", index: number): string {
  return `${part}-${shardNumber(index)}.bin`;
}

function shardNumber(index: number): string {
  return String(index).padStart(5, "0");
}

export function readRecord(directory: string, index: number): PieceRecord | undefined {
  const path = recordPath(directory, index);
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as PieceRecord) : undefined;
}

/** Begins a preparation, or goes on with one of the same plan. @throws UserError when another one is under way there */
export function claim(directory: string, plan: Plan): void {
  const path = join(workDirectory(directory), "plan.json");
  const text = `${JSON.stringify(plan, null, 2)}\n`;
  if (existsSync(path)) {
    if (readFileSync(path, "utf8") === text) return;
    throw new UserError(`${directory} holds an unfinished preparation of other sources or settings`, {
      fix: `repeat that command to finish it, take another --out, or remove ${workDirectory(directory)} to begin again`,
    });
  }
  mkdirSync(workDirectory(directory), { recursive: true });
  writeAtomically(path, [new TextEncoder().encode(text)]);
}

/** Takes away what a preparation of so many pieces has left that came to nothing for training. */
export function abandon(directory: string, pieces: number): void {
  rmSync(workDirectory(directory), { recursive: true, force: true });
  rmSync(join(directory, "tokenizer.json"), { force: true });
  for (let index = 0; index < pieces; index++) {
    const shard = join(directory, shardName("val", index));
    for (const path of [shard, sidecarPath(shard)]) rmSync(path, { force: true });
  }
  // Our own lock may be there still.
  if (readdirSync(directory).every(isTemporary)) rmSync(directory, { recursive: true });
}
