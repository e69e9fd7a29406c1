"""SparseGPT: pruned and rounded input by input, each error made good by the inputs that follow.

Frantar and Alistarh 2023, arXiv:2301.00774.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines import wanda
from sqs_jax.baselines.grids import Kernel, lay_grids, per_kernel
from sqs_jax.distribution.feedback import inverse_factor, round_rows
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

_BLOCK = 128  # inputs whose mask is chosen together


def compress(
    params: Any,
    *,
    sparsity: float,
    levels: int,
    calibration: Any,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Prune and round kernels together; those without calibration by magnitude and to nearest.

    Kept: the mask of 128 inputs at a time, by w^2 / U_ii^2 over all outputs together; pruned
    weights are rounded to 0 in the same pass, their errors made good as GPTQ does; a grid per
    output over all of its inputs, laid before any error is made good.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      sparsity: fraction to prune in every block, in [0, 1).
      levels: of each grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      rules: which kernels.

    Returns:
      The tree with `GridLeaf`s; a pruned weight has the code of the grid's zero.

    Raises:
      ValueError: see `per_kernel`.
    """

    def rounded(kernel: Kernel) -> tuple[Any, Any, Any]:
        if kernel.second is None:
            return wanda.prune_and_round(kernel.weights, None, sparsity, levels, None)
        factor = inverse_factor(kernel.second, in_order=True).factor
        return _round(kernel.weights, factor, sparsity, levels)

    return per_kernel(
        params, rules, levels, None, rounded, calibration=calibration, sparsity=sparsity
    )


@jax.jit
def _round(
    weights: jax.Array, factor: jax.Array, sparsity: float, levels: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return codes [I, O], scales and zeros [1, O]; U^T U = H^-1 is the factor."""
    inputs, outputs = weights.shape
    block = min(_BLOCK, inputs)
    scales, zeros = lay_grids(weights, levels, None)
    diagonal = jnp.pad(jnp.diagonal(factor), (0, -inputs % block), constant_values=1)

    def mask(rows: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keep the weights of a block that are dear to prune; what fills it up is free."""
        cost = jnp.square(rows / jax.lax.dynamic_slice(diagonal, (start,), (block,))[:, None])
        real = (start + jnp.arange(block) < inputs)[:, None]
        cost = jnp.where(real, cost, -1.0)  # pruned first, and not counted
        count = jnp.sum(real.astype(jnp.float32))
        due = jnp.round(sparsity * count * outputs) + (block - count) * outputs
        rank = jnp.argsort(jnp.argsort(cost.reshape(-1), stable=True))
        return (rank >= due.astype(jnp.int32)).reshape(cost.shape), start

    def choose(row: jax.Array, at: jax.Array, prepared: Any) -> tuple[jax.Array, jax.Array]:
        kept, start = prepared
        code = jnp.clip(jnp.round(row / scales[0] + zeros[0]), 0, levels - 1)
        code = jnp.where(kept[at - start], code, zeros[0])
        return code, (code - zeros[0]) * scales[0]

    codes, _, _ = round_rows(weights, factor, block, mask, choose)
    return codes, scales, zeros
