"""Train a grid of settings, and plot accuracy against bytes.

    python -m experiments.sweep --config=experiments/configs/digits.py --workdir=runs/sweep \\
        --grid=sqs.components=[2,4,8] --grid=sqs.sparsity=[0.5,0.8] --grid=seed=[0,1,2]

Each point of the grid is trained by a separate process. Points that differ in `seed` only are one
point of the page, with its spread. An interrupted sweep resumes with the same command, and finished
points are not trained again. With --cluster=slurm each point is a job of a Slurm array, by
submitit; a preempted job resumes. The options of submitit are given as JSON:

    --cluster_options='{"slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 240}'

The command writes frontier.html, results.json, and the run of each point in a subfolder. The exit
code is 1 if a point failed (its log.txt has the error), and 75 after SIGTERM.
"""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from experiments.atomic_files import write_json
from experiments.configs.validation import require_trainable
from experiments.pages.pareto_front import write_frontier
from experiments.sweeps.grid import parse, points, result
from experiments.sweeps.local_processes import train_all
from experiments.sweeps.slurm import submit

_CONFIG: Any = config_flags.DEFINE_config_file(
    "config", None, "Experiment that all points share; its fields can be set as for train."
)
_GRID = flags.DEFINE_multi_string("grid", [], "FIELD=[VALUE, ...]; points are all combinations.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the sweep; made if it is not there.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Points trained at a time.", lower_bound=1)
_GPUS = flags.DEFINE_list(
    "gpus", [], "Numbers of GPUs, 0,1,2,3: a point is trained on each at a time, whatever --jobs."
)
_CLUSTER = flags.DEFINE_string(
    "cluster", "", "Submit every point with submitit: slurm, or local to try that out."
)
_OPTIONS = flags.DEFINE_string("cluster_options", "{}", "Of submitit's executor, as JSON.")
_DRY = flags.DEFINE_bool("dry_run", False, "Print the commands, and train nothing.")


def main(_: Any) -> None:
    for flag in (_CONFIG, _WORKDIR):
        if not flag.value:
            raise app.UsageError(f"--{flag.name} is needed.")
    workdir = Path(_WORKDIR.value)
    words = [word for word in sys.argv[1:] if word.startswith("--config")]
    if any("=" not in word for word in words):
        raise app.UsageError("Write --config=FILE and --config.FIELD=VALUE, with =.")
    todo = points(parse(_GRID.value, _CONFIG.value), words, workdir, _CONFIG.value)
    for point in todo:
        require_trainable(point.config)
    try:
        options = json.loads(_OPTIONS.value)
    except json.JSONDecodeError as error:
        raise app.UsageError(f"--cluster_options={_OPTIONS.value} is no JSON: {error}") from error
    if _DRY.value:
        for point in todo:
            print(shlex.join(["python", *point.command]))
        if _CLUSTER.value:
            print(f"{len(todo)} jobs for submitit, cluster {_CLUSTER.value}, options {options}")
        return

    def say(text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    say(f"{len(todo)} points, {sum(p.finished for p in todo)} of them finished")
    unfinished = [point for point in todo if not point.finished]
    if _CLUSTER.value:
        failed = submit(unfinished, workdir / "jobs", _CLUSTER.value, options, say)
    else:
        gpus = [{"CUDA_VISIBLE_DEVICES": number} for number in _GPUS.value]
        failed = train_all(unfinished, gpus or [{}] * _JOBS.value, say)
    results = [result(point) for point in todo if point.finished]
    write_json(workdir / "results.json", results)
    if results:
        page = write_frontier(workdir / "frontier.html", results)
        print(f"frontier: {page}")
    if failed:
        raise SystemExit(
            f"{len(failed)} of {len(todo)} points failed; the same command tries again."
        )


if __name__ == "__main__":
    app.run(main)
