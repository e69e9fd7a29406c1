"""Wanda: pruned by magnitude times the norm of the input, then rounded to nearest.

Sun, Liu, Bair and Kolter 2023, arXiv:2306.11695.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines.grids import Calibration, per_kernel, require_sparsity
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
      ValueError: see `per_kernel`; and for a sparsity out of range, or bad moments.
    """
    require_sparsity(sparsity)
    moments = Calibration(calibration)

    def rounded(path: str, weights: jax.Array, group: int | None) -> tuple[Any, Any, Any]:
        second = moments.of(path, len(weights))
        norms = jnp.ones(len(weights)) if second is None else jnp.sqrt(jnp.diagonal(second))
        return prune_and_round(weights, norms, sparsity, levels, group)

    found = per_kernel(params, rules, levels, group, rounded)
    moments.require_all_used()
    return found


def prune_and_round(
    weights: jax.Array, norms: jax.Array, sparsity: float, levels: int, group: int | None
) -> tuple[Any, Any, Any]:
    """Return codes [I, O], scales and zeros [G, O] of weights [I, O]; norms [I] of the inputs."""
    score = jnp.abs(weights) * norms[:, None]
    rank = jnp.argsort(jnp.argsort(score, axis=0, stable=True), axis=0)
    kept = rank >= round(sparsity * len(weights))
    return round_kernel(jnp.where(kept, weights, 0.0), levels, group)
