"""What a compressed tensor is, and how it becomes an array again."""

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact.composed import COMPOSED

__all__ = ["LEAVES", "CompressedLeaf", "GridLeaf", "is_compressed", "materialize"]

MAX_VALUES = 65_535
"""The most non-zero values, W * K, one codebook can hold: codes are at most 16 bits."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompressedLeaf:
    """Hold one tensor as integer codes and the codebook they point into.

    Invariants (checked by `save`, not here, so that the leaf can be traced and mapped over):

    - `codes` is `[*shape]`, the shape of the tensor it stands for.
    - A code of 0 is a pruned weight, exactly zero; a code c > 0 is `codebook.ravel()[c - 1]`.
    - `codebook` is `[W, K]`, W windows of K components, floating, in the dtype of the tensor.
    - `codes` is uint8 if W * K <= 255 and uint16 otherwise; W * K is at most 65,535.
    - Stacked leaves: `codes` is `[*S, *shape]` and `codebook` is `[*S, W, K]` with the same S;
      every slice has a codebook of its own.

    Attributes:
        codes: uint8 or uint16 array `[*S, *shape]`.
        codebook: floating array `[*S, W, K]`, in units of weight.
    """

    codes: Any
    codebook: Any


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales", "zeros"],
         meta_fields=["levels"])  # fmt: skip
@dataclasses.dataclass(frozen=True)
class GridLeaf:
    """Hold one kernel as integer codes on uniform grids, a scale and a zero for each group.

    What round-to-nearest, GPTQ and their like make of a kernel. Invariants (checked by `save`):

    - `codes` is `[*S, *I, O]`, integers below `levels`, uint8 if `levels` <= 256, else uint16. I is
      one axis, or several: of a convolution height, width and inputs, together its rows.
    - `scales` and `zeros` are `[*S, G, O]`; G divides the number of rows, and so many in turn make
      a group.
    - A weight is `(code - zero) * scale`, in the dtype of `scales`.
    - `zeros` has the dtype of `codes` and lies below `levels`, which is 2 to 65,536.

    Attributes:
        codes: unsigned array `[*S, *I, O]`.
        scales: floating array `[*S, G, O]`, in units of weight, or a leaf that stands for one.
        zeros: unsigned array `[*S, G, O]`, the code of the weight 0.
        levels: How many codes there are.
    """

    codes: Any
    scales: Any
    zeros: Any
    levels: int


LEAVES = (CompressedLeaf, GridLeaf, *COMPOSED)
"""What stands for a tensor."""


def is_compressed(node: Any) -> bool:
    """Return whether a node of a tree stands for a tensor: `CompressedLeaf` and its like."""
    return isinstance(node, LEAVES)


def materialize(compressed: Any) -> Any:
    """Return the dense parameters that a compressed tree stands for.

    Works under `jax.jit`, `jax.vmap` and with strict dtype promotion.

    Args:
        compressed: Any pytree of `CompressedLeaf`, `GridLeaf`, `ScaledLeaf`, `OverlayLeaf`,
            `ProductLeaf`, `TransposedLeaf` and other leaves.

    Returns:
        The same tree with every such leaf replaced by the array that it stands for, in the dtype of
        its codebooks or scales: a numpy array where its arrays are numpy's, a JAX array otherwise.
        All other leaves are returned as they are.
    """

    def dense(leaf: Any) -> Any:
        if isinstance(leaf, COMPOSED):
            return leaf.dense(dense)
        if isinstance(leaf, GridLeaf):
            return _on_grid(leaf, dense(leaf.scales))
        return _dense(leaf) if isinstance(leaf, CompressedLeaf) else leaf

    return jax.tree.map(dense, compressed, is_leaf=is_compressed)


def _on_grid(leaf: GridLeaf, scales: Any) -> Any:
    *stacked, groups, outputs = scales.shape
    dtype, rows = scales.dtype, math.prod(leaf.codes.shape[len(stacked) : -1])
    codes = leaf.codes.reshape(*stacked, groups, rows // groups, outputs)
    # 16-bit differences are exact in float32, not in the narrower dtypes
    wide = np.promote_types(dtype, np.float32)
    steps = codes.astype(np.int32) - leaf.zeros[..., None, :].astype(np.int32)
    values = steps.astype(wide) * scales[..., None, :].astype(wide)
    return values.astype(dtype).reshape(leaf.codes.shape)


def _dense(leaf: CompressedLeaf) -> Any:
    codes, codebook = leaf.codes, leaf.codebook
    if isinstance(codes, jax.Array) or isinstance(codebook, jax.Array):
        lookup = _lookup_jax
        for _ in range(codebook.ndim - 2):
            lookup = jax.vmap(lookup)
        return lookup(jnp.asarray(codes), jnp.asarray(codebook))
    if codebook.ndim == 2:
        return _lookup_numpy(codes, codebook)
    out = np.empty(codes.shape, codebook.dtype)
    for index in np.ndindex(codebook.shape[:-2]):
        out[index] = _lookup_numpy(codes[index], codebook[index])
    return out


def _lookup_numpy(codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    return np.asarray(np.append(np.zeros(1, codebook.dtype), codebook.ravel())[codes])


def _lookup_jax(codes: jax.Array, codebook: jax.Array) -> jax.Array:
    table = jnp.concatenate([jnp.zeros(1, codebook.dtype), codebook.ravel()])
    # In-range by the invariants, so the gather need not pay for negative or large indices.
    return table.at[codes].get(mode="clip", wrap_negative_indices=False)
