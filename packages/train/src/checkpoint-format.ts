/** The bytes of a checkpoint: manifest, hash and tensors in one safetensors file. `checkpoint.ts` says what is in it. */
import { type Hash, createHash } from "node:crypto";
import { type TensorEntry, safetensorsChunks, writeAtomically } from "@mantou/model";
import { z } from "zod";

export const METADATA_KEY = "mantou.checkpoint";

export const manifestSchema = z.strictObject({
  version: z.literal(1),
  iteration: z.int().min(0),
  /** Steps that the optimizer has taken: t of the bias correction; null for weights alone. */
  optimizerSteps: z.int().min(0).nullable(),
  model: z.record(z.string(), z.union([z.number(), z.string(), z.boolean()])),
  /** Of the fields above and the tensors, see `startHash`. */
  sha256: z.string(),
});

export type Manifest = z.output<typeof manifestSchema>;

/** Where bytes can go: a path, or anything that takes chunks in order. */
export type CheckpointTarget = string | { write(chunk: Uint8Array): unknown };

export interface CheckpointContents {
  about: Omit<Manifest, "sha256">;
  /** In the order of the file; each is asked for twice. */
  tensors: TensorEntry[];
}

/** A hash that has taken in a manifest but for `sha256`, as JSON with sorted keys; the tensors follow in file order. */
export function startHash({ version, iteration, optimizerSteps, model }: Omit<Manifest, "sha256">): Hash {
  const settings = Object.entries(model).sort(([a], [b]) => (a < b ? -1 : 1));
  return createHash("sha256").update(JSON.stringify([version, iteration, optimizerSteps, settings]));
}

export function asBytes(values: Float32Array): Uint8Array {
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}

export function writeCheckpoint(target: CheckpointTarget, { about, tensors }: CheckpointContents): void {
  const hash = startHash(about);
  for (const { data } of tensors) hash.update(asBytes(data()));
  const manifest: Manifest = { ...about, sha256: hash.digest("hex") };
  const chunks = safetensorsChunks(tensors, { format: "mantou", [METADATA_KEY]: JSON.stringify(manifest) });
  if (typeof target === "string") writeAtomically(target, chunks);
  else for (const chunk of chunks) target.write(chunk);
}
