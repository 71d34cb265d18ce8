/** A run's samples: `samples.txt`, each text under a line `--- step N`. */
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { writeAtomically } from "@mantou/model";

export function appendSample(path: string, step: number, text: string): void {
  appendFileSync(path, `--- step ${step}\n${text}\n`);
}

/** Drops what was sampled after `step`, lest a resumed run have it twice. */
export function truncateSamples(path: string, step: number): void {
  if (!existsSync(path)) return;
  const text = readFileSync(path, "utf8");
  const later = [...text.matchAll(/^--- step (\d+)$/gm)].find((match) => Number(match[1]) > step);
  if (later) writeAtomically(path, [new TextEncoder().encode(text.slice(0, later.index))]);
}
