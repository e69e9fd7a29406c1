"""Train a grid of settings, a process for each point, and draw accuracy against bytes.

    python -m experiments.sweep --config=experiments/configs/digits.py --workdir=runs/sweep \\
        --grid=sqs.components=[2,4,8] --grid=sqs.sparsity=[0.5,0.8] --grid=seed=[0,1,2]

Points that differ in `seed` alone are one point of the page, with its spread. The same command goes
on where it was interrupted: no finished point is trained again. Writes frontier.html, results.json
and, for each point, the run of experiments.train in a folder of its own. Exits with 1 if a point
failed, with what it said in its log.txt, and with 75 after SIGTERM.
"""

import ast
import fcntl
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags
from ml_collections import config_flags
from rich.console import Console

from experiments.frontier import write_frontier
from experiments.processes import STOPPED
from experiments.reproduce import flat
from experiments.workdir import claim_workdir

_CONFIG: Any = config_flags.DEFINE_config_file(
    "config", None, "Experiment that all points share; its fields can be set as for train."
)
_GRID = flags.DEFINE_multi_string("grid", [], "FIELD=[VALUE, ...]; points are all combinations.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the sweep; made if it is not there.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Points trained at a time.", lower_bound=1)
_DRY = flags.DEFINE_bool("dry_run", False, "Print the commands, and train nothing.")


class Point(NamedTuple):
    """One combination of the grid.

    Attributes:
      settings: field -> value.
      folder: of its run.
      command: that trains it.
      config: of its run.
    """

    settings: dict[str, Any]
    folder: Path
    command: list[str]
    config: Any

    @property
    def finished(self) -> bool:
        """Whether its run has ended well: the report is what it writes last."""
        return (self.folder / "report.html").exists()


def parse(grid: list[str], config: Any) -> dict[str, list[Any]]:
    """Read FIELD=[VALUE, ...] of every axis.

    Args:
      grid: the axes.
      config: the experiment, which must have the fields.

    Raises:
      ValueError: listing every axis that cannot be read, or whose field or values do not fit.
    """
    known, axes, problems = flat(config.to_dict()), {}, []
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
                _changed(config, {field: value})
            except (TypeError, ValueError) as error:
                problems.append(f"{text!r}: {value!r} does not fit: {error}")
        axes[field] = values
    if problems:
        raise ValueError("--grid cannot be used:\n  " + "\n  ".join(problems))
    return axes


def _changed(config: Any, settings: dict[str, Any]) -> Any:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(settings)
    return config


def points(
    axes: dict[str, list[Any]], options: list[str], workdir: Path, config: Any
) -> list[Point]:
    """Return all combinations.

    Args:
      axes: field -> values.
      options: of experiments.train that all share.
      workdir: holds their folders.
      config: that all share, options included.

    Raises:
      ValueError: if a finished run is of another config.
    """
    found = []
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        name = ",".join(f"{field}={value}" for field, value in settings.items()) or "point"
        folder = workdir / name.replace("/", "_").replace(" ", "")
        chosen = [f"--config.{field}={value}" for field, value in settings.items()]
        command = ["-m", "experiments.train", *options, *chosen, f"--workdir={folder}"]
        found.append(Point(settings, folder, command, _changed(config, settings)))
    for point in found:
        if point.finished:  # the others say so themselves
            claim_workdir(point.folder, point.config)
    return found


def train(todo: list[Point], jobs: int, say: Callable[[str], None]) -> list[Point]:
    """Train points, some at a time; returns those that failed.

    Raises:
      SystemExit: with STOPPED after SIGTERM, which is passed on to the trainings.
    """
    running: dict[subprocess.Popen[bytes], Point] = {}
    waiting, failed, stopped = list(todo), [], []

    def stop(*_: Any) -> None:
        stopped.append(True)
        for process in running:
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while (waiting and not stopped) or running:
            for point in list(waiting):
                if len(running) >= jobs or stopped:
                    break
                process = start(point)
                if process is not None:
                    waiting.remove(point)
                    running[process] = point
                    say(f"{point.folder.name}: training")
                elif point.finished:
                    waiting.remove(point)
            time.sleep(0.1)
            for process in [p for p in running if p.poll() is not None]:
                point = running.pop(process)
                if process.returncode == 0:
                    say(f"{point.folder.name}: done")
                elif not stopped:
                    failed.append(point)
                    say(f"{point.folder.name}: exit code {process.returncode}, see log.txt there")
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped:
        raise SystemExit(STOPPED)
    return failed


def start(point: Point) -> "subprocess.Popen[bytes] | None":
    """Start a point's training; None while one that outlived its sweep is still at it.

    A training holds the lock of its log as long as it lives, whatever becomes of the sweep.
    """
    point.folder.mkdir(parents=True, exist_ok=True)
    with (point.folder / "log.txt").open("ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if point.finished:  # while it was waited for
            return None
        return subprocess.Popen(
            [sys.executable, *point.command], stdout=log, stderr=subprocess.STDOUT
        )


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
    if _DRY.value:
        for point in todo:
            print(shlex.join(["python", *point.command]))
        return
    console = Console()

    def say(text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')} {text}", highlight=False)

    say(f"{len(todo)} points, {sum(p.finished for p in todo)} of them finished")
    failed = train([p for p in todo if not p.finished], _JOBS.value, say)
    results = [result(point) for point in todo if point.finished]
    part = workdir / "results.json.part"
    part.write_text(json.dumps(results, indent=1))
    os.replace(part, workdir / "results.json")
    if results:
        print(f"frontier: {write_frontier(workdir, results)}")
    if failed:
        raise SystemExit(
            f"{len(failed)} of {len(todo)} points failed; the same command tries again."
        )


if __name__ == "__main__":
    app.run(main)
