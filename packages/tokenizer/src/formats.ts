/**
 * @mantou/tokenizer/formats: the formats of GPT-2, tiktoken and Hugging Face, read and written. An entry of its own, so
 * that a page which has its vocabulary in our format does not load them.
 */
export { parseGpt2, toGpt2 } from "./gpt2-format.ts";
export { fromHuggingFace, parseHuggingFace, toHuggingFace } from "./huggingface-format.ts";
export { parseTiktoken, toTiktoken } from "./tiktoken-format.ts";
export { type BlankInFront, type SentencePieceOptions, SentencePieceTokenizer } from "./sentencepiece.ts";
