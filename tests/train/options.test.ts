/** Flags made from a schema: spellings, values, refusals and help; and how a command ends. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { z } from "zod";
import { type Command, helpText, parseFlags, parseOptions } from "../../packages/train/src/cli/options.ts";
import { trainConfigSchema } from "../../packages/train/src/config.ts";
import { HelpRequest } from "../../packages/train/src/errors.ts";
import { editDistance, fieldsOf, kebab, nearest, unflatten } from "../../packages/train/src/schema.ts";
import { refusal } from "./support/refusal.ts";

const sampler = {
  usage: "bun run sample",
  summary: "Samples text",
  options: z.strictObject({
    run: z.string().meta({ description: "directory of a run", placeholder: "DIR" }),
    prompt: z.string().default("").meta({ description: "what the text begins with" }),
    topP: z.number().gt(0).max(1).default(0.95).meta({ description: "share of the likeliest tokens" }),
    maxTokens: z.int().min(1).default(256).meta({ description: "tokens at most" }),
    shift: z.number().default(0).meta({ description: "added to the logits" }),
    stream: z.boolean().default(true).meta({ description: "print as it comes" }),
    verbose: z.boolean().default(false).meta({ description: "say more" }),
    stop: z.array(z.string()).default([]).meta({ description: "texts that end a sample" }),
    range: z.tuple([z.number(), z.number()]).default([0, 1]).meta({ description: "two ends" }),
    cache: z
      .strictObject({
        maxSize: z
          .union([z.int().min(1), z.literal("auto")])
          .default("auto")
          .meta({ description: "rows" }),
      })
      .prefault({})
      .meta({ group: "Cache" }),
  }),
  positionals: [
    { name: "INPUT", description: "first file" },
    { name: "MORE", description: "other files", optional: true, variadic: true },
  ],
  examples: ["bun run sample a.txt --run runs/x"],
} satisfies Command;

const run = (...argv: string[]) => parseOptions(sampler, ["in.txt", "--run", "r", ...argv]).options;

describe("values", () => {
  test("defaults fill what is not given", () => {
    expect(run()).toEqual({
      run: "r",
      prompt: "",
      topP: 0.95,
      maxTokens: 256,
      shift: 0,
      stream: true,
      verbose: false,
      stop: [],
      range: [0, 1],
      cache: { maxSize: "auto" },
    });
  });

  test("names in kebab and camel case, values after a space or =", () => {
    for (const argv of [["--top-p", "0.5"], ["--topP", "0.5"], ["--top-p=0.5"], ["--topP=0.5"], ["--top-p", "5e-1"]]) {
      expect(run(...argv).topP).toBe(0.5);
    }
    expect(run("--cache.maxSize", "7").cache.maxSize).toBe(7);
    expect(run("--cache.max-size=7").cache.maxSize).toBe(7);
    expect(run("--cache.maxSize", "auto").cache.maxSize).toBe("auto");
  });

  test("numbers: exponents, signs and digit groups", () => {
    const shifts = { "-1.5": -1.5, "1e-3": 1e-3, "-2E+2": -200, ".5": 0.5, "+3": 3, "10_000": 10000, "-.5": -0.5 };
    for (const [text, value] of Object.entries(shifts)) expect(run("--shift", text).shift).toBe(value);
  });

  test.each(["", "1x", "0x10", "1e", "--", "NaN", "Infinity", "1,2", " "])("%p is no number", (text) => {
    expect(refusal(() => run(`--shift=${text}`)).message).toContain("--shift");
  });

  test("booleans", () => {
    expect(run("--no-stream", "--verbose")).toMatchObject({ stream: false, verbose: true });
    expect(run("--stream=false", "--verbose=true")).toMatchObject({ stream: false, verbose: true });
    expect(refusal(() => run("--verbose=perhaps")).message).toContain("true or false");
    expect(refusal(() => run("--no-verbose=true")).message).toContain("--no-verbose");
    // A boolean takes no word: the next one is an argument of the command.
    expect(parseFlags(sampler, ["a", "--verbose", "b"]).positionals).toEqual(["a", "b"]);
  });

  test("lists", () => {
    expect(run("--range", "-1,2.5").range).toEqual([-1, 2.5]);
    expect(run("--stop", "a,b", "--stop", "<|c|>").stop).toEqual(["a,b", "<|c|>"]);
    expect(run("--stop", "a", "--stop=").stop).toEqual([]);
  });

  test("texts stay texts, whatever they look like", () => {
    expect(run("--prompt", "42").prompt).toBe("42");
    expect(run("--prompt", "-x").prompt).toBe("-x");
    expect(run("--prompt=--verbose").prompt).toBe("--verbose");
    expect(run("--prompt", "a=b").prompt).toBe("a=b");
    expect(run("--prompt=a=b").prompt).toBe("a=b");
    expect(run("--prompt", "").prompt).toBe("");
  });

  test("the last of two counts", () => {
    expect(run("--top-p", "0.1", "--topP", "0.2").topP).toBe(0.2);
  });

  test("positionals, also after --", () => {
    expect(parseFlags(sampler, ["a", "-3", "-", "--verbose", "--", "--run"]).positionals).toEqual([
      "a",
      "-3",
      "-",
      "--run",
    ]);
  });

  test("every field of the training config is a flag that gives its value back", () => {
    const command: Command = { usage: "t", summary: "t", options: trainConfigSchema };
    const text = fc.string({ minLength: 1 }).filter((value) => !value.startsWith("--"));
    const number = fc
      .double({ noNaN: true, noDefaultInfinity: true })
      .map((value) => (Object.is(value, -0) ? 0 : value));
    const valueOf = {
      text,
      number,
      boolean: fc.boolean(),
      numbers: fc.array(number, { minLength: 1 }),
      texts: fc.array(text, { minLength: 1 }),
    };
    for (const { path, kind } of fieldsOf(trainConfigSchema)) {
      fc.assert(
        fc.property(valueOf[kind] as fc.Arbitrary<unknown>, fc.boolean(), fc.boolean(), (value, dashed, joined) => {
          const name = dashed ? kebab(path) : path;
          const word = (each: unknown) => (joined ? [`--${name}=${each}`] : [`--${name}`, String(each)]);
          const argv =
            kind === "boolean"
              ? [value === true ? `--${name}` : `--no-${name}`]
              : kind === "texts"
                ? (value as string[]).flatMap(word)
                : word(kind === "numbers" ? (value as number[]).join(",") : value);
          expect(parseFlags(command, argv).given).toEqual(unflatten([[path, value]]));
        }),
        { numRuns: 20 },
      );
    }
  });
});

describe("refusals", () => {
  const cases: [argv: string[], message: string, fix: string][] = [
    [["--topp", "1"], "--topp", "--top-p"],
    [["--temprature", "1"], "--temprature", "--help"],
    [["--tokens", "1"], "--tokens", ""],
    [["--max-size", "1"], "--max-size", "--cache.maxSize"],
    [["--max-tokens=0"], "--max-tokens is 0; it must be a whole number of at least 1", "--max-tokens 256"],
    [["--top-p", "2"], "--top-p is 2; it must be a number above 0 and at most 1", "--top-p 0.95"],
    [["--cache.maxSize", "big"], '--cache.maxSize is "big"; it must be a whole number of at least 1 or auto', "auto"],
    [["--max-tokens"], "--max-tokens needs a value", "--max-tokens N"],
    [["--prompt", "--verbose"], "--prompt needs a value", "--prompt=VALUE"],
    [["--range", "1"], "--range", "0,1"],
    [["--no-prompt"], "--no-prompt", ""],
    [["-p", "x"], "-p", "--help"],
    [["--__proto__", "1"], "--__proto__", ""],
  ];

  test.each(cases)("%p", (argv, message, fix) => {
    const error = refusal(() => run(...argv));
    expect(error.message).toContain(message);
    expect(error.fix).toContain(fix);
    expect(error.exitCode).toBe(2);
  });

  test("what is missing or too much is named", () => {
    const missing = refusal(() => parseOptions(sampler, ["in.txt"]));
    expect(missing.message).toContain("--run is required");
    expect(missing.fix).toContain("directory of a run");
    expect(refusal(() => parseFlags(sampler, [])).message).toContain("INPUT");
    const described = { ...sampler, options: trainConfigSchema };
    expect(refusal(() => parseFlags(described, ["--learning-rate", "3"])).fix).toBe("did you mean --lr or --min-lr?");
    const { positionals: _, ...flagsOnly } = sampler;
    const extra = refusal(() => parseFlags(flagsOnly, ["--verbose", "stray"]));
    expect(extra.message).toContain('"stray"');
    expect(extra.fix).toContain("bun run sample [options]");
  });
});

describe("nearest", () => {
  test("slips of one or two letters, missing prefixes and beginnings; nothing far-fetched", () => {
    const heads = ["model.numHeads", "model.numKeyValueHeads"];
    const names = [
      "steps",
      "seed",
      "model.numLayers",
      "model.vocabSize",
      "tokenizer.vocabSize",
      "temperature",
      ...heads,
    ];
    expect(nearest("stpes", names)).toEqual(["steps"]);
    expect(nearest("num-layers", names)).toEqual(["model.numLayers"]);
    expect(nearest("model.layers", names)).toEqual(["model.numLayers"]);
    expect(nearest("vocab_size", names).sort()).toEqual(["model.vocabSize", "tokenizer.vocabSize"]);
    expect(nearest("temp", names)).toEqual(["temperature"]);
    expect(nearest("layers", names)).toEqual(["model.numLayers"]);
    expect(nearest("heads", names)).toEqual(heads);
    expect(nearest("frobnicate", names)).toEqual([]);
    expect(nearest("x", [])).toEqual([]);
  });

  test("edit distance is a metric, and a swap of neighbours costs one", () => {
    expect(editDistance("lr", "rl")).toBe(1);
    const word = fc.string({ maxLength: 8 });
    fc.assert(
      fc.property(word, word, (a, b) => {
        const distance = editDistance(a, b);
        expect(distance).toBe(editDistance(b, a));
        expect(distance === 0).toBe(a === b);
        expect(distance).toBeGreaterThanOrEqual(Math.abs(a.length - b.length));
        expect(distance).toBeLessThanOrEqual(Math.max(a.length, b.length));
      }),
    );
  });
});

describe("help", () => {
  const pipe = { write: () => true };

  test("says usage, every flag with type, default and description, arguments and examples", () => {
    const text = helpText(sampler, pipe);
    expect(text).toContain("bun run sample INPUT [MORE…] [options]");
    expect(text).toMatch(/--run DIR +directory of a run \(required\)/);
    expect(text).toMatch(/--top-p X +share of the likeliest tokens \(default 0\.95\)/);
    expect(text).toMatch(/--no-stream +print as it comes \(on by default\)/);
    expect(text).toMatch(/--verbose +say more\n/);
    expect(text).toMatch(/Cache\n +--cache\.maxSize N\|auto/);
    expect(text).toContain("bun run sample a.txt --run runs/x");
    expect(text.indexOf("first file")).toBeLessThan(text.indexOf("--run DIR"));
    expect(text).not.toContain("\x1b");
    const trainHelp = helpText({ usage: "t", summary: "t", options: trainConfigSchema }, pipe);
    for (const { path, description } of fieldsOf(trainConfigSchema)) {
      expect(description).not.toBe("");
      expect(trainHelp.replace(/\s+/g, " ")).toContain(description);
      expect(trainHelp).toContain(path.includes(".") ? `--${path}` : `--${kebab(path)}`);
    }
  });

  test("shows the defaults of the command where they differ from the schema's", () => {
    const text = helpText({ ...sampler, defaults: { maxTokens: 99 } }, pipe);
    expect(text).toContain("(default 99)");
    expect(text).not.toContain("(default 256)");
  });

  test("fits the terminal", () => {
    const lines = helpText(
      { usage: "t", summary: "t", options: trainConfigSchema },
      { ...pipe, isTTY: true, columns: 64 },
    );
    for (const line of lines.split("\n")) expect(Bun.stringWidth(line)).toBeLessThanOrEqual(64);
  });

  test("is asked for anywhere, even beside errors of meaning", () => {
    expect(() => parseOptions(sampler, ["--top-p", "7", "--help"])).toThrow(HelpRequest);
    expect(() => parseFlags(sampler, ["-h"])).toThrow(HelpRequest);
    expect(parseFlags(sampler, ["a", "--prompt=--help"]).given).toEqual({ prompt: "--help" });
  });
});

describe("how a command ends", () => {
  const program = join(import.meta.dir, "support", "command.ts");
  const start = (argv: string[], env: Record<string, string> = {}) => {
    const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, program, ...argv], {
      env: { ...process.env, NO_COLOR: "1", ...env },
    });
    return { exitCode, stdout: stdout.toString(), stderr: stderr.toString() };
  };

  test("well: 0 and nothing on standard error", () => {
    expect(start(["ok", "--times", "2"])).toEqual({ exitCode: 0, stdout: "hello\nhello\n", stderr: "" });
    const help = start(["ok", "--help"]);
    expect(help).toMatchObject({ exitCode: 0, stderr: "" });
    expect(help.stdout).toContain("--times N");
    expect(start([]).stdout).toContain("Commands");
  });

  test("a wrong command line: 2, error and fix, no stack", () => {
    const unknown = start(["ok", "--tims", "2"]);
    expect(unknown).toEqual({
      exitCode: 2,
      stdout: "",
      stderr: "error: unknown flag --tims\n  fix: did you mean --times?\n",
    });
    expect(start(["okk"])).toMatchObject({ exitCode: 2, stderr: expect.stringContaining('"okk"') });
  });

  test("a failure while working: 1; a defect: 1 with its stack", () => {
    expect(start(["fail"])).toMatchObject({ exitCode: 1, stderr: "error: the disk is full\n" });
    const defect = start(["defect"]);
    expect(defect.exitCode).toBe(1);
    expect(defect.stderr).toContain("command.ts:");
  });

  test("colour only where it is wanted", () => {
    expect(start(["ok", "--tims", "2"], { NO_COLOR: "", FORCE_COLOR: "1" }).stderr).toContain("\x1b[31merror");
    expect(start(["ok", "--tims", "2"], { NO_COLOR: "" }).stderr).not.toContain("\x1b");
  });

  test("a reader that closes the pipe early is no error", () => {
    const script = `{ "$0" "$1" ok --times 200000; echo "ended with $?" >&2; } | head -n 1`;
    const { stdout, stderr } = Bun.spawnSync(["sh", "-c", script, process.execPath, program], { env: process.env });
    expect(stdout.toString()).toBe("hello\n");
    expect(stderr.toString()).toBe("ended with 0\n");
  });

  test.skipIf(!existsSync("/dev/full"))("standard output on a full disk is an error, and an end", () => {
    const plan = join(import.meta.dir, "../../packages/train/src/cli/train.ts");
    for (const argv of [
      [program, "ok", "--times", "200000"],
      [plan, "--plan", "--threads", "1"],
    ]) {
      const command = ["sh", "-c", 'exec "$0" "$@" > /dev/full', process.execPath, ...argv];
      const { exitCode, stderr } = Bun.spawnSync(command, { env: { ...process.env, NO_COLOR: "1" }, timeout: 20_000 });
      expect(stderr.toString()).toMatch(/^error: standard output cannot be written: ENOSPC.*\n {2}fix: .*\n$/);
      expect(exitCode).toBe(1);
    }
  });
});
