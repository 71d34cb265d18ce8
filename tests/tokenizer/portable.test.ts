/**
 * The core of @mantou/tokenizer runs wherever JavaScript does: only files.ts may know of a file system.
 */
import { expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

const source = join(import.meta.dir, "../../packages/tokenizer/src");

test("no module of the core imports from outside the package or names a runtime", () => {
  const modules = readdirSync(source).filter((name) => name !== "files.ts");
  expect(modules).toContain("index.ts");
  for (const name of modules) {
    const code = readFileSync(join(source, name), "utf8").replace(/\/\*[^]*?\*\/|\/\/.*/g, "");
    const imports = Array.from(code.matchAll(/\bfrom\s+"([^"]+)"|\bimport\s*\(?\s*"([^"]+)"/g), (m) => m[1] ?? m[2]);
    for (const path of imports) expect(`${name}: ${path}`).toMatch(/: \.\/(?!files)[a-z0-9-]+\.ts$/);
    expect(`${name}: ${code.match(/\b(?:Bun|Buffer|process|Deno|require|document|window)\b\s*[.(]/)?.[0] ?? ""}`).toBe(
      `${name}: `,
    );
  }
});
