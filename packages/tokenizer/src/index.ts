/**
 * @mantou/tokenizer: byte-level BPE in plain TypeScript, for every runtime. Files are in @mantou/tokenizer/files, other
 * projects' formats in @mantou/tokenizer/formats.
 */
export { StreamingDecoder } from "./decoder.ts";
export { TokenizerError } from "./errors.ts";
export type { TokenizerJson } from "./json.ts";
export { PATTERN_NAMES } from "./patterns.ts";
export { type CountOptions, mergeCounts, type PretokenCounts, PretokenStream } from "./pretokens.ts";
export { TIES, type Ties, trainBpe, trainBpeAsync, type TrainBpeOptions, type TrainBpeResult } from "./train.ts";
export type { TextChunk, TrainOptions, TrainProgress } from "./training.ts";
export type { IdArray } from "./encoder.ts";
export type { SpecialOptions } from "./splitter.ts";
export { StreamingEncoder } from "./streaming-encoder.ts";
export { type DecodeOptions, type TextSource, Tokenizer, type TokenOffsets } from "./tokenizer.ts";
export { UNICODE_VERSION } from "./unicode.ts";
export type { TokenizerOptions } from "./vocabulary.ts";
