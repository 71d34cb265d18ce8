/**
 * @mantou/tokenizer: byte-level BPE in plain TypeScript, for every runtime. Files are in @mantou/tokenizer/files.
 */
export { StreamingDecoder } from "./decoder.ts";
export { TokenizerError } from "./errors.ts";
export { parseGpt2 } from "./gpt2-format.ts";
export type { TokenizerJson } from "./json.ts";
export { PATTERN_NAMES } from "./patterns.ts";
export { type CountOptions, type PretokenCounts, PretokenStream } from "./pretokens.ts";
export { trainBpe, trainBpeAsync, type TrainBpeOptions, type TrainBpeResult } from "./train.ts";
export type { TextChunk, TrainOptions, TrainProgress } from "./training.ts";
export { type IdArray, StreamingEncoder, type TextSource, Tokenizer } from "./tokenizer.ts";
export { UNICODE_VERSION } from "./unicode.ts";
export type { TokenizerOptions } from "./vocabulary.ts";
