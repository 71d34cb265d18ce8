/**
 * What is published: the build stays small, its declarations are there, Node and Deno run it with workers, and the demo
 * page works in a browser. Each is used where it is installed.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import { Tokenizer } from "@mantou/tokenizer";

const root = join(import.meta.dir, "../..");
const directory = mkdtempSync(join(tmpdir(), "mantou-bundle-"));
const dist = join(directory, "dist");

function run(command: string[]): string {
  const env = { ...process.env, LD_PRELOAD: "" }; // a browser does not start with what tests/sanitize.ts preloads
  const { success, stdout, stderr } = Bun.spawnSync(command, { cwd: directory, env });
  if (!success) throw new Error(`${command.join(" ")}: ${stdout.toString()}${stderr.toString()}`);
  return stdout.toString();
}

beforeAll(() => {
  run([process.execPath, join(root, "packages/tokenizer/scripts/build.ts"), "--out", dist]);
}, 60_000);
afterAll(() => rmSync(directory, { recursive: true }));

test("the browser's file has at most 20 kB gzipped, and there are declarations", () => {
  expect(gzipSync(readFileSync(join(dist, "tokenizer.min.js")), { level: 9 }).length).toBeLessThanOrEqual(20_000);
  expect(readFileSync(join(dist, "index.d.ts"), "utf8")).toContain("Tokenizer");
  const { exports } = JSON.parse(readFileSync(join(dist, "package.json"), "utf8")) as {
    exports: Record<string, Record<string, string>>;
  };
  for (const files of Object.values(exports)) {
    for (const file of Object.values(files)) expect(existsSync(join(dist, file))).toBe(true);
  }
});

const node = Bun.which("node");
const isNewEnough = node !== null && Number(/^v(\d+)/.exec(run([node, "--version"]))?.[1]) >= 20;
const deno = Bun.which("deno");
const runtimes: [name: string, command: string[] | undefined][] = [
  ["Node", isNewEnough ? [node!] : undefined],
  ["Deno", deno === null ? undefined : [deno, "run", "--quiet", "--allow-read"]],
];

describe.each(runtimes)("%s", (_name, command) => {
  test.skipIf(command === undefined)(
    "trains, encodes and decodes, with workers too",
    () => {
      const text = `the cat's mat, 말하다 😀\n`.repeat(250_000);
      writeFileSync(join(directory, "text.txt"), text);
      const script = `
    import { Tokenizer } from ${JSON.stringify(pathToFileURL(join(dist, "index.js")).href)};
    import { encodeFile, trainFromFiles } from ${JSON.stringify(pathToFileURL(join(dist, "files.js")).href)};
    const tokenizer = await trainFromFiles("text.txt", { vocabSize: 290, workers: 2, pattern: "o200k" });
    if (!(tokenizer instanceof Tokenizer)) throw new Error("two Tokenizer classes");
    const { tokens } = await encodeFile(tokenizer, "text.txt", () => undefined, { workers: 2 });
    console.log(JSON.stringify({ hash: tokenizer.hash, tokens, text: tokenizer.decode(tokenizer.encode("말 😀")) }));
  `;
      writeFileSync(join(directory, "script.mjs"), script);
      const tokenizer = Tokenizer.train(text, { vocabSize: 290, pattern: "o200k" });
      expect(JSON.parse(run([...command!, join(directory, "script.mjs")]))).toEqual({
        hash: tokenizer.hash,
        tokens: tokenizer.count(text),
        text: "말 😀",
      });
    },
    60_000,
  );
});

const npm = Bun.which("npm");

test.skipIf(!isNewEnough || npm === null)(
  "what npm packs installs into an empty folder, and has types that a strict compiler takes",
  () => {
    const folder = join(directory, "empty");
    mkdirSync(folder);
    const at = (...command: string[]) => run(["sh", "-c", 'cd "$0" && exec "$@"', folder, ...command]);
    writeFileSync(join(folder, "package.json"), '{ "type": "module" }');
    const tarball = at(npm!, "pack", "--silent", dist).trim();
    at(npm!, "install", "--offline", "--no-audit", "--no-fund", `./${tarball}`);
    expect(existsSync(join(folder, "node_modules/@mantou/tokenizer/README.md"))).toBe(true);
    writeFileSync(
      join(folder, "use.ts"),
      `import { Tokenizer, type TokenizerOptions, type TokenOffsets, type TrainOptions } from "@mantou/tokenizer";
      import { trainFromFilesSync } from "@mantou/tokenizer/files";
      import { fromHuggingFace, toHuggingFace } from "@mantou/tokenizer/formats";
      const options: TrainOptions = { vocabSize: 258 };
      const trained: Tokenizer = trainFromFilesSync("package.json", options);
      const same: TokenizerOptions = { vocab: trained.vocab, merges: trained.merges };
      const { ids }: TokenOffsets = fromHuggingFace(toHuggingFace(new Tokenizer(same))).offsets("ab");
      console.log(trained.decode(ids));`,
    );
    const tsc = join(root, "node_modules/.bin/tsc");
    const flags = "--strict --target es2022 --module nodenext --types node --typeRoots";
    at(tsc, ...flags.split(" "), join(root, "node_modules/@types"), "use.ts");
    expect(at(node!, "use.js")).toBe("ab\n");
  },
  60_000,
);

test("the sources are not published by mistake", () => {
  const own = JSON.parse(readFileSync(join(root, "packages/tokenizer/package.json"), "utf8"));
  expect(own).toMatchObject({ private: true });
});

const chromium = ["chromium", "chromium-browser", "google-chrome"].map((name) => Bun.which(name)).find(Boolean);

describe.skipIf(!chromium)("the demo in a browser", () => {
  const text = "abab <b>&amp; 말😀 abab\nabab";

  test("trains in the page and shows every token with its id", () => {
    const page = `${pathToFileURL(join(dist, "demo.html")).href}#text=${encodeURIComponent(text)}&train=260`;
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", `--user-data-dir=${join(directory, "profile")}`];
    const dom = run([chromium!, ...flags, "--virtual-time-budget=20000", "--dump-dom", page]);
    const tokenizer = Tokenizer.train(text, { vocabSize: 260 });
    const ids = tokenizer.encode(text);
    expect(dom).toContain(`<div id="ids">${ids.join(" ")}</div>`);
    expect(dom).toContain(`<b>${ids.length}</b><span> tokens</span>`);
    expect(dom.match(/<span title="id /g)?.length).toBe(ids.length);
    expect(dom).toMatch(/260 tokens learnt in [\d.]+ s/);
    expect(dom).toMatch(/<progress[^>]* value="1"/);
    expect(dom).not.toContain("<b>&amp;amp;</b>");
  }, 60_000);
});

test("the build is the package alone", () => {
  for (const name of readdirSync(dist).filter((file) => file.endsWith(".js"))) {
    const imports = Array.from(
      readFileSync(join(dist, name), "utf8").matchAll(/\bfrom\s*"([^"]+)"/g),
      ([, path]) => path,
    );
    for (const path of imports) expect(path).toMatch(/^(\.\/|node:)/);
  }
});
