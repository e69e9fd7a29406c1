"""Which method gives the most accuracy per byte? Without training and with it, in one table.

    python -m experiments.compare --config=experiments/configs/stories260k.py \
        --config.data.directory=DATA --config.model.weights=DATA/stories260K.bin \
        --config.data.tokenizer=DATA/tok512.bin --bits=6,5,4,3 --workdir=runs/compare_stories

Every method gets the same weights, examples (`config.calibration.examples` of the training part)
and held-out data, and writes a file by the same coder; what it is given is the size of that file,
in bits per weight of the network or, with --bytes, in bytes. Those whose names end in "-trained"
get the config's training, steps and teacher, from the same weights. Each point is a process of its
own; the same command does what is missing. Writes of all points that the folder has
comparison.html, its figures as comparison_*.svg, its tables as comparison.md, and results.json.
"""

import json
import math
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.atomic_files import write_json
from experiments.calibration.batch_statistics import check_choice, with_statistics
from experiments.comparison import trained
from experiments.comparison.page import write_comparison
from experiments.comparison.peers import METHODS, compress
from experiments.export import shipped
from experiments.scores import metrics
from experiments.task.initial_weights import starting_variables
from experiments.task.load import described, load_task
from experiments.task.prediction import predict
from experiments.training.workdir import claim_workdir, hold_workdir
from experiments.trees import flat_leaves
from sqs_jax.progress import progress, track

_SETTING = "setting"  # in the name of a folder, before its number


def run_point(config: Any, method: str, workdir: Path, setting: int = 0) -> dict[str, Any]:
    """Compress by one method to one size, write the file, evaluate it; "dense" compresses nothing.

    Args:
      config: the experiment, with the size.
      method: its name.
      workdir: its folder.
      setting: of a peer that trains.

    Returns:
      What results.json has of it; "bytes" is None if the method cannot be made so small.
    """
    started, resumed = time.monotonic(), (workdir / "checkpoints").is_dir()
    found: dict[str, Any] = {"method": method, "budget": config.sqs.target_bytes,
                             "seed": config.seed, "bytes": None}  # fmt: skip
    if method in trained.METHODS:
        try:
            found |= trained.run(config, method, setting, workdir)
        except sqs_jax.BudgetError as error:  # which says how small the file can be
            print(error)
            return found
    else:
        problem = load_task(config, workdir)
        with progress("reading the weights"):
            variables = jax.tree.map(np.asarray, starting_variables(problem, config))
        if method == "dense":
            sqs_jax.save(workdir / "model.sqs", variables)
        else:
            made = compress(method, problem, variables, config, workdir)
            if made is None:
                return found
            params, found["settings"] = made
            train = problem.splits.train
            state, which = with_statistics(problem.model, params, variables, train, config)
            if state:
                found["settings"] = {**(found["settings"] or {}), "statistics": which}
            tree, options = shipped(params, state, config)
            sqs_jax.save(workdir / "model.sqs", jax.tree.map(np.asarray, tree), **options)
            found["layer_errors"] = _layer_errors(params, variables["params"])
            variables = sqs_jax.materialize(sqs_jax.load(workdir / "model.sqs"))
        scores = metrics(predict(problem.model, [variables], problem.splits.holdout))
        if config.data.kind == "language":
            scores["perplexity"] = math.exp(scores["nll"])
        found["scores"] = scores
    report = sqs_jax.inspect(workdir / "model.sqs")
    found["bits_per_weight"] = {
        name: getattr(report, f"{name}_bits") / report.weights
        for name in ("paper", "fixed", "entropy", "file")
    }
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = None if resumed else time.monotonic() - started  # which would be of a part alone
    return found | {"bytes": report.file_bytes, "seconds": seconds, "peak_bytes": peak}


def _layer_errors(params: Any, weights: Any) -> dict[str, float]:
    """Return the squared error of each compressed kernel over its squared norm."""
    there = flat_leaves(weights)
    errors = {}
    for path, leaf in flat_leaves(params).items():
        if sqs_jax.is_compressed(leaf):
            wanted = np.asarray(there[path], np.float64)
            error = np.sum((sqs_jax.materialize(leaf) - wanted) ** 2)
            errors[path] = float(error / max(np.sum(wanted**2), 1e-300))
    return errors


