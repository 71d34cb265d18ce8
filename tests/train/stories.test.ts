/** The made-up stories: the same for the same seed, clean as text, bounded in vocabulary, and true to themselves. */
import { expect, test } from "bun:test";
import { generateStories, story } from "../../packages/train/src/stories.ts";
import { ANIMALS, CHILDREN, EVERYONE } from "../../packages/train/src/story-words.ts";

const sample = Array.from({ length: 2000 }, (_, index) => story(1, index));

function wordsOf(text: string): string[] {
  return text.toLowerCase().match(/[a-z']+/g) ?? [];
}

/** The stories that break a rule, each cut down to where it does, so that a failure shows the text. */
function breaking(rule: RegExp): string[] {
  return sample.flatMap((text) => {
    const at = text.search(rule);
    return at < 0 ? [] : [text.slice(Math.max(0, at - 30), at + 30)];
  });
}

/** A table column's words. */
function column(name: string): string[] {
  return [...EVERYONE, ...CHILDREN, ...ANIMALS].flatMap((table) => {
    const at = table.columns.indexOf(name);
    return at < 0 ? [] : table.rows.map((row) => row[at]);
  });
}

test("a story depends on its seed and index alone", () => {
  expect(sample.slice(0, 50).reverse()).toEqual(Array.from({ length: 50 }, (_, i) => story(1, 49 - i)));
  for (const seed of [0, 2, 2 ** 32 - 1]) {
    for (let index = 0; index < 50; index++) expect(story(seed, index)).not.toBe(sample[index]);
  }
  // The last index there is still has a story of its own.
  expect(story(1, 2 ** 32 - 1)).not.toBe(sample[0]);
});

test("the generator yields stories 0, 1, 2, ... and stops with the story that reaches the size", () => {
  const bytes = 100_000;
  const stories = [...generateStories({ seed: 1, bytes })];
  expect(stories).toEqual(sample.slice(0, stories.length));
  const size = Buffer.byteLength(stories.join(""));
  expect(size).toBeGreaterThanOrEqual(bytes);
  expect(size - stories[stories.length - 1].length).toBeLessThan(bytes);
});

test("bad seeds, indexes and sizes are refused by name", () => {
  for (const seed of [-1, 1.5, Number.NaN, 2 ** 32]) {
    expect(() => story(seed, 0)).toThrow(`seed must be an integer from 0 to 4294967295, not ${seed}`);
    expect(() => story(0, seed)).toThrow("index must be");
    expect(() => generateStories({ seed, bytes: 10 }).next()).toThrow("seed must be");
  }
  for (const bytes of [0, -5, Number.NaN, Infinity]) {
    expect(() => generateStories({ seed: 1, bytes }).next()).toThrow(`bytes must be a positive number, not ${bytes}`);
  }
});

test("stories are unique", () => {
  expect(new Set(sample).size).toBe(sample.length);
});

test("no unfilled slot, stray mark or misplaced space is left", () => {
  expect(breaking(/[^\x20-\x7e\n]|[{}[\]|*_<>\\]|undefined|null|NaN/)).toEqual([]);
  expect(breaking(/ {2}|^ | $|\n{3}|[^\n]\n[^\n]| [.,!?;:]|[.,!?]{2}/m)).toEqual([]);
  expect(breaking(/^\s|\s$/)).toEqual([]);
});

test("sentences begin with a capital and paragraphs end with a mark", () => {
  expect(breaking(/(^|\n)[^A-Z"\n]/)).toEqual([]);
  expect(breaking(/(^|\s)"[^A-Z]/)).toEqual([]);
  expect(breaking(/[.!?] [a-z]/)).toEqual([]);
  expect(breaking(/[^.!?"\n](\n|$)/)).toEqual([]);
});

test("quotation marks are balanced in every paragraph", () => {
  for (const text of sample) {
    for (const paragraph of text.split("\n\n")) {
      // Without its quotations, a paragraph has no mark left, and no quotation touches a word.
      expect(paragraph.replace(/(?<![a-z.,!?])"[A-Z][^"]*[.,!?]"(?![A-Za-z])/g, "")).not.toContain('"');
    }
  }
});

test("a and an agree with the word that follows", () => {
  expect(breaking(/\b[Aa] [aeiouAEIOU]/)).toEqual([]);
  expect(breaking(/\b[Aa]n [^aeiouAEIOU]/)).toEqual([]);
});

test("no word is doubled", () => {
  expect(breaking(/\b([a-z]{2,}) \1\b/)).toEqual([]);
});

test("stories have 80 to 220 words, from a vocabulary that a small model can learn", () => {
  const vocabulary = new Set<string>();
  for (const text of sample) {
    const words = wordsOf(text);
    expect(words.length).toBeGreaterThanOrEqual(80);
    expect(words.length).toBeLessThanOrEqual(220);
    for (const word of words) vocabulary.add(word);
  }
  expect(vocabulary.size).toBeLessThan(1500);
  expect(vocabulary.size).toBeGreaterThan(900);
});

test("openings vary", () => {
  const openings = new Set(sample.map((text) => wordsOf(text).slice(0, 6).join(" ")));
  expect(openings.size).toBeGreaterThan(sample.length / 4);
});

test("the hero keeps a name, and at most one friend has another", () => {
  const names = new Set([...column("girlName"), ...column("boyName")]);
  for (const text of sample) {
    const counts = new Map<string, number>();
    for (const [word] of text.matchAll(/\b[A-Z][a-z]+\b/g)) {
      if (names.has(word)) counts.set(word, (counts.get(word) ?? 0) + 1);
    }
    expect(Math.max(...counts.values())).toBeGreaterThanOrEqual(4);
    expect(counts.size).toBeLessThanOrEqual(2);
  }
});

test("pronouns agree with the character", () => {
  const girls = new Set(column("girlName"));
  const boys = new Set(column("boyName"));
  const wrong: string[] = [];
  let checked = 0;
  for (const text of sample) {
    for (const [, kind, name] of text.matchAll(/\b(girl|boy) (?:named|called) ([A-Z][a-z]+)/g)) {
      checked++;
      if (!(kind === "girl" ? girls : boys).has(name)) wrong.push(`${kind} ${name}`);
    }
    // An opening that presents nobody but the hero leaves no doubt whom its pronoun means.
    const [, name, pronoun] = /^[^.]* (?:named|called) (\w+)(?: lived [^.]*)?\. (She|He) /.exec(text) ?? [];
    if (name === undefined) continue;
    checked++;
    if (!(pronoun === "She" ? girls : boys).has(name)) wrong.push(`${pronoun} ${name}`);
  }
  expect(wrong).toEqual([]);
  expect(checked).toBeGreaterThan(sample.length / 2);
});

test("what is lost is what is found", () => {
  let found = 0;
  for (const text of sample) {
    const [, toy] = /"I lost my ([a-z ]+),"/.exec(text) ?? [];
    if (toy === undefined) continue;
    found++;
    const last = toy.split(" ").at(-1);
    expect(text).toMatch(new RegExp(`took (his|her) ${toy} to `));
    expect(text).toContain(`It was the ${last}!`);
  }
  expect(found).toBeGreaterThan(0);
});
