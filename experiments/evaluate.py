"""Evaluate a finished run from its files alone, in a process of its own.

    python -m experiments.evaluate --workdir=runs/digits

Reads config.json and the .sqs files, writes evaluation.json.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags, logging

import sqs_jax
from experiments.atomic_files import write_json
from experiments.data import Dataset
from experiments.scores import Judgement, fingerprint, judge, metrics
from experiments.task.task import load_task
from experiments.training.workdir import read_config
from sqs_jax.progress import progress

_BATCH = 500  # examples, or fewer of many logits
_LOGITS = 1 << 24  # of a batch, at most
_FILES = {
    "dense": "dense.sqs",
    "finetune": "finetune.sqs",
    "mean": "mean.sqs",
    "mode": "model.sqs",
}


@partial(jax.jit, static_argnums=0)  # compiled once for all the networks of a model
def _apply(model: nn.Module, variables: Any, examples: Any) -> Any:
    logits: Any = model.apply(variables, examples)
    return jax.nn.softmax(logits, axis=-1)


def probabilities(
    model: nn.Module, variables: Any, dataset: Dataset
) -> Iterator[tuple[slice, jax.Array]]:
    """Yield what a network predicts, [batch, ..., classes], and of which examples, in order."""
    variables = jax.device_put(variables)
    logits = jax.eval_shape(partial(model.apply, variables), dataset.inputs(slice(1))).size
    size = min(_BATCH, max(1, _LOGITS // logits))
    for i in range(0, len(dataset.examples), size):
        chosen = slice(i, i + size)
        yield chosen, _apply(model, variables, dataset.inputs(chosen))


def averaged(
    model: nn.Module, networks: Sequence[Any], dataset: Dataset
) -> Iterator[tuple[slice, jax.Array]]:
    """Yield what networks of one model predict on average, as `probabilities` does."""
    with progress("evaluation", len(dataset.examples)) as advance:
        for each in zip(*(probabilities(model, x, dataset) for x in networks), strict=True):
            yield each[0][0], sum(found for _, found in each) / len(each)
            advance(len(each[0][1]))


def predict(model: nn.Module, networks: Sequence[Any], dataset: Dataset) -> Judgement:
    """Judge what networks of one model predict on average.

    Args:
      model: the network.
      networks: variables of each.
      dataset: what is predicted.
    """
    return judge_all(averaged(model, networks, dataset), dataset)


def judge_all(parts: Iterable[tuple[slice, jax.Array]], dataset: Dataset) -> Judgement:
    """Judge what is predicted of a dataset, batch by batch."""
    judged = [judge(found, dataset.labels[chosen]) for chosen, found in parts]
    return Judgement(*map(np.concatenate, zip(*judged, strict=True)))


def evaluate(workdir: Path, networks: Iterable[str] = ()) -> dict[str, Any]:
    """Evaluate dense, finetuned, mean, mode and averaged networks from the files of a run.

    Args:
      workdir: of the run.
      networks: names of those that are; all by default.

    Raises:
      FileNotFoundError: if the folder has no run, or not all of its files.
      ValueError: for an unknown network.
    """
    known = {*_FILES, "averaged"}
    wanted = {*networks} or known
    if unknown := wanted - known:
        raise ValueError(f"--networks: no {sorted(unknown)}; there are {sorted(known)}.")
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(
            f"{workdir} holds no finished run. Make one: python -m experiments.train "
            f"--config=... --workdir={workdir}"
        )
    config = read_config(workdir)
    problem = load_task(config, workdir)

    @progress("reading a file")
    def read(name: str) -> Any:
        return sqs_jax.materialize(sqs_jax.load(workdir / name))

    def scores(networks: Sequence[Any], file: str) -> dict[str, Any]:
        holdout = problem.splits.holdout
        parts: Iterable[tuple[slice, jax.Array]] = averaged(problem.model, networks, holdout)
        if problem.score is not None:
            parts = list(parts)  # probabilities of all examples at once
        judged = judge_all(parts, holdout)
        found = metrics(judged)
        if config.data.kind == "language":
            found["perplexity"] = math.exp(found["nll"])
        if problem.score is not None:
            found |= problem.score(np.concatenate([each for _, each in parts]))
        return {
            **found,
            "fingerprint": fingerprint(judged.correct),
            "bytes": (workdir / file).stat().st_size,
            "passes": len(networks),
        }

    result = {}
    for name, file in _FILES.items():
        if name in ("finetune", "mean") and not (workdir / file).is_file():
            continue  # not every command trains one, or has a posterior
        if name in wanted:
            result[name] = scores([read(file)], file)
    if "averaged" in wanted and (workdir / "average.sqs").is_file():
        average = read("average.sqs")
        draws = average.pop("draws")
        members = [{"params": params, **average} for params in draws]
        result["averaged"] = scores(members, "average.sqs")
    return result


def main(_: Any) -> None:
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    workdir = Path(flags.FLAGS.workdir)
    write_json(workdir / "evaluation.json", evaluate(workdir, flags.FLAGS.networks))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    flags.DEFINE_list("networks", [], 'Which of "dense", "finetune", "mean", "mode", "averaged".')
    app.run(main)
