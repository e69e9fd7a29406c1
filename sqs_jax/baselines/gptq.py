"""GPTQ: rounded input by input, each error made good by the inputs that follow.

Frantar, Ashkboos, Hoefler and Alistarh 2022, arXiv:2210.17323.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines.grids import Kernel, lay_grids, per_kernel
from sqs_jax.baselines.round_to_nearest import round_kernel
from sqs_jax.distribution.feedback import inverse_factor, round_rows
from sqs_jax.transform.rules import DEFAULT_RULES, Rule


def compress(
    params: Any,
    *,
    levels: int,
    calibration: Any,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Round kernels by GPTQ; those without calibration to nearest.

    Kept: min-max grids, laid when the first input of a group is reached; damping of a hundredth of
    the mean second moment; the order of the inputs as it is. Different: errors reach later groups a
    group at a time, not 128 rows, which changes the speed alone; any number of levels, and kernels
    of any rank. (qwix's GPTQ gives the same codes, but for int4, int8 and matrices alone.)

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      levels: of each grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      group: inputs of a group; None: one group per output.
      rules: which kernels.

    Returns:
      The tree with `GridLeaf`s.

    Raises:
      ValueError: see `per_kernel`.
    """

    def rounded(kernel: Kernel) -> tuple[Any, Any, Any]:
        if kernel.second is None:
            return round_kernel(kernel.weights, levels, group)
        factor = inverse_factor(kernel.second, in_order=True).factor
        return _round(kernel.weights, factor, levels, group or len(kernel.weights))

    return per_kernel(params, rules, levels, group, rounded, calibration=calibration)


@partial(jax.jit, static_argnames="group")
def _round(
    weights: jax.Array, factor: jax.Array, levels: int, group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return codes [I, O], scales and zeros [G, O]; U^T U = H^-1 is the factor."""

    def choose(row: jax.Array, _: jax.Array, grids: Any) -> tuple[jax.Array, jax.Array]:
        scale, zero = (each[0] for each in grids)
        code = jnp.clip(jnp.round(row / scale + zero), 0, levels - 1)
        return code, (code - zero) * scale

    def lay(rows: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lay_grids(rows, levels, group)

    codes, _, (scales, zeros) = round_rows(weights, factor, group, lay, choose)
    return codes, scales[:, 0], zeros[:, 0]
