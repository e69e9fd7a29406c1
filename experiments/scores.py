"""Scores of predictions: accuracy, likelihood and calibration."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CALIBRATION_BINS = 15


class Judgement(NamedTuple):
    """Predictions of n labels, reduced to the numbers that the scores need.

    Attributes:
      likelihood: Probability of the label, [n].
      confidence: Highest probability of any class, [n].
      correct: Whether the label has the highest probability, bool [n].
    """

    likelihood: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def judge(probabilities: jax.Array, labels: np.ndarray) -> Judgement:
    """Reduce predictions to likelihood, confidence and correctness of each label.

    Args:
      probabilities: Probabilities [..., classes], summing to 1 over the classes.
      labels: Labels, int [...]; negative labels are ignored.
    """
    return Judgement(*(np.asarray(x)[labels >= 0] for x in _judge(probabilities, labels)))


@jax.jit
def _judge(probabilities: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    chosen = jnp.maximum(labels, 0)[..., None]
    likelihood = jnp.take_along_axis(probabilities, chosen, axis=-1)[..., 0]
    return likelihood, probabilities.max(-1), probabilities.argmax(-1) == labels


def metrics(judged: Judgement) -> dict[str, float]:
    """Compute accuracy (fraction), NLL (nats per label) and expected calibration error.

    The calibration error is the mean distance between confidence and accuracy over 15 bins of
    equal width of the confidence, weighted by their counts (Naeini et al., 2015).

    Args:
      judged: Judged predictions of at least one label.
    """
    error = sum(
        share * abs(confidence - accuracy) for confidence, accuracy, share in calibration(judged)
    )
    likelihood = np.maximum(judged.likelihood.astype(np.float64), 1e-30)
    return {
        "accuracy": float(judged.correct.mean()),
        "correct": int(judged.correct.sum()),
        "count": len(judged.correct),
        "nll": float(-np.log(likelihood).mean()),
        "calibration_error": float(error),
    }


def fingerprint(correct: np.ndarray) -> str:
    """Return the SHA-256 of the correctness of each prediction, 64 hex digits.

    Args:
      correct: Whether each prediction is correct, bool [n].
    """
    return hashlib.sha256(np.packbits(correct).tobytes()).hexdigest()


def calibration(judged: Judgement) -> list[tuple[float, float, float]]:
    """List (mean confidence, accuracy, share of the labels) of each bin with labels."""
    bins = np.minimum((judged.confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    members = [bins == b for b in np.unique(bins)]
    return [
        (
            float(judged.confidence[member].mean()),
            float(judged.correct[member].mean()),
            float(member.mean()),
        )
        for member in members
    ]
