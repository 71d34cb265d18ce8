/** Checkpoint files: what is saved comes back to the last bit, and nothing that is damaged or foreign gets in. */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { AdamW, type ModelConfig, type Precision, TransformerLM, openDevice, safetensorsChunks } from "@mantou/model";
import fc from "fast-check";
import { CheckpointError, checkpointName, isWholeCheckpoint } from "../../packages/train/src/checkpoint.ts";
import { listCheckpoints, loadCheckpoint, loadNewest, loadWeights } from "../../packages/train/src/checkpoint.ts";
import { pruneCheckpoints, saveCheckpoint } from "../../packages/train/src/checkpoint.ts";
import { removeTemporaries } from "../../packages/train/src/temporaries.ts";
import { randomInts } from "../support/ndarray.ts";

const base = mkdtempSync(join(tmpdir(), "mantou-checkpoints-"));
const device = openDevice("cpu", { threads: 1 });
afterAll(() => {
  device[Symbol.dispose]();
  rmSync(base, { recursive: true });
});

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(base, "test-"));
});

const config: ModelConfig = {
  vocabSize: 11,
  contextLength: 6,
  dModel: 8,
  numLayers: 1,
  numHeads: 2,
  dFf: 12,
  ropeTheta: 100,
};

function fresh(seed: number, settings: Partial<ModelConfig> = {}, precision: Precision = "fp32") {
  const model = new TransformerLM({ ...config, ...settings }, { device, seed, precision });
  return { model, optimizer: new AdamW(model.parameters()) };
}

type Trained = ReturnType<typeof fresh>;

/** A model after some steps, so that the moments are not zero. */
function trained(steps: number): Trained {
  const result = fresh(1);
  for (let i = 0; i < steps; i++) step(result, i);
  return result;
}

function step({ model, optimizer }: Trained, seed: number): number {
  const [inputs, targets] = [0, 1].map((i) => randomInts([6], 2 * seed + i, config.vocabSize).data);
  optimizer.zeroGrad();
  const loss = model.lossAndGradients(inputs, targets);
  optimizer.clipGradients(1);
  optimizer.step(0.01);
  return loss;
}

/** Everything that a checkpoint holds. */
function stateOf({ model, optimizer }: Trained) {
  return {
    weights: model.store.values.toFloat32Array(),
    first: optimizer.firstMoments.toFloat32Array(),
    second: optimizer.secondMoments.toFloat32Array(),
    steps: optimizer.stepCount,
  };
}

function bytesOf(subject: Trained, iteration: number): Uint8Array {
  const chunks: Uint8Array[] = [];
  saveCheckpoint({ write: (chunk) => chunks.push(chunk.slice()) }, { ...subject, iteration });
  return new Uint8Array(Buffer.concat(chunks)); // whose slices are copies, as a Buffer's are not
}

function refusal(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    if (error instanceof CheckpointError) return error.message;
    throw error;
  }
  throw new Error("nothing was refused");
}

