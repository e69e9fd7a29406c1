"""The points of a sweep: a run of experiments.train each, in a process of its own."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.training.processes import STOPPED
from experiments.training.workdir import claim_workdir, locked
from sqs_jax.progress import progress


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


def changed(config: Any, settings: dict[str, Any]) -> Any:
    """Return a copy of a config with some fields set, by their dotted names."""
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
        found.append(Point(settings, folder, command, changed(config, settings)))
    for point in found:
        if point.finished:  # the others say so themselves
            claim_workdir(point.folder, point.config)
    return found


def train_all(
    todo: list[Point], places: Sequence[dict[str, str]], say: Callable[[str], None]
) -> list[Point]:
    """Train points, one in each place at a time; returns those that failed.

    Args:
      todo: the points.
      places: what the environment of a training there has: which GPU it sees, or nothing.
      say: tells how it goes.

    Raises:
      SystemExit: with STOPPED after SIGTERM, which is passed on to the trainings.
    """
    running: dict[subprocess.Popen[bytes], tuple[Point, dict[str, str]]] = {}
    free, waiting, failed, stopped = list(places), list(todo), [], []
    elsewhere: set[Path] = set()

    def stop(*_: Any) -> None:
        stopped.append(True)
        for process in running:
            process.terminate()

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with progress("trainings", len(todo)) as advance:
            while (waiting and not stopped) or running:
                for point in list(waiting):
                    if not free or stopped:
                        break
                    process = start(point, free[0])
                    if process is not None:
                        waiting.remove(point)
                        running[process] = point, free.pop(0)
                        say(f"{point.folder.name}: training")
                    elif point.finished:
                        waiting.remove(point)
                        advance()
                    elif point.folder not in elsewhere:
                        elsewhere.add(point.folder)
                        say(f"{point.folder.name}: waiting for the process that trains it")
                time.sleep(0.1)
                for process in [p for p in running if p.poll() is not None]:
                    point, place = running.pop(process)
                    free.append(place)
                    advance()
                    if process.returncode == 0:
                        say(f"{point.folder.name}: done")
                    elif not stopped:
                        failed.append(point)
                        code = process.returncode
                        say(f"{point.folder.name}: exit code {code}, see log.txt there")
    finally:
        signal.signal(signal.SIGTERM, before)
    if stopped:
        raise SystemExit(STOPPED)
    return failed


def start(point: Point, place: dict[str, str]) -> "subprocess.Popen[bytes] | None":
    """Start a point's training; None while one that outlived its sweep is still at it.

    Points share what they have compiled, unless the environment says where that is.
    A training holds the lock of its log as long as it lives, whatever becomes of the sweep.
    """
    point.folder.mkdir(parents=True, exist_ok=True)
    log = locked(point.folder / "log.txt")
    if log is None:
        return None
    with log:
        if point.finished:  # while it was waited for
            return None
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(point.folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, *point.command], stdout=log, stderr=subprocess.STDOUT,
            env=environment | os.environ | place,
        )  # fmt: skip
