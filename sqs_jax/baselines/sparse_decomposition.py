"""Quantized Sparse Weight Decomposition: kernels as products of two sparse factors.

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

_POWER = 8  # power iterations for the largest singular value; its inverse square is the step size


def compress(
    params: Any,
    *,
    sparsity: float,
    levels: int,
    rank: float = 1.0,
    steps: int = 200,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Decompose kernels by projected gradient descent on the squared error.

    Kept: the factors start at the singular value decomposition. A gradient step of one factor
    alternates with a step of the other, each followed by the projection to the largest entries.
    Both factors are rounded. Different: the left factor is rounded first, and the right factor
    compensates its errors before it is rounded. Each column of a factor has one grid. There is no
    end-to-end fine-tuning.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs] and is decomposed as a matrix
            [I, outputs], where I is the product of its other axes.
        sparsity: Fraction of the entries of each factor that are 0, in [0, 1).
        levels: Number of levels of each grid; 2 to 256.
        rank: Rank of the factors as a fraction of a kernel's smaller side, in (0, 1].
        steps: Number of descent steps.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `ProductLeaf` of two `GridLeaf`s.

    Raises:
        ValueError: If sparsity, rank or levels is out of range; or as
            `sqs_jax.baselines.grids.select`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines import sparse_decomposition
        >>> params = {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3)}
        >>> leaf = sparse_decomposition.compress(params, sparsity=0.5, levels=16)["kernel"]
        >>> leaf.left.codes.shape, leaf.right.codes.shape
        ((4, 3), (3, 3))
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
        left, right = (_grid(factor, leaf.dtype, levels) for factor in (left, right))
        leaves[i] = ProductLeaf(left, right, leaf.shape)
    return treedef.unflatten(leaves)


def _grid(parts: Any, dtype: Any, levels: int) -> GridLeaf:
    codes, scales, zeros = map(np.asarray, parts)
    return GridLeaf(codes.astype(np.uint8), scales.astype(dtype), zeros.astype(np.uint8), levels)


@partial(jax.jit, static_argnames=("rank", "steps"))
def _decompose(weights: jax.Array, rank: int, keep: float, levels: int, steps: int) -> Any:
    """Return (codes, scales, zeros) of each factor, left and right."""
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
    """Keep the given fraction of largest entries, and set the rest to 0."""
    size = jnp.abs(factor)
    count = jnp.clip(jnp.round(keep * factor.size), 1, factor.size).astype(jnp.int32)
    least = jnp.sort(size.ravel())[factor.size - count]
    return jnp.where(size >= least, factor, 0.0)


def _squared_norm(factor: jax.Array) -> jax.Array:
    """Estimate the largest squared singular value by power iteration, with a margin."""

    def iterate(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = factor.T @ (factor @ x)
        return y / jnp.maximum(jnp.linalg.norm(y), 1e-30), None

    x, _ = jax.lax.scan(iterate, jnp.ones(factor.shape[1]), None, _POWER)
    estimate = 1.1 * jnp.sum(jnp.square(factor @ x)) / jnp.maximum(jnp.sum(jnp.square(x)), 1e-30)
    return jnp.maximum(estimate, 1e-30)
