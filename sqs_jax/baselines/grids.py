"""Uniform grids over groups of a kernel's rows, shared by the rounding methods."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import GridLeaf, TransposedLeaf
from sqs_jax.calibration.moments import InputMoments, unusable
from sqs_jax.transform.rules import Rule, assign, check_rules, flatten, path_string


class Kernel(NamedTuple):
    """Input of a method: a kernel as a matrix, with the moments of its inputs.

    Attributes:
        path: Path of the kernel in the tree.
        weights: Weights, float32 [I, O]; the rows of a convolution are height x width x inputs.
        second: Second moments of the inputs, [I, I]; None without calibration data.
        group: Group size in rows; None for all rows.
        channels: Number of input channels, the last axis but one; I is a multiple of this number.
    """

    path: str
    weights: jax.Array
    second: jax.Array | None
    group: int | None
    channels: int


def lay_grids(weights: jax.Array, levels: int, group: int | None) -> tuple[jax.Array, jax.Array]:
    """Compute the min-max grid of each group; zero is on every grid.

    Args:
        weights: Weights, float [I, O].
        levels: Number of levels of each grid, at least 2.
        group: Group size in rows; None for all rows.

    Returns:
        Scales [G, O] and zeros [G, O]: a weight is about (code - zero) * scale. A scale is rounded
        to float16 unless that changes it by more than 2**-10 of its value.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines.grids import lay_grids
        >>> scales, zeros = lay_grids(jnp.array([[-1.0], [3.0]]), levels=5, group=None)
        >>> scales.tolist(), zeros.tolist()
        ([[1.0]], [[1.0]])
    """
    groups = weights.reshape(-1, group or weights.shape[0], weights.shape[1])
    low = jnp.minimum(groups.min(1), 0.0)
    high = jnp.maximum(groups.max(1), 0.0)
    scales = (high - low) / (levels - 1)
    short = scales.astype(jnp.float16).astype(scales.dtype)
    scales = jnp.where(jnp.abs(short - scales) <= 2.0**-10 * scales, short, scales)
    scales = jnp.where(scales > 0, scales, 1.0)  # a group of zeros has the scale 0
    return scales, jnp.clip(jnp.round(-low / scales), 0, levels - 1)


def nearest(weights: jax.Array, scales: jax.Array, zeros: jax.Array, levels: int) -> jax.Array:
    """Return the codes [I, O] of the nearest grid points; scales and zeros are [G, O]."""
    groups = weights.reshape(len(scales), -1, weights.shape[1])
    codes = jnp.clip(jnp.round(groups / scales[:, None] + zeros[:, None]), 0, levels - 1)
    return codes.reshape(weights.shape)


def on_grids(codes: jax.Array, scales: jax.Array, zeros: jax.Array) -> jax.Array:
    """Return the weights [I, O] of codes [I, O]; scales and zeros are [G, O]."""
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
    """Apply a method to every kernel that the rules compress; return the tree of leaves.

    Args:
        params: Tree of arrays; a kernel has two axes or more, the last its outputs.
        rules: Rules that choose the kernels; the first match decides.
        levels: Number of levels of each grid, 2 to 65,536.
        group: Group size in rows; None for all rows.
        method: Function of a `Kernel` that returns (codes, scales, zeros, *extra); scales may be a
            grid leaf.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the field `second` is
            used.
        sparsity: Sparsity of the method, checked here; in [0, 1).
        wrap: Function (grid leaf, *extra) that returns the leaf; None if the grid leaf is the leaf.

    Raises:
        ValueError: If sparsity or levels is out of range, or as `select`. Naming the path: if the
            group does not divide a kernel's rows, or the moments are unusable (see `unusable`),
            have another size, or belong to no compressed kernel.
    """
    require_sparsity(sparsity)
    if not 2 <= levels <= 65_536:
        raise ValueError(f"levels is {levels}; a grid has 2 to 65,536.")
    pairs, _ = jax.tree_util.tree_flatten_with_path(
        calibration, is_leaf=lambda node: isinstance(node, InputMoments)
    )
    moments = {path_string(path): jnp.asarray(inputs.second) for path, inputs in pairs}
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
    """Cast scales, an array or a grid leaf, to the dtype of the weights."""
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
        Leaves, their treedef, and {index of a leaf: (path, weights)} for the kernels.

    Raises:
        ValueError: If a rule matches nothing, stacks axes, has a structure or forbids pruning; or
            if a weight is not finite, naming the path.
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
                "method does not support; give a rule of a pattern alone."
            )
        kernels[i] = path, np.asarray(leaf)
        if not np.isfinite(kernels[i][1].astype(np.float32)).all():
            raise ValueError(f"{path}: weights are not finite.")
    return [leaf for _, leaf in pairs], treedef, kernels


def require_sparsity(sparsity: float) -> None:
    """Raise ValueError unless a sparsity lies in [0, 1)."""
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1).")
