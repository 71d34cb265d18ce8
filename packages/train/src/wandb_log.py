"""Logs a run to Weights & Biases with their SDK, for `bun run train --wandb PROJECT`.

In: JSON lines; the first holds the arguments of wandb.init, every other the metrics of a step. Out: one JSON line once the
run is there, {"where": its page, or its directory in offline mode}.
"""

import json
import signal
import sys

import wandb

# Ctrl-C is for the trainer, which closes our input when it has stopped.
signal.signal(signal.SIGINT, signal.SIG_IGN)

run = wandb.init(resume="allow", **json.loads(sys.stdin.readline()))
# Not W&B's own count of steps, which cannot go back as a run that diverged does.
run.define_metric("step")
run.define_metric("*", step_metric="step")
print(json.dumps({"where": run.url or run.dir}), flush=True)
for line in sys.stdin:
    run.log(json.loads(line))
run.finish()
