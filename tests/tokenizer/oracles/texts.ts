/** Texts that try every rule of the patterns: many scripts and kinds of character, deterministic. */

const POOLS: Record<string, string[]> = {
  english: ["the ", "cat", " sat's", " I'll", " WE'RE", " don't", "Hello", " world", ".", ", ", "\n", "\n\n", "  "],
  korean: ["안녕하세요 ", "한국어", " 말하다", "를 ", "\n", "가나다", "ㄱㄴ"],
  code: [
    "function f(x) {\n",
    "\t\treturn x+=1;\n",
    "}\n\n",
    "  // ",
    "if (a && b) ",
    "_snake_case",
    "CamelCaseHTTP",
    "0xff ",
    "'s'",
  ],
  emoji: ["😀", "👨‍👩‍👧", "🏳️‍🌈", " 👍🏽", "🇰🇷", "❤️", " x"],
  marks: [
    "e\u0301",
    "n\u0303o",
    "का",
    "สวัสดี",
    "ي\u064e",
    "Z\u0351\u036b\u0343",
    " \u0301",
    "!\u0308",
    "\u0301A\u0301b",
    "tie\u0302\u0301ng Vie\u0323\u0302t ",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "\u0327\u0301",
    "\u212b\u0958\u{2f800}",
  ],
  controls: ["\u0000", "\u0001a", "\u007f", "\u0085", "\u200b", "\ufeff", "\u001b[0m", "\u00ad"],
  lines: ["\r\n", "a\r\n", " \r\n\t", "\r", "\n \n", "\t\n", "!\r\n", "x \n", "//\n/"],
  digits: ["123", "4567", "٣٤٥", "१२३४", "Ⅷ", "²³", "½", "一二", "𝟘𝟙", " 12", "3.14", "1,000"],
  spaces: [" ", "  ", "\u00a0", "\u3000", "\u2003a", "\u1680", "\u2028", "\t", "   x"],
  letters: ["ʰA", "ʰABc", "Ǆǅǆ", "ſ", "'ſ", "ﬁ", "ß", "ẞ", "İ", "漢字", "かな", "𐐀𐐨", "ªº", "McDonald's", "iPhone'S"],
};

/** About `bytes` bytes of UTF-8. */
export function mixedText(bytes: number, seed = 1): string {
  let state = seed;
  const random = (n: number): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * n);
  };
  const pools = Object.values(POOLS);
  const parts: string[] = [];
  for (let size = 0; size < bytes;) {
    // stretches of one kind, and now and then a stranger
    const pool = pools[random(pools.length)];
    for (let length = 1 + random(30); length > 0; length--) {
      const from = random(6) > 0 ? pool : pools[random(pools.length)];
      const part = from[random(from.length)];
      parts.push(part);
      size += Buffer.byteLength(part);
    }
  }
  return parts.join("");
}
