/** The C header and the TypeScript symbol table say the same. */
import { expect, test } from "bun:test";
import { Glob } from "bun";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { symbols } from "../../packages/model/src/symbols.ts";

const root = join(import.meta.dir, "../..");

/** Every MANTOU_API function: name, result, parameter kinds. */
function parseHeader(text: string): Record<string, { result: string; parameters: string[] }> {
  const code = text.replace(/\/\*[\s\S]*?\*\//g, " ").replace(/\s+/g, " ");
  const functions: Record<string, { result: string; parameters: string[] }> = {};
  for (const [, type, name, list] of code.matchAll(/MANTOU_API ([\w ]+?\*?) ?(mantou_\w+)\(([^)]*)\);/g)) {
    const parameters = list === "void" ? [] : list!.split(",").map((parameter) => kindOf(parameter.trim()));
    functions[name!] = { result: resultOf(type!.trim(), name!), parameters };
  }
  return functions;
}

function kindOf(parameter: string): string {
  if (/^mantou_context\* \w+$/.test(parameter)) return "context";
  if (parameter.includes("*")) return "pointer";
  const kinds: Record<string, string> = { int32_t: "i32", int64_t: "i64", float: "f32" };
  const kind = kinds[parameter.split(" ")[0]!];
  if (!kind) throw new Error(`the symbol table has no kind for "${parameter}"`);
  return kind;
}

function resultOf(type: string, name: string): string {
  if (type === "int64_t") return "size";
  if (type === "const char*") return "text";
  return name === "mantou_abi_version" ? "i32" : "status";
}

test("kernels/mantou.h and packages/model/src/symbols.ts agree", () => {
  const header = parseHeader(readFileSync(join(root, "kernels/mantou.h"), "utf8"));
  expect(Object.keys(header).length).toBeGreaterThan(40);
  expect(header).toEqual(JSON.parse(JSON.stringify(symbols)));
});

test("the parser sees what a drift would look like", () => {
  const text = "MANTOU_API int32_t mantou_x(mantou_context* context, int64_t n, const float* a, float b);";
  expect(parseHeader(text)).toEqual({
    mantou_x: { result: "status", parameters: ["context", "i64", "pointer", "f32"] },
  });
});

test("pointers are taken in one module only", () => {
  const offenders: string[] = [];
  for (const file of new Glob("{packages,bench,tests}/**/*.ts").scanSync(root)) {
    if (file.includes("node_modules") || file === "packages/model/src/native.ts") continue;
    const text = readFileSync(join(root, file), "utf8");
    if (/\bptr\s*\(|from "bun:ffi"/.test(text) && !file.endsWith("header.test.ts")) offenders.push(file);
  }
  expect(offenders).toEqual([]);
});
