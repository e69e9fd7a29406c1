"""Dtypes of a file, rounding to a dtype, and the narrowest exact dtype."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

__all__ = [
    "DTYPES",
    "NARROW",
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
"""Dtypes that a leaf can have. An element takes `itemsize` bytes, little-endian, also in a file."""

NARROW = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32")
"""Dtypes that floating values can be stored in, in the order in which `narrow` tries them."""


def code_dtype(num_values: int) -> np.dtype:
    """Return the dtype of codes 0 to `num_values`."""
    return np.dtype(np.uint8 if num_values <= 255 else np.uint16)


def check_stored(dtype: str, stored: str) -> None:
    """Raise ValueError unless an array of `dtype` can be stored in dtype `stored`."""
    narrower = (
        stored in NARROW
        and jnp.issubdtype(DTYPES[dtype], jnp.floating)
        and DTYPES[stored].itemsize < DTYPES[dtype].itemsize
    )
    if dtype != stored and not narrower:
        raise ValueError(f"a {dtype} leaf is not stored as {stored}")


def rounding_dtype(dense_dtype: DTypeLike | None) -> np.dtype | None:
    """Return `dense_dtype` as a numpy dtype, None for None.

    Raises:
        ValueError: If it is not in `NARROW`.
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
    """Round the values of a floating array to a narrower dtype.

    Args:
        path: Path of the leaf, for messages.
        array: Array of any dtype and shape.
        dtype: Floating dtype whose values are kept.

    Returns:
        The rounded values in the dtype of `array`; `array` itself if it is not floating or not
        wider than `dtype`.

    Raises:
        ValueError: If a finite value overflows.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize <= dtype.itemsize:
        return array
    with np.errstate(all="ignore"):
        rounded = array.astype(dtype).astype(array.dtype)
        overflows = np.isfinite(array) & ~np.isfinite(rounded)
    if overflows.any():
        largest = np.abs(array[np.isfinite(array)]).max()
        raise ValueError(
            f"{path!r}: the value {largest} overflows dense_dtype {dtype.name}, whose largest is "
            f"{jnp.finfo(dtype).max}; choose a dense_dtype of wider range, such as bfloat16"
        )
    return rounded


def narrow(array: np.ndarray) -> np.ndarray:
    """Cast an array to the first dtype of `NARROW` that is exact for every value.

    Args:
        array: Array of any dtype and shape.

    Returns:
        The array in a narrower dtype that casts back to the same bits, NaN payloads and the sign of
        zero included. `array` itself if no dtype does, if it is empty, or if it is not floating.
    """
    if not array.size or not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    for name in NARROW:
        if DTYPES[name].itemsize >= array.dtype.itemsize:
            break
        # The first 4,096 values rule a dtype out for most arrays, without a pass over all.
        if _is_exact(array.reshape(-1)[:4096], DTYPES[name]) and _is_exact(array, DTYPES[name]):
            return _cast(array, DTYPES[name])
    return array


def load_array(data: bytes, shape: Sequence[int], dtype: str, stored: str) -> np.ndarray:
    """Rebuild an array from the bytes of a file.

    Args:
        data: Elements of the array, in dtype `stored`, and nothing else.
        shape: Shape of the array.
        dtype: Name of the dtype to return.
        stored: Name of the dtype in `data`.

    Returns:
        A writable array of this shape and dtype.

    Raises:
        ValueError: If the bytes are not such an array.
    """
    if dtype == "bool" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise ValueError("a bool leaf holds bytes other than 0 and 1")
    array = np.frombuffer(data, DTYPES[stored]).reshape(shape)
    return _cast(array, DTYPES[dtype])


def _is_exact(array: np.ndarray, dtype: np.dtype) -> bool:
    bits = np.dtype(f"u{array.dtype.itemsize}")
    restored = _cast(_cast(array, dtype), array.dtype)
    return bool((restored.view(bits) == array.view(bits)).all())


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        return array.astype(dtype)