class Point(NamedTuple):
    """One process of a comparison.

    Attributes:
      method: its name.
      size: bytes of its file; 0 for a peer that trains.
      seed: of the examples, and of a training.
      setting: of a peer that trains; None for the others.
    """

    method: str
    size: int
    seed: int
    setting: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        which = self.size if self.setting is None else f"{_SETTING}{self.setting}"
        return f"{self.method}_{which}_{self.seed}"

    @classmethod
    def named(cls, name: str) -> "Point":
        """Return the point of a folder's name."""
        method, which, seed = name.rsplit("_", 2)
        if which.startswith(_SETTING):
            return cls(method, 0, int(seed), int(which.removeprefix(_SETTING)))
        return cls(method, int(which), int(seed))

    def command(self, folder: Path) -> list[str]:
        """Return the command that runs it, with the config's flags of this process."""
        given = [arg for arg in sys.argv[1:] if arg.startswith("--config")]
        own = [] if self.setting is None else [f"--setting={self.setting}"]
        return [
            sys.executable, "-m", "experiments.compare", *given, f"--workdir={folder}",
            f"--config.sqs.target_bytes={self.size}", f"--config.seed={self.seed}",
            f"--method={self.method}", *own,
        ]  # fmt: skip


def compare(workdir: Path, points: list[Point], sizes: list[int]) -> Path:
    """Run the points that are missing; returns the path of the page, of all that are there."""
    # all points are processes that run much the same programs
    programs = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.resolve() / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    missing = [point for point in points if not (workdir / point.name / "result.json").is_file()]
    done = len(points) - len(missing)
    shown = track(missing, "comparison", len(points), completed=done)
    for number, point in enumerate(shown, done + 1):
        folder = workdir / point.name
        print(f"{number}/{len(points)}  {point.name}", flush=True)
        if folder.is_dir() and point.method not in trained.METHODS:  # a training goes on
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            ended = subprocess.run(
                point.command(folder), check=False, stdout=log, stderr=log,
                env={**programs, **os.environ},
            )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(
                f"{point.method} ended with {ended.returncode}; see {folder / 'log.txt'}"
            )
    results: list[dict[str, Any]] = []
    runs: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(workdir.glob("*/result.json")):
        found = json.loads(path.read_text())
        command = Point.named(path.parent.name).command(path.parent)
        found["command"] = shlex.join(["python", *command[1:]])
        own = trained.SETTINGS.get(found["method"])
        (runs[found["method"], found["seed"]] if own else results).append(found)
    budgets = {*sizes, *(each["budget"] for each in results)} - {0}
    results += [trained.chosen(each, size) for each in runs.values() for size in budgets]
    write_json(workdir / "results.json", results)
    return write_comparison(workdir / "comparison.html", results)


def main(_: Any) -> None:
    given = flags.FLAGS
    if not given.config or not given.workdir:
        raise app.UsageError("--config and --workdir are needed.")
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    config, workdir = described(given.config), Path(given.workdir)
    if given.method:
        result = run_point(config, given.method, workdir, given.setting)
        write_json(workdir / "result.json", result)
        return
    methods = (*METHODS, *trained.METHODS) if config.model.weights else METHODS
    if set(given.methods) & {*trained.METHODS} - {*methods}:
        raise app.UsageError(
            "Methods that train start from config.model.weights, which is empty: name the weights, "
            "such as dense.sqs of another run."
        )
    if unknown := set(given.methods) - {*methods}:
        raise app.UsageError(f"--methods: {', '.join(unknown)}; there are {', '.join(methods)}.")
    sizes = [int(size) for size in given.bytes]
    if given.bits:
        problem = load_task(config, workdir)
        params = starting_variables(problem, config)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        sizes += [int(float(bits) * count / 8) for bits in given.bits]
    if not sizes:
        raise app.UsageError("--bits or --bytes is needed: the sizes of the files.")
    if any(arg.startswith("--config") and "=" not in arg for arg in sys.argv[1:]):
        raise app.UsageError("Write --config=FILE and --config.FIELD=VALUE, with =.")
    points = [Point("dense", 0, int(given.seeds[0]))]
    for method in given.methods or methods:
        for seed in map(int, given.seeds):
            if method in trained.SETTINGS:
                settings = range(len(trained.SETTINGS[method]))
                points += [Point(method, 0, seed, number) for number in settings]
            else:
                points += [Point(method, size, seed) for size in sizes]
    check_choice(config)
    claim_workdir(workdir, config)
    hold_workdir(workdir)
    print(f"comparison: {compare(workdir, points, sizes)}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", None, "Experiment: experiments/configs/stories260k.py, ...", lock_config=True
    )
    flags.DEFINE_string("workdir", "", "Folder of the comparison; made if it is not there.")
    flags.DEFINE_list("bits", [], "Sizes of the files, bits per weight of the network.")
    flags.DEFINE_list("bytes", [], "Sizes of the files, bytes.")
    flags.DEFINE_list("seeds", ["0"], "Of the examples.")
    flags.DEFINE_list("methods", [], "Which methods; all by default.")
    flags.DEFINE_string("method", "", "One method, of one point: what the command above starts.")
    flags.DEFINE_integer("setting", 0, "Of a method that trains and takes no size.")
    app.run(main)
