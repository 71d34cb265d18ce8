/**
 * TensorBoard event files: records of `Event` messages (tensorflow/core/util/event.proto), framed as TFRecords with masked
 * CRC-32C (tensorflow/core/lib/io/record_writer.h). Only scalars.
 */
import type { StepMetrics } from "./metrics.ts";

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc;
});

/** CRC-32C (Castagnoli) as a TFRecord masks it. */
function maskedCrc(bytes: Uint8Array): number {
  let crc = 0xffff_ffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  crc = ~crc >>> 0;
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

/** A TFRecord: length, its checksum, data, their checksum. */
function record(data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(data.length + 16);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, BigInt(data.length), true);
  view.setUint32(8, maskedCrc(bytes.subarray(0, 8)), true);
  bytes.set(data, 12);
  view.setUint32(12 + data.length, maskedCrc(data), true);
  return bytes;
}

function varint(value: number): number[] {
  const bytes: number[] = [];
  for (; value >= 0x80; value = Math.floor(value / 0x80)) bytes.push((value % 0x80) | 0x80);
  return [...bytes, value];
}

function lengthDelimited(field: number, bytes: ArrayLike<number>): number[] {
  return [(field << 3) | 2, ...varint(bytes.length), ...Array.from(bytes)];
}

function double(field: number, value: number): number[] {
  return [(field << 3) | 1, ...new Uint8Array(Float64Array.of(value).buffer)];
}

function float(field: number, value: number): number[] {
  return [(field << 3) | 5, ...new Uint8Array(Float32Array.of(value).buffer)];
}

/** How a metric is called in TensorBoard and on W&B: groups become sections. */
const TAGS: Partial<Record<keyof StepMetrics, string>> = {
  loss: "loss/train",
  valLoss: "loss/validation",
  valPerplexity: "validation/perplexity",
  valBitsPerByte: "validation/bits_per_byte",
  lr: "optimizer/learning_rate",
  gradNorm: "optimizer/gradient_norm",
  paramNorm: "optimizer/parameter_norm",
  updateRatio: "optimizer/update_ratio",
  tokensPerSecond: "speed/tokens_per_second",
  mfu: "speed/mfu",
  dataTime: "speed/data_seconds",
  memory: "speed/memory_bytes",
};

/** The event that begins a file. */
export function fileVersionEvent(wallTime: number): Uint8Array {
  const version = new TextEncoder().encode("brain.Event:2");
  return record(Uint8Array.from([...double(1, wallTime), ...lengthDelimited(3, version)]));
}

/** The numbers of a step under those names. */
export function scalarsOf(metrics: StepMetrics): [tag: string, value: number][] {
  const scalars: [string, number][] = Object.entries(TAGS).flatMap(([key, tag]) => {
    const value = metrics[key as keyof StepMetrics];
    return typeof value === "number" ? [[tag, value]] : [];
  });
  for (const [name, norm] of Object.entries(metrics.norms ?? {})) scalars.push([`norms/${name}`, norm]);
  return scalars;
}

/** One step as an event. `wallTime`: seconds. */
export function metricsEvent(metrics: StepMetrics, wallTime: number): Uint8Array {
  const values = scalarsOf(metrics).flatMap(([tag, value]) => {
    const message = [...lengthDelimited(1, new TextEncoder().encode(tag)), ...float(2, value)];
    return lengthDelimited(1, message);
  });
  const step = [2 << 3, ...varint(metrics.step)];
  return record(Uint8Array.from([...double(1, wallTime), ...step, ...lengthDelimited(5, values)]));
}
