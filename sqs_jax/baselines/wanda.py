"""Wanda: prune by weight magnitude times input norm, then round to nearest.

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
    """Prune the weights of each output with the smallest |w| |x|, and round the rest.

    Kept: the score |w| |x|, compared among the weights of one output; no weight is updated.
    Different: the published method only prunes. Here the remaining weights are rounded to nearest,
    because the file stores codes.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        sparsity: Fraction of each output's weights to prune, in [0, 1).
        levels: Number of levels of each grid; 2 to 65,536.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the diagonal of
            `second` is used. Kernels without an entry are pruned by magnitude.
        group: Group size: consecutive inputs that share a grid; None for one group per output.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `GridLeaf`; a pruned weight has the code of the
        grid's zero.

    Raises:
        ValueError: As `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import InputMoments, materialize
        >>> from sqs_jax.baselines import wanda
        >>> params = {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
        >>> moments = {"kernel": InputMoments(jnp.diag(jnp.array([100.0, 1.0, 1.0, 1.0])))}
        >>> compressed = wanda.compress(params, sparsity=0.5, levels=16, calibration=moments)
        >>> (materialize(compressed)["kernel"] != 0).ravel().tolist()  # the first input is large
        [True, False, False, True]
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
    """Prune weights [I, O] by Wanda's score and round the rest to nearest.

    Args:
        weights: Float array [I, O].
        second: Second moments of the inputs, [I, I]; None to prune by magnitude.
        sparsity: Fraction of each output's weights to prune, in [0, 1).
        levels: Number of levels of each grid.
        group: Group size; None for one group per output.

    Returns:
        Codes [I, O], scales [G, O] and zeros [G, O].
    """
    score = jnp.abs(weights)
    if second is not None:
        score = score * jnp.sqrt(jnp.diagonal(second))[:, None]
    rank = jnp.argsort(jnp.argsort(score, axis=0, stable=True), axis=0)
    kept = rank >= round(sparsity * len(weights))
    return round_kernel(jnp.where(kept, weights, 0.0), levels, group)
