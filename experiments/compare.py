"""Which method gives the most accuracy per byte? Methods without training, in one table.

    python -m experiments.compare --config=experiments/configs/stories260k.py \
        --config.data.directory=DATA --config.model.weights=DATA/stories260K.bin \
        --config.data.tokenizer=DATA/tok512.bin --bits=6,5,4,3 --workdir=runs/compare_stories

Every method gets the same weights, examples (`config.calibration.examples` of the training part)
and held-out data, and writes a file by the same coder; what it is given is the size of that file,
in bits per weight of the network or, with --bytes, in bytes. Each point is a process of its own;
the same command does what is missing. Writes comparison.html and results.json.
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
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

import sqs_jax
from experiments.comparison.page import write_comparison
from experiments.comparison.peers import METHODS, compress
from experiments.evaluate import predict
from experiments.export import shipped
from experiments.problem import described, load_problem, starting_variables
from experiments.scores import metrics
from experiments.training.workdir import claim_workdir, hold_workdir
from experiments.trees import flat_leaves, other_collections


def run_point(config: Any, method: str, workdir: Path) -> dict[str, Any]:
    """Compress by one method to one size, write the file, evaluate it; "dense" compresses nothing.

    Returns:
      What results.json has of it; "bytes" is None if the method cannot be made so small.
    """
    problem = load_problem(config, workdir)
    variables = jax.tree.map(np.asarray, starting_variables(problem, config))
    state = other_collections(variables)
    started = time.monotonic()
    found: dict[str, Any] = {"method": method, "budget": config.sqs.target_bytes,
                             "seed": config.seed, "bytes": None}  # fmt: skip
    if method == "dense":
        written = sqs_jax.save(workdir / "dense.sqs", variables)
    else:
        made = compress(method, problem, variables, config, workdir)
        if made is None:
            return found
        params, found["settings"] = made
        tree, options = shipped(params, state, config)
        tree = jax.tree.map(np.asarray, tree)
        written = sqs_jax.save(workdir / "model.sqs", tree, **options)
        report = sqs_jax.inspect(workdir / "model.sqs")
        found["bits_per_weight"] = {
            name: getattr(report, f"{name}_bits") / report.weights
            for name in ("paper", "fixed", "entropy", "file")
        }
        found["layer_errors"] = _layer_errors(params, variables["params"])
        variables = sqs_jax.materialize(sqs_jax.load(workdir / "model.sqs"))
    found |= {"bytes": written, "seconds": time.monotonic() - started}
    scores = metrics(predict(problem.model, [variables], problem.splits.holdout))
    if config.data.kind == "language":
        scores["perplexity"] = math.exp(scores["nll"])
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"scores": scores, "peak_bytes": peak}


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


def compare(config: Any, workdir: Path, points: list[tuple[str, int, int]]) -> Path:
    """Run the points (method, bytes, seed) that are missing; returns the path of the page."""
    results = []
    # all points are processes that run much the same programs
    programs = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.resolve() / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }
    for number, (method, size, seed) in enumerate(points, start=1):
        folder = workdir / f"{method}_{size}_{seed}"
        result = folder / "result.json"
        given = [arg for arg in sys.argv[1:] if arg.startswith("--config")]
        command = [
            sys.executable, "-m", "experiments.compare", *given, f"--workdir={folder}",
            f"--config.sqs.target_bytes={size}", f"--config.seed={seed}", f"--method={method}",
        ]  # fmt: skip
        if not result.is_file():
            print(f"{number}/{len(points)}  {method}, {size:,} bytes, seed {seed}", flush=True)
            if folder.is_dir():  # of a point that was interrupted, whose time would be a part
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            with (folder / "log.txt").open("w") as log:
                ended = subprocess.run(
                    command, check=False, stdout=log, stderr=log, env={**programs, **os.environ}
                )
            if ended.returncode:
                raise RuntimeError(
                    f"{method} ended with {ended.returncode}; see {folder / 'log.txt'}"
                )
        shown = shlex.join(["python", *command[1:]])
        results.append({**json.loads(result.read_text()), "command": shown})
    (workdir / "results.json").write_text(json.dumps(results, indent=1))
    return write_comparison(workdir / "comparison.html", results)


def main(_: Any) -> None:
    given = flags.FLAGS
    if not given.config or not given.workdir:
        raise app.UsageError("--config and --workdir are needed.")
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    config, workdir = described(given.config), Path(given.workdir)
    if given.method:
        result = json.dumps(run_point(config, given.method, workdir), indent=1)
        (workdir / "result.json").write_text(result)
        return
    if unknown := set(given.methods) - {*METHODS}:
        raise app.UsageError(f"--methods: {', '.join(unknown)}; there are {', '.join(METHODS)}.")
    sizes = [int(size) for size in given.bytes]
    if given.bits:
        problem = load_problem(config, workdir)
        params = starting_variables(problem, config)["params"]
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        sizes += [int(float(bits) * count / 8) for bits in given.bits]
    if not sizes:
        raise app.UsageError("--bits or --bytes is needed: the sizes of the files.")
    seeds = [int(seed) for seed in given.seeds]
    methods = given.methods or METHODS
    points = [(m, size, seed) for size in sizes for m in methods for seed in seeds]
    if any(arg.startswith("--config") and "=" not in arg for arg in sys.argv[1:]):
        raise app.UsageError("Write --config=FILE and --config.FIELD=VALUE, with =.")
    claim_workdir(workdir, config)
    hold_workdir(workdir)
    print(f"comparison: {compare(config, workdir, [('dense', 0, seeds[0]), *points])}")


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
    app.run(main)
