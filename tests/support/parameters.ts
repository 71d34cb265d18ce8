/** The parameters of a model as arrays by name. */
import type { TransformerLM } from "@mantou/model";
import type { FloatArray } from "./ndarray.ts";

export function weightsOf(model: TransformerLM): Record<string, FloatArray> {
  return arrays(model, "value");
}

export function gradientsOf(model: TransformerLM): Record<string, FloatArray> {
  return arrays(model, "grad");
}

function arrays(model: TransformerLM, which: "value" | "grad"): Record<string, FloatArray> {
  return Object.fromEntries(
    [...model.parameters().values()].map((parameter) => [
      parameter.name,
      { shape: [...parameter.shape], data: parameter[which].toFloat32Array() },
    ]),
  );
}
