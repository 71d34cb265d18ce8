/**
 * A command's flags and help, both made from the zod schema that validates its options.
 *
 * Convention: every field of the schema is a flag, a nested one under its dotted path (`--model.numLayers 6`). A name
 * may be written as in the config file or in kebab case (`--maxTokens`, `--max-tokens`), a value after a space or `=`.
 * Booleans are `--flag` and `--no-flag`; lists of numbers take commas (`--betas 0.9,0.95`), lists of texts the flag
 * repeated (`--flag=` alone is the empty list). A flag given twice counts the second time. `--` ends the flags.
 *
 * ```ts
 * const command: Command = {
 *   usage: "bun run generate",
 *   summary: "Samples text from a trained run",
 *   options: z.strictObject({ topP: z.number().gt(0).max(1).default(1).meta({ description: "…" }) }),
 *   examples: ['bun run generate --run runs/tiny --prompt "Once"'],
 * };
 * runCommand((argv) => {
 *   const { options, positionals } = parseOptions(command, argv);
 * });
 * ```
 */

import { existsSync } from "node:fs";
import type { z } from "zod";
import { HelpRequest, UserError } from "../errors.ts";
import { type Field, fieldsOf, flagOf, flatten, isRecord, kebab, unflatten, unknownName, validate } from "../schema.ts";
import { padEnd, type Style, styleFor, type TerminalStream, widthOf, wrap } from "../terminal/style.ts";

export interface Positional {
  name: string;
  description: string;
  /** May be left out. */
  optional?: boolean;
  /** Takes all that follow (only the last one can). */
  variadic?: boolean;
}

export interface Command<Schema extends z.ZodObject = z.ZodObject> {
  /** How the command is called, as the usage line shows it: `bun run generate`. */
  usage: string;
  /** One line about what the command does. */
  summary: string;
  /** A `z.strictObject`. */
  options: Schema;
  positionals?: Positional[];
  /** Whole command lines. */
  examples?: string[];
  /** Values (nested as in the schema) that help shows as defaults where they differ from the schema's. */
  defaults?: Record<string, unknown>;
}

export interface ParsedFlags {
  /** The flags that were given, nested as in the schema, not validated yet. */
  given: Record<string, unknown>;
  positionals: string[];
}

/**
 * Reads a command line without validating the values: for commands that merge flags with other sources first.
 *
 * @throws HelpRequest on `--help` or `-h`; UserError on an unknown flag, a missing value or a wrong positional.
 */
export function parseFlags(command: Command, argv: string[]): ParsedFlags {
  const fields = fieldsOf(command.options);
  const leaves = new Map<string, unknown>();
  const positionals: string[] = [];
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i];
    if (word === "--") {
      positionals.push(...argv.slice(i + 1));
      break;
    }
    if (word === "--help" || word === "-h") throw new HelpRequest(helpText(command));
    if (!word.startsWith("-") || word === "-" || isNumber(word)) {
      positionals.push(word);
      continue;
    }
    const equals = word.indexOf("=");
    const name = equals < 0 ? word : word.slice(0, equals);
    const { field, negated } = findField(name, fields);
    let text = equals < 0 ? undefined : word.slice(equals + 1);
    if (field.kind === "boolean") {
      if (negated && text !== undefined) throw new UserError(`${name} takes no value`, { fix: `pass ${name} alone` });
      leaves.set(field.path, negated ? false : readBoolean(text));
      continue;
    }
    if (text === undefined) {
      text = argv[i + 1];
      if (text === undefined || text.startsWith("--")) {
        throw new UserError(`${name} needs a value`, {
          fix: `write ${name} ${field.placeholder}${text === undefined ? "" : `, or ${name}=VALUE if the value begins with --`}`,
        });
      }
      i++;
    }
    leaves.set(field.path, readValue(field, text, leaves.get(field.path)));
  }
  checkPositionals(command, positionals);
  return { given: unflatten(leaves), positionals };
}

/**
 * Reads and validates a command line; fields that were not given have the schema's defaults.
 *
 * @throws as `parseFlags`, and UserError on a value the schema refuses.
 */
export function parseOptions<Schema extends z.ZodObject>(
  command: Command<Schema>,
  argv: string[],
): { options: z.output<Schema>; positionals: string[] } {
  const { given, positionals } = parseFlags(command, argv);
  return { options: validate(command.options, given), positionals };
}

function findField(name: string, fields: Field[]): { field: Field; negated: boolean } {
  const path = camel(name.replace(/^--?/, ""));
  const isLong = name.startsWith("--");
  const field = isLong ? fields.find((candidate) => candidate.path === path) : undefined;
  if (field !== undefined) return { field, negated: false };
  const positive = isLong && name.startsWith("--no-") ? camel(name.slice("--no-".length)) : undefined;
  const denied = fields.find((candidate) => candidate.path === positive && candidate.kind === "boolean");
  if (denied !== undefined) return { field: denied, negated: true };
  if (existsSync(name)) {
    throw new UserError(`unknown flag ${name}`, { fix: `if you mean the file of that name, write ./${name}` });
  }
  throw unknownName(name, path, fields, ["help"]);
}

/** `top-p` → `topP`; a name in camel case stays as it is. */
function camel(name: string): string {
  return name.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}

