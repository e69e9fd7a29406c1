"""What a compressed tensor is, and how it becomes an array again."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["CompressedLeaf", "materialize"]

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


def materialize(compressed: Any) -> Any:
    """Return the dense parameters that a compressed tree stands for.

    Works under `jax.jit`, `jax.vmap` and with strict dtype promotion.

    Args:
        compressed: Any pytree of `CompressedLeaf` and other leaves.

    Returns:
        The same tree with every `CompressedLeaf` replaced by an array of the shape of its codes
        and the dtype of its codebook: a numpy array where both its arrays are numpy's, a JAX array
        otherwise. All other leaves are returned as they are.
    """
    return jax.tree.map(
        lambda leaf: _dense(leaf) if isinstance(leaf, CompressedLeaf) else leaf,
        compressed,
        is_leaf=lambda node: isinstance(node, CompressedLeaf),
    )


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
