/**
 * `bun run test:interop [--setup | --if-possible] [ARGUMENTS OF bun test]`: the suite that holds what we read and write
 * against the programs that define it: transformers, safetensors, gguf and others in a Python environment of its own, and
 * llama.cpp, as node-llama-cpp ships it.
 *
 * The environment is made in build/interop-venv when it is not there, with the versions of requirements.txt and wandb.txt;
 * MANTOU_PYTHON names a Python that has the packages already. `--setup` makes it and does no more. Where it cannot be made
 * the suite fails; with `--if-possible` it says that it was skipped and why, and succeeds. Without llama.cpp, which has no
 * build for some machines, its tests alone are skipped.
 */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const folder = import.meta.dir;
const root = join(folder, "../..");
const environment = join(root, "build/interop-venv");
const [requirements, wandb] = ["requirements.txt", "wandb.txt"].map((name) => join(folder, name));
const llamaCpp = join(root, "build/interop-llama-cpp");

const argv = process.argv.slice(2);
const [setupOnly, ifPossible] = ["--setup", "--if-possible"].map((flag) => argv.includes(flag));
const rest = argv.filter((word) => word !== "--setup" && word !== "--if-possible");

const python = findPython();
if (typeof python !== "string") {
  console.log(`test:interop ${ifPossible ? "SKIPPED" : "cannot run"}: ${python.reason}`);
  process.exit(ifPossible ? 0 : 1);
}
const llamaCppProblem = installLlamaCpp();
if (llamaCppProblem !== undefined) console.log(`llama-cpp.interop.ts SKIPPED: ${llamaCppProblem}`);
if (setupOnly) {
  console.log(python);
  process.exit(0);
}
const tests = [...new Bun.Glob("*.interop.ts").scanSync(folder)].sort().map((name) => `./tests/interop/${name}`);
const child = Bun.spawn([process.execPath, "test", "--timeout", "300000", ...tests, ...rest], {
  cwd: root,
  env: {
    ...process.env,
    MANTOU_PYTHON: python,
    MANTOU_LLAMA_CPP: llamaCppProblem === undefined ? llamaCpp : undefined,
  },
  stdio: ["ignore", "inherit", "inherit"],
});
process.exit(await child.exited);

/** A Python with the packages, or why there is none. */
function findPython(): string | { reason: string } {
  const given = process.env.MANTOU_PYTHON;
  if (given !== undefined) return given;
  const path = join(environment, "bin/python");
  const stamp = join(environment, "requirements.txt");
  const wanted = [requirements, wandb].map((file) => readFileSync(file, "utf8")).join("");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === wanted) return path;
  const base = ["python3.13", "python3.12", "python3.11", "python3"].find((name) => {
    // A name may be a version manager's that has no such version, and a Python may lack venv.
    return Bun.which(name) !== null && Bun.spawnSync([name, "-c", "import venv, ensurepip"]).exitCode === 0;
  });
  if (base === undefined) return { reason: "there is no Python 3 with venv here" };
  console.log(`making the Python environment in ${environment}`);
  rmSync(environment, { recursive: true, force: true });
  const install = [path, "-m", "pip", "install", "--quiet", "--retries", "0", "--timeout", "10"];
  const steps = [
    [base, "-m", "venv", environment],
    [...install, "-r", requirements],
    [...install, "--no-deps", "-r", wandb],
  ];
  for (const step of steps) {
    const { exitCode, stderr } = Bun.spawnSync(step, { stdout: "inherit", stderr: "pipe" });
    if (exitCode === 0) continue;
    rmSync(environment, { recursive: true, force: true });
    const why = stderr.toString().trim().split("\n").at(-1) ?? "";
    return { reason: `\`${step.slice(1, 4).join(" ")}\` of ${base} failed: ${why}` };
  }
  writeFileSync(stamp, wanted);
  return path;
}

/** Installs llama.cpp where it is not there. @returns why it cannot be */
function installLlamaCpp(): string | undefined {
  const version = "3.22.1";
  const wanted = { "node-llama-cpp": version, [`@node-llama-cpp/${process.platform}-${process.arch}`]: version };
  const manifest = JSON.stringify({ private: true, dependencies: wanted });
  const [place, stamp] = ["package.json", "installed.json"].map((name) => join(llamaCpp, name));
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === manifest) return undefined;
  rmSync(llamaCpp, { recursive: true, force: true });
  mkdirSync(llamaCpp, { recursive: true });
  writeFileSync(place, manifest);
  // Its builds for GPUs are optional; its install script compiles where there is no build.
  const { exitCode, stderr } = Bun.spawnSync(
    [process.execPath, "install", "--omit=optional", "--ignore-scripts", "--no-save"],
    { cwd: llamaCpp, stdout: "ignore", stderr: "pipe" },
  );
  if (exitCode !== 0) return stderr.toString().trim().split("\n").at(-1) ?? "it cannot be installed";
  writeFileSync(stamp, manifest);
  return undefined;
}
