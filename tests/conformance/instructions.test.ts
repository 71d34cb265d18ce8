/**
 * The instruction sets that the CPU library has kernels for, each forced in a process of its own by $MANTOU_INSTRUCTIONS:
 * matrix products and attention on every one that this processor can run, among them a model of AMX, which few have.
 */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { openDevice } from "@mantou/model";

/** Where $MANTOU_BACKENDS names others, these tests would only take the time of a GPU. */
const isMeant = (process.env.MANTOU_BACKENDS ?? "cpu").split(",").includes("cpu");
const SETS = process.arch === "x64" ? ["amx", "avx512-bf16", "avx512", "avx2", "sse2", "amx-model"] : ["neon"];
const root = join(import.meta.dir, "../..");

function run(instructions: string, args: string[]) {
  const env = { ...process.env, MANTOU_INSTRUCTIONS: instructions, MANTOU_BACKENDS: "cpu" };
  const result = Bun.spawnSync([process.execPath, ...args], { cwd: root, env, stdout: "pipe", stderr: "pipe" });
  return { success: result.success, text: `${result.stdout.toString()}${result.stderr.toString()}` };
}

const describeDevice =
  'import { openDevice } from "@mantou/model"; using d = openDevice("cpu"); console.log(d.description, d.preferredPrecision.precision);';
using device = isMeant ? openDevice("cpu") : null; // compiled before the clock of a test runs
const chosen = device?.description ?? "";

describe.skipIf(!isMeant)("instruction sets", () => {
  test("one that does not exist is refused, and the others are named", () => {
    const { success, text } = run("mmx", ["-e", describeDevice]);
    expect(success).toBe(false);
    expect(text).toContain(`MANTOU_INSTRUCTIONS is mmx; known are ${SETS.join(", ")}`);
  });

  for (const set of isMeant ? SETS : []) {
    const { success, text } = run(set, ["-e", describeDevice]);
    if (!success) {
      test(`${set}, which this processor does not have, is refused`, () => {
        expect(text).toContain(`MANTOU_INSTRUCTIONS is ${set}, which this processor does not have`);
      });
      continue;
    }
    test(`${set}: the description says so, and which precision is best`, () => {
      expect(text).toMatch(/^(?!undefined).*, \d+ threads?, (AVX|SSE|NEON)/);
      expect(text.trim().endsWith("bf16")).toBe(/amx|bf16/.test(set));
    });
    // The one that is chosen anyway has the whole suite.
    test.if(!text.startsWith(chosen))(
      `${set}: products and attention`,
      () => {
        const files = ["matmul", "attention"].map((name) => `tests/conformance/kernels/${name}.test.ts`);
        // Within AVX-512 the sets differ in products of bfloat16 alone.
        const filter = /avx512|amx/.test(set) ? ["-t", "bfloat16"] : [];
        const tests = run(set, ["test", "--timeout", "60000", ...files, ...filter]);
        expect(tests.text.match(/\(fail\).*/g) ?? []).toEqual([]);
        expect(tests.success).toBe(true);
      },
      600_000, // the model of AMX takes long, more so where it is checked for errors
    );
  }
});
