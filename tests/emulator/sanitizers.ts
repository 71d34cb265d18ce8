/** What a process needs that loads a library compiled with sanitizers: their run-time libraries, before anything else. */
export function sanitizerEnvironment(): Record<string, string> {
  const compiler = process.env.CXX ?? "c++";
  const path = (name: string) =>
    Bun.spawnSync([compiler, `-print-file-name=${name}`])
      .stdout.toString()
      .trim();
  return {
    LD_PRELOAD: `${path("libasan.so")}:${path("libubsan.so")}`,
    // Looking for leaks in Bun helps nobody; fibers are slow with stacks that outlive their functions.
    ASAN_OPTIONS: "detect_leaks=0,detect_stack_use_after_return=0",
  };
}
