"""How good predictions are: accuracy, likelihood and calibration."""

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_CALIBRATION_BINS = 15


class Judgement(NamedTuple):
    """Predictions of n labels.

    Attributes:
      likelihood: probability of the label, [n].
      confidence: the highest probability, [n].
      correct: whether that is the label's, bool [n].
    """

    likelihood: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


def judge(probabilities: jax.Array, labels: np.ndarray) -> Judgement:
    """Judge predictions of labels that are not negative: negative ones are not asked for.

    Args:
      probabilities: [..., classes], summing to 1.
      labels: int [...].
    """
    return Judgement(*(np.asarray(each)[labels >= 0] for each in _judge(probabilities, labels)))


@jax.jit
def _judge(probabilities: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    chosen = jnp.maximum(labels, 0)[..., None]
    likelihood = jnp.take_along_axis(probabilities, chosen, axis=-1)[..., 0]
    return likelihood, probabilities.max(-1), probabilities.argmax(-1) == labels


def metrics(judged: Judgement) -> dict[str, float]:
    """Compute accuracy (fraction), NLL (nats per label) and expected calibration error.

    The calibration error is the mean distance between confidence and accuracy over 15 bins of
    equal width of the confidence, weighted by their counts (Naeini et al., 2015).
    """
    error = sum(share * abs(sure - right) for sure, right, share in calibration(judged))
    likelihood = np.maximum(judged.likelihood.astype(np.float64), 1e-30)
    return {
        "accuracy": float(judged.correct.mean()),
        "correct": int(judged.correct.sum()),
        "count": len(judged.correct),
        "nll": float(-np.log(likelihood).mean()),
        "calibration_error": float(error),
    }


def fingerprint(correct: np.ndarray) -> str:
    """Tell which predictions are correct, bool [n], in 64 hex digits."""
    return hashlib.sha256(np.packbits(correct).tobytes()).hexdigest()


def calibration(judged: Judgement) -> list[tuple[float, float, float]]:
    """List (mean confidence, accuracy, share of the labels) of each bin that has some."""
    bins = np.minimum((judged.confidence * _CALIBRATION_BINS).astype(int), _CALIBRATION_BINS - 1)
    inside = [bins == b for b in np.unique(bins)]
    return [
        (
            float(judged.confidence[each].mean()),
            float(judged.correct[each].mean()),
            float(each.mean()),
        )
        for each in inside
    ]
