/**
 * Builds what is published, into packages/tokenizer/dist (or --out DIRECTORY): ES modules with type declarations, one
 * minified file for browsers, and the demo as a single page. The workspace's own package.json is of the sources, which
 * Node does not run from node_modules, and private for that.
 *
 * Usage: bun run build:tokenizer [--out DIRECTORY]
 */
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

/** Bytes that the browser's file may have, compressed. */
const MOST_GZIPPED = 20_000;

const root = join(import.meta.dir, "..");
const { values } = parseArgs({ options: { out: { type: "string" } } });
const out = resolve(values.out ?? join(root, "dist"));
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });

// the modules: what both entries use is shared, so that there is one Tokenizer class
await build({
  entryPoints: ["index", "files", "formats", "worker"].map((name) => join(root, `src/${name}.ts`)),
  outdir: out,
  bundle: true,
  splitting: true,
  format: "esm",
  platform: "neutral",
  external: ["node:*"],
  target: ["es2022", "node20"],
});

const browser = join(out, "tokenizer.min.js");
await build({
  entryPoints: [join(root, "src/index.ts")],
  outfile: browser,
  bundle: true,
  minify: true,
  format: "esm",
  platform: "neutral",
  target: "es2022",
});
const size = gzipSync(readFileSync(browser), { level: 9 }).length;

const demo = await build({
  entryPoints: [join(root, "demo/demo.ts")],
  bundle: true,
  minify: true,
  write: false,
  format: "esm",
  platform: "browser",
  target: "es2022",
});
const script = demo.outputFiles[0].text.replaceAll("</script", "<\\/script");
const page = readFileSync(join(root, "demo/index.html"), "utf8");
const place = '<script type="module" src="./demo.ts"></script>';
if (!page.includes(place)) throw new Error("demo/index.html has no place for its script");
writeFileSync(
  join(out, "demo.html"),
  page.replace(place, () => `<script type="module">${script}</script>`),
);

const declarations = Bun.spawnSync(
  (
    `node_modules/.bin/tsc --emitDeclarationOnly --declaration --outDir ${out} --target esnext --module preserve ` +
    "--moduleResolution bundler --lib esnext,dom --types node --strict --skipLibCheck --allowImportingTsExtensions " +
    ["index", "files", "formats"].map((name) => join(root, `src/${name}.ts`)).join(" ")
  ).split(" "),
  { cwd: join(root, "../..") },
);
if (!declarations.success) throw new Error(`tsc: ${declarations.stdout.toString()}${declarations.stderr.toString()}`);

const own = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Record<string, unknown>;
const entry = (name: string) => ({ types: `./${name}.d.ts`, default: `./${name}.js` });
const manifest = {
  ...Object.fromEntries(["name", "version", "type", "license"].map((field) => [field, own[field]])),
  engines: { node: ">=20" },
  sideEffects: false,
  exports: { ".": entry("index"), "./files": entry("files"), "./formats": entry("formats") },
};
copyFileSync(join(root, "README.md"), join(out, "README.md"));
writeFileSync(join(out, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
console.log(`${out}: tokenizer.min.js is ${size} bytes gzipped`);
if (size > MOST_GZIPPED) throw new Error(`tokenizer.min.js may have ${MOST_GZIPPED} bytes gzipped at most`);
