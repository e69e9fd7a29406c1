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
from sqs_jax.distribution.feedback import InputMoments, inverse_factor, round_rows
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
    the mean second moment; the order of the inputs as it is. Different: errors reach later groups a
    group at a time, not 128 rows, which changes the speed alone; any number of levels.

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

    def choose(row: jax.Array, _: jax.Array, grids: Any) -> tuple[jax.Array, jax.Array]:
        scale, zero = (each[0] for each in grids)
        code = jnp.clip(jnp.round(row / scale + zero), 0, levels - 1)
        return code, (code - zero) * scale

    def lay(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lay_grids(rows, levels, group)

    codes, _, (scales, zeros) = round_rows(weights, factor, group, lay, choose)
    return codes, scales[:, 0], zeros[:, 0]
