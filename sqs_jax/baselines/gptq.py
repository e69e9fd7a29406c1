"""GPTQ: round to nearest input by input, with error compensation by the Hessian.

Frantar, Ashkboos, Hoefler and Alistarh 2022, arXiv:2210.17323.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines.grids import Kernel, lay_grids, per_kernel
from sqs_jax.baselines.round_to_nearest import round_kernel
from sqs_jax.calibration.error_compensation import inverse_factor, round_rows
from sqs_jax.transform.rules import DEFAULT_RULES, Rule


def compress(
    params: Any,
    *,
    levels: int,
    calibration: Any,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Quantize kernels by GPTQ.

    A kernel without calibration data is rounded to nearest.

    Kept: min-max grids, computed when the first input of a group is reached; damping by a hundredth
    of the mean second moment; the inputs keep their order. Different: errors reach later groups one
    group at a time instead of 128 rows at a time, which changes the speed alone. Any number of
    levels and kernels of any rank are supported. (qwix's GPTQ gives the same codes, but supports
    int4, int8 and matrices alone.)

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        levels: Number of levels of each grid; 2 to 65,536.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the field `second`
            is used.
        group: Group size: consecutive inputs that share a grid; None for one group per output.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `GridLeaf`.

    Raises:
        ValueError: As `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import InputMoments
        >>> from sqs_jax.baselines import gptq
        >>> params = {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3)}
        >>> moments = {"kernel": InputMoments(jnp.eye(4) + 0.5)}
        >>> leaf = gptq.compress(params, levels=8, calibration=moments, group=2)["kernel"]
        >>> leaf.codes.shape, leaf.scales.shape  # two groups of two inputs
        ((4, 3), (2, 3))
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
    """Return codes [I, O], scales and zeros [G, O]; the factor U has U^T U = H^-1."""

    def choose(row: jax.Array, _: jax.Array, grids: Any) -> tuple[jax.Array, jax.Array]:
        scale, zero = (row_of_grids[0] for row_of_grids in grids)
        code = jnp.clip(jnp.round(row / scale + zero), 0, levels - 1)
        return code, (code - zero) * scale

    def lay(rows: jax.Array, _: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lay_grids(rows, levels, group)

    codes, _, (scales, zeros) = round_rows(weights, factor, group, lay, choose)
    return codes, scales[:, 0], zeros[:, 0]
