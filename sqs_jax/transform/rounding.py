"""Codebooks and dense leaves in the narrowest dtypes that a network tolerates."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf, materialize

_NARROW = ("float8_e4m3fn", "float8_e5m2", "bfloat16", "float16")


def round_to_tolerance(
    compressed: Any, predict_fn: Callable[[Any], Any], *, tolerance: float
) -> Any:
    """Round codebooks and dense leaves as far as the outputs allow.

    A file stores every array in the narrowest dtype that holds its values exactly, so rounded
    values make it smaller; they come back in the leaf's own dtype. All leaves are first rounded
    to one dtype, the narrowest that stays within the tolerance; then each leaf, the largest first,
    to narrower ones as long as all together stay within it.

    Args:
      compressed: tree of CompressedLeaf and arrays.
      predict_fn: (params) -> outputs, an array, on inputs of your choice; called about once per
        leaf.
      tolerance: relative L2 change of the outputs against those of `compressed`, at least 0.

    Returns:
      The tree with rounded values.

    Raises:
      ValueError: if the tolerance is negative, or the outputs are not finite to begin with.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance is {tolerance}; it must be >= 0.")
    treedef: Any  # what jax declares has no methods
    leaves, treedef = jax.tree.flatten(
        compressed, is_leaf=lambda node: isinstance(node, CompressedLeaf)
    )
    reference = np.asarray(predict_fn(materialize(compressed)), np.float64)
    if not np.isfinite(reference).all():
        raise ValueError("predict_fn gives outputs that are not finite before any rounding.")
    norm = np.linalg.norm(reference)

    def tolerable(candidate: list[Any]) -> bool:
        outputs = np.asarray(predict_fn(materialize(treedef.unflatten(candidate))), np.float64)
        return bool(np.linalg.norm(outputs - reference) <= tolerance * norm)

    everywhere = ([_rounded(leaf, dtype) for leaf in leaves] for dtype in _NARROW)
    current = next((rounded for rounded in everywhere if tolerable(rounded)), leaves)
    for number in sorted(range(len(leaves)), key=lambda i: -_values(leaves[i]).size):
        for dtype in _NARROW[:2]:
            trial = list(current)
            trial[number] = _rounded(leaves[number], dtype)
            if trial[number] is not leaves[number] and tolerable(trial):
                current = trial
                break
    return treedef.unflatten(current)


def _values(leaf: Any) -> Any:
    return leaf.codebook if isinstance(leaf, CompressedLeaf) else leaf


def _rounded(leaf: Any, dtype: str) -> Any:
    """Round a leaf's floating values; the leaf itself where there are none, or one overflows."""
    values = np.asarray(_values(leaf))
    narrow = jnp.dtype(dtype)
    if not jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.itemsize <= narrow.itemsize:
        return leaf
    with np.errstate(all="ignore"):
        rounded = values.astype(narrow).astype(values.dtype)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(values)):
        return leaf
    return CompressedLeaf(leaf.codes, rounded) if isinstance(leaf, CompressedLeaf) else rounded
