/** How a text to be continued is put to a model. */
import type { Tokenizer } from "@mantou/tokenizer";

/** The special token between documents. */
export const END_OF_TEXT = "<|endoftext|>";

/**
 * The tokens of a prompt, at least one, and those that end its continuation. A model that knows documents begins one
 * after the end of another; others begin after a line.
 */
export function encodePrompt(tokenizer: Tokenizer, prompt: string): { tokens: number[]; stopTokens: number[] } {
  const end = tokenizer.specialTokens.get(END_OF_TEXT);
  const tokens = [...tokenizer.encode(prompt)];
  if (end !== undefined) return { tokens: [end, ...tokens], stopTokens: [end] };
  return { tokens: prompt === "" ? [...tokenizer.encode("\n")] : tokens, stopTokens: [] };
}
