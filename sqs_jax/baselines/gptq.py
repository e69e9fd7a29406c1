"""GPTQ: rounded input by input, each error made good by the inputs that follow.

Frantar, Ashkboos, Hoefler and Alistarh 2022, arXiv:2210.17323.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.baselines.grids import lay_grids, per_kernel
from sqs_jax.baselines.round_to_nearest import round_kernel
from sqs_jax.distribution.feedback import InputMoments, inverse_factor
from sqs_jax.transform.rules import DEFAULT_RULES, Rule, path_string


def compress(
    params: Any,
    *,
    levels: int,
    calibration: Any,
    group: int | None = None,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Round matrices by GPTQ; those without calibration to nearest.

    Kept: min-max grids, laid when the first input of a group is reached; damping of a hundredth of
    the mean second moment; the order of the inputs as it is. Different: no blocks of 128, which
    change the speed alone; any number of levels.

    Args:
      params: tree of arrays; kernels are [inputs, outputs].
      levels: of each grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      group: inputs of a group; None: one group per output.
      rules: which matrices.

    Returns:
      The tree with `GridLeaf`s.

    Raises:
      ValueError: see `per_kernel`; and for moments that are not finite or of another size.
    """
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        calibration, is_leaf=lambda node: isinstance(node, InputMoments)
    )
    moments = {path_string(path): jnp.asarray(found.second) for path, found in pairs}
    used = set()

    def rounded(path: str, weights: jax.Array, group: int | None) -> tuple[Any, Any, Any]:
        if path not in moments:
            return round_kernel(weights, levels, group)
        used.add(path)
        inputs, second = weights.shape[0], moments[path]
        if second.shape != (inputs, inputs) or not bool(jnp.isfinite(second).all()):
            raise ValueError(
                f"{path}: second moments have shape {second.shape}, for {inputs} inputs, or are "
                "not finite."
            )
        return _round(
            weights, inverse_factor(second, in_order=True).factor, levels, group or inputs
        )

    found = per_kernel(params, rules, levels, group, rounded)
    if unknown := sorted(moments.keys() - used):
        raise ValueError(f"calibration has {', '.join(unknown)}, where no matrix is compressed.")
    return found


@partial(jax.jit, static_argnums=(2, 3))
def _round(
    weights: jax.Array, factor: jax.Array, levels: int, group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return codes [I, O], scales and zeros [G, O]; U^T U = H^-1 is the factor."""
    inputs, outputs = weights.shape

    def round_group(rows: jax.Array, start: jax.Array) -> tuple[jax.Array, Any]:
        here = jax.lax.dynamic_slice_in_dim(rows, start, group)
        scales, zeros = lay_grids(here, levels, group)

        def round_row(rows: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            row, steps = rows[i], factor[i]
            code = jnp.clip(jnp.round(row / scales[0] + zeros[0]), 0, levels - 1)
            error = (row - (code - zeros[0]) * scales[0]) / steps[i]
            later = jnp.where(jnp.arange(inputs) > i, steps, 0.0)
            return rows - later[:, None] * error[None], code

        rows, codes = jax.lax.scan(round_row, rows, start + jnp.arange(group))
        return rows, (codes, scales[0], zeros[0])

    _, (codes, scales, zeros) = jax.lax.scan(round_group, weights, jnp.arange(0, inputs, group))
    return codes.reshape(inputs, outputs), scales, zeros
