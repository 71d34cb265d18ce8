/**
 * What a device's memory is used for: every allocation says its kind, and the device keeps the account. The same code
 * that allocates can run on a planning device (`device.ts`), which keeps the account alone.
 */

export type MemoryKind =
  "parameters" | "gradients" | "master weights" | "moments" | "activations" | "workspace" | "key/value cache" | "other";

/** Bytes in use by kind. */
export class MemoryAccount {
  #bytes = new Map<MemoryKind, number>();

  add(kind: MemoryKind, bytes: number): void {
    this.#bytes.set(kind, (this.#bytes.get(kind) ?? 0) + bytes);
  }

  of(kind: MemoryKind): number {
    return this.#bytes.get(kind) ?? 0;
  }

  get total(): number {
    return this.entries().reduce((sum, [, bytes]) => sum + bytes, 0);
  }

  /** The kinds of which there is something. */
  entries(): [MemoryKind, number][] {
    return [...this.#bytes].filter(([, bytes]) => bytes > 0);
  }
}
