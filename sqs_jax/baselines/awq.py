"""AWQ: inputs scaled so that the weights of large ones are rounded finely, then grids clipped.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han 2023, arXiv:2306.00978.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import GridLeaf, ScaledLeaf
from sqs_jax.baselines.grids import Kernel, lay_grids, nearest, on_grids, per_kernel
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

_EXPONENTS = np.linspace(0, 1, 20, endpoint=False).astype(np.float32)
_CLIPS = np.linspace(1, 0.5, 11).astype(np.float32)  # of a group's range, the least and greatest


def compress(
    params: Any,
    *,
    levels: int,
    calibration: Any,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Round kernels by AWQ; those without calibration as if their inputs were alike.

    Kept: weights of input i are rounded as s_i w_i, s = |x|^a, with the one a of twenty in [0, 1)
    that loses least of the outputs; then each group's range is clipped to where it loses least.
    Different: |x| is the root of the mean square; a group's loss is its own inputs', by their
    moments; scales are kept with the kernel, where the published method has the layer before take
    them; all kernels are clipped.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      levels: of each grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      group: inputs of a group; None: one group per output.
      rules: which kernels.

    Returns:
      The tree with `ScaledLeaf`s of `GridLeaf`s.

    Raises:
      ValueError: see `per_kernel`.
    """

    def rounded(kernel: Kernel) -> tuple[Any, ...]:
        rows = len(kernel.weights)
        second = jnp.eye(rows) if kernel.second is None else kernel.second
        return _round(kernel.weights, second, levels, group or rows, kernel.channels)

    def wrap(grid: GridLeaf, scales: Any) -> ScaledLeaf:
        return ScaledLeaf(grid, (1 / np.asarray(scales)).astype(np.float16).astype(np.float32))

    return per_kernel(params, rules, levels, group, rounded, calibration=calibration, wrap=wrap)


@partial(jax.jit, static_argnames=("group", "channels"))
def _round(
    weights: jax.Array, second: jax.Array, levels: int, group: int, channels: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return codes [I, O], scales and zeros [G, O], and the factors of the inputs [channels]."""
    repeats = len(weights) // channels
    size = jnp.sqrt(jnp.mean(jnp.diagonal(second).reshape(repeats, channels), axis=0))
    most = jnp.max(size)  # 0 of inputs that never come
    size = jnp.maximum(size / jnp.where(most > 0, most, 1.0), jnp.where(most > 0, 1e-4, 1.0))

    def factors(exponent: jax.Array) -> jax.Array:
        found = size**exponent
        found = found / jnp.sqrt(jnp.max(found) * jnp.min(found))
        # what is kept is one over it, in 16 bits
        return 1 / (1 / found).astype(jnp.float16).astype(found.dtype)

    def scaled(exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
        by_row = jnp.tile(factors(exponent), repeats)[:, None]
        return weights * by_row, second / (by_row * by_row.T)

    def rounded(rows: jax.Array, scales: jax.Array, zeros: jax.Array) -> jax.Array:
        return on_grids(nearest(rows, scales, zeros, levels), scales, zeros)

    def lost(exponent: jax.Array) -> jax.Array:
        rows, moments = scaled(exponent)
        error = rows - rounded(rows, *lay_grids(rows, levels, group))
        return jnp.sum(error * (moments @ error))

    best = jnp.asarray(_EXPONENTS)[jnp.argmin(jax.lax.map(lost, jnp.asarray(_EXPONENTS)))]
    rows, moments = scaled(best)
    groups = rows.reshape(-1, group, rows.shape[1])
    blocks = moments.reshape(len(groups), group, len(groups), group)
    own = jnp.einsum("gigj->gij", blocks)

    def clipped(clip: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high = (clip * edge(groups, axis=1, keepdims=True) for edge in (jnp.min, jnp.max))
        scales, zeros = lay_grids(jnp.clip(groups, low, high).reshape(rows.shape), levels, group)
        error = (rows - rounded(rows, scales, zeros)).reshape(groups.shape)
        return jnp.einsum("gio,gij,gjo->go", error, own, error), scales, zeros

    loss, scales, zeros = jax.lax.map(clipped, jnp.asarray(_CLIPS))
    chosen = jnp.argmin(loss, axis=0)[None]
    scales, zeros = (jnp.take_along_axis(x, chosen, axis=0)[0] for x in (scales, zeros))
    return nearest(rows, scales, zeros, levels), scales, zeros, factors(best)
