"""Train a grid of settings, a process for each point, and draw accuracy against bytes.

    python -m experiments.sweep --config=experiments/configs/digits.py --workdir=runs/sweep \\
        --grid=sqs.components=[2,4,8] --grid=sqs.sparsity=[0.5,0.8] --grid=seed=[0,1,2]

Points that differ in `seed` alone are one point of the page, with its spread. The same command goes
on where it was interrupted: no finished point is trained again. With --cluster=slurm every point is
a job of a Slurm array, by submitit; --cluster_options='{"slurm_partition": "gpu", "gpus_per_node":
1, "timeout_min": 240}' are what it knows, and a job that was preempted goes on.

Writes frontier.html, results.json and, for each point, the run of experiments.train in a folder of
its own. Exits with 1 if a point failed, see its log.txt, and with 75 after SIGTERM.
"""

import ast
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from flax.traverse_util import flatten_dict
from ml_collections import config_flags

from experiments.cluster import submit
from experiments.files import write_json
from experiments.pages.pareto_front import write_frontier
from experiments.points import Point, changed, points, train_all

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


def parse(grid: list[str], config: Any) -> dict[str, list[Any]]:
    """Read FIELD=[VALUE, ...] of every axis.

    Args:
      grid: the axes.
      config: the experiment, which must have the fields.

    Raises:
      ValueError: listing every axis that cannot be read, or whose field or values do not fit.
    """
    known, axes, problems = flatten_dict(config.to_dict(), sep="."), {}, []
    for text in grid:
        field, _, written = text.partition("=")
        field = field.strip().removeprefix("config.")
        try:
            values = ast.literal_eval(written)
        except (SyntaxError, ValueError):
            problems.append(f"{text!r}: write it as FIELD=[VALUE, ...], strings in quotes")
            continue
        if not isinstance(values, list) or not values:
            problems.append(f"{text!r}: the values must be a list, [VALUE, ...], of one or more")
        elif field not in known:
            problems.append(f"{text!r}: the config has no field {field}")
        elif field in axes:
            problems.append(f"{text!r}: {field} has an axis already")
        elif len(set(map(repr, values))) < len(values):
            problems.append(f"{text!r}: a value is there twice")
        for value in values if field in known and isinstance(values, list) else ():
            try:
                changed(config, {field: value})
            except (TypeError, ValueError) as error:
                problems.append(f"{text!r}: {value!r} does not fit: {error}")
        axes[field] = values
    if problems:
        raise ValueError("--grid cannot be used:\n  " + "\n  ".join(problems))
    return axes


def result(point: Point) -> dict[str, Any]:
    """Return what a finished point was and measured."""
    evaluation = json.loads((point.folder / "evaluation.json").read_text())
    return {
        "settings": point.settings,
        "command": shlex.join(["python", *point.command]),
        "evaluation": evaluation,
    }


def main(_: Any) -> None:
    for flag in (_CONFIG, _WORKDIR):
        if not flag.value:
            raise app.UsageError(f"--{flag.name} is needed.")
    workdir = Path(_WORKDIR.value)
    words = [word for word in sys.argv[1:] if word.startswith("--config")]
    if any("=" not in word for word in words):
        raise app.UsageError("Write --config=FILE and --config.FIELD=VALUE, with =.")
    todo = points(parse(_GRID.value, _CONFIG.value), words, workdir, _CONFIG.value)
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
