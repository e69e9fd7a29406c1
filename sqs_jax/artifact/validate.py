"""Validation of leaves: their arrays, and the shapes and dtypes that go together.

`check_leaf` validates a leaf before a file is written. The functions on shapes and dtypes serve
both directions: `leaf_codecs` calls them on the index of a file that is read.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact.dtypes import DTYPES, code_dtype
from sqs_jax.artifact.leaves import (
    COMPOSED,
    LEAVES,
    MAX_VALUES,
    CompressedLeaf,
    GridLeaf,
    OverlayLeaf,
    ProductLeaf,
    ScaledLeaf,
    TransposedLeaf,
    transposed_shape,
)

__all__ = [
    "MAX_NESTING",
    "check_codebook",
    "check_floating",
    "check_grid",
    "check_leaf",
    "check_overlay",
    "check_places",
    "check_product",
    "check_scaled",
    "shape_and_dtype",
]

MAX_NESTING = 8
"""Largest depth of leaves within leaves, the outermost included."""


def check_leaf(path: str, leaf: Any, depth: int = 0) -> Any:
    """Return a leaf as numpy arrays; raise if a file cannot store the leaf.

    Args:
        path: Path of the leaf, for messages.
        leaf: Leaf of any kind, or an array.
        depth: Number of leaves around this one.

    Returns:
        The leaf, of C-contiguous numpy arrays.

    Raises:
        TypeError: If the leaf is traced, or has a dtype that a file cannot store.
        ValueError: If it breaks an invariant of its class, or is sharded over several hosts.
    """
    if not isinstance(leaf, LEAVES):
        return _to_numpy(path, leaf)
    if depth >= MAX_NESTING:
        raise ValueError(
            f"{path!r}: leaves are nested deeper than the {MAX_NESTING} levels that a file can "
            "hold; materialize the innermost"
        )
    check_inner = partial(check_leaf, path, depth=depth + 1)
    if isinstance(leaf, COMPOSED):
        return _check_composed(path, leaf, check_inner)
    if isinstance(leaf, GridLeaf):
        return _check_grid_leaf(path, leaf, check_inner)
    codes, codebook = (_to_numpy(path, array) for array in (leaf.codes, leaf.codebook))
    try:
        num_values = check_codebook(codes.shape, codebook.shape, codebook.dtype)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    if codes.dtype != code_dtype(num_values):
        raise ValueError(
            f"{path!r}: codes are {codes.dtype}, with W * K = {num_values} they must be "
            f"{code_dtype(num_values)}; cast them"
        )
    if codes.size and codes.max() > num_values:
        raise ValueError(
            f"{path!r}: code {codes.max()} points past a codebook of {num_values} values"
        )
    return CompressedLeaf(codes, codebook)


def shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and dtype of the tensor that a valid leaf stands for."""
    if isinstance(leaf, ProductLeaf):
        return tuple(leaf.shape), shape_and_dtype(leaf.left)[1]
    if isinstance(leaf, ScaledLeaf | OverlayLeaf):
        return shape_and_dtype(leaf.leaf)
    if isinstance(leaf, TransposedLeaf):
        shape, dtype = shape_and_dtype(leaf.leaf)
        return transposed_shape(shape), dtype
    if isinstance(leaf, CompressedLeaf):
        return leaf.codes.shape, leaf.codebook.dtype
    if isinstance(leaf, GridLeaf):
        return leaf.codes.shape, shape_and_dtype(leaf.scales)[1]
    return leaf.shape, leaf.dtype


def check_floating(first: np.dtype, *others: np.dtype) -> None:
    """Raise ValueError unless all parts of a composed leaf are floating."""
    for dtype in (first, *others):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"a part is {dtype}, it must be floating")


