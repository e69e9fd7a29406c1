"""SparseGPT: prune and round input by input, with error compensation by the Hessian.

Frantar and Alistarh 2023, arXiv:2301.00774.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines import wanda
from sqs_jax.baselines.grids import Kernel, lay_grids, per_kernel
from sqs_jax.calibration.error_compensation import inverse_factor, round_rows
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

_BLOCK = 128  # number of inputs whose mask is chosen together


def compress(
    params: Any,
    *,
    sparsity: float,
    levels: int,
    calibration: Any,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Prune and round kernels by SparseGPT, in a single pass.

    A kernel without calibration data is pruned by magnitude and rounded to nearest.

    Kept: masks of 128 inputs at a time, by w^2 / U_ii^2 over all outputs together. Pruned weights
    are rounded to 0 in the same pass, and their errors are compensated as in GPTQ. Each output has
    one grid over all of its inputs, computed before any error compensation.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        sparsity: Fraction of the weights of every block to prune, in [0, 1).
        levels: Number of levels of each grid; 2 to 65,536.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the field `second`
            is used.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `GridLeaf`; a pruned weight has the code of the
        grid's zero.

    Raises:
        ValueError: As `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import InputMoments, materialize
        >>> from sqs_jax.baselines import sparse_gpt
        >>> params = {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
        >>> moments = {"kernel": InputMoments(jnp.diag(jnp.array([100.0, 1.0, 1.0, 1.0])))}
        >>> compressed = sparse_gpt.compress(params, sparsity=0.5, levels=16, calibration=moments)
        >>> (materialize(compressed)["kernel"] != 0).ravel().tolist()  # the first input is large
        [True, False, False, True]
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
    """Return codes [I, O], scales and zeros [1, O]; the factor U has U^T U = H^-1."""
    inputs, outputs = weights.shape
    block = min(_BLOCK, inputs)
    scales, zeros = lay_grids(weights, levels, None)
    diagonal = jnp.pad(jnp.diagonal(factor), (0, -inputs % block), constant_values=1)

    def mask(rows: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mask the weights of a block to keep; rows that pad the block cost nothing."""
        cost = jnp.square(rows / jax.lax.dynamic_slice(diagonal, (start,), (block,))[:, None])
        real = (start + jnp.arange(block) < inputs)[:, None]
        cost = jnp.where(real, cost, -1.0)  # padding is pruned first, in addition to the sparsity
        count = jnp.sum(real.astype(jnp.float32))
        number = jnp.round(sparsity * count * outputs) + (block - count) * outputs
        rank = jnp.argsort(jnp.argsort(cost.reshape(-1), stable=True))
        return (rank >= number.astype(jnp.int32)).reshape(cost.shape), start

    def choose(row: jax.Array, at: jax.Array, prepared: Any) -> tuple[jax.Array, jax.Array]:
        kept, start = prepared
        code = jnp.clip(jnp.round(row / scales[0] + zeros[0]), 0, levels - 1)
        code = jnp.where(kept[at - start], code, zeros[0])
        return code, (code - zeros[0]) * scales[0]

    codes, _, _ = round_rows(weights, factor, block, mask, choose)
    return codes, scales, zeros
