/** How a text to be continued is put to a model. */
import type { Tokenizer } from "@mantou/tokenizer";

/** Special tokens that begin and end documents: ours (and GPT-2's), Llama 2's, Llama 3's. */
const MARKS = [
  ["<|endoftext|>", "<|endoftext|>"],
  ["<s>", "</s>"],
  ["<|begin_of_text|>", "<|end_of_text|>"],
] as const;

export interface DocumentMark {
  text: string;
  id: number;
}

/** The special tokens that a tokenizer has for the beginning and the end of a document, often the same one. */
export function documentMarks({ specialTokens }: Tokenizer): { begin: DocumentMark; end: DocumentMark } | undefined {
  for (const [begin, end] of MARKS) {
    const ids = [specialTokens.get(begin), specialTokens.get(end)];
    if (ids[0] === undefined || ids[1] === undefined) continue;
    return { begin: { text: begin, id: ids[0] }, end: { text: end, id: ids[1] } };
  }
  return undefined;
}

/**
 * The tokens of a prompt, at least one, and those that end its continuation. A model that knows documents begins one;
 * others begin after a line.
 */
export function encodePrompt(tokenizer: Tokenizer, prompt: string): { tokens: number[]; stopTokens: number[] } {
  const marks = documentMarks(tokenizer);
  const tokens = [...tokenizer.encode(prompt)];
  if (marks !== undefined) return { tokens: [marks.begin.id, ...tokens], stopTokens: [marks.end.id] };
  return { tokens: prompt === "" ? [...tokenizer.encode("\n")] : tokens, stopTokens: [] };
}
