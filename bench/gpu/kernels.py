"""The CUDA kernels against PyTorch, through the C ABI alone: is every operation right, and how fast is it?

Usage: python bench/gpu/kernels.py LIBRARY [--out FILE.json] [--small] [--no-bench] [--seconds S]

LIBRARY is libmantou.so as built from kernels/cuda; the emulated one serves too: what is timed is tried out then. Operations run on
random inputs, with outputs full of NaN beforehand, twice (the bits must be equal), and are compared with float64. The
benchmarks, which need a GPU and a PyTorch that sees it, time each operation and PyTorch's own beside it on the same card,
and the card's copy bandwidth and matrix rate.

The work is done by a second process, since a fault in one kernel ends what a process can do on a GPU: then another one goes
on behind the case that failed. FILE.json holds what is known after every case.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

CASE_SECONDS = 60  # what one case may take
ATTEMPTS = 8  # processes


class State:
    """What is known, in a file that outlives a process."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        empty = {"wrong": [], "errors": {}, "rows": [], "done": [], "running": None, "finished": False}
        self.values = json.loads(self.path.read_text()) if self.path.exists() else empty

    def save(self):
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1) + "\n")
        part.replace(self.path)

    def do(self, label, work):
        """Does it unless it is done; False where nothing can follow in this process."""
        if label in self.values["done"]:
            return True
        self.values["running"] = label
        self.save()
        good = True
        try:
            work()
        except Exception as error:
            self.wrong(f"{label}: {type(error).__name__}: {str(error)[:500]}")
            good = False
        self.values["running"] = None
        self.values["done"].append(label)
        self.save()
        return good

    def wrong(self, line):
        print(line, flush=True)
        self.values["wrong"].append(line)


def work(options, state):
    """Everything that is not done yet. @returns whether all of it was."""
    import torch

    from cases import cases, judge, matmul
    from library import DTYPES, Bench, Library
    from timings import ceilings, groups, time_group, try_out

    library = Library(options.library)
    values = state.values
    on_gpu = library.backend == "cuda"
    place = "cuda" if on_gpu and torch.cuda.is_available() and not options.small else "cpu"
    torch.set_default_device(place)
    values |= {"device": library.description, "torch": torch.__version__}
    print(f"{library.backend}: {library.description}; PyTorch {torch.__version__}", flush=True)

    # Where cuBLASLt multiplies, our own kernels have their turn in a context of their own.
    libraries = {"": library}
    if "own kernels" not in library.description:
        os.environ["MANTOU_MATMUL"] = "own"
        libraries[" (own)"] = Library(options.library)

    every = [(kind, of, *case) for kind in DTYPES for of in libraries for case in cases(on_gpu and not options.small)]
    for dtype, of, name, make, sizes in every:
        if of and make is not matmul:
            continue
        kind = str(dtype).removeprefix("torch.")

        def case():
            wrong, worst = judge(libraries[of], place, name, make, sizes, dtype)
            for line in wrong:
                state.wrong(line + of)
            group = f"{name.split()[0]}{of} {kind}"
            values["errors"][group] = max(values["errors"].get(group, 0.0), worst)

        if not state.do(f"{name}, {kind}{of}", case) and not library.is_alive():
            return False
    for group, error in sorted(values["errors"].items()):
        print(f"{group:24} largest relative error {error:.1e}")
    if options.no_bench:
        return True
    if place != "cuda":
        state.do("what is timed", lambda: try_out(Bench(library, torch.bfloat16, place)))
        return True

    def measure_card():
        values["copy_gb_per_s"], values["matrix_tflops"] = ceilings()
        print(f"copies move {values['copy_gb_per_s']:.0f} GB/s, matrix products do {values['matrix_tflops']:.0f} TFLOP/s")

    state.do("the card's own rates", measure_card)
    if "matrix_tflops" not in values:
        return True
    for label, function, sizes in groups():
        for of in libraries if function.__name__ == "matmul" else [""]:

            def time_it():
                bench = Bench(libraries[of], torch.bfloat16, place)
                for row in time_group(bench, function, sizes, values["copy_gb_per_s"], values["matrix_tflops"]):
                    values["rows"].append(row | {"work": row["work"] + of})
                    state.save()  # a peer that compiles too long ends this process

            if not state.do(f"time of {label}{of}", time_it) and not library.is_alive():
                return False
        torch.cuda.empty_cache()
    return True


def supervise(options, path):
    """Starts workers until one comes to the end. @returns lines of what is wrong"""
    deadline = time.monotonic() + options.seconds
    for _ in range(ATTEMPTS):
        worker = subprocess.Popen([sys.executable, *sys.argv, "--worker", path])
        running, since = None, time.monotonic()
        while worker.poll() is None:
            time.sleep(0.1)
            now, at = time.monotonic(), State(path).values["running"]
            if at != running:
                running, since = at, now
            if now > deadline or (running and now - since > CASE_SECONDS):
                worker.kill()
        state = State(path)
        if state.values["finished"]:
            break
        if state.values["running"]:
            label = state.values["running"]
            state.wrong(f"{label}: the process ended with {worker.returncode} after {time.monotonic() - since:.0f} s")
            state.values["done"].append(label)
            state.values["running"] = None
        elif worker.returncode == 1:
            state.wrong("the kernels could not be run at all: see above")
        state.save()
        if time.monotonic() > deadline or worker.returncode == 1:
            break
    if not state.values["finished"]:
        state.wrong("not everything was run")
        state.save()
    return state.values["wrong"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--out", help="JSON file for the results")
    parser.add_argument("--small", action="store_true", help="small shapes only, as for a sanitizer")
    parser.add_argument("--no-bench", action="store_true")
    parser.add_argument("--seconds", type=float, default=1e9, help="give up after these")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        state = State(options.worker)
        state.values["finished"] = work(options, state)
        state.save()
        sys.exit(0 if state.values["finished"] else 3)
    with tempfile.TemporaryDirectory() as folder:
        path = options.out or os.path.join(folder, "results.json")
        pathlib.Path(path).unlink(missing_ok=True)
        wrong = supervise(options, path)
    print("\n".join(["", *wrong]) if wrong else "every operation is right, and gives the same bits twice")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
