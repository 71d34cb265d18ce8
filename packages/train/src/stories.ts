/**
 * Short children's stories, made up on the spot: the corpus that `bun run train` learns from when it is given no data.
 *
 * A story is one plot of `story-plots.ts`, told with the words of `story-words.ts` by a small grammar: `[a|b|c]` picks
 * one of its branches, `{slot}` is filled in, `{Slot}` is filled in with a capital, `a*` becomes "a" or "an", and each
 * line is a paragraph. A slot is, in this order: a fact of this story (the hero's name, a pronoun), a column of a table,
 * or a phrase. A table's row is drawn once in a story, so every `{toy}` is the same toy (`{toy2}` is another); a phrase
 * is drawn anew each time.
 *
 * Story number `index` is a pure function of (seed, index): choices come from a counter-based 32-bit generator.
 */
import { type Plot, PLOTS } from "./story-plots.ts";
import { type Table, ANIMALS, CHILDREN, EVERYONE, PHRASES } from "./story-words.ts";

/** The finaliser "lowbias32": a bijection of 32-bit integers with good avalanche (C. Wellons, hash-prospector). */
function mix32(x: number): number {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

type Part = string | { slot: string } | { branches: Part[][] };

const parsed = new Map<string, Part[]>();

function parse(template: string): Part[] {
  const known = parsed.get(template);
  if (known !== undefined) return known;
  let at = 0;
  const sequence = (nested: boolean): Part[] => {
    const parts: Part[] = [];
    for (;;) {
      const start = at;
      while (at < template.length && !"[{|]".includes(template[at])) at++;
      if (at > start) parts.push(template.slice(start, at));
      if (template[at] === "{") {
        const end = template.indexOf("}", at);
        if (end < 0) throw new Error(`story template has an unclosed "{": ${template}`);
        parts.push({ slot: template.slice(at + 1, end) });
        at = end + 1;
      } else if (template[at] === "[") {
        const branches: Part[][] = [];
        do {
          at++;
          branches.push(sequence(true));
        } while (template[at] === "|");
        if (template[at] !== "]") throw new Error(`story template has an unclosed "[": ${template}`);
        at++;
        parts.push({ branches });
      } else if (nested || at === template.length) {
        return parts;
      } else {
        throw new Error(`story template has "${template[at]}" outside brackets: ${template}`);
      }
    }
  };
  const parts = sequence(false);
  parsed.set(template, parts);
  return parts;
}

function capitalize(text: string): string {
  return text.slice(0, 1).toUpperCase() + text.slice(1);
}

/** One telling: the facts that stay fixed in a story, and the choices made so far. */
class Teller {
  readonly facts = new Map<string, string>();
  readonly #tables: Map<string, Table>;
  readonly #orders = new Map<Table, number[]>();
  readonly #key: number;
  readonly #stream: number;
  #counter = 0;

  constructor(seed: number, index: number, tables: Map<string, Table>) {
    this.#key = mix32(seed ^ 0x6d616e74);
    this.#stream = mix32(index + 0x6f75);
    this.#tables = tables;
  }

  /** A uniform integer in [0, n). */
  below(n: number): number {
    const bits = mix32(mix32(this.#key + Math.imul(++this.#counter, 0x9e3779b9)) ^ this.#stream);
    return Math.floor((bits / 2 ** 32) * n);
  }

  tell(template: string): string {
    return this.#join(parse(template));
  }

  #join(parts: Part[]): string {
    let text = "";
    for (const part of parts) {
      if (typeof part === "string") text += part;
      else if ("slot" in part) text += this.#fill(part.slot);
      else text += this.#join(part.branches[this.below(part.branches.length)]);
    }
    return text;
  }

  #fill(slot: string): string {
    const name = slot[0].toLowerCase() + slot.slice(1);
    const text = this.tell(this.facts.get(name) ?? this.#word(name) ?? PHRASES[name] ?? unknownSlot(name));
    return name === slot ? text : capitalize(text);
  }

  /** The cell of a table: `toy` is the first row drawn, `toy2` the second, and so on without repetition. */
  #word(name: string): string | undefined {
    const digits = /\d$/.test(name) ? name.slice(-1) : "";
    const column = digits === "" ? name : name.slice(0, -1);
    const table = this.#tables.get(column);
    if (table === undefined) return undefined;
    let order = this.#orders.get(table);
    if (order === undefined) {
      order = table.rows.map((_, row) => row);
      for (let i = 0; i < order.length - 1; i++) {
        const j = i + this.below(order.length - i);
        [order[i], order[j]] = [order[j], order[i]];
      }
      this.#orders.set(table, order);
    }
    const row = order[digits === "" ? 0 : Number(digits) - 1];
    return row === undefined ? undefined : table.rows[row][table.columns.indexOf(column)];
  }
}

function unknownSlot(name: string): never {
  throw new Error(`story template names {${name}}, which is no fact, table column or phrase`);
}

const worlds = new Map<string, Map<string, Table>>();

/** The tables that a plot with this kind of hero can use, by column; a plot's own tables win. */
function tablesOf(plot: Plot, world: "child" | "animal"): Map<string, Table> {
  const key = `${world} ${plot.name}`;
  let tables = worlds.get(key);
  if (tables === undefined) {
    const all = [...EVERYONE, ...(world === "child" ? CHILDREN : ANIMALS), ...(plot.tables ?? [])];
    tables = new Map(all.flatMap((table) => table.columns.map((column): [string, Table] => [column, table])));
    worlds.set(key, tables);
  }
  return tables;
}

const PRONOUNS = { girl: ["she", "her", "her", "herself"], boy: ["he", "him", "his", "himself"] } as const;

/** Binds name and pronouns of a character: `h`, `he`, `him`, `his`, `himself`, each after the prefix but for the name. */
function cast(teller: Teller, as: "h" | "f", prefix: string, number: "" | "2"): void {
  const gender = teller.below(2) === 0 ? "girl" : "boy";
  teller.facts.set(as, `{${gender}Name${number}}`);
  const [he, him, his, himself] = PRONOUNS[gender];
  teller.facts.set(`${prefix}he`, he).set(`${prefix}him`, him).set(`${prefix}his`, his);
  teller.facts.set(`${prefix}himself`, himself).set(`${prefix}gender`, gender);
}

/**
 * Story number `index` of the endless sequence that belongs to `seed`: 80 to 220 words of ASCII text, paragraphs
 * separated by a blank line, no newline at the end.
 * @throws RangeError when `seed` or `index` isn't an integer in [0, 2^32).
 */
export function story(seed: number, index: number): string {
  requireUint32("seed", seed);
  requireUint32("index", index);
  const choose = new Teller(seed, index, new Map());
  const plot = PLOTS[choose.below(PLOTS.length)];
  const world = plot.heroes ?? (choose.below(5) < 3 ? "child" : "animal");

  const teller = new Teller(seed ^ 0x5bd1e995, index, tablesOf(plot, world));
  cast(teller, "h", "", "");
  cast(teller, "f", "f", "2");
  teller.facts.set("kind", world === "child" ? "{gender}" : "{species}");
  teller.facts.set("fkind", world === "child" ? "{fgender}" : "{species2}");
  if (plot.when !== undefined) teller.facts.set("when", plot.when);
  // Either a paragraph presents the hero, or the first sentence of the plot does so in passing.
  const presented = teller.below(8) < 5;
  teller.facts.set("open", presented ? "{intro}\n{when}" : "{when}");
  teller.facts.set("h0", presented ? "{h}" : "a* {small} {kind} named {h}");

  return teller
    .tell(plot.text.trim())
    .replace(/\b([Aa])\* (?=([a-z]))/g, (_, a: string, next: string) => ("aeiou".includes(next) ? `${a}n ` : `${a} `))
    .split("\n")
    .map((paragraph) => paragraph.trim().replace(/ {2,}/g, " "))
    .filter((paragraph) => paragraph !== "")
    .join("\n\n");
}

/**
 * Stories 0, 1, 2, ... of `seed`, one at a time, until about `bytes` bytes have been produced (never fewer, at most one
 * story more). The separator that the caller writes after each story isn't counted.
 * @throws RangeError when `seed` isn't an integer in [0, 2^32) or `bytes` isn't a positive number.
 */
export function* generateStories(options: { seed: number; bytes: number }): Generator<string> {
  requireUint32("seed", options.seed);
  if (!(options.bytes > 0) || !Number.isFinite(options.bytes)) {
    throw new RangeError(`bytes must be a positive number, not ${options.bytes}`);
  }
  let produced = 0;
  for (let index = 0; produced < options.bytes; index++) {
    const text = story(options.seed, index);
    produced += text.length; // ASCII: one byte a character
    yield text;
  }
}

function requireUint32(name: string, value: number): void {
  if (!Number.isInteger(value) || value < 0 || value >= 2 ** 32) {
    throw new RangeError(`${name} must be an integer from 0 to 4294967295, not ${value}`);
  }
}
