/** The angles of the rotary position embedding (Su et al. 2021), and how they are scaled for longer contexts. */
import type { ModelConfig } from "./config.ts";
import type { Device } from "./device.ts";
import { Tensor } from "./tensor.ts";

/** The part of a model's config that the angles follow from. */
export type RopeSettings = Pick<
  ModelConfig,
  "ropeTheta" | "ropeScaling" | "ropeFactor" | "ropeLowFreqFactor" | "ropeHighFreqFactor" | "ropeOriginalContext"
>;

/**
 * Radians by which pair i of a head turns from one position to the next: Θ^(−2i/headDim) (Su et al. 2021, §3.2), scaled
 *
 * - `linear`: divided by the factor (Chen et al. 2023, "Extending context window … via positional interpolation", §2.3);
 * - `llama3`: divided by the factor where a whole turn takes more than ropeOriginalContext / ropeLowFreqFactor positions,
 *   kept where it takes fewer than ropeOriginalContext / ropeHighFreqFactor, and blended in between (Llama 3.1's
 *   reference implementation; Grattafiori et al. 2024).
 */
export function ropeFrequencies(headDim: number, settings: RopeSettings): Float64Array {
  const { ropeTheta, ropeScaling = "none", ropeFactor = 1 } = settings;
  const { ropeLowFreqFactor = 1, ropeHighFreqFactor = 4, ropeOriginalContext = 8192 } = settings;
  return Float64Array.from({ length: headDim / 2 }, (_, i) => {
    const frequency = ropeTheta ** ((-2 * i) / headDim);
    if (ropeScaling === "none") return frequency;
    if (ropeScaling === "linear") return frequency / ropeFactor;
    const turns = (ropeOriginalContext * frequency) / (2 * Math.PI);
    const kept = (turns - ropeLowFreqFactor) / (ropeHighFreqFactor - ropeLowFreqFactor);
    const share = Math.min(1, Math.max(0, kept));
    return share * frequency + ((1 - share) * frequency) / ropeFactor;
  });
}

/** cos and sin of position · frequency, computed in float64: [positions, headDim / 2, 2]. */
export function ropeTable(device: Device, positions: number, headDim: number, settings: RopeSettings): Tensor {
  const frequencies = ropeFrequencies(headDim, settings);
  const data = new Float32Array(positions * headDim);
  for (let position = 0; position < positions; position++) {
    frequencies.forEach((frequency, i) => {
      data[position * headDim + 2 * i] = Math.cos(position * frequency);
      data[position * headDim + 2 * i + 1] = Math.sin(position * frequency);
    });
  }
  return Tensor.from(device, [positions, headDim / 2, 2], data);
}
