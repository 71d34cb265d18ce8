/**
 * The most memory that a process training the 17M TinyStories shape on the CPU takes (peak resident set, Bun and its
 * heap included), against what `train --plan` counts for the same model.
 * Usage: bun bench/cpu/memory.ts [--batch 8] [--save]
 */
import { parseArgs } from "node:util";
import { AdamW, type Device, TransformerLM, openDevice, openPlanningDevice } from "@mantou/model";
import { report } from "./report.ts";

const { values } = parseArgs({
  options: {
    batch: { type: "string", default: "8" },
    save: { type: "boolean", default: false },
    measure: { type: "string" }, // what this script gives the processes that it starts
  },
});
const batchSize = Number(values.batch);
const sizes = { vocabSize: 10_000, contextLength: 256, dModel: 512, numLayers: 4, numHeads: 16, dFf: 1344 };

function build(device: Device, precision: "fp32" | "bf16") {
  const model = new TransformerLM({ ...sizes, ropeTheta: 10_000 }, { device, batchSize, precision, seed: 1 });
  model.prepare();
  return { model, optimizer: new AdamW(model.parameters()) };
}

/** Trains three steps and prints the peak in bytes. */
function measure(precision: "fp32" | "bf16"): void {
  using device = openDevice("cpu");
  const { model, optimizer } = build(device, precision);
  const tokens = new Int32Array(batchSize * sizes.contextLength).map((_, i) => i % sizes.vocabSize);
  for (let step = 0; step < 3; step++) {
    optimizer.zeroGrad();
    model.lossAndGradients(tokens, tokens);
    optimizer.clipAndStep(1e-3, 1);
  }
  console.log(process.resourceUsage().maxRSS * 1024);
}

if (values.measure) {
  measure(values.measure as "fp32" | "bf16");
} else {
  const rows = (["fp32", "bf16"] as const).map((precision) => {
    using device = openPlanningDevice("cpu");
    build(device, precision);
    const planned = device.memory.total;
    const child = Bun.spawnSync([process.execPath, import.meta.path, "--batch", values.batch, "--measure", precision]);
    const peak = Number(child.stdout.toString());
    const mb = (bytes: number) => (bytes / 1e6).toFixed(0);
    return [precision, mb(planned), mb(peak), `${(peak / planned).toFixed(2)} ×`];
  });
  report(values.save && "memory", {
    title: `Memory of training, 17M, batch ${batchSize} × 256`,
    notes: ["peak resident set of a process that trains, against the plan's sum"],
    header: ["", "planned MB", "peak MB", "ratio"],
    rows,
  });
}