def check_codebook(shape: Sequence[int], codebook: Sequence[int], dtype: np.dtype) -> int:
    """Check the shapes and dtype of a `CompressedLeaf`.

    Args:
        shape: Shape of the codes, `[*S, ...]`.
        codebook: Shape of the codebook, `[*S, W, K]`.
        dtype: Dtype of the codebook.

    Returns:
        The number of values W * K of a codebook, 1 to 65,535.

    Raises:
        ValueError: If they break an invariant of `CompressedLeaf`.
    """
    stack = len(codebook) - 2
    if stack < 0 or tuple(shape[:stack]) != tuple(codebook[:stack]):
        raise ValueError(
            f"a codebook of shape {tuple(codebook)} does not match codes of shape "
            f"{tuple(shape)}; it must be [*S, W, K] with the leading axes S of the codes"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"the codebook is {dtype}, it must be floating")
    num_values = math.prod(codebook[-2:])
    if not 1 <= num_values <= MAX_VALUES:
        raise ValueError(
            f"a codebook of W * K = {num_values} values, it must have 1 to {MAX_VALUES}"
        )
    return num_values


def check_grid(
    codes: Sequence[int], scales: Sequence[int], dtype: np.dtype, zeros: Sequence[int], levels: Any
) -> None:
    """Raise ValueError unless shapes, dtype and levels fit a `GridLeaf`.

    Args:
        codes: Shape of the codes, `[*S, *I, O]`.
        scales: Shape of the scales, `[*S, G, O]`.
        dtype: Dtype of the scales.
        zeros: Shape of the zeros, `[*S, G, O]`.
        levels: Number of different codes, 2 to 65,536.
    """
    stacked, groups = len(scales) - 2, scales[-2] if len(scales) > 1 else 0
    fits = len(codes) >= len(scales) and stacked >= 0
    fits = fits and tuple(scales) == (*codes[:stacked], groups, codes[-1])
    rows = math.prod(codes[max(stacked, 0) : -1])
    if not fits or tuple(zeros) != tuple(scales) or not groups or rows % groups:
        raise ValueError(
            f"codes of shape {tuple(codes)} do not match scales {tuple(scales)} and zeros "
            f"{tuple(zeros)}; they must be [*S, *I, O] and [*S, G, O], and G must divide the rows"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"the scales are {dtype}, they must be floating")
    if type(levels) is not int or not 2 <= levels <= MAX_VALUES + 1:
        raise ValueError(f"a grid of {levels!r} levels, it must have 2 to {MAX_VALUES + 1}")


def check_scaled(shape: Sequence[int], scales: Sequence[int]) -> None:
    """Raise ValueError unless the shapes of tensor and scales fit a `ScaledLeaf`."""
    if len(shape) < 2 or tuple(scales) != tuple(shape[-2:-1]):
        raise ValueError(
            f"scales of shape {tuple(scales)} do not match a tensor of shape {tuple(shape)}; give "
            "one scale per input, the last axis but one"
        )


def check_overlay(shape: Sequence[int], places: Sequence[int], values: Sequence[int]) -> None:
    """Raise ValueError unless the three shapes fit an `OverlayLeaf`."""
    if tuple(places) != tuple(shape) or len(values) != 1:
        raise ValueError(
            f"places of shape {tuple(places)} and values of shape {tuple(values)} do not match a "
            f"tensor of shape {tuple(shape)}; places must have this shape, and values one axis"
        )


def check_places(places: np.ndarray, values: np.ndarray) -> None:
    """Raise ValueError unless `places` is a uint8 mask with a mark per value."""
    marked = int(np.count_nonzero(places))
    if places.dtype != np.uint8:
        raise ValueError(f"places are {places.dtype}, they must be uint8; cast them")
    if places.max(initial=0) > 1 or marked != values.size:
        raise ValueError(
            f"places has {marked} marks of up to {places.max(initial=0)} for {values.size} values; "
            "mark the place of each value with 1"
        )


def check_product(shape: Sequence[int], left: Sequence[int], right: Sequence[int]) -> None:
    """Raise ValueError unless the shapes of tensor and factors fit a `ProductLeaf`."""
    fits = len(left) == len(right) == 2 and len(shape) >= 1 and left[1] == right[0] > 0
    if not fits or (math.prod(shape[:-1]), shape[-1]) != (left[0], right[1]):
        raise ValueError(
            f"factors of shapes {tuple(left)} and {tuple(right)} do not make a tensor of shape "
            f"{tuple(shape)}; they must be [I, R] and [R, O] for [*inputs, O], I the product of "
            "inputs"
        )


