/**
 * What a terminal shows after it received some text: as much of one as our displays use (carriage return, newline,
 * erase to the end of the line, colours, wrapping at the last column). Anything else is an error, so that a display
 * that begins to use more is noticed.
 */
const tokens = new RegExp(String.raw`\u001b\[[0-9;]*[A-Za-z]|[\s\S]`, "gu");

export class Screen {
  readonly lines: string[] = [""];
  #row = 0;
  #column = 0;

  constructor(public columns: number) {}

  write(text: string): this {
    for (const [token] of text.matchAll(tokens)) this.#apply(token);
    return this;
  }

  #apply(token: string): void {
    if (token === "\r") this.#column = 0;
    else if (token === "\n") this.#newline();
    else if (token === "\x1b[K") this.#set(this.#characters().slice(0, this.#column));
    else if (token.startsWith("\x1b")) {
      if (!token.endsWith("m")) throw new Error(`unexpected escape code ${JSON.stringify(token)}`);
    } else {
      if (this.#column === this.columns) {
        this.#newline();
        this.#column = 0;
      }
      const characters = this.#characters();
      while (characters.length < this.#column) characters.push(" ");
      characters[this.#column++] = token;
      this.#set(characters);
    }
  }

  #newline(): void {
    this.#row++;
    if (this.#row === this.lines.length) this.lines.push("");
  }

  #characters(): string[] {
    return [...this.lines[this.#row]];
  }

  #set(characters: string[]): void {
    this.lines[this.#row] = characters.join("");
  }
}
