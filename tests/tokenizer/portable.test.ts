/**
 * The core of @mantou/tokenizer runs wherever JavaScript does: only files.ts and its workers may know of a file system.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The modules that @mantou/tokenizer/files brings in. */
const outside = ["files.ts", "file-parts.ts", "worker.ts", "worker-pool.ts"];
const source = join(import.meta.dir, "../../packages/tokenizer/src");

test("no module of the core imports from outside the package or names a runtime", () => {
  const modules = readdirSync(source).filter((name) => !outside.includes(name));
  expect(modules).toContain("index.ts");
  for (const name of modules) {
    const code = readFileSync(join(source, name), "utf8").replace(/\/\*[^]*?\*\/|\/\/.*/g, "");
    const imports = Array.from(code.matchAll(/\bfrom\s+"([^"]+)"|\bimport\s*\(?\s*"([^"]+)"/g), (m) => m[1] ?? m[2]);
    for (const path of imports) expect(`${name}: ${path}`).toMatch(/: \.\/(?!file|worker)[a-z0-9-]+\.ts$/);
    expect(`${name}: ${code.match(/\b(?:Bun|Buffer|process|Deno|require|document|window)\b\s*[.(]/)?.[0] ?? ""}`).toBe(
      `${name}: `,
    );
  }
});
