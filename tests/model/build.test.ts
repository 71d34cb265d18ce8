/**
 * Building the native library, with a shell script in the compiler's place: it notes how it is called and writes its
 * output, so that nothing is compiled here and the real build is not touched.
 */
import { afterAll, beforeEach, describe, expect, test } from "bun:test";
import { appendFileSync, chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync } from "node:fs";
import { readdirSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { BuildError, buildCpuLibrary } from "@mantou/model";

const root = join(import.meta.dir, "../..");
const base = mkdtempSync(join(tmpdir(), "mantou-build-"));
afterAll(() => rmSync(base, { recursive: true }));

let folder: string;
let lines: string[];
beforeEach(() => {
  folder = mkdtempSync(join(base, "test-"));
  lines = [];
});

const log = (line: string) => void lines.push(line);

/** A compiler of that version. It runs `onLink` before it links, with the path of its output in $out. */
function fakeCompiler({ version = "fake c++ 1.0", onVersion = "", onCompile = "", onLink = "" } = {}): string {
  const path = join(mkdtempSync(join(folder, "bin-")), "c++");
  const script = `#!/bin/sh
if [ "$1" = --version ]; then echo "${version}"; ${onVersion || ":"}; exit 0; fi
kind=compile
for argument do
  [ "$argument" = -shared ] && kind=link
  [ "$previous" = -o ] && out=$argument
  previous=$argument
done
echo "$kind $*" >> "${folder}/calls"
if [ $kind = link ]; then ${onLink || ":"}; else ${onCompile || ":"}; fi
echo "$kind" > "$out"
echo "inode of $kind $(ls -i "$out")" >> "${folder}/calls"
`;
  writeFileSync(path, script);
  chmodSync(path, 0o755);
  return path;
}

/** How often the compilers of this test were called to compile or to link. */
function calls(kind: "compile" | "link" | "inode of link"): string[] {
  const path = join(folder, "calls");
  const text = existsSync(path) ? readFileSync(path, "utf8") : "";
  return text.split("\n").filter((line) => line.startsWith(kind));
}

function build(compiler: string, options: { force?: boolean } = {}): string {
  const environment = { PATH: process.env.PATH, CXX: compiler };
  return buildCpuLibrary({ directory: join(folder, "build"), environment, log, ...options });
}

/** Everything below the build directory that is no directory. */
function filesBuilt(): string[] {
  const directory = join(folder, "build");
  if (!existsSync(directory)) return [];
  const entries = readdirSync(directory, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => entry.isFile()).map((entry) => entry.name);
}

describe("a compiler", () => {
  test("is asked for in one clear error when there is none", () => {
    for (const environment of [{ PATH: "" }, { PATH: folder }, {}]) {
      const attempt = () => buildCpuLibrary({ directory: join(folder, "build"), environment, log });
      expect(attempt).toThrow(BuildError);
      expect(attempt).toThrow(/no C\+\+ compiler found \(looked for c\+\+, g\+\+, clang\+\+\)/);
      expect(attempt).toThrow("apt install g++");
    }
    expect(() => build(join(folder, "nowhere/c++"))).toThrow(`looked for ${folder}/nowhere/c++`);
    expect([filesBuilt(), lines]).toEqual([[], []]);
  });

  test("that does not run is passed over", () => {
    const [broken, works] = [fakeCompiler({ onVersion: "exit 1" }), fakeCompiler()];
    writeFileSync(join(dirname(works), "g++"), readFileSync(works));
    chmodSync(join(dirname(works), "g++"), 0o755);
    const environment = { PATH: `${dirname(broken)}:${dirname(works)}` };
    buildCpuLibrary({ directory: join(folder, "build"), environment, log });
    expect(lines.length).toBe(1);
  });

  test("is not needed where $MANTOU_LIBRARY names a library", () => {
    const environment = { MANTOU_LIBRARY: "some/lib.so", PATH: "" };
    expect(buildCpuLibrary({ environment, log })).toBe(join(process.cwd(), "some/lib.so"));
  });

  test("that fails is quoted, and leaves neither a library nor a lock", () => {
    const failing = fakeCompiler({ onCompile: 'echo "matmul.cpp:1: no such luck" >&2; exit 1' });
    expect(() => build(failing)).toThrow(BuildError);
    expect(() => build(failing)).toThrow("matmul.cpp:1: no such luck");
    expect(() => build(fakeCompiler({ onLink: 'echo "cannot find -lgomp, fopenmp" >&2; exit 1' }))).toThrow(
      "The compiler lacks OpenMP",
    );
    expect([filesBuilt(), lines]).toEqual([[], []]);
    build(fakeCompiler());
    expect(lines.length).toBe(1);
  });
});

describe("a library", () => {
  test("is built once from every source, and the one line says by whom and where", () => {
    const compiler = fakeCompiler();
    const path = build(compiler);
    expect(readFileSync(path, "utf8")).toBe("link\n");
    expect(readdirSync(dirname(path))).toEqual([basename(path)]);
    expect(path.startsWith(join(folder, "build", "cpu-"))).toBe(true);
    expect(basename(path)).toMatch(/^libmantou\.(so|dylib)$/);
    expect(filesBuilt()).toEqual([basename(path)]);
    expect(lines.length).toBe(1);
    expect(lines[0]).toMatch(/^Compiled the CPU kernels with fake c\+\+ 1\.0 in \d+\.\d s/);
    expect(lines[0]).toContain(dirname(path));
    const units = readdirSync(join(root, "kernels/cpu")).filter((name) => name.endsWith(".cpp"));
    for (const unit of units) expect(calls("compile").some((call) => call.includes(`/${unit} `))).toBe(true);
    // Operations once per instruction set, what they share once.
    const compiled = (unit: string) => calls("compile").filter((call) => call.includes(`/${unit} `)).length;
    expect([compiled("matmul.cpp"), compiled("context.cpp")]).toEqual([process.arch === "x64" ? 3 : 1, 1]);
    expect(calls("link").length).toBe(1);
    // Moved into place, not copied: under its name it is never half there.
    expect(calls("inode of link")[0]).toStartWith(`inode of link ${statSync(path).ino} `);

    expect(build(compiler)).toBe(path);
    expect([lines.length, calls("link").length]).toEqual([1, 1]);
    expect(build(compiler, { force: true })).toBe(path);
    expect([lines.length, calls("link").length]).toEqual([2, 2]);
  });

  test("has a name of its own for other sources, another header, flags and compilers", async () => {
    const compiler = fakeCompiler();
    const copy = join(folder, "copy");
    mkdirSync(join(copy, "packages/model/src"), { recursive: true });
    cpSync(join(root, "kernels"), join(copy, "kernels"), { recursive: true });
    const source = readFileSync(join(root, "packages/model/src/build.ts"), "utf8");
    // A module is loaded once per path: every variant of the builder has a file of its own.
    let count = 0;
    const buildCopy = async (flags = "-O3") => {
      const path = join(copy, `packages/model/src/build-${count++}.ts`);
      writeFileSync(path, source.replace("-O3", flags));
      const variant = (await import(path)) as { buildCpuLibrary: typeof buildCpuLibrary };
      const environment = { PATH: process.env.PATH, CXX: compiler };
      return variant.buildCpuLibrary({ directory: join(folder, "build"), environment, log });
    };
    const names = [build(compiler)];
    expect(await buildCopy()).toBe(names[0]);
    names.push(await buildCopy("-O2"));
    appendFileSync(join(copy, "kernels/cpu/matmul.cpp"), "\n");
    names.push(await buildCopy());
    appendFileSync(join(copy, "kernels/cpu/context.h"), "\n");
    names.push(await buildCopy());
    appendFileSync(join(copy, "kernels/mantou.h"), "\n");
    names.push(await buildCopy());
    writeFileSync(join(copy, "kernels/cpu/new.cpp"), "");
    names.push(await buildCopy());
    writeFileSync(join(copy, "kernels/cpu/notes.txt"), "not a source");
    expect(await buildCopy()).toBe(names.at(-1)!);
    names.push(build(fakeCompiler({ version: "fake c++ 1.1" })));
    expect(new Set(names).size).toBe(names.length);
    expect(lines.length).toBe(names.length);
  });
});

describe("several processes", () => {
  const FIFOS = ["asked", "linking", "release"] as const;

  /** A named pipe blocks whoever writes to it until somebody reads, and the other way round: no waiting by the clock. */
  const fifo = (name: (typeof FIFOS)[number]) => join(folder, name);
  const passed = (name: (typeof FIFOS)[number]) => Bun.spawn(["cat", fifo(name)], { stdout: "ignore" }).exited;
  const release = () => Bun.spawn(["sh", "-c", 'echo > "$1"', "sh", fifo("release")]).exited;

  beforeEach(() => {
    for (const name of FIFOS) expect(Bun.spawnSync(["mkfifo", fifo(name)]).success).toBe(true);
  });

  /** Says that it was asked for its version where $ANNOUNCE is set; says that it links and waits where $WAIT is. */
  const pausing = () =>
    fakeCompiler({
      onVersion: `[ -z "$ANNOUNCE" ] || echo > "${fifo("asked")}"`,
      onLink: `if [ "$WAIT" ]; then echo > "${fifo("linking")}"; cat "${fifo("release")}" > /dev/null; fi`,
    });

  /** A process that builds and prints the library's path; its standard error is the log. */
  function builder(compiler: string, variable: "ANNOUNCE" | "WAIT") {
    const script = join(folder, "builder.ts");
    const module = JSON.stringify(join(root, "packages/model/src/build.ts"));
    const directory = JSON.stringify(join(folder, "build"));
    writeFileSync(
      script,
      `import { buildCpuLibrary } from ${module};\nconsole.log(buildCpuLibrary({ directory: ${directory} }));\n`,
    );
    const { MANTOU_LIBRARY: _, ...rest } = process.env;
    const env = { ...rest, CXX: compiler, [variable]: "1" };
    return Bun.spawn([process.execPath, script], { env, stdout: "pipe", stderr: "pipe" });
  }

  test("one builds, the other waits for it and takes the same library", async () => {
    const compiler = pausing();
    const linking = passed("linking");
    const first = builder(compiler, "WAIT");
    await linking;
    const asked = passed("asked");
    const second = builder(compiler, "ANNOUNCE");
    await asked;
    // The first one is in the middle of it: nothing lies under the library's name.
    expect(filesBuilt()).toContain("lock");
    expect(filesBuilt().filter((name) => name.startsWith("libmantou"))).toEqual([]);
    await release();
    const [one, other] = await Promise.all([first, second].map(({ stdout }) => new Response(stdout).text()));
    const logs = await Promise.all([first, second].map(({ stderr }) => new Response(stderr).text()));
    expect([await first.exited, await second.exited]).toEqual([0, 0]);
    expect(other).toBe(one);
    expect(readFileSync(one.trim(), "utf8")).toBe("link\n");
    expect(calls("link").length).toBe(1);
    expect(logs[0]).toContain("Compiled the CPU kernels");
    expect(logs[1]).toBe("");
    expect(filesBuilt().length).toBe(1);
  });

  test("one is killed in the middle: the next one takes over", async () => {
    const compiler = pausing();
    const linking = passed("linking");
    const first = builder(compiler, "WAIT");
    await linking;
    first.kill("SIGKILL");
    await first.exited;
    expect(filesBuilt()).toContain("lock");
    const path = build(compiler);
    expect(readFileSync(path, "utf8")).toBe("link\n");
    expect(readdirSync(dirname(path))).toEqual([basename(path)]);
    expect(lines.length).toBe(1);
    expect(filesBuilt()).not.toContain("lock");
    await release(); // the killed one's compiler is still there
  });

  test("locks of holders that are gone, that never wrote their number or that are too old are taken over", async () => {
    const gone = Bun.spawn(["true"]);
    await gone.exited;
    const compiler = fakeCompiler();
    const path = build(compiler);
    for (const [text, ageInSeconds] of [
      [String(gone.pid), 0],
      ["", 10],
      [String(process.pid), 3600],
    ] as const) {
      const lock = join(dirname(path), "lock");
      writeFileSync(lock, text);
      const then = Date.now() / 1000 - ageInSeconds;
      utimesSync(lock, then, then);
      expect(build(compiler, { force: true })).toBe(path);
      expect(existsSync(lock)).toBe(false);
    }
    expect(lines.length).toBe(4);
  });
});
