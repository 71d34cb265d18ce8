/**
 * The CPU kernels for arm64, compiled by a cross compiler and run by qemu on another processor: check.cpp; and the
 * emulator of CUDA, whose stack switch is written for each processor.
 * Usage: bun tests/arm64/run.ts      (Debian: apt install g++-aarch64-linux-gnu qemu-user)
 */
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { FLAGS, SHARED } from "../../packages/model/src/build.ts";
import { buildEmulatedProgram } from "../../packages/model/src/build-cuda.ts";

const kernels = join(import.meta.dir, "../../kernels/cpu");
const directory = mkdtempSync(join(tmpdir(), "mantou-arm64-"));

function run(command: string[]): void {
  const { exitCode } = Bun.spawnSync(command, { stdio: ["inherit", "inherit", "inherit"] });
  if (exitCode !== 0) throw new Error(`${command[0]} ended with ${exitCode}`);
}

try {
  const objects = readdirSync(kernels)
    .filter((name) => name.endsWith(".cpp"))
    .map((name) => {
      const object = join(directory, `${name}.o`);
      const target = SHARED.includes(name) ? [] : ["-DMANTOU_TARGET=neon"];
      run(["aarch64-linux-gnu-g++", ...FLAGS, "-Werror", ...target, "-c", join(kernels, name), "-o", object]);
      return object;
    });
  const program = join(directory, "check");
  const check = join(import.meta.dir, "check.cpp");
  run(["aarch64-linux-gnu-g++", "-std=c++17", "-O2", "-fopenmp", "-static", check, ...objects, "-o", program]);
  run(["qemu-aarch64", program]);

  const environment = { ...process.env, CXX: "aarch64-linux-gnu-g++" };
  const emulated = (name: string) => buildEmulatedProgram(name, "plain", { directory, environment });
  const qemu = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"];
  run([...qemu, emulated("wrappers")]);
  run([...qemu, emulated("faults"), "right"]);
  const caught = Bun.spawnSync([...qemu, emulated("faults"), "barrier_after_return"]).stdout.toString();
  if (!/a barrier, but \d+ of 128 threads have ended/.test(caught))
    throw new Error(`a fault goes unnoticed: ${caught}`);
} finally {
  rmSync(directory, { recursive: true, force: true });
}
