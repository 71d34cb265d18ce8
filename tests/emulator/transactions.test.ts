/** The counter of memory transactions on kernels whose transactions are known (kernels/tests/accesses.cu). */
import { expect, test } from "bun:test";
import { type Kind, buildCountingProgram, countLaunches, total } from "./transactions.ts";

// The linker's --wrap, and other names of the same functions elsewhere.
test.if(process.platform === "linux")("sectors of device memory, banks of shared memory", () => {
  const launches = countLaunches([buildCountingProgram("accesses")]);
  /** Requests of warps, bytes asked for, bytes of sectors or answers of shared memory. */
  const counted = (operation: string, kind: Kind) => {
    const launch = launches.find((each) => each.operation === operation)!;
    const { requests, asked, moved } = total(launch.accesses, kind);
    return [requests, asked, moved];
  };
  expect(counted("neighbours", "load")).toEqual([1, 128, 128]);
  expect(counted("neighbours", "store")).toEqual([1, 128, 128]);
  expect(counted("one_further", "load")).toEqual([1, 128, 160]);
  expect(counted("one_further", "store")).toEqual([1, 4, 32]);
  expect(counted("columns", "store")).toEqual([1, 128, 1024]);
  expect(counted("packs", "store")).toEqual([2, 512 + 256, 512 + 512]);
  expect(counted("wide_packs", "store")).toEqual([2, 1024, 2048]);
  expect(counted("uneven_loop", "store")).toEqual([2, 128 + 64, 128 + 64]);
  expect(counted("sums", "atomic")).toEqual([1, 8, 64]);

  expect(counted("rows", "shared store")).toEqual([1, 128, 1]);
  expect(counted("shared_columns", "shared store")).toEqual([1, 128, 32]);
  expect(counted("padded_columns", "shared store")).toEqual([1, 128, 1]);
  expect(counted("same_word", "shared load")).toEqual([1, 128, 1]);
  expect(counted("shared_packs", "shared store")).toEqual([2, 1024, 4 + 8]);
  expect(counted("copies", "load")).toEqual([1, 512, 512]);
  expect(counted("copies", "shared store")).toEqual([1, 512, 4]);
  expect(counted("matrices", "shared load")).toEqual([2, 1024, 4 + 32]);

  const { read, written, blocks, threads } = launches.find(({ operation }) => operation === "columns")!;
  expect([read, written, blocks, threads]).toEqual([32, 1024, 1, 32]);
});
