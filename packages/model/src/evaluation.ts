/**
 * Losses of many batches. A device that works on what was queued is never waited for between two of them: while it computes
 * a loss, the next batch is read and travels.
 */
import type { HostMemory } from "./native.ts";
import type { StepOptions, TransformerLM } from "./transformer.ts";
import { type Batch, COMPUTE, IN_FLIGHT, Uploads } from "./uploads.ts";

/**
 * The loss of each batch, with the bits of `model.loss`, and how many tokens it has, in order. A batch may be written over
 * when the next one is asked for. No `Stepper` of this model may have a step in flight.
 * @throws RangeError as `model.loss` does
 */
export function* losses(
  model: TransformerLM,
  batches: Iterable<Batch>,
  options: StepOptions = {},
): Generator<{ loss: number; count: number }> {
  const { device } = model;
  if (!device.isAsynchronous) {
    for (const { inputs, targets } of batches) {
      yield { loss: model.loss(inputs, targets, options), count: inputs.length };
    }
    return;
  }
  using uploads = new Uploads(model);
  const stagings: HostMemory[] = [];
  const counts: number[] = [];
  let finished = 0;
  const finish = () => {
    const slot = finished % IN_FLIGHT;
    device.run("mantou_wait_for_mark", slot);
    return { loss: stagings[slot]!.float32(uploads.bytes), count: counts[finished++]! };
  };
  try {
    for (let i = 0; i < IN_FLIGHT; i++) stagings.push(device.allocateHost(uploads.bytes + 4));
    for (const batch of batches) {
      if (counts.length - finished === IN_FLIGHT) yield finish();
      model.checkBatch(batch.inputs, batch.targets, options);
      const slot = counts.length % IN_FLIGHT;
      const staging = stagings[slot]!;
      uploads.queue(staging, 0, batch);
      const loss = model.queueLoss(batch.inputs.length, options);
      device.run("mantou_copy_async", { memory: staging, byteOffset: uploads.bytes }, loss, 4, COMPUTE);
      device.run("mantou_mark", slot);
      counts.push(batch.inputs.length);
    }
    while (finished < counts.length) yield finish();
  } finally {
    device.synchronize();
    for (const staging of stagings) staging[Symbol.dispose]();
  }
}
