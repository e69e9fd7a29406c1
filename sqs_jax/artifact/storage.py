"""Arrays to bytes and back, each leaf on its own: validation, rounding, and the narrowest dtype."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from sqs_jax.artifact.composed import (
    COMPOSED,
    OverlayLeaf,
    ProductLeaf,
    ScaledLeaf,
    TransposedLeaf,
    check_overlay,
    check_places,
    check_product,
    check_scaled,
    transposed,
)
from sqs_jax.artifact.compressed import LEAVES, MAX_VALUES, CompressedLeaf, GridLeaf

__all__ = [
    "DTYPES",
    "check_codebook",
    "check_grid",
    "check_leaf",
    "check_stored",
    "code_dtype",
    "load_array",
    "narrow",
    "round_dense",
    "rounding_dtype",
]

_NAMES = [
    *("bool", "int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16"),
    *("int32", "uint32", "int64", "uint64", "complex64", "complex128"),
    *("float4_e2m1fn", "float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn"),
    *("float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    *("float16", "bfloat16", "float32", "float64"),
]
DTYPES = {name: np.dtype(name) for name in _NAMES}
"""The dtypes a leaf can have. One element takes `itemsize` bytes, little-endian, also in a file."""

MAX_DEPTH = 8
"""How deep leaves may lie in leaves, the outermost included."""

NARROW = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32")
"""The dtypes that floating values are stored in, first fit first (widths ascend)."""


def check_leaf(path: str, leaf: Any, depth: int = 0) -> Any:
    """Return a leaf as numpy arrays, or say what is wrong with it.

    Args:
        path: Where the leaf is, for messages.
        leaf: A leaf of any kind, or an array.
        depth: Of leaves within leaves.

    Returns:
        The leaf, of C-contiguous numpy arrays.

    Raises:
        TypeError: If the leaf is traced, or is of a dtype that cannot be stored.
        ValueError: If it breaks an invariant of its kind, or lies on other hosts.
    """
    if not isinstance(leaf, LEAVES):
        return _to_numpy(path, leaf)
    if depth >= MAX_DEPTH:
        raise ValueError(f"{path!r}: leaves lie {MAX_DEPTH} deep in leaves, deeper than a file has")
    check_inner = partial(check_leaf, path, depth=depth + 1)
    if isinstance(leaf, COMPOSED):
        return _check_composed(path, leaf, check_inner)
    if isinstance(leaf, GridLeaf):
        return _check_grid_leaf(path, leaf, check_inner)
    codes, codebook = (_to_numpy(path, array) for array in (leaf.codes, leaf.codebook))
    try:
        values = check_codebook(codes.shape, codebook.shape, codebook.dtype)
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    if codes.dtype != code_dtype(values):
        raise ValueError(
            f"{path!r}: codes are {codes.dtype}, with W * K = {values} they must be "
            f"{code_dtype(values)}; cast them"
        )
    if codes.size and codes.max() > values:
        raise ValueError(f"{path!r}: code {codes.max()} points past a codebook of {values} values")
    return CompressedLeaf(codes, codebook)


def _check_composed(path: str, leaf: Any, check_inner: Callable[[Any], Any]) -> Any:
    if isinstance(leaf, ProductLeaf):
        left, right = map(check_inner, (leaf.left, leaf.right))
        shapes, dtypes = zip(*map(shape_and_dtype, (left, right)), strict=True)
        arrays: dict[str, np.ndarray] = {}
        found: Any = ProductLeaf(left, right, tuple(leaf.shape))
        check: Callable[[], Any] = partial(check_product, leaf.shape, *shapes)
    elif isinstance(leaf, TransposedLeaf):
        inner = check_inner(leaf.leaf)
        shape, dtype = shape_and_dtype(inner)
        dtypes, arrays, found = (dtype,), {}, TransposedLeaf(inner)
        check = partial(transposed, shape)
    else:
        inner = check_inner(leaf.leaf)
        shape, dtype = shape_and_dtype(inner)
        dtypes = (dtype,)
        names = ("scales",) if isinstance(leaf, ScaledLeaf) else ("places", "values")
        arrays = {name: _to_numpy(path, getattr(leaf, name)) for name in names}
        found = dataclasses.replace(leaf, leaf=inner, **arrays)
        fits = check_scaled if isinstance(leaf, ScaledLeaf) else check_overlay
        check = partial(fits, shape, *(array.shape for array in arrays.values()))
    try:
        check()
        check_floating(*dtypes, *(x.dtype for name, x in arrays.items() if name != "places"))
        if isinstance(leaf, OverlayLeaf):
            check_places(arrays["places"], arrays["values"])
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}") from error
    return found


def check_floating(first: np.dtype, *others: np.dtype) -> None:
    """Raise ValueError unless the parts of a composed leaf are floating."""
    for dtype in (first, *others):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"a part is {dtype}, it must be floating")


def shape_and_dtype(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Return those of the tensor that a leaf that was checked stands for."""
    if isinstance(leaf, ProductLeaf):
        return tuple(leaf.shape), shape_and_dtype(leaf.left)[1]
    if isinstance(leaf, ScaledLeaf | OverlayLeaf):
        return shape_and_dtype(leaf.leaf)
    if isinstance(leaf, TransposedLeaf):
        shape, dtype = shape_and_dtype(leaf.leaf)
        return transposed(shape), dtype
    if isinstance(leaf, CompressedLeaf):
        return leaf.codes.shape, leaf.codebook.dtype
    if isinstance(leaf, GridLeaf):
        return leaf.codes.shape, shape_and_dtype(leaf.scales)[1]
    return leaf.shape, leaf.dtype


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


