"""Quantized Sparse Weight Decomposition: a kernel as the product of two sparse, rounded factors.

Kuzmin, van Baalen, Nagel and Behboodi 2022, arXiv:2207.11048.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import GridLeaf, ProductLeaf
from sqs_jax.baselines.grids import on_grids, require_sparsity, select
from sqs_jax.baselines.round_to_nearest import round_kernel
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

_POWER = 8  # iterations towards the largest singular value, whose inverse square is a step


def compress(
    params: Any,
    *,
    sparsity: float,
    levels: int,
    rank: float = 1.0,
    steps: int = 200,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Decompose kernels, by projected gradient descent on the squared error.

    Kept: factors start at the singular value decomposition; a step down the gradient of one factor
    and then of the other, each followed by the projection to its largest entries; both rounded.
    Different: the left factor is rounded first, and the right one makes its errors good before it
    is rounded itself; grids are one per column of a factor; no end-to-end fine-tuning.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs], of a convolution a matrix of its rows.
      sparsity: fraction of the entries of both factors that are 0, in [0, 1).
      levels: of each grid, at least 2.
      rank: of the factors, as a fraction of the smaller side of a kernel, in (0, 1].
      steps: of the descent.
      rules: which kernels.

    Returns:
      The tree with `ProductLeaf`s of `GridLeaf`s.

    Raises:
      ValueError: for a sparsity, a rank or levels out of range, or see `grids.select`.
    """
    require_sparsity(sparsity)
    if not 0 < rank <= 1:
        raise ValueError(f"rank is {rank}; it must lie in (0, 1].")
    if not 2 <= levels <= 256:
        raise ValueError(f"levels is {levels}; a grid of a factor has 2 to 256.")
    leaves, treedef, kernels = select(params, rules)
    for i, (_, leaf) in kernels.items():
        weights = jnp.asarray(leaf, jnp.float32).reshape(-1, leaf.shape[-1])
        size = max(1, round(rank * min(weights.shape)))
        left, right = _decompose(weights, size, 1 - sparsity, levels, steps)
        left, right = (_grid(each, leaf.dtype, levels) for each in (left, right))
        leaves[i] = ProductLeaf(left, right, leaf.shape)
    return treedef.unflatten(leaves)


def _grid(parts: Any, dtype: Any, levels: int) -> GridLeaf:
    codes, scales, zeros = map(np.asarray, parts)
    return GridLeaf(codes.astype(np.uint8), scales.astype(dtype), zeros.astype(np.uint8), levels)


@partial(jax.jit, static_argnames=("rank", "steps"))
def _decompose(weights: jax.Array, rank: int, keep: float, levels: int, steps: int) -> Any:
    """Return (codes, scales, zeros) of both factors."""
    u, s, v = jnp.linalg.svd(weights, full_matrices=False)
    root = jnp.sqrt(s[:rank])
    start = _largest(u[:, :rank] * root[None], keep), _largest(root[:, None] * v[:rank], keep)

    def descend_right(left: jax.Array, right: jax.Array) -> jax.Array:
        step = 1 / _squared_norm(left)
        return _largest(right - step * left.T @ (left @ right - weights), keep)

    def both(factors: Any, _: None) -> tuple[Any, None]:
        left, right = factors
        step = 1 / _squared_norm(right.T)
        left = _largest(left - step * (left @ right - weights) @ right.T, keep)
        return (left, descend_right(left, right)), None

    (left, right), _ = jax.lax.scan(both, start, None, steps)
    rounded = round_kernel(left, levels, None)
    left = on_grids(*rounded)
    right, _ = jax.lax.scan(lambda r, _: (descend_right(left, r), None), right, None, steps // 2)
    return rounded, round_kernel(right, levels, None)


def _largest(factor: jax.Array, keep: float) -> jax.Array:
    """Keep a fraction of the entries, the largest, and set the others to 0."""
    size = jnp.abs(factor)
    count = jnp.clip(jnp.round(keep * factor.size), 1, factor.size).astype(jnp.int32)
    least = jnp.sort(size.ravel())[factor.size - count]
    return jnp.where(size >= least, factor, 0.0)


def _squared_norm(factor: jax.Array) -> jax.Array:
    """Bound the largest squared singular value from near, by power iteration and a margin."""

    def turn(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = factor.T @ (factor @ x)
        return y / jnp.maximum(jnp.linalg.norm(y), 1e-30), None

    x, _ = jax.lax.scan(turn, jnp.ones(factor.shape[1]), None, _POWER)
    found = 1.1 * jnp.sum(jnp.square(factor @ x)) / jnp.maximum(jnp.sum(jnp.square(x)), 1e-30)
    return jnp.maximum(found, 1e-30)
