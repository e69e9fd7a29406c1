"""Points of a sweep as processes of this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.sweeps.grid import Point
from experiments.training.processes import STOPPED
from experiments.training.workdir import locked
from sqs_jax.progress import progress


def train_all(
    todo: list[Point], places: Sequence[dict[str, str]], say: Callable[[str], None]
) -> list[Point]:
    """Train points; each place runs a training at a time.

    Args:
      todo: Unfinished points.
      places: Environment variables of each place: the GPU that a training sees, or none.
      say: Function that prints a line.

    Returns:
      The points that failed.

    Raises:
      SystemExit: SIGTERM arrived, and was passed on to the trainings; the code is STOPPED.
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
    """Start the training of a point.

    The training locks its log until it ends, even if the sweep ends before. All points share a
    compilation cache, unless the environment configures another cache.

    Args:
      point: Point to train.
      place: Environment variables of the training.

    Returns:
      The process; None if another process trains the point, or the point is finished.
    """
    point.folder.mkdir(parents=True, exist_ok=True)
    log = locked(point.folder / "log.txt")
    if log is None:
        return None
    with log:
        if point.finished:  # Another process has finished it in the meantime.
            return None
        environment = {
            "JAX_COMPILATION_CACHE_DIR": str(point.folder.parent / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return subprocess.Popen(
            [sys.executable, *point.command], stdout=log, stderr=subprocess.STDOUT,
            env=environment | os.environ | place,
        )  # fmt: skip
