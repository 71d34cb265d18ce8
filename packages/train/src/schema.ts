/**
 * What a zod schema says about its fields: name, type, bounds, default and description, and how to complain about a
 * value. Flags, help and config files are all read through this module, so they cannot disagree.
 *
 * Convention: a field is addressed by its dotted path in the config (`model.numLayers`). Fields carry `.meta({
 * description, group?, placeholder?, expects? })`; the schema is read through `z.toJSONSchema`, not zod's internals.
 */

import { z } from "zod";
import { UserError } from "./errors.ts";

/** The part of JSON Schema that our schemas use. */
interface JsonSchema {
  type?: "string" | "number" | "integer" | "boolean" | "array" | "object";
  const?: unknown;
  enum?: unknown[];
  anyOf?: JsonSchema[];
  properties?: Record<string, JsonSchema>;
  required?: string[];
  items?: JsonSchema | false;
  prefixItems?: JsonSchema[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  default?: unknown;
  description?: string;
  group?: string;
  placeholder?: string;
  expects?: string;
}

export interface Field {
  /** Dotted path in the config, for example `model.numLayers`. */
  path: string;
  /** Which section of `--help` it belongs to. */
  group: string;
  description: string;
  kind: "boolean" | "number" | "text" | "numbers" | "texts";
  required: boolean;
  default: unknown;
  /** How the value is written in `--help`: `N`, `FILE`, `pre|post|none`. Empty for a boolean. */
  placeholder: string;
  /** What a value must be, as it reads after "must be": `a whole number of at least 1`. */
  expects: string;
}

/** Where a value came from; errors and the printed config name it. */
export type Origin =
  { kind: "default" } | { kind: "preset"; name: string } | { kind: "file"; name: string } | { kind: "flag" };

const fieldCache = new WeakMap<z.ZodObject, Field[]>();

/** All leaf fields of a schema in the order of declaration; nested objects are flattened to dotted paths. */
export function fieldsOf(schema: z.ZodObject): Field[] {
  let fields = fieldCache.get(schema);
  if (fields === undefined) {
    fields = [];
    collect(z.toJSONSchema(schema, { io: "input" }) as JsonSchema, "", "Options", fields);
    fieldCache.set(schema, fields);
  }
  return fields;
}

function collect(object: JsonSchema, prefix: string, group: string, into: Field[]): void {
  for (const [key, json] of Object.entries(object.properties ?? {})) {
    const path = prefix + key;
    if (json.properties !== undefined) {
      collect(json, `${path}.`, json.group ?? group, into);
      continue;
    }
    into.push({
      path,
      group: json.group ?? group,
      description: json.description ?? "",
      kind: kindOf(json),
      required: (object.required ?? []).includes(key),
      default: json.default,
      placeholder: placeholderOf(json),
      expects: expectsOf(json),
    });
  }
}

function kindOf(json: JsonSchema): Field["kind"] {
  if (json.anyOf !== undefined) return json.anyOf.some((option) => kindOf(option) === "number") ? "number" : "text";
  if (json.type === "array") return itemsOf(json).every((item) => kindOf(item) === "number") ? "numbers" : "texts";
  if (json.type === "boolean") return "boolean";
  return json.type === "number" || json.type === "integer" ? "number" : "text";
}

function itemsOf(json: JsonSchema): JsonSchema[] {
  return json.prefixItems ?? (json.items ? [json.items] : []);
}

function placeholderOf(json: JsonSchema): string {
  if (json.placeholder !== undefined) return json.placeholder;
  if (json.anyOf !== undefined) return json.anyOf.map(placeholderOf).join("|");
  if (json.const !== undefined) return String(json.const);
  if (json.enum !== undefined) return json.enum.join("|");
  if (json.prefixItems !== undefined) return json.prefixItems.map(placeholderOf).join(",");
  if (json.type === "array") return `${itemsOf(json).map(placeholderOf).join()}…`;
  if (json.type === "boolean") return "";
  return json.type === "integer" ? "N" : json.type === "number" ? "X" : "TEXT";
}

function expectsOf(json: JsonSchema): string {
  if (json.expects !== undefined) return json.expects;
  if (json.anyOf !== undefined) return json.anyOf.map(expectsOf).join(" or ");
  if (json.const !== undefined) return String(json.const);
  if (json.enum !== undefined) return joinOr(json.enum.map(String));
  if (json.prefixItems !== undefined) {
    const first = json.prefixItems[0];
    return `${json.prefixItems.length} values, each ${first === undefined ? "" : expectsOf(first)}`;
  }
  if (json.type === "array") return `a list, each item ${itemsOf(json).map(expectsOf).join()}`;
  if (json.type === "boolean") return "true or false";
  if (json.type === "integer" || json.type === "number") return numberExpects(json);
  return "a text";
}

function numberExpects(json: JsonSchema): string {
  const noun = json.type === "integer" ? "a whole number" : "a number";
  // zod adds the bounds of safe integers; they say nothing to a reader.
  const lower = json.minimum !== undefined && json.minimum > Number.MIN_SAFE_INTEGER ? json.minimum : undefined;
  const upper = json.maximum !== undefined && json.maximum < Number.MAX_SAFE_INTEGER ? json.maximum : undefined;
  const bounds: string[] = [];
  if (lower !== undefined) bounds.push(`of at least ${lower}`);
  if (json.exclusiveMinimum !== undefined) bounds.push(`above ${json.exclusiveMinimum}`);
  if (upper !== undefined) bounds.push(`at most ${upper}`);
  if (json.exclusiveMaximum !== undefined) bounds.push(`below ${json.exclusiveMaximum}`);
  return bounds.length === 0 ? noun : `${noun} ${bounds.join(" and ")}`;
}

/** `["a", "b", "c"]` → `a, b or c`. */
export function joinOr(names: string[]): string {
  return names.length < 2 ? names.join() : `${names.slice(0, -1).join(", ")} or ${names[names.length - 1]}`;
}

/** `topP` → `top-p`; the parts of a dotted path are treated alike. */
export function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/**
 * The flag of a field, as help and errors write it: a plain name in kebab case (`--top-p`), a dotted one as it stands in
 * the config file (`--model.numLayers`). The parser takes both spellings of either.
 */
export function flagOf(path: string): string {
  return `--${path.includes(".") ? path : kebab(path)}`;
}

/** A value as an error or a table shows it: texts quoted, lists with commas. */
export function showValue(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") return String(value);
  return JSON.stringify(value) ?? String(value);
}

/** A field where it was set: `--lr`, `"lr" in run.json`, `lr (preset tiny)`. */
export function placeOf(path: string, origin: Origin): string {
  if (origin.kind === "flag") return flagOf(path);
  if (origin.kind === "file") return `"${path}" in ${origin.name}`;
  return origin.kind === "preset" ? `${path} (preset ${origin.name})` : `${path} (default)`;
}

/**
 * Parses `raw` with a strict schema.
 *
 * @throws UserError naming the first bad value, where it was set (`originOf`), what it must be and an example.
 */
export function validate<Schema extends z.ZodObject>(
  schema: Schema,
  raw: unknown,
  originOf: (path: string) => Origin = () => ({ kind: "flag" }),
): z.output<Schema> {
  const result = schema.safeParse(raw);
  if (result.success) return result.data;
  const issue = result.error.issues[0];
  if (issue === undefined) throw new Error("zod refused a value without an issue");
  const fields = fieldsOf(schema);
  const keys = issue.path.map(String);
  if (issue.code === "unrecognized_keys") {
    const path = [...keys, issue.keys[0]].join(".");
    throw unknownName(placeOf(path, originOf(path)), path, fields);
  }
  // An issue inside a list ("betas.0") is the list's; one above a field ("model": 3) is that object's.
  const field = fields.find(({ path }) => `${keys.join(".")}.`.startsWith(`${path}.`));
  const path = field?.path ?? keys.join(".");
  const origin = originOf(path);
  const value = path.split(".").reduce<unknown>((at, key) => (isRecord(at) ? at[key] : undefined), raw);
  const expects = field?.expects ?? "an object";
  if (value === undefined) {
    throw new UserError(`${placeOf(path, origin)} is required`, {
      fix: `pass ${flagOf(path)} ${field?.placeholder ?? ""}: ${field?.description ?? ""}`,
    });
  }
  const example = field?.default === undefined ? undefined : settingOf(path, field.default, origin);
  throw new UserError(`${placeOf(path, origin)} is ${showValue(value)}; it must be ${expects}`, {
    fix: example === undefined ? `pass ${expects}` : `for example ${example}`,
  });
}

/** How to set a field at the place it came from: `--lr 0.001`, or `"lr": 0.001` in a file. */
export function settingOf(path: string, value: unknown, origin: Origin): string {
  if (origin.kind === "file") return `"${path}": ${JSON.stringify(value)}`;
  const text = Array.isArray(value) ? value.join(",") : String(value);
  return typeof value === "boolean"
    ? value
      ? flagOf(path)
      : `--no-${flagOf(path).slice(2)}`
    : `${flagOf(path)} ${text}`;
}

/** Throws when `object` has a key that the schema does not know, naming it and the nearest known one. */
export function checkKeys(schema: z.ZodObject, object: Record<string, unknown>, origin: Origin): void {
  const fields = fieldsOf(schema);
  for (const [path, value] of flatten(object)) {
    if (fields.some((field) => field.path === path)) continue;
    if (!fields.some((field) => field.path.startsWith(`${path}.`))) {
      throw unknownName(placeOf(path, origin), path, fields);
    }
    if (!isRecord(value)) {
      throw new UserError(`${placeOf(path, origin)} is ${showValue(value)}; it must be an object`, {
        fix: "give its settings by name, as a run's config.json does",
      });
    }
  }
}

/** The error for an unknown flag or key; `shown` is how it was written. */
export function unknownName(shown: string, path: string, fields: Field[], extra: string[] = []): UserError {
  const asFlag = shown.startsWith("-");
  const candidates = [...fields.map((field) => field.path), ...extra];
  const named = nearest(path, candidates);
  const near = (named.length > 0 ? named : describedBy(path, fields)).map((name) =>
    asFlag ? flagOf(name) : `"${name}"`,
  );
  const what = asFlag ? `unknown flag ${shown}` : `unknown key ${shown}`;
  return new UserError(what, {
    fix: near.length > 0 ? `did you mean ${joinOr(near)}?` : "run with --help for the list of all options",
  });
}

/**
 * The candidates nearest to a misspelt name, best first, at most two; none when nothing is close. Case and dashes do
 * not count, a beginning or an end counts as a small slip, and a nested field is also found by its last name, so `--num-layers`
 * finds `model.numLayers`.
 */
export function nearest(name: string, candidates: string[]): string[] {
  const plain = (text: string) => text.toLowerCase().replace(/[-_]/g, "");
  const wanted = plain(name);
  const scored = candidates
    .map((candidate) => {
      const full = plain(candidate);
      const last = full.slice(full.lastIndexOf(".") + 1);
      const wantedLast = wanted.slice(wanted.lastIndexOf(".") + 1);
      // The right name under the wrong object, or under none, is a smaller slip than another name.
      let distance = Math.min(editDistance(wanted, full), editDistance(wantedLast, last) + 0.5);
      if (wanted.length >= 3 && (full.startsWith(wanted) || last.startsWith(wanted))) distance = Math.min(distance, 1);
      if (wanted.length >= 5 && last.endsWith(wanted)) distance = Math.min(distance, 1.25);
      return { candidate, distance };
    })
    .sort((a, b) => a.distance - b.distance);
  const best = scored[0];
  if (best === undefined || best.distance > Math.ceil(wanted.length / 3)) return [];
  return scored
    .filter(({ distance }) => distance === best.distance)
    .slice(0, 2)
    .map(({ candidate }) => candidate);
}

/** The fields whose descriptions have a name of several words, at most two: `--learning-rate` finds `lr`. */
function describedBy(name: string, fields: Field[]): string[] {
  const words = kebab(name).split(/[-_.]/);
  if (words.length < 2) return [];
  const found = fields.filter(({ description }) => description.toLowerCase().includes(words.join(" ")));
  return found.slice(0, 2).map(({ path }) => path);
}

/** Edit distance with transpositions of neighbours (optimal string alignment). */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = last[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(substitution, last[j] + 1, row[j - 1] + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j], beforeLast[j - 2] + 1);
      }
    }
    beforeLast = last;
    last = row;
  }
  return last[b.length];
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** `{ model: { dModel: 8 } }` → `model.dModel` → 8. Lists and empty objects are values; undefined is left out. */
export function flatten(object: Record<string, unknown>, prefix = ""): Map<string, unknown> {
  const leaves = new Map<string, unknown>();
  for (const [key, value] of Object.entries(object)) {
    if (isRecord(value) && Object.keys(value).length > 0) {
      for (const [path, leaf] of flatten(value, `${prefix}${key}.`)) leaves.set(path, leaf);
    } else if (value !== undefined) {
      leaves.set(prefix + key, value);
    }
  }
  return leaves;
}

/** The inverse of `flatten`. */
export function unflatten(leaves: Iterable<[string, unknown]>): Record<string, unknown> {
  const root: Record<string, unknown> = {};
  for (const [path, value] of leaves) {
    const keys = path.split(".");
    let object = root;
    for (const key of keys.slice(0, -1)) {
      if (!isRecord(object[key])) object[key] = {};
      object = object[key] as Record<string, unknown>;
    }
    object[keys[keys.length - 1]] = value;
  }
  return root;
}
