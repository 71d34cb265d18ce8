/**
 * How long a run would take: what its kernels have to do, counted on a planning device, at the speeds that the device
 * shows here: of a large matrix product for arithmetic, of a sum of large arrays for everything that memory limits.
 */
import { type Device, type Peaks, Profile, TransformerLM, openPlanningDevice } from "@mantou/model";
import type { SettledConfig } from "./config.ts";
import { measureBandwidth, measurePeak } from "./measure.ts";
import { modelOptions } from "./run.ts";
import { createOptimizer } from "./trainer.ts";

/**
 * What whole steps reach of those speeds: measured on two cores of an AMD EPYC (Zen 4), 0.57 (a model of 0.9M parameters
 * in bfloat16) to 0.86 (one of 23M), the less the smaller the model. Not measured on a GPU.
 */
const SHARES = { least: 0.55, most: 0.9 };

/**
 * Seconds of training steps and validations, from and to; samples and checkpoints come on top.
 * @param device of the kind that the config names
 */
export function estimateSeconds(config: SettledConfig, device: Device): [from: number, to: number] {
  const speeds = measureSpeeds(device);
  using planning = openPlanningDevice(device.name === "cpu" ? "cpu" : "cuda", { log: () => {} });
  using model = new TransformerLM(config.model, { device: planning, ...modelOptions(config) });
  using optimizer = createOptimizer(model, config);
  const seconds = (body: () => void) => {
    planning.profile = new Profile();
    body();
    return planning.profile.secondsAt(speeds);
  };
  const tokens = new Int32Array(config.microBatchSize * config.model.contextLength);
  const parts = config.batchSize / config.microBatchSize;
  const step = parts * seconds(() => model.lossAndGradients(tokens, tokens));
  const update = seconds(() => {
    optimizer.zeroGrad();
    optimizer.clipAndStep(config.lr, config.clipNorm);
  });
  const validations = config.evalInterval > 0 ? Math.ceil(config.steps / config.evalInterval) : 1;
  const validation = config.evalBatches * parts * seconds(() => model.loss(tokens, tokens));
  const ideal = config.steps * (step + update) + validations * validation;
  return [ideal / SHARES.most, ideal / SHARES.least];
}

function measureSpeeds(device: Device): Peaks {
  return {
    float32Flops: measurePeak(device, "float32"),
    bfloat16Flops: measurePeak(device, "bfloat16"),
    bytesRead: measureBandwidth(device),
  };
}
