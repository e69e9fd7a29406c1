"""Wanda: pruned by magnitude times the norm of the input, then rounded to nearest.

Sun, Liu, Bair and Kolter 2023, arXiv:2306.11695.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines.grids import Kernel, per_kernel
from sqs_jax.baselines.round_to_nearest import round_kernel
from sqs_jax.transform.rules import DEFAULT_RULES, Rule


def compress(
    params: Any,
    *,
    sparsity: float,
    levels: int,
    calibration: Any,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Prune the weights of each output that have the least |w| |x|, and round the others.

    Kept: the score, compared among the weights of one output; no weight is updated. Different: the
    published method prunes alone; here what is left is rounded to nearest, as a file needs it.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      sparsity: fraction to prune of every output, in [0, 1).
      levels: of each grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels, of which the diagonal of
        `second` is used; kernels without are pruned by magnitude.
      group: inputs of a group of the grid; None: one group per output.
      rules: which kernels.

    Returns:
      The tree with `GridLeaf`s; a pruned weight has the code of the grid's zero.

    Raises:
      ValueError: see `per_kernel`.
    """

    def rounded(kernel: Kernel) -> tuple[Any, Any, Any]:
        return prune_and_round(kernel.weights, kernel.second, sparsity, levels, group)

    return per_kernel(
        params, rules, levels, group, rounded, calibration=calibration, sparsity=sparsity
    )


def prune_and_round(
    weights: jax.Array,
    second: jax.Array | None,
    sparsity: float,
    levels: int,
    group: int | None,
) -> tuple[Any, Any, Any]:
    """Return codes [I, O], scales and zeros [G, O] of weights [I, O]; without moments by size."""
    score = jnp.abs(weights)
    if second is not None:
        score = score * jnp.sqrt(jnp.diagonal(second))[:, None]
    rank = jnp.argsort(jnp.argsort(score, axis=0, stable=True), axis=0)
    kept = rank >= round(sparsity * len(weights))
    return round_kernel(jnp.where(kept, weights, 0.0), levels, group)
