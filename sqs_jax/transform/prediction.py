"""What a compression without data will cost, about: from the errors of the weights alone."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import is_compressed, materialize
from sqs_jax.transform.alternatives import as_array

_CHUNK = 1 << 22  # weights in float64 at a time

HARMLESS_LOSS = 0.08
"""Most networks of docs/budget.md lose little below it; the exceptions are listed there."""


def predicted_loss(params: Any, compressed: Any) -> float:
    """Return the relative error of the weights, which predicts that of the outputs, about.

    It is the root of the distortion that `compress_to_budget` minimises without a sensitivity, of
    which all zeros would have 1: sqrt(sum |W - V|^2 / |W|  /  sum |W|), over floating tensors W of
    two axes and more that became V. How much of it a network tolerates differs: docs/budget.md
    has measured losses of four.

    Example:
      >>> weights = {"w": np.array([[3.0, 4.0]])}
      >>> round(predicted_loss(weights, {"w": np.array([[3.0, 3.0]])}), 6)
      0.2

    Args:
      params: tree of arrays, or of array-likes, which are read one at a time.
      compressed: the same tree, some of its leaves compressed.

    Returns:
      At least 0; 0 if no weight has changed, or all were zeros.

    Raises:
      ValueError: if the trees differ.
    """
    leaves, structure = jax.tree.flatten(compressed, is_leaf=is_compressed)
    treedef: Any = structure
    lost, whole = 0.0, 0.0
    for original, leaf in zip(treedef.flatten_up_to(params), leaves, strict=True):
        weights = as_array(original)
        if weights.ndim < 2 or not jnp.issubdtype(weights.dtype, jnp.floating):
            continue  # norms and biases, which hardly a file rounds
        norm, error = _squares(weights, materialize(leaf))
        if 0 < norm < math.inf:  # what is not finite was left as it is
            lost += error / math.sqrt(norm)
            whole += math.sqrt(norm)
    return math.sqrt(lost / whole) if whole else 0.0


def bits_below(loss: float) -> float:
    """Return how many more bits per weight bring a predicted loss to HARMLESS_LOSS.

    An error halves with each bit, of few bits too.
    """
    return math.log2(loss / HARMLESS_LOSS)


def _squares(original: Any, weights: Any) -> tuple[float, float]:
    """Return the squared norms of an array and of another's difference to it."""
    original, weights = np.asarray(original).reshape(-1), np.asarray(weights).reshape(-1)
    norm = error = 0.0
    for start in range(0, original.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        exact = original[part].astype(np.float64)
        norm += float(exact @ exact)
        if not math.isfinite(norm):
            return norm, math.inf
        apart = weights[part].astype(np.float64) - exact
        error += float(apart @ apart)
    return norm, error
