"""Relative distortion of compressed weights, which predicts the loss of accuracy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import is_compressed, materialize
from sqs_jax.budget.options import as_array

_CHUNK = 1 << 22  # weights in float64 at a time

HARMLESS_LOSS = 0.08
"""Loss below which most networks keep their accuracy; docs/budget.md lists exceptions."""


def predicted_loss(params: Any, compressed: Any) -> float:
    """Compute the relative error of the weights, which approximates that of the outputs.

    The error is the square root of the distortion that `compress_to_budget` minimizes without a
    sensitivity: sqrt(sum |W - V|^2 / |W| / sum |W|), over floating tensors W of at least two axes
    and their compressed values V. Pruning everything has the error 1. The tolerated error differs
    between networks: docs/budget.md lists measurements.

    Args:
        params: Tree of arrays, or of array-likes, which are read one at a time.
        compressed: Tree of the same structure, with some leaves compressed.

    Returns:
        Relative error, at least 0; 0 if no weight differs or all weights are zero.

    Raises:
        ValueError: If the structures differ.

    Example:
        >>> import numpy as np
        >>> import sqs_jax
        >>> weights = {"kernel": np.array([[3.0, 4.0]])}
        >>> round(sqs_jax.predicted_loss(weights, {"kernel": np.array([[3.0, 3.0]])}), 6)
        0.2
    """
    leaves, structure = jax.tree.flatten(compressed, is_leaf=is_compressed)
    treedef: Any = structure
    error_sum, norm_sum = 0.0, 0.0
    for original, leaf in zip(treedef.flatten_up_to(params), leaves, strict=True):
        weights = as_array(original)
        if weights.ndim < 2 or not jnp.issubdtype(weights.dtype, jnp.floating):
            continue  # scales and biases, which are rarely rounded
        norm, error = _squares(weights, materialize(leaf))
        if 0 < norm < math.inf:  # tensors with non-finite weights are never compressed
            error_sum += error / math.sqrt(norm)
            norm_sum += math.sqrt(norm)
    return math.sqrt(error_sum / norm_sum) if norm_sum else 0.0


def bits_below(loss: float) -> float:
    """Return the additional bits per weight that reduce a loss to HARMLESS_LOSS.

    One bit per weight halves the error, also at low rates.

    Args:
        loss: Predicted loss, > 0.

    Returns:
        Bits per weight; negative for a loss below HARMLESS_LOSS.

    Example:
        >>> bits_below(0.32)
        2.0
    """
    return math.log2(loss / HARMLESS_LOSS)


def _squares(original: Any, weights: Any) -> tuple[float, float]:
    """Return the squared norms of an array and of its difference from another array."""
    original, weights = np.asarray(original).reshape(-1), np.asarray(weights).reshape(-1)
    norm = error = 0.0
    for start in range(0, original.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        exact = original[part].astype(np.float64)
        norm += float(exact @ exact)
        if not math.isfinite(norm):
            return norm, math.inf
        difference = weights[part].astype(np.float64) - exact
        error += float(difference @ difference)
    return norm, error
