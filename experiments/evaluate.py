"""Evaluate a finished run from its files alone.

    python -m experiments.evaluate --workdir=runs/digits

The command reads config.json and the .sqs files, and writes evaluation.json.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

import sqs_jax
from experiments.atomic_files import write_json
from experiments.scores import fingerprint, metrics
from experiments.task.load import load_task
from experiments.task.prediction import averaged, judge_all
from experiments.training.workdir import read_config
from sqs_jax.progress import progress

_FILES = {
    "dense": "dense.sqs",
    "finetune": "finetune.sqs",
    "mean": "mean.sqs",
    "mode": "model.sqs",
}


def evaluate(workdir: Path, networks: Iterable[str] = ()) -> dict[str, Any]:
    """Evaluate the networks of a run from its files.

    Args:
      workdir: Folder of the run.
      networks: Names of the networks: "dense", "finetune", "mean", "mode", "averaged"; all by
        default.

    Returns:
      Scores by name of the network.

    Raises:
      FileNotFoundError: The folder has no run, or a file is missing.
      ValueError: The name of a network is unknown.
    """
    names = {*_FILES, "averaged"}
    selected = {*networks} or names
    if unknown := selected - names:
        raise ValueError(f"--networks: no {sorted(unknown)}; there are {sorted(names)}.")
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(
            f"{workdir} holds no finished run. Make one: python -m experiments.train "
            f"--config=... --workdir={workdir}"
        )
    config = read_config(workdir)
    task = load_task(config, workdir)

    @progress("reading a file")
    def read(name: str) -> Any:
        return sqs_jax.materialize(sqs_jax.load(workdir / name))

    def scores(networks: Sequence[Any], file: str) -> dict[str, Any]:
        holdout = task.splits.holdout
        parts: Iterable[tuple[slice, jax.Array]] = averaged(task.model, networks, holdout)
        if task.score is not None:
            parts = list(parts)  # The score of the task reads them again.
        judged = judge_all(parts, holdout)
        measured = metrics(judged)
        if config.data.kind == "language":
            measured["perplexity"] = math.exp(measured["nll"])
        if task.score is not None:
            measured |= task.score(np.concatenate([predicted for _, predicted in parts]))
        return {
            **measured,
            "fingerprint": fingerprint(judged.correct),
            "bytes": (workdir / file).stat().st_size,
            "passes": len(networks),
        }

    result = {}
    for name, file in _FILES.items():
        if name in ("finetune", "mean") and not (workdir / file).is_file():
            continue  # Not every command fine-tunes, or has a posterior.
        if name in selected:
            result[name] = scores([read(file)], file)
    if "averaged" in selected and (workdir / "average.sqs").is_file():
        average = read("average.sqs")
        draws = average.pop("draws")
        members = [{"params": params, **average} for params in draws]
        result["averaged"] = scores(members, "average.sqs")
    return result


def main(_: Any) -> None:
    logging.set_verbosity(logging.WARNING)  # JAX logs every missing backend.
    workdir = Path(flags.FLAGS.workdir)
    write_json(workdir / "evaluation.json", evaluate(workdir, flags.FLAGS.networks))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("networks", [], 'Which of "dense", "finetune", "mean", "mode", "averaged".')
    app.run(main)
