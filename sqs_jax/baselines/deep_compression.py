"""Magnitude pruning and k-means weight sharing, one after the other.

The pipeline of Deep Compression, Han, Mao and Dally 2016, arXiv:1510.00149, without its retraining.
"""

from collections.abc import Iterable
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.artifact.dtypes import code_dtype
from sqs_jax.baselines.grids import require_sparsity, select
from sqs_jax.distribution.codebook import init_mixture
from sqs_jax.distribution.windows import Windows
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

Order = Literal["prune_first", "quantise_first"]


def compress(
    params: Any,
    *,
    sparsity: float,
    components: int,
    order: Order = "prune_first",
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Prune by magnitude and share what is left among K values per tensor, or the other way round.

    Kept: a threshold that is one multiple of each tensor's standard deviation; k-means within a
    tensor. Different: no retraining; "quantise_first" is ours, for comparison: the values are
    found for all weights, and those nearest to zero are then pruned.

    Args:
      params: tree of arrays.
      sparsity: fraction of all kernels' weights to prune, in [0, 1).
      components: K, 1 to 65,535.
      order: which comes first.
      rules: which kernels; two axes or more.

    Returns:
      The tree with `CompressedLeaf`s.

    Raises:
      ValueError: for a sparsity, a K or an order that there is not, or weights that are not finite.
    """
    require_sparsity(sparsity)
    if not 1 <= components <= 65_535:
        raise ValueError(f"components is {components}; a codebook has 1 to 65,535.")
    if order not in ("prune_first", "quantise_first"):
        raise ValueError(f"order is {order!r}; it must be 'prune_first' or 'quantise_first'.")
    leaves, treedef, chosen = select(params, rules)
    kernels = {i: weights.astype(np.float32) for i, (_, weights) in chosen.items()}
    levels, nearest = {}, {}
    for i, weights in kernels.items() if order == "quantise_first" else ():
        levels[i], nearest[i] = _share(weights, components)
    # by the values that stand for the weights, where there are some, and then by the weights
    size = {
        i: np.abs(levels[i][nearest[i]]) if i in levels else np.abs(w) for i, w in kernels.items()
    }
    kept = _keep(kernels, size, sparsity)
    for i, weights in kernels.items():
        if i not in levels:
            levels[i], found = _share(weights[kept[i]], components)
            nearest[i] = np.zeros(weights.shape, np.int64)
            nearest[i][kept[i]] = found
        codes = np.where(kept[i], 1 + nearest[i], 0).astype(code_dtype(components))
        leaves[i] = CompressedLeaf(codes, levels[i].astype(leaves[i].dtype)[None])
    return treedef.unflatten(leaves)


def _share(weights: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return K values [K], ascending, and the number of each weight's."""
    if not weights.size:
        return np.zeros(components, np.float32), np.zeros(weights.shape, np.int64)
    means = init_mixture(jnp.asarray(weights), components=components, windows=Windows()).means
    levels = np.asarray(means, np.float32).reshape(-1)
    return levels, np.searchsorted((levels[1:] + levels[:-1]) / 2, weights)


def _keep(
    kernels: dict[int, np.ndarray], size: dict[int, np.ndarray], sparsity: float
) -> dict[int, np.ndarray]:
    """Drop the smallest of all kernels, each measured in its own standard deviation."""
    unit = {i: max(float(w.std()), 1e-30) for i, w in kernels.items()}
    scores = [(size[i] / unit[i]).ravel() for i in kernels]
    ties = [(np.abs(w) / unit[i]).ravel() for i, w in kernels.items()]
    if not scores:
        return {}
    order = np.lexsort((np.concatenate(ties), np.concatenate(scores)))
    flat = np.ones(order.size, bool)
    flat[order[: round(sparsity * order.size)]] = False
    parts = np.split(flat, np.cumsum([w.size for w in kernels.values()])[:-1])
    return {i: part.reshape(kernels[i].shape) for i, part in zip(kernels, parts, strict=True)}
