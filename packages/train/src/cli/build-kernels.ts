/**
 * `bun run build:kernels`: compiles the native library now rather than at the first use.
 * Usage: bun run build:kernels [--force]
 */
import { buildCpuLibrary } from "@mantou/model";
import { z } from "zod";
import { runCommand } from "./command.ts";
import { type Command, parseOptions } from "./options.ts";

const options = z.strictObject({
  force: z.boolean().default(false).meta({ description: "compile even if nothing changed" }),
});

const command: Command<typeof options> = {
  usage: "bun run build:kernels",
  summary: "Compiles the CPU kernels; training does it by itself when sources, compiler or processor have changed",
  options,
  examples: ["bun run build:kernels"],
};

await runCommand((argv) => {
  const { force } = parseOptions(command, argv).options;
  console.log(buildCpuLibrary({ force, log: (line) => console.log(line) }));
});
