/** What llama.cpp makes of GGUF files. In, as JSON: [{ path, texts, prompts }]; out, in its last line: the same, answered. */
import { join } from "node:path";

type Token = number;

/** What we use of node-llama-cpp, which is not among the packages of the repository. */
interface NodeLlamaCpp {
  getLlama(options: { gpu: false; build: "never"; logLevel: "error" }): Promise<{
    loadModel(options: { modelPath: string; useMmap: boolean }): Promise<Model>;
  }>;
}

interface Model {
  tokenize(text: string, specialTokens: true): Token[];
  tokens: { bos: Token | null; eos: Token | null; shouldPrependBosToken: boolean };
  createContext(options: object): Promise<{ getSequence(): Sequence }>;
}

interface Sequence {
  clearHistory(): Promise<void>;
  controlledEvaluate(
    tokens: (Token | [Token, { generateNext: { logits: true } }])[],
  ): Promise<(undefined | { next: { logits: Map<Token, number> } })[]>;
}

export interface Question {
  path: string;
  texts: string[];
  prompts: Token[][];
}

export type Answer = Model["tokens"] & {
  ids: Token[][];
  /** Of the token after each prompt. */
  logits: number[][];
};

async function answer(): Promise<void> {
  const package_ = join(process.env.MANTOU_LLAMA_CPP!, "node_modules/node-llama-cpp/dist/index.js");
  const { getLlama } = (await import(package_)) as NodeLlamaCpp;
  const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
  const answers: Answer[] = [];
  for (const { path, texts, prompts } of (await Bun.stdin.json()) as Question[]) {
    const model = await llama.loadModel({ modelPath: path, useMmap: false });
    // What it would round to float16.
    const exact = { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false };
    const sequence = (await model.createContext({ contextSize: 64, threads: 1, ...exact })).getSequence();
    const logits: number[][] = [];
    for (const prompt of prompts) {
      await sequence.clearHistory();
      const [last] = prompt.slice(-1);
      const results = await sequence.controlledEvaluate([
        ...prompt.slice(0, -1),
        [last, { generateNext: { logits: true } }],
      ]);
      const byToken = results.at(-1)!.next.logits;
      logits.push(Array.from({ length: byToken.size }, (_, token) => byToken.get(token)!));
    }
    const { bos, eos, shouldPrependBosToken } = model.tokens;
    answers.push({ bos, eos, shouldPrependBosToken, ids: texts.map((text) => model.tokenize(text, true)), logits });
  }
  console.log(JSON.stringify(answers));
  process.exit(0); // it would wait for its threads
}

if (import.meta.main) await answer();