def check_grid(
    codes: Sequence[int], scales: Sequence[int], dtype: np.dtype, zeros: Sequence[int], levels: Any
) -> None:
    """Raise ValueError unless arrays of these shapes make a `GridLeaf`.

    Args:
        codes, scales, zeros: Their shapes.
        dtype: Of the scales.
        levels: How many codes there are.
    """
    stacked, groups = len(scales) - 2, scales[-2] if len(scales) > 1 else 0
    fits = len(codes) >= len(scales) and stacked >= 0
    fits = fits and tuple(scales) == (*codes[:stacked], groups, codes[-1])
    rows = math.prod(codes[max(stacked, 0) : -1])
    if not fits or tuple(zeros) != tuple(scales) or not groups or rows % groups:
        raise ValueError(
            f"codes of shape {tuple(codes)} do not go with scales {tuple(scales)} and zeros "
            f"{tuple(zeros)}; they must be [*S, *I, O] and [*S, G, O], and G must divide the rows"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"the scales are {dtype}, they must be floating")
    if type(levels) is not int or not 2 <= levels <= MAX_VALUES + 1:
        raise ValueError(f"a grid of {levels!r} levels, it must have 2 to {MAX_VALUES + 1}")


def check_codebook(shape: Sequence[int], codebook: Sequence[int], dtype: np.dtype) -> int:
    """Return the number of values W * K of a codebook that goes with codes.

    Args:
        shape: Shape of the codes, `[*S, ...]`.
        codebook: Shape of the codebook, `[*S, W, K]`.
        dtype: Dtype of the codebook.

    Raises:
        ValueError: If they break an invariant of `CompressedLeaf`.
    """
    stack = len(codebook) - 2
    if stack < 0 or tuple(shape[:stack]) != tuple(codebook[:stack]):
        raise ValueError(
            f"a codebook of shape {tuple(codebook)} does not go with codes of shape "
            f"{tuple(shape)}; it must be [*S, W, K] with the leading axes S of the codes"
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"the codebook is {dtype}, it must be floating")
    values = math.prod(codebook[-2:])
    if not 1 <= values <= MAX_VALUES:
        raise ValueError(f"a codebook of W * K = {values} values, it must have 1 to {MAX_VALUES}")
    return values


def check_stored(dtype: str, stored: str) -> None:
    """Raise ValueError unless an array of `dtype` can be stored in dtype `stored`."""
    narrower = (
        stored in NARROW
        and jnp.issubdtype(DTYPES[dtype], jnp.floating)
        and DTYPES[stored].itemsize < DTYPES[dtype].itemsize
    )
    if dtype != stored and not narrower:
        raise ValueError(f"a {dtype} leaf is not stored as {stored}")


