/** @mantou/train: data sets, schedules, checkpoints, metrics, the trainer, and the commands on top of them. */
export * from "./checkpoint.ts";
export * from "./config.ts";
export * from "./dataset.ts";
export { UserError } from "./errors.ts";
export * from "./metrics.ts";
export { presets } from "./presets.ts";
export * from "./run.ts";
export * from "./schedule.ts";
export { generateStories, story } from "./stories.ts";
export * from "./trainer.ts";
