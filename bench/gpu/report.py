"""Puts what the stages of the GPU check left into one JSON file and one Markdown table, named by device and date.

Usage: python bench/gpu/report.py PARTS RESULTS

PARTS holds stages.tsv (title, outcome, seconds), and device.csv, kernels.json, steps.json where those stages came that far, and
a log of every stage; of those that did not pass the JSON file has the end.
"""

import json
import pathlib
import re
import sys
import time

# The targets for training steps on one H100 or H200, tokens/s.
STEP_TARGETS = {"tinystories": 327.68e6 / 154, "124m": 463_000}


def read(path, otherwise):
    return json.loads(path.read_text()) if path.exists() else otherwise


def log_of(parts, title):
    path = parts / (re.sub("[^A-Za-z0-9]", "-", title) + ".log")
    return path.read_text(errors="replace")[-20_000:] if path.exists() else ""


def table(header, rows):
    marks = ["---"] + ["--:"] * (len(header) - 1)
    return ["", *(f"| {' | '.join(str(cell) for cell in row)} |" for row in [header, marks, *rows])]


def kernel_row(row):
    unit = "GB/s" if row["unit"] == "bytes" else "TFLOP/s"
    target, reached = "", row["share"] if row["unit"] == "bytes" else row["achieved"]
    if row["target"]:
        wanted = f"{row['target']:.0%}" if row["unit"] == "bytes" else f"{row['target']} TFLOP/s"
        target = f"{wanted}: {'met' if reached >= row['target'] else 'missed'}"
    peer = [row["peer"], f"{row['peer_ms']:.3f}", f"{row['peer_ms'] / row['ms']:.2f}"] if row["peer"] else [""] * 3
    return [row["work"], f"{row['ms']:.3f}", f"{row['achieved']:.0f} {unit}", f"{row['share']:.0%}", target, *peer]


def step_row(row):
    if row.get("ms") is None:
        return [row["shape"], "; ".join(row["failed"]), *[""] * 6]
    rate, target = row["tokensPerSecond"], STEP_TARGETS.get(row["shape"])
    wanted = f"{target:,.0f}: {'met' if rate >= target else 'missed'}" if target else ""
    peer = [row["peer"], f"{row['peerTokensPerSecond']:,}", f"{row['peerMs'] / row['ms']:.2f}"] if row.get("peer") else ["; ".join(row["failed"]), "", ""]
    return [row["shape"], f"{row['ms']:.1f}", f"{rate:,}", f"{row['mfu']:.1%}", wanted, *peer]


def main():
    parts, results = map(pathlib.Path, sys.argv[1:])
    stages = [line.split("\t") for line in (parts / "stages.tsv").read_text().splitlines()]
    device = (parts / "device.csv").read_text().strip().splitlines() if (parts / "device.csv").exists() else []
    kernels, steps = read(parts / "kernels.json", None), read(parts / "steps.json", [])
    name = (device[-1].split(",")[0] if device else "gpu").strip()
    date = time.strftime("%Y-%m-%d")
    everything = {"device": device, "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime()), "stages": stages, "logs": {title: log_of(parts, title) for title, outcome, _ in stages if outcome != "passed"}, "kernels": kernels, "steps": steps}

    lines = [f"# {name}, {date}", "", "What `bun run gpu:check` (or `bench/gpu/check.sh`) found."]
    lines += ["", "```", *device, "```"] if device else []
    lines += table(["stage", "outcome", "seconds"], stages)
    if steps:
        lines += ["", "Training steps in bfloat16, tokens/s:"]
        lines += table(["shape", "ms", "tokens/s", "MFU", "target", "peer", "its tokens/s", "ratio"], map(step_row, steps))
    if kernels:
        lines += ["", f"{kernels.get('device', 'no device')}; PyTorch {kernels.get('torch', 'not loaded')}."]
        if kernels["rows"]:
            lines += [f"Copies move {kernels['copy_gb_per_s']:.0f} GB/s, matrix products do {kernels['matrix_tflops']:.0f} TFLOP/s: shares are of these."]
            lines += table(["work", "ms", "achieved", "share", "target", "peer", "peer's ms", "ratio"], map(kernel_row, kernels["rows"]))
        lines += table(["operation", "largest relative error against float64"], [[key, f"{error:.1e}"] for key, error in sorted(kernels["errors"].items())])
        lines += ["", *([f"- {line}" for line in kernels["wrong"]] or ["Every operation is right, and gives the same bits twice."])]
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{date}"
    path.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print(f"results: {path}.md and .json")


if __name__ == "__main__":
    main()
