"""Uniform grids over groups of a kernel's rows, as round-to-nearest, GPTQ and AWQ have them."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import GridLeaf, TransposedLeaf
from sqs_jax.distribution.feedback import InputMoments, unusable
from sqs_jax.transform.rules import Rule, assign, check_rules, flatten, path_string


class Kernel(NamedTuple):
    """What a method is given.

    Attributes:
      path: in the tree.
      weights: float32 [I, O]; of a convolution height, width and inputs are its rows.
      second: second moments of their inputs, [I, I]; None if they are not known.
      group: rows of a group; None: all.
      channels: the last axis but one: how many inputs there are; I is a multiple.
    """

    path: str
    weights: jax.Array
    second: jax.Array | None
    group: int | None
    channels: int


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


def nearest(weights: jax.Array, scales: jax.Array, zeros: jax.Array, levels: int) -> jax.Array:
    """Return the codes of the nearest points on grids, [I, O]; scales and zeros are [G, O]."""
    groups = weights.reshape(len(scales), -1, weights.shape[1])
    codes = jnp.clip(jnp.round(groups / scales[:, None] + zeros[:, None]), 0, levels - 1)
    return codes.reshape(weights.shape)


def on_grids(codes: jax.Array, scales: jax.Array, zeros: jax.Array) -> jax.Array:
    """Return the weights that codes stand for, [I, O]."""
    groups = codes.reshape(len(scales), -1, codes.shape[1])
    return ((groups - zeros[:, None]) * scales[:, None]).reshape(codes.shape)


def per_kernel(
    params: Any,
    rules: Iterable[Rule],
    levels: int,
    group: int | None,
    method: Callable[[Kernel], tuple[Any, ...]],
    *,
    calibration: Any = None,
    sparsity: float = 0.0,
    wrap: Callable[..., Any] | None = None,
) -> Any:
    """Make a grid leaf of every kernel that the rules compress.

    Args:
      params: tree of arrays; a kernel has two axes or more, the last its outputs.
      rules: the first that matches a path says whether it is compressed.
      levels: of each grid.
      group: rows of a group, None: all.
      method: (kernel) -> (codes, scales, zeros, what `wrap` asks for); scales may be a grid leaf.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      sparsity: that the method was given.
      wrap: (grid leaf, what more the method returned) -> leaf; None if that is nothing.

    Raises:
      ValueError: for a sparsity outside of [0, 1), fewer than 2 or more than 65,536 levels; naming
        the path, for a group that does not divide a kernel's rows, weights that are not finite,
        moments that are none, see `unusable`, of another size or where no kernel is compressed; or
        see `select`.
    """
    require_sparsity(sparsity)
    if not 2 <= levels <= 65_536:
        raise ValueError(f"levels is {levels}; a grid has 2 to 65,536.")
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        calibration, is_leaf=lambda node: isinstance(node, InputMoments)
    )
    moments = {path_string(path): jnp.asarray(found.second) for path, found in pairs}
    leaves, treedef, kernels = select(params, rules)
    for i, (path, leaf) in kernels.items():
        weights = jnp.asarray(leaf, jnp.float32).reshape(-1, leaf.shape[-1])
        if group is not None and (group < 1 or weights.shape[0] % group):
            raise ValueError(
                f"{path}: groups of {group} do not divide its {weights.shape[0]} rows; give a "
                "divisor, or None for one group."
            )
        second = moments.pop(path, None)
        if second is not None:
            _require_fit(path, second, len(weights))
        kernel = Kernel(path, weights, second, group, leaf.shape[-2])
        codes, scales, zeros, *more = method(kernel)
        dtype = np.uint8 if levels <= 256 else np.uint16
        codes = np.asarray(codes).astype(dtype).reshape(leaf.shape)
        scales = _in_dtype(scales, leaf.dtype)
        grid = GridLeaf(codes, scales, np.asarray(zeros).astype(dtype), levels)
        leaves[i] = wrap(grid, *more) if wrap else grid
    if moments:
        raise ValueError(
            f"calibration has {', '.join(sorted(moments))}, where no kernel is compressed."
        )
    return treedef.unflatten(leaves)


def _in_dtype(scales: Any, dtype: Any) -> Any:
    """Return scales in the dtype of what they scale: an array, or rounded ones."""
    if isinstance(scales, TransposedLeaf):
        return TransposedLeaf(_in_dtype(scales.leaf, dtype))
    if isinstance(scales, GridLeaf):
        return dataclasses.replace(scales, scales=_in_dtype(scales.scales, dtype))
    return np.asarray(scales).astype(dtype)


def _require_fit(path: str, second: jax.Array, rows: int) -> None:
    if second.shape != (rows, rows):
        raise ValueError(
            f"{path}: second moments have shape {second.shape}; a kernel of {rows} rows needs "
            f"{(rows, rows)}."
        )
    if why := unusable(second):
        raise ValueError(f"{path}: {why}.")


def select(
    params: Any, rules: Iterable[Rule]
) -> tuple[list[Any], Any, dict[int, tuple[str, np.ndarray]]]:
    """Find the kernels of a tree: floating, of two axes or more, compressed by their rule.

    Returns:
      (the leaves, their treedef, {number of a leaf: (its path, its weights)}).

    Raises:
      ValueError: for a rule that matches nothing, stacks axes or has a structure, or weights that
        are not finite, naming the path.
    """
    pairs, treedef = flatten(params)
    assigned = assign(check_rules(rules), [path for path, _ in pairs])
    kernels = {}
    for i, ((path, leaf), rule) in enumerate(zip(pairs, assigned, strict=True)):
        floating = np.ndim(leaf) >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
        if not (floating and rule is not None and rule.compresses(leaf)):
            continue
        if rule.stacked or rule.structure is not None or not rule.prunable:
            raise ValueError(
                f"{path}: its rule stacks axes, has a structure or forbids pruning, which this "
                "method does not know; give a rule of a pattern alone."
            )
        kernels[i] = path, np.asarray(leaf)
        if not np.isfinite(kernels[i][1].astype(np.float32)).all():
            raise ValueError(f"{path}: weights are not finite.")
    return [leaf for _, leaf in pairs], treedef, kernels


def require_sparsity(sparsity: float) -> None:
    """Raise ValueError unless a sparsity lies in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1).")
