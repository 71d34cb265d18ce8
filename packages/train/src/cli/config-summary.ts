/**
 * The resolved config as a command prints it before it starts: every setting in a block of a few lines, what the user
 * set himself with its origin, and each automatic choice with its reason.
 */

import { type ResolvedConfig, type TrainConfig, trainConfigSchema } from "../config.ts";
import { fieldsOf, flagOf, flatten, type Origin } from "../schema.ts";
import { formatTable } from "../terminal/format.ts";
import { plainStyle, type Style, wrap } from "../terminal/style.ts";

/**
 * A block of lines of at most `width` columns where words allow it, without a final newline. Settings that mean nothing
 * beside the others are left out unless the user gave them.
 */
export function formatConfig(resolved: ResolvedConfig, width = 100, style: Style = plainStyle): string {
  const { config, choices, origins, preset } = resolved;
  const values = flatten(config);
  for (const { path, value } of choices) values.set(path, value);
  const isOwn = (path: string) => ["flag", "file"].includes(origins.get(path)?.kind ?? "default");
  for (const path of idleSettings(config)) if (!isOwn(path)) values.delete(path);
  const groups = new Map<string, string[]>();
  for (const { path, group } of fieldsOf(trainConfigSchema)) {
    if (!values.has(path)) continue;
    // Within a group the prefix says nothing new; the no-break space keeps a name with its value when lines wrap.
    const name = path.slice(path.lastIndexOf(".") + 1);
    const entries = groups.get(group) ?? [];
    entries.push(`${name}\u00a0${showPlain(values.get(path)).replaceAll(" ", "\u00a0")}`);
    groups.set(group, entries);
  }
  const column = Math.max(...[...groups.keys()].map((group) => group.length)) + 4;
  const lines = [`${style.bold("config")}  preset ${preset}`];
  for (const [group, entries] of groups) {
    // Two no-break spaces after each entry: wide enough to see, and no place to break but before the next one.
    wrap(entries.join("\u00a0 "), Math.max(20, width - column)).forEach((text, i) => {
      const left = `  ${i === 0 ? group : ""}`.padEnd(column);
      lines.push(style.dim(left) + text.replaceAll("\u00a0", " ").trimEnd());
    });
  }
  const own = [...origins].filter(([path, { kind }]) => values.has(path) && kind !== "default" && kind !== "preset");
  const section = (title: string, rows: string[][]) => {
    if (rows.length === 0) return;
    lines.push(
      style.bold(title),
      ...formatTable(rows)
        .split("\n")
        .map((line) => `  ${line}`),
    );
  };
  section(
    "set by you",
    own.map(([path, origin]) => [path, showPlain(values.get(path)), showOrigin(path, origin)]),
  );
  section(
    "chosen automatically",
    choices.filter(({ path }) => values.has(path)).map(({ path, value, reason }) => [path, String(value), reason]),
  );
  return lines.join("\n");
}

/** Paths of settings that mean nothing beside the others. */
function idleSettings({ schedule, optimizer, model }: TrainConfig): string[] {
  const idle = [];
  if (schedule !== "wsd") idle.push("decaySteps");
  if (schedule === "constant") idle.push("minLr");
  if (optimizer !== "muon") idle.push("muonMomentum");
  if (model.position === "none") idle.push("model.ropeTheta", "model.ropeScaling");
  if (model.ropeScaling === "none") idle.push("model.ropeFactor");
  if (model.ropeScaling !== "llama3") {
    idle.push("model.ropeLowFreqFactor", "model.ropeHighFreqFactor", "model.ropeOriginalContext");
  }
  return idle;
}

function showPlain(value: unknown): string {
  if (Array.isArray(value)) return value.length === 0 ? "none" : value.join(",");
  return value === "" ? '""' : String(value);
}

function showOrigin(path: string, origin: Origin): string {
  return origin.kind === "file" ? `from ${origin.name}` : `by ${flagOf(path)}`;
}
