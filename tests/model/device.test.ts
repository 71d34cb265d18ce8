/** Which device is opened, and what is said where there is none. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { NativeError, buildCudaLibrary, findNvcc, hasGpu, openDevice } from "@mantou/model";

/** Opened outside of any test, because the library may have to be compiled first. */
const automatic = openDevice("auto");

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "mantou-device-"));
});
afterAll(() => {
  rmSync(folder, { recursive: true });
  automatic[Symbol.dispose]();
});

describe("a GPU", () => {
  test("is known by what the driver puts among the devices", () => {
    expect(hasGpu(join(folder, "nowhere"))).toBe(false);
    for (const name of ["nvidiactl", "nvidia-uvm", "null"]) writeFileSync(join(folder, name), "");
    expect(hasGpu(folder)).toBe(false);
    writeFileSync(join(folder, "nvidia3"), "");
    expect(hasGpu(folder)).toBe(true);
  });

  test.skipIf(hasGpu())("that is not there: cuda says so, and auto takes the CPU and says why", () => {
    expect(() => openDevice("cuda")).toThrow(NativeError);
    expect(() => openDevice("cuda")).toThrow(/^device cuda: no NVIDIA GPU found .*; use --device cpu$/);
    expect([automatic.name, automatic.reason]).toEqual(["cpu", expect.stringContaining("no NVIDIA GPU found")]);
  });

  test("unknown devices are named", () => {
    expect(() => openDevice("tpu" as "cpu")).toThrow('unknown device "tpu"');
  });
});

describe("nvcc", () => {
  const fake = (script: string) => {
    const path = join(mkdtempSync(join(folder, "bin-")), "nvcc");
    writeFileSync(path, `#!/bin/sh\n${script}\n`);
    chmodSync(path, 0o755);
    return path;
  };

  test("is found by $NVCC and told by its release", () => {
    const command = fake('echo "Cuda compilation tools, release 13.0, V13.0.88"');
    expect(findNvcc({ NVCC: command })).toEqual({ command, version: "nvcc release 13.0, V13.0.88" });
  });

  test("that fails is quoted", () => {
    const command = fake('[ "$1" = --version ] && echo "release 1.0" && exit 0; echo "no such luck" >&2; exit 1');
    const build = () => buildCudaLibrary({ directory: join(folder, "build"), environment: { NVCC: command } });
    expect(build).toThrow("the cuda kernels did not compile with nvcc release 1.0");
    expect(build).toThrow("no such luck");
  });
});
