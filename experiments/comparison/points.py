"""Points of a comparison, each measured in a process of its own."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.comparison import compression_aware_training as trained
from experiments.comparison.page import write_comparison
from experiments.files import write_json
from sqs_jax.progress import track

_SETTING = "setting"  # prefix of a setting's index in the name of a folder


class Point(NamedTuple):
    """Measurement of a method with a size and a seed.

    Attributes:
      method: Name of the method.
      size: Size of the file, bytes; 0 for a peer that trains.
      seed: Seed of the examples and of the training.
      setting: Index of the setting of a peer that trains; None for other methods.
    """

    method: str
    size: int
    seed: int
    setting: int | None = None

    @property
    def name(self) -> str:
        """Name of the point's folder."""
        size = self.size if self.setting is None else f"{_SETTING}{self.setting}"
        return f"{self.method}_{size}_{self.seed}"

    @classmethod
    def named(cls, name: str) -> "Point":
        """Return the point of a folder's name."""
        method, size, seed = name.rsplit("_", 2)
        if size.startswith(_SETTING):
            return cls(method, 0, int(seed), int(size.removeprefix(_SETTING)))
        return cls(method, int(size), int(seed))

    def command(self, folder: Path) -> list[str]:
        """Return the command of the point, with the config flags of this process."""
        config_flags = [arg for arg in sys.argv[1:] if arg.startswith("--config")]
        setting_flags = [] if self.setting is None else [f"--setting={self.setting}"]
        return [
            sys.executable, "-m", "experiments.compare", *config_flags, f"--workdir={folder}",
            f"--config.sqs.target_bytes={self.size}", f"--config.seed={self.seed}",
            f"--method={self.method}", *setting_flags,
        ]  # fmt: skip


def points_of(methods: Sequence[str], sizes: list[int], seeds: list[int]) -> list[Point]:
    """List the dense network's point, and a point per method, seed, and size or setting."""
    points = [Point("dense", 0, seeds[0])]
    for method in methods:
        for seed in seeds:
            if method in trained.SETTINGS:
                settings = range(len(trained.SETTINGS[method]))
                points += [Point(method, 0, seed, number) for number in settings]
            else:
                points += [Point(method, size, seed) for size in sizes]
    return points


def compare(workdir: Path, points: list[Point], sizes: list[int]) -> Path:
    """Run the unfinished points, and write the page of all points in the folder.

    Args:
      workdir: Folder of the comparison.
      points: Points to run; finished ones are skipped.
      sizes: Sizes of the files, bytes.

    Returns:
      Path of the page.
    """
    unfinished = [p for p in points if not (workdir / p.name / "result.json").is_file()]
    done = len(points) - len(unfinished)
    for number, point in enumerate(
        track(unfinished, "comparison", len(points), completed=done), done + 1
    ):
        print(f"{number}/{len(points)}  {point.name}", flush=True)
        _run(workdir, point)
    results: list[dict[str, Any]] = []
    runs: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(workdir.glob("*/result.json")):
        result = json.loads(path.read_text())
        command = Point.named(path.parent.name).command(path.parent)
        result["command"] = shlex.join(["python", *command[1:]])
        has_settings = result["method"] in trained.SETTINGS
        (runs[result["method"], result["seed"]] if has_settings else results).append(result)
    budgets = {*sizes, *(result["budget"] for result in results)} - {0}
    results += [trained.chosen(group, size) for group in runs.values() for size in budgets]
    write_json(workdir / "results.json", results)
    return write_comparison(workdir / "comparison.html", results)


def _run(workdir: Path, point: Point) -> None:
    """Run a point in a process of its own."""
    folder = workdir / point.name
    if folder.is_dir() and point.method not in trained.METHODS:  # only a training resumes
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # The processes share compiled programs, most of which are the same.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.resolve() / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    with (folder / "log.txt").open("w") as log:
        process = subprocess.run(
            point.command(folder), check=False, stdout=log, stderr=log,
            env={**cache, **os.environ},
        )  # fmt: skip
    if process.returncode:
        raise RuntimeError(
            f"{point.method} ended with {process.returncode}; see {folder / 'log.txt'}"
        )
