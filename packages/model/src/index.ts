/** @mantou/model: tensors on a native backend, the transformer with hand-written backward, AdamW, generation. */
export { AdamW, type AdamWOptions } from "./adamw.ts";
export { BuildError, buildCpuLibrary } from "./build.ts";
export { type Emulation, findNvcc } from "./build-cuda.ts";
export { buildCudaLibrary, buildEmulatedLibrary, buildEmulatedProgram } from "./build-cuda.ts";
export { MAX_HEAD_DIM, type ModelConfig, type ResolvedModelConfig, RMSNORM_EPS, resolveModelConfig } from "./config.ts";
export { Decoder } from "./decoder.ts";
export {
  Device,
  type DeviceName,
  type DeviceOptions,
  type Peaks,
  PlanningDevice,
  type Precision,
  hasGpu,
  openDevice,
  openPlanningDevice,
} from "./device.ts";
export { losses } from "./evaluation.ts";
export { type Finish, type GenerateOptions, GenerationBatch, type Sequence, generate } from "./generate.ts";
export * as functional from "./functional.ts";
export { fromBfloat16, fromFloat16, toBfloat16, toFloat16 } from "./half.ts";
export { headShape } from "./layers/attention.ts";
export { MemoryAccount, type MemoryKind } from "./memory.ts";
export { Muon, type MuonOptions } from "./muon.ts";
export { MappedFile, NativeError, OUT_OF_MEMORY } from "./native.ts";
export * as operations from "./operations.ts";
export { Parameter, type ParameterSpec, ParameterStore } from "./parameters.ts";
export { Profile, type ProfileRow } from "./profile.ts";
export { Random, deriveSeed, uniform } from "./random.ts";
export { type RopeSettings, ropeFrequencies, ropeTable } from "./rope.ts";
export { type SamplingOptions, sampleToken } from "./sampling.ts";
export { SafetensorsError, SafetensorsFile, type TensorEntry } from "./safetensors.ts";
export { safetensorsChunks, writeAtomically } from "./safetensors.ts";
export { type StepResult, Stepper, type StepperOptions } from "./stepper.ts";
export { type DType, type FloatType, type NdArray, Tensor, elementCount } from "./tensor.ts";
export { Uploads } from "./uploads.ts";
export { TransformerLM, type TransformerOptions, parameterGroups } from "./transformer.ts";