describe("a sound checkpoint", () => {
  test("brings back weights, moments and step counts, and the steps after it are the same", () => {
    const original = trained(3);
    const path = join(folder, checkpointName(3));
    saveCheckpoint(path, { ...original, iteration: 3 });
    const copy = fresh(99);
    expect(stateOf(copy)).not.toEqual(stateOf(original));
    expect(loadCheckpoint(path, copy)).toBe(3);
    expect(stateOf(copy)).toEqual(stateOf(original));
    expect(stateOf(copy).first.some((value) => value !== 0)).toBe(true);
    const losses = [original, copy].map((each) => [3, 4, 5].map((seed) => step(each, seed)));
    expect(losses[1]).toEqual(losses[0]);
    expect(stateOf(copy)).toEqual(stateOf(original));
  });

  test("holds what bf16 training keeps in float32: goes on bit for bit, and in either precision", () => {
    const original = fresh(1, {}, "bf16");
    for (let i = 0; i < 3; i++) step(original, i);
    const { values, weights } = original.model.store;
    expect(weights.toFloat32Array()).not.toEqual(values.toFloat32Array());
    const bytes = bytesOf(original, 3);
    const [copy, precise] = [fresh(2, {}, "bf16"), fresh(2, {}, "fp32")];
    for (const each of [copy, precise]) {
      expect(loadCheckpoint(bytes, each)).toBe(3);
      expect(stateOf(each)).toEqual(stateOf(original));
      expect(new Uint8Array(bytesOf(each, 3))).toEqual(new Uint8Array(bytes));
    }
    const [losses, copied, inFloat32] = [original, copy, precise].map((each) =>
      [3, 4, 5].map((seed) => step(each, seed)),
    );
    expect(copied).toEqual(losses);
    expect(stateOf(copy)).toEqual(stateOf(original));
    inFloat32!.forEach((loss, i) => expect(Math.abs(loss / losses![i]! - 1)).toBeLessThan(0.01));
    expect(inFloat32).not.toEqual(losses);
  });

  test("mends a model whose numbers are all spoilt, rows past its vocabulary among them", () => {
    const model = new TransformerLM(config, { device, seed: 1, vocabularyMultiple: 16 });
    const all = { model, optimizer: new AdamW(model.parameters()) };
    const path = join(folder, checkpointName(0));
    saveCheckpoint(path, { ...all, iteration: 0 });
    const loss = step(all, 1);
    const { gradients } = model.store;
    gradients.upload(new Float32Array(gradients.count).fill(Number.NaN));
    all.optimizer.step(0.01);
    expect(step(all, 1)).toBeNaN();
    loadCheckpoint(path, all);
    expect(step(all, 1)).toBe(loss);
    expect(step(all, 2)).toBeFinite();
  });

  test("has the same bytes wherever it goes, and no other file appears", () => {
    const original = trained(1);
    saveCheckpoint(join(folder, "a"), { ...original, iteration: 7 });
    expect(new Uint8Array(readFileSync(join(folder, "a")))).toEqual(new Uint8Array(bytesOf(original, 7)));
    expect(readdirSync(folder)).toEqual(["a"]);
    expect(isWholeCheckpoint(join(folder, "a"))).toBe(true);
  });

  test("gives its weights alone for inference", () => {
    const original = trained(2);
    const copy = fresh(5);
    const moments = stateOf(copy).first;
    expect(loadWeights(bytesOf(original, 2), copy.model)).toBe(2);
    expect(stateOf(copy).weights).toEqual(stateOf(original).weights);
    expect(stateOf(copy).first).toEqual(moments);
  });
});

describe("a damaged checkpoint", () => {
  const whole = bytesOf(trained(2), 2);
  const target = fresh(3);
  const before = stateOf(target);

  test("with any bit flipped is refused, by training and by inference, and changes nothing", () => {
    const size = whole.length;
    // The header, some thousand bytes, is where a flip can do other harm than to a number: half the tries go there.
    const header = 8 + Number(new DataView(whole.buffer, whole.byteOffset).getBigUint64(0, true));
    const places = fc.oneof(fc.nat(header - 1), fc.nat(size - 1));
    const isComment = (at: number) => {
      const format = Buffer.from(whole).indexOf('"format":"mantou"');
      return at >= format && at < format + '"format":"mantou"'.length;
    };
    fc.assert(
      fc.property(places, fc.nat(7), (at, bit) => {
        fc.pre(!isComment(at));
        const damaged = whole.slice();
        damaged[at] ^= 1 << bit;
        refusal(() => loadCheckpoint(damaged, target));
        refusal(() => loadWeights(damaged, target.model));
      }),
      { numRuns: 400 },
    );
    expect(stateOf(target)).toEqual(before);
  });

  test("cut off anywhere, or with something behind it, is refused", () => {
    const path = join(folder, "cut");
    fc.assert(
      fc.property(fc.nat(whole.length - 1), (length) => {
        writeFileSync(path, whole.subarray(0, length));
        expect(refusal(() => loadCheckpoint(path, target))).toContain(path);
        expect(isWholeCheckpoint(path)).toBe(false);
      }),
      { numRuns: 60, examples: [[0], [7], [8], [whole.length - 1]] },
    );
    refusal(() => loadCheckpoint(Buffer.concat([whole, Uint8Array.of(0)]), target));
    expect(stateOf(target)).toEqual(before);
  });
});

