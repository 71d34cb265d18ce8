/** Reading what nvcc's assembler says of kernels (bench/gpu/resources.ts). */
import { expect, test } from "bun:test";
import { parseResources, parseWarnings } from "../../bench/gpu/resources.ts";

test("registers, shared memory, stack and spills of each kernel and architecture", () => {
  const text = `ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5countv' for 'sm_80'
ptxas info    : Function properties for _Z5countv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 432 bytes cmem[0]
ptxas info    : Compiling entry function '_Z5countv' for 'sm_90a'
ptxas info    : Function properties for _Z5countv
    96 bytes stack frame, 56 bytes spill stores, 280 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 96 bytes cumulative stack size, 192 bytes smem`;
  expect(parseResources(text)).toEqual([
    { kernel: "_Z5countv", architecture: "sm_80", registers: 12, shared: 0, stack: 0, spills: 0 },
    { kernel: "_Z5countv", architecture: "sm_90a", registers: 80, shared: 192, stack: 96, spills: 336 },
  ]);
  expect(parseResources("")).toEqual([]);
});

test("warnings of nvcc, of its host compiler and of its assembler, and nothing else", () => {
  const warnings = [
    'rope.cu(26): warning #177-D: variable "unused" was declared but never referenced',
    "rope.cu:26:7: warning: unused variable 'unused' [-Wunused-variable]",
    "ptxas warning : Registers are spilled to local memory in function '_Z5countv'",
  ];
  expect(parseWarnings(["ptxas info    : 0 bytes gmem", ...warnings, ""].join("\n"))).toEqual(warnings);
});
