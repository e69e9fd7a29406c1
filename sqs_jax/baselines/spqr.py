"""SpQR: weights that spoil their group's grid are kept as they are, and scales are rounded too.

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
from sqs_jax.distribution.feedback import inverse_factor, round_rows
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
    """Round kernels by SpQR; those without calibration too, as if their inputs were alike.

    Kept: an outlier is a weight without which its group, rounded, loses less by a threshold, each
    error counted as the inverse Hessian has it; outliers are kept in 16 bits, the others rounded as
    by GPTQ; scales are rounded, those of sixteen outputs of a group of inputs together, as in the
    public code. Different: outliers and grids are chosen before any error is made good; scales have
    sixteen levels from 0 on, for a grid holds zero, and zeros are whole numbers.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      levels: of each grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      threshold: what a group must lose less without an outlier, > 0, in units of what a weight's
        own variance among the outputs would lose.
      group: inputs of a group; None: one group per output.
      rules: which kernels.

    Returns:
      The tree with `OverlayLeaf`s of `GridLeaf`s.

    Raises:
      ValueError: if the threshold is not positive; or see `per_kernel`.
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
        found = jnp.asarray(materialize(scales))
        codes, values, zeros = _round(
            kernel.weights, outliers, factor, found, levels, group or rows
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
    """Mark the weights without which their group loses less by a threshold; bool [I, O]."""
    shape = -1, group, weights.shape[1]
    cost = (1 / jnp.square(jnp.diagonal(factor))).reshape(-1, group, 1)
    groups = weights.reshape(shape)

    def lost(left_out: jax.Array) -> jax.Array:
        """Return what groups lose without their row of this number; -1: with all."""
        counted = (jnp.arange(group) != left_out)[None, :, None]
        others = jnp.where(counted, groups, 0.0).reshape(weights.shape)
        scales, zeros = lay_grids(others, levels, group)
        found = on_grids(nearest(weights, scales, zeros, levels), scales, zeros)
        error = groups - found.reshape(groups.shape)
        return jnp.sum(jnp.where(counted, cost * jnp.square(error), 0.0), axis=1)

    whole = lost(jnp.int32(-1))
    without = jnp.moveaxis(jax.lax.map(lost, jnp.arange(group)), 0, 1)
    unit = jnp.mean(cost.ravel() * jnp.var(weights, axis=1))
    return (whole[:, None] - without > threshold * unit).reshape(weights.shape)


def _rounded_scales(scales: jax.Array) -> TransposedLeaf:
    """Round scales [G, O] to grids of their own, each for sixteen outputs of a group of inputs.

    None of them is rounded to 0.
    """
    size = math.gcd(scales.shape[1], _SCALE_GROUP)
    codes, steps, zeros = round_kernel(scales.T, _SCALE_LEVELS, size)
    low = np.maximum(np.asarray(codes), 1).astype(np.uint8)
    whole = np.asarray(zeros).astype(np.uint8)
    return TransposedLeaf(GridLeaf(low, np.asarray(steps), whole, _SCALE_LEVELS))


@partial(jax.jit, static_argnames="group")
def _round(
    weights: jax.Array,
    outliers: jax.Array,
    factor: jax.Array,
    scales: jax.Array,
    levels: int,
    group: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return codes [I, O], the outliers' values among others [I, O] and zeros [G, O]."""
    low = jnp.where(outliers, 0.0, weights).reshape(-1, group, weights.shape[1]).min(1)
    zeros = jnp.clip(jnp.round(-jnp.minimum(low, 0.0) / scales), 0, levels - 1)

    def choose(row: jax.Array, at: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        scale, zero, kept = scales[at // group], zeros[at // group], outliers[at]
        code = jnp.clip(jnp.round(row / scale + zero), 0, levels - 1)
        code = jnp.where(kept, zero, code)  # the cheapest, for nothing reads it
        exact = row.astype(jnp.float16).astype(row.dtype)
        return code, jnp.where(kept, exact, (code - zero) * scale)

    codes, rows, _ = round_rows(weights, factor, group, lambda *_: None, choose)
    return codes, rows.astype(jnp.float16), zeros
