/**
 * The demo page: colours the tokens of a text as one types, with ids and counts, and trains a vocabulary in the page.
 * `#text=…` in the address sets the text, `&train=SIZE` trains on it at once.
 */
import { parseHuggingFace } from "../src/formats.ts";
import { PATTERN_NAMES, Tokenizer, TokenizerError } from "../src/index.ts";

const SAMPLE =
  "Byte-pair encoding starts with single bytes and merges, again and again, the pair that occurs most often.\n" +
  "The baker bakes the bread; the baker's breads are baked before the break of day.\n" +
  "It's 2026: naïve café, 만두와 馒头, 😀 and 👨‍👩‍👧 are bytes like any other.";

/** Tokens that are shown; a page with a million elements is of use to nobody. */
const MOST_SHOWN = 20_000;

function element<E extends HTMLElement>(id: string): E {
  return document.getElementById(id) as E;
}

const text = element<HTMLTextAreaElement>("text");
const pattern = element<HTMLSelectElement>("pattern");
const size = element<HTMLInputElement>("size");
const progress = element<HTMLProgressElement>("progress");
const message = element<HTMLElement>("message");
let tokenizer: Tokenizer;
let training: AbortController | undefined;

function say(what: string, kind: "info" | "error" = "info"): void {
  message.textContent = what;
  message.dataset.kind = kind;
}

function show(): void {
  const started = performance.now();
  const { ids, utf16, bytes } = tokenizer.offsets(text.value);
  const milliseconds = performance.now() - started;
  const shown = Math.min(ids.length, MOST_SHOWN);
  element("tokens").replaceChildren(
    ...Array.from({ length: shown }, (_, i) => {
      const span = document.createElement("span");
      const [start, end] = [utf16[i], utf16[i + 1]];
      const token = text.value.slice(start, end);
      // a token that ends within a character shows its bytes
      span.textContent = token === "" ? "·" : token.replaceAll("\n", "↵\n");
      const hex = Array.from(tokenizer.tokenBytes(ids[i]), (byte) => byte.toString(16).padStart(2, "0")).join(" ");
      span.title = `id ${ids[i]} · bytes ${hex} · from ${start}`;
      return span;
    }),
  );
  element("ids").textContent = ids.subarray(0, shown).join(" ");
  const total = bytes[ids.length];
  const rows: [string, string][] = [
    ["tokens", ids.length.toLocaleString("en")],
    ["characters", [...text.value].length.toLocaleString("en")],
    ["bytes", total.toLocaleString("en")],
    ["bytes a token", ids.length === 0 ? "–" : (total / ids.length).toFixed(2)],
    ["ms", milliseconds.toFixed(1)],
  ];
  element("stats").replaceChildren(
    ...rows.map(([name, value]) => {
      const row = document.createElement("div");
      const number = document.createElement("b");
      number.textContent = value;
      const label = document.createElement("span");
      label.textContent = ` ${name}`;
      row.append(number, label);
      return row;
    }),
  );
}

async function train(chunks: AsyncIterable<Uint8Array>, totalBytes: number): Promise<void> {
  training?.abort();
  const { signal } = (training = new AbortController());
  const started = performance.now();
  try {
    const trained = await Tokenizer.train(chunks, {
      vocabSize: Number(size.value),
      pattern: pattern.value,
      signal,
      onProgress({ phase, done, total = totalBytes }) {
        // counting is taken as half of the work
        progress.value = (phase === "count" ? 0 : 0.5) + (total === 0 ? 0.5 : (0.5 * done) / total);
        say(phase === "count" ? "counting words …" : `${done} of ${total} merges`);
      },
    });
    tokenizer = trained;
    progress.value = 1;
    say(`${trained.vocabSize} tokens learnt in ${((performance.now() - started) / 1000).toFixed(2)} s`);
    show();
  } catch (error) {
    if (signal.aborted) return;
    say((error as Error).message, "error");
    if (!(error instanceof TokenizerError)) throw error;
  }
}

async function* pieces(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let i = 0; i < bytes.length; i += 1 << 18) {
    yield bytes.subarray(i, i + (1 << 18));
    await new Promise((resolve) => setTimeout(resolve)); // the page breathes
  }
}

async function* filePieces(files: File[]): AsyncGenerator<Uint8Array> {
  for (const file of files) {
    for (let i = 0; i < file.size; i += 1 << 20) {
      yield new Uint8Array(await file.slice(i, i + (1 << 20)).arrayBuffer());
    }
  }
}

function trainOnText(): Promise<void> {
  const bytes = new TextEncoder().encode(text.value);
  return train(pieces(bytes), bytes.length);
}

pattern.replaceChildren(...PATTERN_NAMES.map((name) => new Option(name)));
text.addEventListener("input", show);
pattern.addEventListener("change", () => void trainOnText());
element("train").addEventListener("click", () => void trainOnText());
element<HTMLInputElement>("files").addEventListener("change", ({ target }) => {
  const files = [...((target as HTMLInputElement).files ?? [])];
  const total = files.reduce((sum, file) => sum + file.size, 0);
  void train(filePieces(files), total);
});
element<HTMLInputElement>("load").addEventListener("change", async ({ target }) => {
  const [file] = (target as HTMLInputElement).files ?? [];
  if (file === undefined) return;
  try {
    const json = await file.text();
    tokenizer = json.includes('"mantou-tokenizer"') ? Tokenizer.fromJSON(json) : new Tokenizer(parseHuggingFace(json));
    say(`${file.name}: ${tokenizer.vocabSize} tokens`);
    show();
  } catch (error) {
    say((error as Error).message, "error");
  }
});

const parameters = new URLSearchParams(location.hash.slice(1));
text.value = parameters.get("text") ?? SAMPLE;
size.value = parameters.get("train") ?? size.value;
tokenizer = Tokenizer.train("", { vocabSize: 256 });
show();
void trainOnText();
