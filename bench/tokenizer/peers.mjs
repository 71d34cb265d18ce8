/**
 * One measurement of an npm package, in a process of its own; prints JSON. Started by run.ts from the directory where the
 * peers are installed, so that this repository does not depend on them.
 * Usage: bun|node bench/tokenizer/peers.mjs PEER TEXT MEGABYTES GPT2 (for kitoken and tokenizers: as tokenizer.json)
 */
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [peer, textPath, megabytes, gpt2] = process.argv.slice(2);
const require = createRequire(pathToFileURL(`${process.cwd()}/x.js`));
const bytes = readFileSync(textPath).subarray(0, Number(megabytes) * 1e6);
const text = new TextDecoder().decode(bytes);
const load = async (name) => import(pathToFileURL(require.resolve(name)).href);

const encoders = {
  tiktoken: async () => {
    const encoding = require("tiktoken").get_encoding("gpt2");
    return () => encoding.encode_ordinary(text).length;
  },
  "gpt-tokenizer": async () => {
    const { encode } = require("gpt-tokenizer/encoding/cl100k_base");
    return () => encode(text, { disallowedSpecial: new Set() }).length;
  },
  "js-tiktoken": async () => {
    const encoding = require("js-tiktoken").getEncoding("gpt2");
    return () => encoding.encode(text).length;
  },
  "ai-tokenizer": async () => {
    const { Tokenizer } = await load("ai-tokenizer");
    const tokenizer = new Tokenizer(await load("ai-tokenizer/encoding/cl100k_base"));
    return () => tokenizer.encode(text, [], []).length;
  },
  kitoken: async () => {
    const { Kitoken } = require("kitoken/node");
    const tokenizer = new Kitoken(readFileSync(gpt2));
    return () => tokenizer.encode(text, false).length;
  },
  tokenizers: async () => {
    const { Tokenizer } = require("tokenizers");
    const tokenizer = Tokenizer.fromFile(`${gpt2}`);
    return async () => (await tokenizer.encode(text)).getIds().length;
  },
};
const encode = await encoders[peer]();
const manifest = readFileSync(`node_modules/${peer}/package.json`, "utf8");
const result = { version: JSON.parse(manifest).version };
for (const pass of ["first", "second"]) {
  const started = performance.now();
  result.tokens = await encode();
  result[pass] = bytes.length / 1e3 / (performance.now() - started);
}
console.log(JSON.stringify(result));
