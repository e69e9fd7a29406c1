"""Tensors made of other leaves: scaled by row, with exact outliers, transposed, or as a product."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["COMPOSED", "OverlayLeaf", "ProductLeaf", "ScaledLeaf", "TransposedLeaf"]

Dense = Callable[[Any], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledLeaf:
    """Hold a kernel as another leaf, times a scale for each of its inputs (AWQ).

    Attributes:
        leaf: Any leaf but a tensor of fewer than two axes; its shape is `[*S, I, O]`.
        scales: floating array `[I]`; the weights of input i are `leaf`'s times `scales[i]`.
    """

    leaf: Any
    scales: Any

    def dense(self, of: Dense) -> Any:
        """Return the array, in the dtype of `leaf`'s; `of` makes arrays of leaves."""
        weights = of(self.leaf)
        wide = np.promote_types(weights.dtype, np.float32)
        scales = self.scales.astype(wide).reshape(*(1,) * (weights.ndim - 2), -1, 1)
        scaled = weights.astype(wide) * scales
        return scaled.astype(weights.dtype)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OverlayLeaf:
    """Hold a tensor as another leaf, but for some weights that are kept as they are (SpQR).

    Attributes:
        leaf: Any leaf, `[*shape]`.
        places: uint8 `[*shape]`, 1 where a weight is kept as it is, else 0.
        values: floating `[n]`, those weights, in C order.
    """

    leaf: Any
    places: Any
    values: Any

    def dense(self, of: Dense) -> Any:
        """Return the array, in the dtype of `leaf`'s; `of` makes arrays of leaves."""
        weights = of(self.leaf)
        values = self.values.astype(weights.dtype)
        if isinstance(weights, np.ndarray):
            weights = weights.copy()
            weights[self.places > 0] = values
            return weights
        (at,) = jnp.nonzero(jnp.ravel(self.places), size=self.values.size)
        return jnp.ravel(weights).at[at].set(values).reshape(weights.shape)


@partial(jax.tree_util.register_dataclass, data_fields=["left", "right"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class ProductLeaf:
    """Hold a tensor as the product of two matrices, each a leaf of its own.

    Attributes:
        left: leaf `[I, R]`, R at least 1.
        right: leaf `[R, O]`, of the same dtype.
        shape: Of the tensor, `[*inputs, O]`; the product of the first axes is I.
    """

    left: Any
    right: Any
    shape: tuple[int, ...]

    def dense(self, of: Dense) -> Any:
        """Return the array, in the dtype of its factors; `of` makes arrays of leaves."""
        left, right = of(self.left), of(self.right)
        wide = np.promote_types(left.dtype, np.float32)
        product = left.astype(wide) @ right.astype(wide)
        return product.astype(left.dtype).reshape(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TransposedLeaf:
    """Hold a tensor as another leaf with its last two axes exchanged (SpQR's rounded scales).

    The grids of a `GridLeaf` lie along the axes before the last, one for each output. Within this
    leaf they lie along the last.

    Attributes:
        leaf: Any leaf but a tensor of fewer than two axes, `[*S, O, I]`.
    """

    leaf: Any

    def dense(self, of: Dense) -> Any:
        """Return the array `[*S, I, O]`; `of` makes arrays of leaves."""
        return of(self.leaf).swapaxes(-1, -2)


COMPOSED = (ScaledLeaf, OverlayLeaf, ProductLeaf, TransposedLeaf)
"""What is put together from other leaves."""


def check_scaled(shape: Sequence[int], scales: Sequence[int]) -> None:
    """Raise ValueError unless a tensor and scales of these shapes make a `ScaledLeaf`."""
    if len(shape) < 2 or tuple(scales) != tuple(shape[-2:-1]):
        raise ValueError(
            f"scales of shape {tuple(scales)} do not go with a tensor of {tuple(shape)}; there "
            "must be one for each of its inputs, the last axis but one"
        )


def check_overlay(shape: Sequence[int], places: Sequence[int], values: Sequence[int]) -> None:
    """Raise ValueError unless arrays of these shapes make an `OverlayLeaf`."""
    if tuple(places) != tuple(shape) or len(values) != 1:
        raise ValueError(
            f"places of shape {tuple(places)} and values of {tuple(values)} do not go with a "
            f"tensor of {tuple(shape)}; they must be of its shape, and of one axis"
        )


def check_places(places: np.ndarray, values: np.ndarray) -> None:
    """Raise ValueError unless places are marks, uint8, and as many as there are values."""
    marked = int(np.count_nonzero(places))
    if places.dtype != np.uint8:
        raise ValueError(f"places are {places.dtype}, they must be uint8; cast them")
    if places.max(initial=0) > 1 or marked != values.size:
        raise ValueError(
            f"{marked} places are marked with up to {places.max(initial=0)}, for {values.size} "
            "values; marks are 1, one for each value"
        )


def transposed(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a `TransposedLeaf` of a tensor of a shape.

    Raises:
        ValueError: If that has fewer than two axes.
    """
    if len(shape) < 2:
        raise ValueError(f"a tensor of {tuple(shape)} is not transposed; it must have two axes")
    return (*shape[:-2], shape[-1], shape[-2])


def check_product(shape: Sequence[int], left: Sequence[int], right: Sequence[int]) -> None:
    """Raise ValueError unless factors of these shapes make a `ProductLeaf` of a shape."""
    fits = len(left) == len(right) == 2 and len(shape) >= 1 and left[1] == right[0] > 0
    if not fits or (math.prod(shape[:-1]), shape[-1]) != (left[0], right[1]):
        raise ValueError(
            f"factors of shapes {tuple(left)} and {tuple(right)} do not make a tensor of "
            f"{tuple(shape)}"
        )
