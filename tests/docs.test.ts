/**
 * The help texts in docs/*.md are those of the commands. A page holds `<!-- help: COMMAND [SUBCOMMAND] -->` and a fenced
 * block after it; `UPDATE_DOCS=1 bun run test tests/docs.test.ts` writes what the commands say now.
 */
import { expect, test } from "bun:test";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const docs = join(root, "docs");
const pages = existsSync(docs) ? readdirSync(docs).filter((name) => name.endsWith(".md")) : [];
const BLOCK = /<!-- help: ([a-z :-]+) -->\n\n```text\n([\s\S]*?)```\n/g;

function helpOf(words: string): string {
  const [name, ...rest] = words.split(" ");
  const script = join(root, `packages/train/src/cli/${name.replace(":", "-")}.ts`);
  const { stdout, stderr } = Bun.spawnSync([process.execPath, script, ...rest, "--help"], {
    env: { PATH: process.env.PATH, NO_COLOR: "1" },
    stderr: "pipe",
  });
  if (stderr.length > 0) throw new Error(stderr.toString());
  return stdout.toString();
}

test.each(pages)("docs/%s shows the commands' help as it is", (page) => {
  const path = join(docs, page);
  const text = readFileSync(path, "utf8");
  const updated = text.replace(
    BLOCK,
    (_, words: string) => `<!-- help: ${words} -->\n\n\`\`\`text\n${helpOf(words)}\`\`\`\n`,
  );
  if (process.env.UPDATE_DOCS !== undefined) writeFileSync(path, updated);
  else expect(text).toBe(updated);
});

test("every command of package.json that people use has a page with its help", () => {
  const { scripts } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as {
    scripts: Record<string, string>;
  };
  const shown = pages
    .flatMap((page) => [...readFileSync(join(docs, page), "utf8").matchAll(BLOCK)])
    .map((match) => match[1].split(" ")[0]);
  for (const name of ["train", "data", "sweep", "generate", "eval", "serve", "export", "import", "tokenizer"]) {
    expect(Object.keys(scripts)).toContain(name);
    expect(shown).toContain(name);
  }
});
