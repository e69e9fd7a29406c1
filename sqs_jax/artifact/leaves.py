"""Leaves that stand for a tensor of weights, and their expansion to arrays.

`CompressedLeaf` is codes and a codebook; `GridLeaf` is codes on uniform grids. The composed leaves
`ScaledLeaf`, `OverlayLeaf`, `ProductLeaf` and `TransposedLeaf` contain other leaves.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "COMPOSED",
    "LEAVES",
    "MAX_VALUES",
    "CompressedLeaf",
    "GridLeaf",
    "OverlayLeaf",
    "ProductLeaf",
    "ScaledLeaf",
    "TransposedLeaf",
    "is_compressed",
    "materialize",
    "transposed_shape",
]

MAX_VALUES = 65_535
"""Largest number W * K of non-zero values in a codebook: codes have at most 16 bits."""

Materialize = Callable[[Any], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompressedLeaf:
    """A tensor stored as integer codes and a codebook.

    Invariants, which `save` checks. The constructor does not, so that `jax.jit` and `jax.tree.map`
    can rebuild the leaf around any node:

    - `codes` has the shape of the tensor, `[*shape]`.
    - Code 0 is a pruned weight, exactly zero. Code c > 0 is the weight `codebook.ravel()[c - 1]`.
    - `codebook` is `[W, K]`: W windows of K components, floating, in the dtype of the tensor.
    - `codes` is uint8 if W * K <= 255, else uint16. W * K is at most 65,535.
    - In a stacked leaf, `codes` is `[*S, *shape]` and `codebook` is `[*S, W, K]` with the same S.
      Every slice has its own codebook.

    Attributes:
        codes: uint8 or uint16 array `[*S, *shape]`, values 0 to W * K.
        codebook: Floating array `[*S, W, K]`, in units of weight.

    Example:
        >>> import numpy as np
        >>> codes = np.array([[0, 1], [2, 0]], np.uint8)
        >>> leaf = CompressedLeaf(codes, codebook=np.array([[-0.5, 0.25]], np.float32))
        >>> materialize(leaf)
        array([[ 0.  , -0.5 ],
               [ 0.25,  0.  ]], dtype=float32)
    """

    codes: Any
    codebook: Any


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales", "zeros"],
         meta_fields=["levels"])  # fmt: skip
@dataclasses.dataclass(frozen=True)
class GridLeaf:
    """A kernel stored as codes on uniform grids, with a scale and zero per group.

    Round-to-nearest, GPTQ and similar methods produce this form. Invariants, which `save` checks:

    - `codes` is `[*S, *I, O]`, integers below `levels`, uint8 if `levels` <= 256, else uint16.
      The axes I are the rows: the inputs of a matrix; height, width and inputs of a convolution.
    - `scales` and `zeros` are `[*S, G, O]`. G divides the number of rows; rows / G consecutive rows
      form a group.
    - A weight is `(code - zero) * scale`, in the dtype of `scales`.
    - `zeros` has the dtype of `codes` and values below `levels`, which is 2 to 65,536.

    Attributes:
        codes: Unsigned array `[*S, *I, O]`.
        scales: Floating array `[*S, G, O]`, in units of weight, or a leaf that stands for one.
        zeros: Unsigned array `[*S, G, O]`, the code of the weight 0.
        levels: Number of different codes, 2 to 65,536.

    Example:
        One output with two inputs and one group: the grid has a step of 0.5 and its zero at code 1.

        >>> import numpy as np
        >>> codes, zeros = np.uint8([[0], [3]]), np.uint8([[1]])
        >>> leaf = GridLeaf(codes, scales=np.float32([[0.5]]), zeros=zeros, levels=4)
        >>> materialize(leaf)
        array([[-0.5],
               [ 1. ]], dtype=float32)
    """

    codes: Any
    scales: Any
    zeros: Any
    levels: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledLeaf:
    """A kernel stored as another leaf times a scale per input (AWQ).

    Attributes:
        leaf: Leaf of any kind, or array, that stands for a tensor `[*S, I, O]`.
        scales: Floating array `[I]`; the weights of input i are those of `leaf` times `scales[i]`.

    Example:
        >>> import numpy as np
        >>> leaf = CompressedLeaf(np.uint8([[1, 2], [1, 0]]), np.float32([[-1, 2]]))
        >>> materialize(ScaledLeaf(leaf, scales=np.float32([1, 10])))
        array([[ -1.,   2.],
               [-10.,   0.]], dtype=float32)
    """

    leaf: Any
    scales: Any

    def dense(self, materialize: Materialize) -> Any:
        """Return the array in the dtype of `leaf`; `materialize` expands a leaf."""
        weights = materialize(self.leaf)
        wide = np.promote_types(weights.dtype, np.float32)
        scales = self.scales.astype(wide).reshape(*(1,) * (weights.ndim - 2), -1, 1)
        scaled = weights.astype(wide) * scales
        return scaled.astype(weights.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OverlayLeaf:
    """A tensor stored as another leaf and a list of exact outliers (SpQR).

    Attributes:
        leaf: Leaf of any kind, or array, that stands for a tensor `[*shape]`.
        places: uint8 array `[*shape]`, 1 where a weight is an outlier, else 0.
        values: Floating array `[n]`, the outliers in C order.

    Example:
        >>> import numpy as np
        >>> leaf = CompressedLeaf(np.uint8([1, 1, 0]), np.float32([[0.5]]))
        >>> materialize(OverlayLeaf(leaf, places=np.uint8([0, 0, 1]), values=np.float32([7.25])))
        array([0.5 , 0.5 , 7.25], dtype=float32)
    """

    leaf: Any
    places: Any
    values: Any

    def dense(self, materialize: Materialize) -> Any:
        """Return the array in the dtype of `leaf`; `materialize` expands a leaf."""
        weights = materialize(self.leaf)
        values = self.values.astype(weights.dtype)
        if isinstance(weights, np.ndarray):
            weights = weights.copy()
            weights[self.places > 0] = values
            return weights
        (positions,) = jnp.nonzero(jnp.ravel(self.places), size=self.values.size)
        return jnp.ravel(weights).at[positions].set(values).reshape(weights.shape)


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class ProductLeaf:
    """A tensor stored as the product of two matrices, each a leaf.

    Attributes:
        left: Leaf or array `[I, R]`, R at least 1.
        right: Leaf or array `[R, O]`, of the same dtype.
        shape: Shape of the tensor, `[*inputs, O]`; the product of `inputs` is I.

    Example:
        >>> import numpy as np
        >>> left, right = np.float32([[1], [2]]), np.float32([[3, 0, 5]])
        >>> materialize(ProductLeaf(left, right, shape=(2, 3)))
        array([[ 3.,  0.,  5.],
               [ 6.,  0., 10.]], dtype=float32)
    """

    left: Any
    right: Any
    shape: tuple[int, ...]

    def dense(self, materialize: Materialize) -> Any:
        """Return the array in the dtype of the factors; `materialize` expands a leaf."""
        left, right = materialize(self.left), materialize(self.right)
        wide = np.promote_types(left.dtype, np.float32)
        product = left.astype(wide) @ right.astype(wide)
        return product.astype(left.dtype).reshape(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransposedLeaf:
    """A tensor stored as another leaf with the last two axes exchanged.

    The groups of a `GridLeaf` run along the axes before the last. SpQR rounds its scales in groups
    along the last axis, which this leaf expresses.

    Attributes:
        leaf: Leaf of any kind, or array, that stands for a tensor `[*S, O, I]`.

    Example:
        >>> import numpy as np
        >>> leaf = CompressedLeaf(np.uint8([[1, 2], [0, 0]]), np.float32([[-1, 2]]))
        >>> materialize(TransposedLeaf(leaf))
        array([[-1.,  0.],
               [ 2.,  0.]], dtype=float32)
    """

    leaf: Any

    def dense(self, materialize: Materialize) -> Any:
        """Return the array `[*S, I, O]`; `materialize` expands a leaf."""
        return materialize(self.leaf).swapaxes(-1, -2)


COMPOSED = (ScaledLeaf, OverlayLeaf, ProductLeaf, TransposedLeaf)
"""Classes of leaves that contain other leaves."""
LEAVES = (CompressedLeaf, GridLeaf, *COMPOSED)
"""Classes of leaves that stand for a tensor."""


def is_compressed(node: Any) -> bool:
    """Return whether a tree node is a leaf that stands for a tensor.

    Pass this as `is_leaf` to map over a compressed tree.

    Args:
        node: Any node of a pytree.

    Returns:
        True for `CompressedLeaf`, `GridLeaf`, `ScaledLeaf`, `OverlayLeaf`, `ProductLeaf` and
        `TransposedLeaf`.

    Example:
        >>> import numpy as np
        >>> leaf = CompressedLeaf(np.zeros(3, np.uint8), np.ones((1, 4), np.float32))
        >>> is_compressed(leaf), is_compressed({"kernel": leaf})
        (True, False)
    """
    return isinstance(node, LEAVES)


def materialize(compressed: Any) -> Any:
    """Return the dense parameters that a compressed tree stands for.

    Works under `jax.jit`, `jax.vmap` and with strict dtype promotion.

    Args:
        compressed: Pytree of `CompressedLeaf`, `GridLeaf`, `ScaledLeaf`, `OverlayLeaf`,
            `ProductLeaf`, `TransposedLeaf` and other leaves.

    Returns:
        The same tree with an array in place of every such leaf, in the dtype of its codebook or
        scales. The array is numpy's where the arrays of the leaf are, a JAX array otherwise. Other
        leaves are returned unchanged.

    Example:
        >>> import numpy as np
        >>> kernel = CompressedLeaf(np.uint8([0, 1, 3]), np.float32([[-1, 0.5, 2]]))
        >>> materialize({"kernel": kernel, "bias": np.float32([0.1])})["kernel"]
        array([ 0., -1.,  2.], dtype=float32)
    """

    def dense(leaf: Any) -> Any:
        if isinstance(leaf, COMPOSED):
            return leaf.dense(dense)
        if isinstance(leaf, GridLeaf):
            return _expand_grid(leaf, dense(leaf.scales))
        return _look_up(leaf) if isinstance(leaf, CompressedLeaf) else leaf

    return jax.tree.map(dense, compressed, is_leaf=is_compressed)


def transposed_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a `TransposedLeaf` around a tensor of `shape`.

    Raises:
        ValueError: If `shape` has fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(
            f"a tensor of shape {tuple(shape)} cannot be transposed; it must have two axes"
        )
    return (*shape[:-2], shape[-1], shape[-2])


def _expand_grid(leaf: GridLeaf, scales: Any) -> Any:
    *stacked, groups, outputs = scales.shape
    dtype, rows = scales.dtype, math.prod(leaf.codes.shape[len(stacked) : -1])
    codes = leaf.codes.reshape(*stacked, groups, rows // groups, outputs)
    # float32 represents every difference of 16-bit codes exactly; float16 and bfloat16 do not.
    wide = np.promote_types(dtype, np.float32)
    steps = codes.astype(np.int32) - leaf.zeros[..., None, :].astype(np.int32)
    values = steps.astype(wide) * scales[..., None, :].astype(wide)
    return values.astype(dtype).reshape(leaf.codes.shape)


def _look_up(leaf: CompressedLeaf) -> Any:
    codes, codebook = leaf.codes, leaf.codebook
    if isinstance(codes, jax.Array) or isinstance(codebook, jax.Array):
        lookup = _look_up_jax
        for _ in range(codebook.ndim - 2):
            lookup = jax.vmap(lookup)
        return lookup(jnp.asarray(codes), jnp.asarray(codebook))
    if codebook.ndim == 2:
        return _look_up_numpy(codes, codebook)
    out = np.empty(codes.shape, codebook.dtype)
    for index in np.ndindex(codebook.shape[:-2]):
        out[index] = _look_up_numpy(codes[index], codebook[index])
    return out


def _look_up_numpy(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    return np.asarray(np.append(np.zeros(1, codebook.dtype), codebook.ravel())[codes])


def _look_up_jax(codes: jax.Array, codebook: jax.Array) -> jax.Array:
    table = jnp.concatenate([jnp.zeros(1, codebook.dtype), codebook.ravel()])
    # Codes are in range by the invariants, so the gather needs no checks of negative or large
    # indices.
    return table.at[codes].get(mode="clip", wrap_negative_indices=False)
