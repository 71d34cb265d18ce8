/**
 * The emulator itself: kernels with one mistake each (kernels/tests/faults.cu), what each build says of them, and that it
 * says nothing of a kernel without one. And the wrappers of PTX and captures, which a GPU runs through the same programs.
 */
import { describe, expect, test } from "bun:test";
import { type Emulation, buildEmulatedProgram } from "@mantou/model";

const given = process.env.MANTOU_EMULATION as Emulation | undefined;
/** Address and undefined-behaviour sanitizer are not installed everywhere: they run where they are asked for. */
const emulations: readonly Emulation[] = given ? [given] : ["plain", "race"];

const NAN = /^ok .*nan/;

/** What is said in every build, or in each: plain, with sanitizers, by the race checker. Null: nothing is noticed. */
const faults: Record<string, RegExp | Record<Emulation, RegExp | null>> = {
  right: /^ok 7389 7389$/,
  barrier_after_return: /line \d+: a barrier, but \d+ of 128 threads have ended/,
  barrier_in_a_branch: /barrier that others never reach|a barrier, but 32 of 128 threads have ended/,
  two_barriers_for_one: /a barrier, while others wait at the barrier of line \d+/,
  mask_without_self: /vote: the mask 0000ffff does not have the calling lane, \d+/,
  mask_with_absent_lanes: /waits in a shuffle that others never reach/,
  source_outside_mask: /shuffle: lane 20 is not in the mask 0000ffff/,
  syncwarp_of_half: /__syncwarp: the mask is 0000ffff; the emulator orders whole warps only/,
  different_shuffles: /shuffle, while other lanes of the mask are in the shuffle of line \d+/,
  copy_never_waited_for: /the thread ends with asynchronous copies that it has not waited for/,
  copy_to_odd_place: /cp_async16: the address is not a multiple of 16 in shared memory/,
  too_many_threads: /invalid launch of too_many_threads: .*block \(2048, 1, 1\)/,
  too_much_shared_memory: /invalid launch of too_much_shared_memory: .*307200 bytes/,
  legacy_stream: /invalid resource handle/,
  host_memory: /a kernel was given the address of host memory/,
  beyond_shared: {
    plain: null,
    asan: /out of bounds for type 'float \[128\]'|AddressSanitizer: use-after-poison/,
    race: /thread 127: writes outside of any array: byte \d+ of shared memory/,
  },
  beyond_global: {
    plain: null,
    asan: /AddressSanitizer: use-after-poison/,
    race: /thread 127: reads outside of any array: byte 512 of an allocation/,
  },
  beyond_local: { plain: null, asan: /stack-buffer-overflow|insufficient space for an object/, race: null },
  freed_memory: { plain: null, asan: /AddressSanitizer: use-after-poison/, race: /reads outside of any array/ },
  misaligned: { plain: null, asan: /misaligned address .* requires 16 byte/, race: /accesses a misaligned address/ },
  unwritten_shared: { plain: NAN, asan: NAN, race: /thread 0: reads what nothing has written: .* shared memory/ },
  unwritten_global: { plain: NAN, asan: NAN, race: /reads what nothing has written: byte \d+ of an allocation/ },
  copy_not_waited_for: {
    plain: NAN,
    asan: NAN,
    race: /touches the destination of an asynchronous copy before waiting/,
  },
  copy_of_others_without_barrier: {
    plain: null,
    asan: null,
    race: /reads what (nothing has written|another thread writes)/,
  },
  missing_barrier: { plain: NAN, asan: NAN, race: /reads what (nothing has written|another thread writes)/ },
  missing_barrier_before_reuse: { plain: null, asan: null, race: /race: (reads|writes) what another thread/ },
  missing_syncwarp: { plain: NAN, asan: NAN, race: /reads what (nothing has written|another thread writes)/ },
  race_of_blocks: { plain: null, asan: null, race: /race: writes what another thread writes \(block \d, warp/ },
  sum_without_atomic: { plain: null, asan: null, race: /race: (reads|writes) what another thread (reads|writes)/ },
};

function run(program: string, ...args: string[]): { text: string; code: number } {
  const environment = { ...process.env, LD_PRELOAD: "", MANTOU_EMULATOR_SEED: "1" };
  const { stdout, stderr, exitCode } = Bun.spawnSync([program, ...args], { env: environment });
  return { text: `${stdout}${stderr}`.trim(), code: exitCode };
}

for (const emulation of emulations) {
  const program = buildEmulatedProgram("faults", emulation);

  describe(`the emulator, ${emulation}`, () => {
    test("every mistake of faults.cu has a line here", () => {
      expect(run(program).text.split("\n").sort()).toEqual(Object.keys(faults).sort());
    });

    for (const [name, said] of Object.entries(faults)) {
      const expected = said instanceof RegExp ? said : said[emulation];
      test(`${name}: ${expected ? "is noticed" : "goes unnoticed"}`, () => {
        const { text, code } = run(program, name);
        if (expected) expect(text).toMatch(expected);
        expect(code === 0).toBe(expected === null || expected.source.startsWith("^ok"));
      });
    }

    for (const [name, count] of [
      ["wrappers", 7],
      ["captures", 8],
    ] as const) {
      const own = buildEmulatedProgram(name, emulation);
      test(`${name}: as a GPU is to have them`, () => {
        const { text, code } = run(own);
        expect(text.split("\n").map((line) => line.replace(/.*: /, ""))).toEqual(Array(count).fill("as it should be"));
        expect(code).toBe(0);
      });
    }
  });
}