def _to_numpy(path: str, x: Any) -> np.ndarray:
    if isinstance(x, jax.core.Tracer):
        raise TypeError(f"{path!r}: the array is traced; save outside of jax.jit, grad and vmap")
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):
            raise TypeError(f"{path!r}: a key array; store jax.random.key_data(key)")
        if not x.is_fully_addressable:
            raise ValueError(f"{path!r}: the array lies on other hosts too; gather it first")
    elif not isinstance(x, np.ndarray | np.generic) and not hasattr(x, "__array__"):
        raise TypeError(f"{path!r}: expected an array, not {type(x).__name__}")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{path!r}: a masked array, whose mask would be lost; fill it, x.filled(0)")
    array = np.asarray(x)
    if array.dtype.name not in DTYPES or array.dtype.names is not None:
        remedy = _remedy(array.dtype)
        raise TypeError(f"{path!r}: an array of dtype {array.dtype} cannot be stored; {remedy}")
    return np.asarray(array, DTYPES[array.dtype.name], order="C")


def _remedy(dtype: np.dtype) -> str:
    """Say what to do with an array of a dtype that a file does not have."""
    if dtype.names is not None:
        return "store a dict of its fields, {name: x[name] for name in x.dtype.names}"
    match dtype.kind:
        case "f":  # long double, of 80 bits or 128
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


def code_dtype(values: int) -> np.dtype:
    """Return the dtype of codes into a codebook of W * K = `values`."""
    return np.dtype(np.uint8 if values <= 255 else np.uint16)


def rounding_dtype(dense_dtype: DTypeLike | None) -> np.dtype | None:
    """Return `dense_dtype` as a numpy dtype, None for None.

    Raises:
        ValueError: If it is not one of the dtypes that values are stored in.
    """
    if dense_dtype is None:
        return None
    try:
        dtype = np.dtype(dense_dtype)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in NARROW:
        raise ValueError(f"dense_dtype is {dense_dtype!r}; choose one of {', '.join(NARROW)}")
    return dtype


def round_dense(path: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round a floating array to a narrower dtype; other arrays are returned as they are.

    Args:
        path: Where the leaf is, for messages.
        array: Any array.
        dtype: What to round to, if the array's own dtype is wider.

    Returns:
        The rounded values, in the array's own dtype.

    Raises:
        ValueError: If a finite value overflows.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize <= dtype.itemsize:
        return array
    with np.errstate(all="ignore"):
        rounded = array.astype(dtype).astype(array.dtype)
        lost = np.isfinite(array) & ~np.isfinite(rounded)
    if lost.any():
        largest = np.abs(array[np.isfinite(array)]).max()
        raise ValueError(
            f"{path!r}: the value {largest} overflows dense_dtype {dtype.name}, whose largest is "
            f"{jnp.finfo(dtype).max}; choose a dense_dtype of wider range, such as bfloat16"
        )
    return rounded


def narrow(array: np.ndarray) -> np.ndarray:
    """Return the array in the first dtype of `NARROW` that holds every value of it, bit for bit.

    Args:
        array: Any array.

    Returns:
        The array in a narrower dtype that casts back to the same bits (NaN payloads and the sign
        of zero included), or as it is if there is none, if it is empty, or if it is not floating.
    """
    if not array.size or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    for name in NARROW:
        if DTYPES[name].itemsize >= array.dtype.itemsize:
            break
        # The first few values settle it for most arrays.
        if _fits(array.reshape(-1)[:4096], DTYPES[name]) and _fits(array, DTYPES[name]):
            return _cast(array, DTYPES[name])
    return array


def _fits(array: np.ndarray, dtype: np.dtype) -> bool:
    bits = np.dtype(f"u{array.dtype.itemsize}")
    again = _cast(_cast(array, dtype), array.dtype)
    return bool((again.view(bits) == array.view(bits)).all())


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def load_array(data: bytes, shape: Sequence[int], dtype: str, stored: str) -> np.ndarray:
    """Rebuild an array from its bytes.

    Args:
        data: Exactly the elements, in dtype `stored`.
        shape: The array's shape.
        dtype: Name of the dtype to return.
        stored: Name of the dtype in `data`.

    Returns:
        A writable array.

    Raises:
        ValueError: If the bytes are not such an array.
    """
    if dtype == "bool" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("a bool leaf holds bytes other than 0 and 1")
    array = np.frombuffer(data, DTYPES[stored]).reshape(shape)
    return _cast(array, DTYPES[dtype])
