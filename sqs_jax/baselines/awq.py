"""AWQ: scale input channels by their activations, then round on clipped grids.

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
_CLIPS = np.linspace(1, 0.5, 11).astype(np.float32)  # factors of a group's minimum and maximum


def compress(
    params: Any,
    *,
    levels: int,
    calibration: Any,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Quantize kernels by activation-aware weight quantization (AWQ).

    A kernel without calibration data is quantized as if its inputs had identity second moments.

    Kept: the weights of input i are rounded as s_i w_i with s = |x|^a. The exponent a is the one of
    twenty in [0, 1) with the least error of the outputs. Each group's range is then clipped to
    where its error is least. Different: |x| is the root mean square of the input. A group's error
    counts its own inputs alone, by their moments. The scales are stored with the kernel; the
    published method moves them into the layer before. All kernels are clipped.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        levels: Number of levels of each grid; 2 to 65,536.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the field `second`
            is used.
        group: Group size: consecutive inputs that share a grid; None for one group per output.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `ScaledLeaf` of a `GridLeaf`.

    Raises:
        ValueError: As `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import InputMoments
        >>> from sqs_jax.baselines import awq
        >>> params = {"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3)}
        >>> moments = {"kernel": InputMoments(jnp.diag(jnp.array([9.0, 4.0, 1.0, 1.0])))}
        >>> leaf = awq.compress(params, levels=16, calibration=moments)["kernel"]
        >>> leaf.leaf.codes.shape, leaf.scales.shape  # one scale per input channel
        ((4, 3), (4,))
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
    """Return codes [I, O], scales and zeros [G, O], and factors [channels] of the inputs."""
    repeats = len(weights) // channels
    rms = jnp.sqrt(jnp.mean(jnp.diagonal(second).reshape(repeats, channels), axis=0))
    most = jnp.max(rms)  # 0 if all inputs are 0; every channel then has the factor 1
    rms = jnp.maximum(rms / jnp.where(most > 0, most, 1.0), jnp.where(most > 0, 1e-4, 1.0))

    def factors(exponent: jax.Array) -> jax.Array:
        factor = rms**exponent
        factor = factor / jnp.sqrt(jnp.max(factor) * jnp.min(factor))
        # The file stores the reciprocal in float16: the search sees the rounded factor.
        return 1 / (1 / factor).astype(jnp.float16).astype(factor.dtype)

    def scaled(exponent: jax.Array) -> tuple[jax.Array, jax.Array]:
        by_row = jnp.tile(factors(exponent), repeats)[:, None]
        return weights * by_row, second / (by_row * by_row.T)

    def rounded(rows: jax.Array, scales: jax.Array, zeros: jax.Array) -> jax.Array:
        return on_grids(nearest(rows, scales, zeros, levels), scales, zeros)

    def output_error(exponent: jax.Array) -> jax.Array:
        rows, moments = scaled(exponent)
        error = rows - rounded(rows, *lay_grids(rows, levels, group))
        return jnp.sum(error * (moments @ error))

    best = jnp.asarray(_EXPONENTS)[jnp.argmin(jax.lax.map(output_error, jnp.asarray(_EXPONENTS)))]
    rows, moments = scaled(best)
    groups = rows.reshape(-1, group, rows.shape[1])
    blocks = moments.reshape(len(groups), group, len(groups), group)
    group_moments = jnp.einsum("gigj->gij", blocks)

    def clipped(clip: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        low, high = (clip * edge(groups, axis=1, keepdims=True) for edge in (jnp.min, jnp.max))
        scales, zeros = lay_grids(jnp.clip(groups, low, high).reshape(rows.shape), levels, group)
        error = (rows - rounded(rows, scales, zeros)).reshape(groups.shape)
        return jnp.einsum("gio,gij,gjo->go", error, group_moments, error), scales, zeros

    loss, scales, zeros = jax.lax.map(clipped, jnp.asarray(_CLIPS))
    chosen = jnp.argmin(loss, axis=0)[None]
    scales, zeros = (jnp.take_along_axis(x, chosen, axis=0)[0] for x in (scales, zeros))
    return nearest(rows, scales, zeros, levels), scales, zeros, factors(best)
