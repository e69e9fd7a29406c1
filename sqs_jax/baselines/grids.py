"""Uniform grids over groups of a kernel's rows, as round-to-nearest, GPTQ and AWQ have them."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import GridLeaf
from sqs_jax.transform.rules import Rule, assign, check_rules, flatten


def lay_grids(weights: jax.Array, levels: int, group: int | None) -> tuple[jax.Array, jax.Array]:
    """Lay a grid over each group from its least weight, or 0, to its greatest, or 0.

    Args:
      weights: [I, O].
      levels: of a grid, at least 2.
      group: rows of a group; None: all of them.

    Returns:
      (scales, zeros), [G, O] each: a weight is about (code - zero) * scale. Scales are rounded to
      float16, where they fit.
    """
    groups = weights.reshape(-1, group or weights.shape[0], weights.shape[1])
    low = jnp.minimum(groups.min(1), 0.0)
    high = jnp.maximum(groups.max(1), 0.0)
    scales = (high - low) / (levels - 1)
    short = scales.astype(jnp.float16).astype(scales.dtype)
    scales = jnp.where(jnp.abs(short - scales) <= 2.0**-10 * scales, short, scales)
    scales = jnp.where(scales > 0, scales, 1.0)  # a group of zeros
    return scales, jnp.clip(jnp.round(-low / scales), 0, levels - 1)


def per_kernel(
    params: Any,
    rules: Iterable[Rule],
    levels: int,
    group: int | None,
    method: Callable[[str, jax.Array, int | None], tuple[Any, Any, Any]],
) -> Any:
    """Make a grid leaf of every matrix that the rules compress.

    Args:
      params: tree of arrays.
      rules: the first that matches a path says whether it is compressed.
      levels: of each grid.
      group: rows of a group, None: all.
      method: (path, weights [I, O], group) -> (codes, scales, zeros).

    Raises:
      ValueError: for fewer than 2 or more than 65,536 levels, a group that does not divide a
        kernel's rows, or weights that are not finite, naming the path; or for a rule that matches
        nothing.
    """
    if not 2 <= levels <= 65_536:
        raise ValueError(f"levels is {levels}; a grid has 2 to 65,536.")
    pairs, treedef = flatten(params)
    found = []
    for (path, leaf), rule in zip(
        pairs, assign(check_rules(rules), [path for path, _ in pairs]), strict=True
    ):
        matrix = np.ndim(leaf) == 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not (matrix and rule is not None and rule.compresses(leaf)):
            found.append(leaf)
            continue
        weights = jnp.asarray(np.asarray(leaf), jnp.float32)
        if group is not None and (group < 1 or weights.shape[0] % group):
            raise ValueError(
                f"{path}: groups of {group} do not divide its {weights.shape[0]} rows; give a "
                "divisor, or None for one group."
            )
        if not bool(jnp.isfinite(weights).all()):
            raise ValueError(f"{path}: weights are not finite.")
        codes, scales, zeros = map(np.asarray, method(path, weights, group))
        dtype = np.uint8 if levels <= 256 else np.uint16
        found.append(
            GridLeaf(codes.astype(dtype), scales.astype(leaf.dtype), zeros.astype(dtype), levels)
        )
    return treedef.unflatten(found)
