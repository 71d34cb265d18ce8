/**
 * Byte-pair encoding as one would explain it at a blackboard, as the oracle of the tokenizer: strings of bytes, a count of
 * all pairs from scratch for every merge, a regular expression for the pieces. Quadratic and obvious on purpose.
 *
 * A token is a string with one character per byte ("latin1"), so that tokens can be map keys and `<` compares bytes.
 */
/** The GPT-2 pattern, with `\s` as Unicode White_Space. */
export const GPT2_PATTERN =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

export function toByteString(text: string): string {
  return Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join("");
}

export function toBytes(token: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(token, (character) => character.charCodeAt(0));
}

/** Cuts a text at special tokens: at each place the longest one; `special` is undefined for what lies between. */
export function splitSpecials(text: string, specialTokens: string[]): { text: string; special: boolean }[] {
  const parts: { text: string; special: boolean }[] = [];
  let plain = "";
  for (let i = 0; i < text.length;) {
    const [special] = specialTokens.filter((token) => text.startsWith(token, i)).sort((a, b) => b.length - a.length);
    if (special === undefined) {
      plain += text[i++];
      continue;
    }
    if (plain !== "") parts.push({ text: plain, special: false });
    plain = "";
    parts.push({ text: special, special: true });
    i += special.length;
  }
  if (plain !== "") parts.push({ text: plain, special: false });
  return parts;
}

/** Pieces of a text without special tokens, as byte strings. */
export function pretokens(text: string): string[] {
  return Array.from(text.toWellFormed().matchAll(GPT2_PATTERN), ([piece]) => toByteString(piece));
}

function mergeWord(word: string[], left: string, right: string): string[] {
  const merged: string[] = [];
  for (let i = 0; i < word.length; i++) {
    if (word[i] === left && word[i + 1] === right) {
      merged.push(left + right);
      i++;
    } else {
      merged.push(word[i]);
    }
  }
  return merged;
}

/**
 * Merges for words (byte strings) with counts: recounts every pair before each merge. Among pairs of the same count the
 * greatest bytes win; by "id" the lowest ids, the left one's first, which is rustbpe's rule.
 */
export function trainWords(
  words: Map<string, number>,
  numMerges: number,
  minFrequency = 1,
  ties: "bytes" | "id" = "bytes",
): [string, string][] {
  const merges: [string, string][] = [];
  let split = Array.from(words, ([word, count]) => ({ tokens: [...word], count }));
  while (merges.length < numMerges) {
    const pairs = new Map<string, { left: string; right: string; count: number }>();
    for (const { tokens, count } of split) {
      for (let i = 0; i + 1 < tokens.length; i++) {
        const key = JSON.stringify([tokens[i], tokens[i + 1]]);
        const pair = pairs.get(key) ?? { left: tokens[i], right: tokens[i + 1], count: 0 };
        pair.count += count;
        pairs.set(key, pair);
      }
    }
    const id = (token: string): number =>
      token.length === 1 ? token.charCodeAt(0) : 256 + merges.findIndex(([left, right]) => left + right === token);
    const order = (x: string, y: string): number => (ties === "id" ? id(x) - id(y) : x < y ? 1 : x > y ? -1 : 0);
    const [best] = [...pairs.values()].sort(
      (a, b) => b.count - a.count || order(a.left, b.left) || order(a.right, b.right),
    );
    if (best === undefined || best.count < minFrequency) break;
    merges.push([best.left, best.right]);
    split = split.map(({ tokens, count }) => ({ tokens: mergeWord(tokens, best.left, best.right), count }));
  }
  return merges;
}

/** Merges for a text. */
export function trainText(text: string, numMerges: number, specialTokens: string[] = []): [string, string][] {
  const words = new Map<string, number>();
  for (const part of splitSpecials(text, specialTokens)) {
    if (part.special) continue;
    for (const piece of pretokens(part.text)) words.set(piece, (words.get(piece) ?? 0) + 1);
  }
  return trainWords(words, numMerges);
}

/** Tokens of a text: every merge in turn, everywhere, unless the piece is a token itself. */
export function encodeText(text: string, merges: [string, string][], specialTokens: string[] = []): string[] {
  const known = new Set(merges.map(([left, right]) => left + right));
  const tokens: string[] = [];
  for (const part of splitSpecials(text, specialTokens)) {
    if (part.special) {
      tokens.push(toByteString(part.text));
      continue;
    }
    for (const piece of pretokens(part.text)) {
      if (known.has(piece)) {
        tokens.push(piece);
        continue;
      }
      let word = [...piece];
      for (const [left, right] of merges) word = mergeWord(word, left, right);
      tokens.push(...word);
    }
  }
  return tokens;
}
