"""Measurement of a method at a size: bytes, scores, time and memory."""

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sqs_jax
from experiments.calibration.statistics import with_statistics
from experiments.comparison import compression_aware_training
from experiments.comparison.post_training import compress
from experiments.evaluate import predict
from experiments.export import shipped
from experiments.problem import load_problem, starting_variables
from experiments.scores import metrics
from experiments.trees import flat_leaves
from sqs_jax.progress import progress


def run_point(config: Any, method: str, workdir: Path, setting: int = 0) -> dict[str, Any]:
    """Compress a network by a method to a size, and evaluate the file.

    Args:
      config: Config of the experiment, with the size in `sqs.target_bytes`.
      method: Name of the method; "dense" writes the network without compression.
      workdir: Folder of the point.
      setting: Index of the setting of a peer that trains.

    Returns:
      Entry of results.json without "command". "bytes" is None if the method makes no file of this
      size; "seconds" is None for a resumed training.
    """
    started, resumed = time.monotonic(), (workdir / "checkpoints").is_dir()
    result: dict[str, Any] = {
        "method": method, "budget": config.sqs.target_bytes, "seed": config.seed, "bytes": None,
    }  # fmt: skip
    if method in compression_aware_training.METHODS:
        try:
            measured = compression_aware_training.run(config, method, setting, workdir)
        except sqs_jax.BudgetError as error:  # the message gives the least size
            print(error)
            return result
    else:
        untrained = _run_untrained(config, method, workdir)
        if untrained is None:
            return result
        measured = untrained
    report = sqs_jax.inspect(workdir / "model.sqs")
    bits = {
        name: getattr(report, f"{name}_bits") / report.weights
        for name in ("paper", "fixed", "entropy", "file")
    }
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes or kibibytes
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        **result, **measured, "bits_per_weight": bits, "bytes": report.file_bytes,
        "seconds": None if resumed else time.monotonic() - started, "peak_bytes": peak,
    }  # fmt: skip


def _run_untrained(config: Any, method: str, workdir: Path) -> dict[str, Any] | None:
    """Write and evaluate the file of a post-training method; None if no file fits."""
    result: dict[str, Any] = {}
    problem = load_problem(config, workdir)
    with progress("reading the weights"):
        variables = jax.tree.map(np.asarray, starting_variables(problem, config))
    path = workdir / "model.sqs"
    if method == "dense":
        sqs_jax.save(path, variables)
    else:
        compressed = compress(method, problem, variables, config, workdir)
        if compressed is None:
            return None
        params, settings = compressed
        train = problem.splits.train
        state, statistics = with_statistics(problem.model, params, variables, train, config)
        result["settings"] = {**(settings or {}), "statistics": statistics} if state else settings
        tree, options = shipped(params, state, config)
        sqs_jax.save(path, jax.tree.map(np.asarray, tree), **options)
        result["layer_errors"] = _layer_errors(params, variables["params"])
        variables = sqs_jax.materialize(sqs_jax.load(path))
    scores = metrics(predict(problem.model, [variables], problem.splits.holdout))
    if config.data.kind == "language":
        scores["perplexity"] = math.exp(scores["nll"])
    return {**result, "scores": scores}


def _layer_errors(params: Any, weights: Any) -> dict[str, float]:
    """Return each compressed kernel's squared error over its squared norm."""
    exact = flat_leaves(weights)
    errors = {}
    for path, leaf in flat_leaves(params).items():
        if sqs_jax.is_compressed(leaf):
            kernel = np.asarray(exact[path], np.float64)
            error = np.sum((sqs_jax.materialize(leaf) - kernel) ** 2)
            errors[path] = float(error / max(np.sum(kernel**2), 1e-300))
    return errors
