"""Evaluate a finished run from its files alone, in a process of its own.

    python -m experiments.evaluate --workdir=runs/digits

Reads config.json and the .sqs files, writes evaluation.json.
"""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

import sqs_jax
from experiments import data
from experiments.data import Dataset
from experiments.models import build_model

_BATCH = 500
_CALIBRATION_BINS = 15
_FILES = {
    "dense": "dense.sqs",
    "finetune": "finetune.sqs",
    "mean": "mean.sqs",
    "mode": "model.sqs",
}


@partial(jax.jit, static_argnums=0)  # compiled once for all the networks of a model
def _apply(model: nn.Module, variables: Any, images: Any) -> Any:
    return model.apply(variables, images)


def predict(model: nn.Module, variables: Any, dataset: Dataset) -> np.ndarray:
    """Return logits [n, classes]."""
    variables = jax.device_put(variables)
    parts = [
        _apply(model, variables, dataset.inputs(slice(i, i + _BATCH)))
        for i in range(0, len(dataset.images), _BATCH)
    ]
    return np.concatenate([np.asarray(part) for part in parts])


def metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute accuracy (fraction), NLL (nats per image) and expected calibration error.

    The calibration error is the mean distance between confidence and accuracy over 15 bins of
    equal width of the confidence, weighted by their counts (Naeini et al., 2015).

    Args:
      probabilities: [n, classes], rows summing to 1.
      labels: [n].
    """
    correct = probabilities.argmax(-1) == labels
    error = sum(
        share * abs(sure - right) for sure, right, share in calibration(probabilities, labels)
    )
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "accuracy": float(correct.mean()),
        "correct": int(correct.sum()),
        "count": len(labels),
        "nll": float(-np.log(np.maximum(likelihood, 1e-30)).mean()),
        "calibration_error": float(error),
    }


def fingerprint(correct: np.ndarray) -> str:
    """Tell which images are classified correctly, bool [n], in 64 hex digits."""
    return hashlib.sha256(np.packbits(correct).tobytes()).hexdigest()


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> list[tuple[float, float, float]]:
    """List (mean confidence, accuracy, share of the images) of each bin that has images."""
    confidence = probabilities.max(-1)
    correct = probabilities.argmax(-1) == labels
    bins = np.minimum((confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    inside = [bins == b for b in np.unique(bins)]
    return [
        (float(confidence[each].mean()), float(correct[each].mean()), float(each.mean()))
        for each in inside
    ]


def evaluate(workdir: Path) -> dict[str, Any]:
    """Evaluate dense, finetuned, mean, mode and averaged networks from the files of a run."""
    if not (workdir / "config.json").is_file():
        raise FileNotFoundError(
            f"{workdir} holds no finished run. Make one: python -m experiments.train "
            f"--config=... --workdir={workdir}"
        )
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    splits = data.load(config.data, config.seed)
    model = build_model(config.model, splits.num_classes)
    images, labels = splits.holdout, splits.holdout.labels

    def read(name: str) -> Any:
        return sqs_jax.materialize(sqs_jax.load(workdir / name))

    def scores(logits: np.ndarray, file: str, networks: int = 1) -> dict[str, Any]:
        each = np.asarray(jax.nn.softmax(jnp.asarray(logits), axis=-1))
        probabilities = each.reshape(networks, -1, splits.num_classes).mean(0)
        return {
            **metrics(probabilities, labels),
            "fingerprint": fingerprint(probabilities.argmax(-1) == labels),
            "bytes": (workdir / file).stat().st_size,
            "passes": networks,
        }

    result = {}
    for name, file in _FILES.items():
        if name == "finetune" and not config.get("finetune", True):
            continue
        result[name] = scores(predict(model, read(file), images), file)
    average = read("average.sqs")
    draws = average.pop("draws")
    stacked = np.concatenate(
        [predict(model, {"params": params, **average}, images) for params in draws]
    )
    result["averaged"] = scores(stacked, "average.sqs", len(draws))
    return result


def main(_: Any) -> None:
    logging.set_verbosity(logging.WARNING)  # jax tells of every backend that is not there
    workdir = Path(flags.FLAGS.workdir)
    (workdir / "evaluation.json").write_text(json.dumps(evaluate(workdir), indent=1))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.", required=True)
    app.run(main)
