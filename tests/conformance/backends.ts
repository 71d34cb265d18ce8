/**
 * The backends that the conformance suite runs on. A new one joins here, and every test of this folder judges it.
 */
import { describe } from "bun:test";
import { type Device, type FloatType, findNvcc, hasGpu } from "@mantou/model";
import { type Backend, deviceFor, openBackend } from "../adapters.ts";

/** The CPU, the CUDA kernels on the emulator, and on a GPU where there is one; $MANTOU_BACKENDS names others. */
const backends = (process.env.MANTOU_BACKENDS?.split(",") ?? [
  "cpu",
  "emulated",
  ...(hasGpu() && findNvcc() ? ["cuda"] : []),
]) as readonly Backend[];

/**
 * Declares the tests of `body` once per backend. Devices are opened here, outside any test, because the first one may
 * have to compile its library.
 */
export function onEveryBackend(body: (backend: Backend, device: Device) => void): void {
  for (const backend of backends) {
    const device = deviceFor(backend);
    describe(backend, () => body(backend, device));
  }
}

/** One backend, computing with activations and weights of one type. */
export interface Subject {
  backend: Backend;
  device: Device;
  type: FloatType;
}

/** The same for tests of operations that take several types: once per backend and type. */
export function onEveryType(body: (subject: Subject) => void): void {
  onEveryBackend((backend, device) => {
    for (const type of ["float32", "bfloat16"] as const) describe(type, () => body({ backend, device, type }));
  });
}

const twins = new Map<Backend, Device[]>();

/** Devices of one backend that owe each other the same bits: on the CPU, with one thread and with several. */
export function equalDevices(backend: Backend): Device[] {
  const known = twins.get(backend);
  if (known) return known;
  const threads = backend === "cpu" ? [1, 2, 3] : [0];
  const devices = threads.map((count) => openBackend(backend, count));
  twins.set(backend, devices);
  return devices;
}