const numberPattern = /^[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

function isNumber(text: string): boolean {
  return numberPattern.test(text);
}

/** A text that is no number is returned as it is, for the schema to accept ("auto") or to refuse with its reasons. */
function readNumber(text: string): number | string {
  return isNumber(text) ? Number(text.replaceAll("_", "")) : text;
}

function readBoolean(text: string | undefined): boolean | string {
  return text === undefined || text === "true" ? true : text === "false" ? false : text;
}

function readValue(field: Field, text: string, before: unknown): unknown {
  if (field.kind === "number") return readNumber(text);
  if (field.kind === "numbers") return text === "" ? [] : text.split(",").map((part) => readNumber(part.trim()));
  if (field.kind === "texts") return text === "" ? [] : [...(Array.isArray(before) ? before : []), text];
  return text;
}

function checkPositionals(command: Command, given: string[]): void {
  const declared = command.positionals ?? [];
  const missing = declared.find((positional, i) => i >= given.length && positional.optional !== true);
  if (missing !== undefined) {
    throw new UserError(`${missing.name} is missing: ${missing.description}`, { fix: `usage: ${usageLine(command)}` });
  }
  const last = declared[declared.length - 1];
  if (given.length > declared.length && last?.variadic !== true) {
    throw new UserError(`unexpected argument ${JSON.stringify(given[declared.length])}`, {
      fix: `usage: ${usageLine(command)}; options begin with --, and texts with spaces need quotes`,
    });
  }
}

function usageLine(command: Command): string {
  const words = (command.positionals ?? []).map(({ name, optional, variadic }) => {
    const word = variadic ? `${name}…` : name;
    return optional ? `[${word}]` : word;
  });
  return [command.usage, ...words, "[options]"].join(" ");
}

/** The text of `--help`: usage, summary, positionals, the flags in groups with types and defaults, examples. */
export function helpText(command: Command, stream: TerminalStream = process.stdout): string {
  const style = styleFor(stream);
  const width = Math.min(widthOf(stream, 100), 110);
  const defaults = flatten(command.defaults ?? {});
  const groups = new Map<string, [string, string][]>();
  for (const field of fieldsOf(command.options)) {
    const rows = groups.get(field.group) ?? [];
    const negatable = field.kind === "boolean" && (defaults.get(field.path) ?? field.default) === true;
    const flag = negatable ? `--no-${flagOf(field.path).slice(2)}` : flagOf(field.path);
    const shown = showDefault(field, defaults.has(field.path) ? defaults.get(field.path) : field.default);
    // A no-break space keeps the words of the default together when the line wraps.
    const note = shown === "" ? "" : ` (${shown.replaceAll(" ", "\u00a0")})`;
    rows.push([`${flag} ${field.placeholder}`.trimEnd(), field.description + note]);
    groups.set(field.group, rows);
  }
  const positionals = (command.positionals ?? []).map(({ name, description }): [string, string] => [name, description]);
  if (positionals.length > 0) groups.set("Arguments", positionals);
  const last: [string, string] = ["--help", "show this help"];
  const order = [...groups.keys()].sort((a, b) => Number(b === "Arguments") - Number(a === "Arguments"));
  groups.get(order[order.length - 1])?.push(last);

  const longest = Math.max(...[...groups.values()].flat().map(([flag]) => flag.length));
  const column = Math.min(longest, 32, Math.floor(width / 2)) + 4;
  const lines = [`${style.bold("usage")}  ${usageLine(command)}`, "", ...wrap(command.summary, width)];
  for (const name of order) {
    lines.push("", style.bold(name), ...table(groups.get(name) ?? [], column, width, style));
  }
  if ((command.examples ?? []).length > 0) {
    lines.push("", style.bold("Examples"), ...(command.examples ?? []).map((example) => `  ${example}`));
  }
  const dashed = fieldsOf(command.options).find(({ path }) => kebab(path) !== path);
  if (dashed !== undefined) {
    const spellings = `--${kebab(dashed.path)} and --${dashed.path}`;
    lines.push("", ...wrap(`Names may be written either way: ${spellings} are the same.`, width).map(style.dim));
  }
  return `${lines.join("\n").replaceAll("\u00a0", " ")}\n`;
}

function showDefault(field: Field, value: unknown): string {
  if (value === undefined) return field.required ? "required" : "";
  if (value === false || isRecord(value)) return "";
  // The description says what "auto" comes to.
  if (value === "auto" && field.description.includes("auto: ")) return "";
  if (value === true) return "on by default";
  if (Array.isArray(value))
    return value.length === 0 ? "" : `default ${value.join(field.kind === "numbers" ? "," : " ")}`;
  return value === "" ? "" : `default ${String(value)}`;
}

function table(rows: [string, string][], column: number, width: number, style: Style): string[] {
  const lines: string[] = [];
  for (const [flag, description] of rows) {
    const [first, ...rest] = wrap(description, Math.max(20, width - column));
    const left = `  ${flag}`;
    if (left.length + 2 > column) lines.push(style.color("cyan", left), `${" ".repeat(column)}${first}`);
    else lines.push(`${style.color("cyan", padEnd(left, column))}${first}`);
    lines.push(...rest.map((line) => " ".repeat(column) + line));
  }
  return lines;
}
