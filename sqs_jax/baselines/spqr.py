"""SpQR: grids with rounded scales, and outlier weights stored in 16 bits.

Dettmers, Svirschevski, Egiazarian, Kuznedelev, Frantar, Ashkboos, Borzunov, Hoefler and Alistarh
2023, arXiv:2306.03078.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import GridLeaf, OverlayLeaf, TransposedLeaf, materialize
from sqs_jax.baselines.grids import Kernel, lay_grids, nearest, on_grids, per_kernel
from sqs_jax.baselines.round_to_nearest import round_kernel
from sqs_jax.calibration.error_compensation import inverse_factor, round_rows
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

_SCALE_LEVELS, _SCALE_GROUP = 16, 16


def compress(
    params: Any,
    *,
    levels: int,
    calibration: Any,
    threshold: float = 0.2,
    group: int | None = 16,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Quantize kernels by SpQR.

    A kernel without calibration data is quantized as if its inputs had identity second moments.

    Kept: a weight is an outlier if its removal reduces the rounding error of its group by more than
    a threshold. Errors are weighted by 1 / U_ii^2, where U^T U = H^-1. Outliers are stored in 16
    bits; the other weights are rounded as in GPTQ. Scales are rounded too, those of sixteen outputs
    of a group of inputs together, as in the public code. Different: outliers and grids are chosen
    before any error compensation. Scales have sixteen levels that start at 0, because a grid
    contains zero, and zeros are integers.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        levels: Number of levels of each grid; 2 to 65,536.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the field `second`
            is used.
        threshold: Least reduction of a group's error that makes a weight an outlier, > 0. The unit
            is the mean error of replacing a row of weights by its mean over the outputs.
        group: Group size: consecutive inputs that share a grid; None for one group per output.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is an `OverlayLeaf` of a `GridLeaf`.

    Raises:
        ValueError: If the threshold is not positive; or as `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines import spqr
        >>> weights = jnp.tile(jnp.linspace(-1, 1, 8)[:, None], (1, 4)).at[5, 2].set(30.0)
        >>> leaf = spqr.compress({"kernel": weights}, levels=8, calibration={}, group=8)["kernel"]
        >>> leaf.values.tolist()  # the outlier
        [30.0]
    """
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; it must be positive.")

    def rounded(kernel: Kernel) -> tuple[Any, ...]:
        rows = len(kernel.weights)
        second = jnp.eye(rows) if kernel.second is None else kernel.second
        factor = inverse_factor(second, in_order=True).factor
        outliers = _outliers(kernel.weights, factor, levels, group or rows, threshold)
        ordinary = jnp.where(outliers, 0.0, kernel.weights)
        scales = _rounded_scales(lay_grids(ordinary, levels, group)[0])
        rounded_scales = jnp.asarray(materialize(scales))
        codes, values, zeros = _round(
            kernel.weights, outliers, factor, rounded_scales, levels, group or rows
        )
        return codes, scales, zeros, outliers, values

    def wrap(grid: GridLeaf, outliers: Any, values: Any) -> OverlayLeaf:
        kept = np.asarray(values)[np.asarray(outliers)].astype(np.float32)
        return OverlayLeaf(grid, np.asarray(outliers, np.uint8).reshape(grid.codes.shape), kept)

    return per_kernel(params, rules, levels, group, rounded, calibration=calibration, wrap=wrap)


@partial(jax.jit, static_argnames="group")
def _outliers(
    weights: jax.Array, factor: jax.Array, levels: int, group: int, threshold: float
) -> jax.Array:
    """Mark the weights whose removal reduces their group's error enough; bool [I, O]."""
    shape = -1, group, weights.shape[1]
    cost = (1 / jnp.square(jnp.diagonal(factor))).reshape(-1, group, 1)
    groups = weights.reshape(shape)

    def group_error(left_out: jax.Array) -> jax.Array:
        """Return the errors [G, O] of groups without row number `left_out`; -1: with all."""
        counted = (jnp.arange(group) != left_out)[None, :, None]
        others = jnp.where(counted, groups, 0.0).reshape(weights.shape)
        scales, zeros = lay_grids(others, levels, group)
        rounded = on_grids(nearest(weights, scales, zeros, levels), scales, zeros)
        error = groups - rounded.reshape(groups.shape)
        return jnp.sum(jnp.where(counted, cost * jnp.square(error), 0.0), axis=1)

    whole = group_error(jnp.int32(-1))
    without = jnp.moveaxis(jax.lax.map(group_error, jnp.arange(group)), 0, 1)
    unit = jnp.mean(cost.ravel() * jnp.var(weights, axis=1))
    return (whole[:, None] - without > threshold * unit).reshape(weights.shape)


def _rounded_scales(scales: jax.Array) -> TransposedLeaf:
    """Round scales [G, O] to grids over sixteen outputs of a group of inputs.

    No scale is rounded to 0.
    """
    size = math.gcd(scales.shape[1], _SCALE_GROUP)
    codes, steps, zeros = round_kernel(scales.T, _SCALE_LEVELS, size)
    positive = np.maximum(np.asarray(codes), 1).astype(np.uint8)
    zeros = np.asarray(zeros).astype(np.uint8)
    return TransposedLeaf(GridLeaf(positive, np.asarray(steps), zeros, _SCALE_LEVELS))


@partial(jax.jit, static_argnames="group")
def _round(
    weights: jax.Array,
    outliers: jax.Array,
    factor: jax.Array,
    scales: jax.Array,
    levels: int,
    group: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return codes [I, O], zeros [G, O] and, in between, float16 rows [I, O].

    The rows are the weights when they were rounded; only those of outliers are stored.
    """
    low = jnp.where(outliers, 0.0, weights).reshape(-1, group, weights.shape[1]).min(1)
    zeros = jnp.clip(jnp.round(-jnp.minimum(low, 0.0) / scales), 0, levels - 1)

    def choose(row: jax.Array, at: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        scale, zero, kept = scales[at // group], zeros[at // group], outliers[at]
        code = jnp.clip(jnp.round(row / scale + zero), 0, levels - 1)
        code = jnp.where(kept, zero, code)  # no reader uses it; the zero compresses best
        exact = row.astype(jnp.float16).astype(row.dtype)
        return code, jnp.where(kept, exact, (code - zero) * scale)

    codes, rows, _ = round_rows(weights, factor, group, lambda *_: None, choose)
    return codes, rows.astype(jnp.float16), zeros