def _check_composed(path: str, leaf: Any, check_inner: Callable[[Any], Any]) -> Any:
    if isinstance(leaf, ProductLeaf):
        left, right = map(check_inner, (leaf.left, leaf.right))
        shapes, dtypes = zip(*map(shape_and_dtype, (left, right)), strict=True)
        arrays: dict[str, np.ndarray] = {}
        checked: Any = ProductLeaf(left, right, tuple(leaf.shape))
        check_shapes: Callable[[], Any] = partial(check_product, leaf.shape, *shapes)
    elif isinstance(leaf, TransposedLeaf):
        inner = check_inner(leaf.leaf)
        shape, dtype = shape_and_dtype(inner)
        dtypes, arrays, checked = (dtype,), {}, TransposedLeaf(inner)
        check_shapes = partial(transposed_shape, shape)
    else:
        inner = check_inner(leaf.leaf)
        shape, dtype = shape_and_dtype(inner)
        dtypes = (dtype,)
        names = ("scales",) if isinstance(leaf, ScaledLeaf) else ("places", "values")
        arrays = {name: _to_numpy(path, getattr(leaf, name)) for name in names}
        checked = dataclasses.replace(leaf, leaf=inner, **arrays)
        check = check_scaled if isinstance(leaf, ScaledLeaf) else check_overlay
        check_shapes = partial(check, shape, *(array.shape for array in arrays.values()))
    try:
        check_shapes()
        check_floating(*dtypes, *(x.dtype for name, x in arrays.items() if name != "places"))
        if isinstance(leaf, OverlayLeaf):
            check_places(arrays["places"], arrays["values"])
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    return checked


def _check_grid_leaf(path: str, leaf: GridLeaf, check_inner: Callable[[Any], Any]) -> GridLeaf:
    codes, zeros = (_to_numpy(path, x) for x in (leaf.codes, leaf.zeros))
    scales = check_inner(leaf.scales)
    try:
        check_grid(codes.shape, *shape_and_dtype(scales), zeros.shape, leaf.levels)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    dtype = code_dtype(leaf.levels - 1)
    for name, array in (("codes", codes), ("zeros", zeros)):
        if array.dtype != dtype:
            raise ValueError(
                f"{path!r}: {name} are {array.dtype}, with {leaf.levels} levels they must be "
                f"{dtype}; cast them"
            )
        if array.size and array.max() >= leaf.levels:
            raise ValueError(f"{path!r}: {name} reach {array.max()}, of {leaf.levels} levels")
    return GridLeaf(codes, scales, zeros, leaf.levels)


def _to_numpy(path: str, x: Any) -> np.ndarray:
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{path!r}: the array is traced; save outside of jax.jit, grad and vmap")
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            raise TypeError(f"{path!r}: a key array; store jax.random.key_data(key)")
        if not x.is_fully_addressable:
            raise ValueError(f"{path!r}: the array is sharded over several hosts; gather it first")
    elif not isinstance(x, np.ndarray | np.generic) and not hasattr(x, "__array__"):
        raise TypeError(f"{path!r}: expected an array, not {type(x).__name__}")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{path!r}: a masked array, whose mask would be lost; fill it, x.filled(0)")
    array = np.asarray(x)
    if array.dtype.name not in DTYPES or array.dtype.names is not None:
        remedy = _dtype_remedy(array.dtype)
        raise TypeError(f"{path!r}: an array of dtype {array.dtype} cannot be stored; {remedy}")
    return np.asarray(array, DTYPES[array.dtype.name], order="C")


def _dtype_remedy(dtype: np.dtype) -> str:
    """Return the remedy for an array whose dtype a file cannot store, for messages."""
    if dtype.names is not None:
        return "store a dict of its fields, {name: x[name] for name in x.dtype.names}"
    match dtype.kind:
        case "f":  # long double, of 80 or 128 bits
            return "cast it, which rounds: x.astype(np.float64)"
        case "c":
            return "cast it, which rounds: x.astype(np.complex128)"
        case "U":
            return "keep text in the metadata, save(..., metadata={...: x.tolist()})"
        case "S":
            return "keep bytes as an attachment, save(..., attachments={...: x.tobytes()})"
        case "M" | "m":
            return "store its integers, x.view(np.int64)"
    return "cast it to a numeric one"
