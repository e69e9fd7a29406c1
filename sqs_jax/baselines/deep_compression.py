"""Deep Compression: magnitude pruning followed by k-means weight sharing.

Han, Mao and Dally 2016, arXiv:1510.00149; this module omits the retraining.
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
    """Prune kernels by magnitude and share K values per tensor among the weights.

    Kept: a pruning threshold that is the same multiple of each tensor's standard deviation; k-means
    within a tensor. Different: no retraining. The order "quantise_first" is not in the paper; it
    serves comparison: k-means runs over all weights, and the weights whose values lie nearest to
    zero are then pruned.

    Args:
        params: Tree of arrays; a kernel has two axes or more.
        sparsity: Fraction of the weights of all kernels together to prune, in [0, 1).
        components: Number K of shared values per tensor, 1 to 65,535.
        order: Step that comes first: "prune_first" or "quantise_first".
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `CompressedLeaf`.

    Raises:
        ValueError: If sparsity, components or order is out of range, or a weight is not finite.

    Example:
        >>> import numpy as np
        >>> from sqs_jax.baselines import deep_compression
        >>> params = {"kernel": np.array([[-2.0, 0.1], [2.0, -0.1]], np.float32)}
        >>> compressed = deep_compression.compress(params, sparsity=0.5, components=2)
        >>> compressed["kernel"].codes.tolist()  # code 0 is a pruned weight
        [[1, 0], [2, 0]]
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
    # With "quantise_first" the score is the magnitude of the shared value; the weights break ties.
    size = {
        i: np.abs(levels[i][nearest[i]]) if i in levels else np.abs(w) for i, w in kernels.items()
    }
    kept = _keep(kernels, size, sparsity)
    for i, weights in kernels.items():
        if i not in levels:
            levels[i], indices = _share(weights[kept[i]], components)
            nearest[i] = np.zeros(weights.shape, np.int64)
            nearest[i][kept[i]] = indices
        codes = np.where(kept[i], 1 + nearest[i], 0).astype(code_dtype(components))
        leaves[i] = CompressedLeaf(codes, levels[i].astype(leaves[i].dtype)[None])
    return treedef.unflatten(leaves)


def _share(weights: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return K ascending values [K] by k-means, and the index of each weight's value."""
    if not weights.size:
        return np.zeros(components, np.float32), np.zeros(weights.shape, np.int64)
    means = init_mixture(jnp.asarray(weights), components=components, windows=Windows()).means
    levels = np.asarray(means, np.float32).reshape(-1)
    return levels, np.searchsorted((levels[1:] + levels[:-1]) / 2, weights)


def _keep(
    kernels: dict[int, np.ndarray], size: dict[int, np.ndarray], sparsity: float
) -> dict[int, np.ndarray]:
    """Return masks without the smallest weights, in units of each kernel's deviation.

    Args:
        kernels: Weights by leaf index.
        size: Magnitudes to compare, of the same shapes.
        sparsity: Fraction of the weights of all kernels together to prune, in [0, 1).
    """
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