describe("a foreign file", () => {
  const target = fresh(3);
  const refuse = (content: string | Uint8Array) => {
    const path = join(folder, "foreign.safetensors");
    writeFileSync(path, content);
    const message = refusal(() => loadCheckpoint(path, target));
    expect(message).toContain(path);
    return message;
  };

  test("is refused and named", () => {
    refuse("");
    refuse("a text that somebody put there, long enough to have a header length");
    const entry = { name: "x", dtype: "F32" as const, shape: [1], data: () => Float32Array.of(1) };
    const chunks = [...safetensorsChunks([entry], { format: "pt" })];
    expect(refuse(Buffer.concat(chunks))).toContain("no checkpoint of Mantou");
    expect(refusal(() => loadCheckpoint(join(folder, "nowhere"), target))).toContain("there is no checkpoint");
  });

  test("a checkpoint of another model says what differs", () => {
    const other = (settings: Partial<ModelConfig>) => refuse(bytesOf(fresh(1, settings), 0));
    expect(other({ dModel: 16 })).toContain("is of another model: dModel is 16, not 8");
    expect(other({ numLayers: 2 })).toContain("numLayers is 2, not 1");
    expect(other({ ropeTheta: 200 })).toContain("ropeTheta is 200, not 100");
    expect(other({ norm: "post" })).toContain("norm is post, not pre");
    expect(other({ tieEmbeddings: true })).toContain("tieEmbeddings is true, not false");
  });
});

describe("a folder of checkpoints", () => {
  const save = (...steps: number[]) => {
    const subject = trained(1);
    for (const iteration of steps) saveCheckpoint(join(folder, checkpointName(iteration)), { ...subject, iteration });
  };
  const steps = () => listCheckpoints(folder).map((path) => Number(/(\d+)\.safetensors/.exec(path)![1]));
  const damage = (iteration: number) => writeFileSync(join(folder, checkpointName(iteration)), "damaged");

  test("lists them newest first, whatever else lies there and however many digits the steps have", () => {
    save(9, 100_000_000, 10, 99_999_999);
    for (const name of ["notes.txt", "step-5.safetensors", "step-00000011.safetensors.tmp-1"]) {
      writeFileSync(join(folder, name), "");
    }
    expect(steps()).toEqual([100_000_000, 99_999_999, 10, 9]);
    expect(listCheckpoints(join(folder, "nowhere"))).toEqual([]);
  });

  test("the newest sound one is used, each other named in a warning", () => {
    save(1, 2, 3, 4);
    damage(3);
    damage(4);
    const warnings: string[] = [];
    const copy = fresh(8);
    const found = loadNewest(
      folder,
      (path) => loadCheckpoint(path, copy),
      (text) => warnings.push(text),
    );
    expect(found).toBe(2);
    expect(warnings).toHaveLength(2);
    expect(warnings[0]).toContain(checkpointName(4));
    expect(warnings[1]).toContain(checkpointName(3));
    expect(warnings[1]).toContain("using the one before it");
  });

  test("none at all is no error, none sound is one", () => {
    const load = (path: string) => loadCheckpoint(path, fresh(8));
    expect(loadNewest(folder, load, expect.unreachable)).toBeUndefined();
    save(1, 2);
    damage(1);
    damage(2);
    const message = refusal(() => loadNewest(folder, load, () => {}));
    expect(message).toContain("none of the 2 checkpoints can be used");
    expect(message).toContain(checkpointName(1));
  });

  test("errors that are not the checkpoint's are not taken for damage", () => {
    save(1, 2);
    const load = () => {
      throw new TypeError("a defect");
    };
    expect(() => loadNewest(folder, load, expect.unreachable)).toThrow(new TypeError("a defect"));
  });

  test("pruning keeps the newest up to the one just saved, and takes away damaged later ones", () => {
    save(1, 2, 3, 4, 9);
    pruneCheckpoints(folder, 2, 4);
    expect(steps()).toEqual([4, 3]);
    pruneCheckpoints(folder, 1, 4);
    expect(steps()).toEqual([4]);
    pruneCheckpoints(folder, 5, 4);
    expect(steps()).toEqual([4]);
  });

  test("what killed writers left goes, what living ones write stays", async () => {
    const gone = Bun.spawn(["true"]);
    await gone.exited;
    const left = [`a.safetensors.tmp-${gone.pid}`, `tokenizer.json.${gone.pid}.tmp`];
    const kept = [`b.safetensors.tmp-${process.ppid}`, "notes.tmp", "step-1.tmp-x"];
    for (const name of [...left, ...kept]) writeFileSync(join(folder, name), "half");
    removeTemporaries(folder);
    expect(readdirSync(folder).sort()).toEqual(kept.sort());
    removeTemporaries(join(folder, "nowhere"));
  });
});
