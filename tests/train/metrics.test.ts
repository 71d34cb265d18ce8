/** What a run measures, and TensorBoard's event files. */
import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { TransformerLM } from "@mantou/model";
import { UpdateProbe, flopsPerToken, measurePeak } from "../../packages/train/src/measure.ts";
import { device, smallConfig, tokenizer, trainSmall } from "./support/training.ts";

interface Event {
  wallTime: number;
  step: number;
  version?: string;
  scalars: Map<string, number>;
}

/** CRC-32C bit by bit, as a TFRecord masks it. */
function maskedCrc(bytes: Uint8Array): number {
  let crc = 0xffff_ffffn;
  for (const byte of bytes) {
    crc ^= BigInt(byte);
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1n) === 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n;
  }
  crc ^= 0xffff_ffffn;
  return Number((((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffff_ffffn);
}

/** The fields of a protocol buffer: number → values, as bytes or numbers. */
function fields(bytes: Uint8Array): Map<number, (Uint8Array | number)[]> {
  const all = new Map<number, (Uint8Array | number)[]>();
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const varint = () => {
    let [value, scale] = [0, 1];
    for (;;) {
      const byte = bytes[at++];
      value += (byte & 0x7f) * scale;
      scale *= 128;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    let value: Uint8Array | number;
    if ((key & 7) === 0) value = varint();
    else if ((key & 7) === 1) value = view.getFloat64((at += 8) - 8, true);
    else if ((key & 7) === 5) value = view.getFloat32((at += 4) - 4, true);
    else {
      const length = varint();
      value = bytes.subarray(at, (at += length));
    }
    all.set(key >> 3, [...(all.get(key >> 3) ?? []), value]);
  }
  return all;
}

function readEvents(path: string): Event[] {
  const bytes = new Uint8Array(readFileSync(path));
  const view = new DataView(bytes.buffer);
  const events: Event[] = [];
  const text = (value: unknown) => new TextDecoder().decode(value as Uint8Array);
  for (let at = 0; at < bytes.length;) {
    const length = Number(view.getBigUint64(at, true));
    expect(view.getUint32(at + 8, true)).toBe(maskedCrc(bytes.subarray(at, at + 8)));
    const data = bytes.subarray(at + 12, at + 12 + length);
    expect(view.getUint32(at + 12 + length, true)).toBe(maskedCrc(data));
    at += length + 16;
    const event = fields(data);
    const summary = event.get(5)?.[0] as Uint8Array | undefined;
    const values = summary === undefined ? [] : (fields(summary).get(1) as Uint8Array[]);
    const scalars = new Map(values.map(fields).map((value) => [text(value.get(1)![0]), value.get(2)![0] as number]));
    const version = event.has(3) ? text(event.get(3)![0]) : undefined;
    events.push({ wallTime: event.get(1)![0] as number, step: (event.get(2)?.[0] as number) ?? 0, version, scalars });
  }
  return events;
}

test("the checksum is the standard's", () => {
  const crc = maskedCrc(new TextEncoder().encode("123456789"));
  const unmasked = (crc - 0xa282ead8) >>> 0;
  expect(((unmasked >>> 17) | (unmasked << 15)) >>> 0).toBe(0xe3069283);
});

describe("TensorBoard's events", () => {
  test("say what metrics.jsonl says, also after the run was stopped and went on", async () => {
    const config = smallConfig();
    const { run } = await trainSmall({
      config,
      events: (_, stop) => ({ onStep: ({ step }) => void (step === 7 && stop.abort()) }),
    });
    const { history } = await trainSmall({ config, directory: run });
    const [first, ...events] = readEvents(run.events);
    expect(first.version).toBe("brain.Event:2");
    expect(events.map(({ step }) => step)).toEqual(history.map(({ step }) => step));
    events.forEach(({ scalars, wallTime }, i) => {
      expect(scalars.get("loss/train")).toBe(Math.fround(history[i].loss));
      expect(scalars.get("optimizer/learning_rate")).toBe(Math.fround(history[i].lr));
      expect(scalars.has("loss/validation")).toBe(history[i].step % 5 === 0);
      expect(wallTime).toBeGreaterThan(1.6e9);
    });
    const { norms = {} } = history.at(-1)!;
    expect(Object.keys(norms)).toHaveLength(2 * 9 + 3);
    for (const [name, norm] of Object.entries(norms)) {
      expect(events.at(-1)!.scalars.get(`norms/${name}`)).toBe(Math.fround(norm));
    }
  });
});

describe("measurements", () => {
  test("norms and the update's share are those of the definition", () => {
    using model = new TransformerLM(smallConfig().model, { device, seed: 1 });
    const probe = new UpdateProbe(model);
    probe.begin();
    const before = model.store.values.toFloat32Array();
    const gain = model.store.get("ln_final.weight");
    gain.value.upload(new Float32Array(16).fill(3)); // was 1: a change of 2 in 16 places
    const { paramNorm, updateRatio, norms } = probe.end();
    const rest = before.reduce((sum, value) => sum + value * value, 0) - 16;
    expect(norms["ln_final.weight"]).toBeCloseTo(12, 10);
    expect(paramNorm).toBeCloseTo(Math.sqrt(rest + 144), 6);
    expect(updateRatio).toBeCloseTo(8 / Math.sqrt(rest + 144), 8);
  });

  test("perplexity and bits per byte follow from the loss; a byte is a token here", async () => {
    expect(tokenizer.vocabSize).toBe(257);
    const { history } = await trainSmall();
    for (const { valLoss, valPerplexity, valBitsPerByte, mfu, dataTime, memory } of history) {
      expect(mfu).toBeGreaterThan(0);
      expect(dataTime).toBeLessThan(1);
      expect(memory).toBeGreaterThan(1e6);
      if (valLoss === undefined) continue;
      expect(valPerplexity).toBeCloseTo(Math.exp(valLoss), 10);
      expect(valBitsPerByte).toBeCloseTo(valLoss / Math.LN2, 10);
    }
  });

  test("operations of a token: six for every weight of a matrix, and attention's", () => {
    const { model: sizes } = smallConfig();
    for (const tieEmbeddings of [false, true]) {
      using model = new TransformerLM({ ...sizes, tieEmbeddings }, { device });
      const gains = 5 * 16;
      const matrices = 257 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * sizes.dFf!);
      expect(flopsPerToken(model)).toBe(6 * (matrices + gains) + 12 * 2 * 16 * 8);
    }
    expect(measurePeak(device, "float32")).toBeGreaterThan(1e8);
  });
});

test("metrics that were damaged or taken away are told of where a run goes on, which it does to the same bits", async () => {
  const config = smallConfig({ checkpointInterval: 6, onDivergence: "skip" });
  const reference = await trainSmall({ config });
  const events = (_: unknown, stop: AbortController) => ({
    onStep: ({ step }: { step: number }) => void (step === 8 && stop.abort()),
  });
  const lines = (path: string) => readFileSync(path, "utf8").trimEnd().split("\n");
  for (const [damage, lacking, skipped] of [
    [(all) => all, undefined, []],
    [(all) => all, undefined, [{ checkpoint: 0, first: 12, last: 12 }]],
    [(all) => all.filter((_, i) => i !== 3), undefined, [{ checkpoint: 0, first: 4, last: 4 }]],
    [(all) => all.with(3, all[3].slice(0, 9)), 1, []],
    [(all) => ["null", '{"step": "1"}', "[1]", ...all.slice(3)], 3, []],
    [() => [], 8, []],
  ] as [(all: string[]) => string[], number | undefined, object[]][]) {
    const { run } = await trainSmall({ config, events });
    writeFileSync(run.metrics, damage(lines(run.metrics)).join("\n"));
    if (skipped.length > 0) writeFileSync(run.skipped, JSON.stringify(skipped));
    const warnings: string[] = [];
    const { weights } = await trainSmall({
      config,
      directory: run,
      events: () => ({ onWarning: (message) => warnings.push(message) }),
    });
    const told = `${run.metrics} was damaged or taken away: it lacks ${lacking} of the 8 steps done so far`;
    expect(warnings).toEqual(lacking === undefined ? [] : [expect.stringContaining(told)]);
    if (skipped.length === 0) expect(weights).toEqual(reference.weights);
    expect(lines(run.metrics)).toHaveLength(20 - (lacking ?? 0) - skipped.length);
  }
});
