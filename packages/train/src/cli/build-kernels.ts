/**
 * `bun run build:kernels`: compiles the native library now rather than at the first use.
 * Usage: bun run build:kernels [--cuda] [--emulated plain|asan|race] [--force]
 */
import { buildCpuLibrary, buildCudaLibrary, buildEmulatedLibrary } from "@mantou/model";
import { z } from "zod";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  cuda: z.boolean().default(false).meta({ description: "compile the CUDA kernels with nvcc; needs no GPU" }),
  emulated: z
    .enum(["plain", "asan", "race"])
    .optional()
    .meta({ description: "compile the CUDA kernels for the CPU, with that way of checking them" }),
  force: z.boolean().default(false).meta({ description: "compile even if nothing changed" }),
});

const command: Command<typeof options> = {
  usage: "bun run build:kernels",
  summary:
    "Compiles the kernels, the CPU's by default; training does it by itself when sources or compiler have changed",
  options,
  examples: ["bun run build:kernels", "bun run build:kernels --cuda"],
};

await runCommand((argv) => {
  const { force, cuda, emulated } = parseOptions(command, argv).options;
  const build = { force, log: (line: string) => console.log(line) };
  if (cuda) console.log(buildCudaLibrary(build));
  if (emulated) console.log(buildEmulatedLibrary(emulated, build));
  if (!cuda && !emulated) console.log(buildCpuLibrary(build));
});
