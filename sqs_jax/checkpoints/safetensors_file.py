"""Reader and writer of safetensors files, tensor by tensor.

    8 bytes             length of the header, little-endian
    header              JSON: {name: {"dtype", "shape", "data_offsets"}, "__metadata__": {...}}
    data                the tensors, C order, little-endian, without holes

This module implements the format instead of calling the safetensors library. The library's numpy
interface lacks the dtypes that numpy lacks (float8), it maps the file into memory, and it writes
only tensors that are all in memory.

The format lacks int2, int4, complex128 and some float8 dtypes. `write_safetensors` stores such a
tensor in a wider dtype of the format (complex128 as pairs of F64 in a last axis) and records the
original dtype in `__metadata__`: {"sqs_dtypes": '{"name": "int4"}'}. Other readers get the values;
`read_safetensors` restores the original dtype.
"""

import functools
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from sqs_jax.artifact.atomic import replacing
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.checkpoints.lazy_array import (
    Checkpoint,
    CheckpointError,
    LazyArray,
    SourceFile,
    check_shape,
    fill,
)

__all__ = ["MAX_HEADER", "SQS", "dump_json", "load_json", "read_safetensors", "write_safetensors"]

MAX_HEADER = 100_000_000
"""Largest header, bytes; the bound of the safetensors library."""

_CODES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16"},
    **{"U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64", "C64": "complex64"},
    **{"F4": "float4_e2m1fn", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E8M0": "float8_e8m0fnu", "F8_E4M3FNUZ": "float8_e4m3fnuz"},
    **{"F8_E5M2FNUZ": "float8_e5m2fnuz", "F16": "float16", "BF16": "bfloat16"},
    **{"F32": "float32", "F64": "float64"},
}
_NAMES = {name: code for code, name in _CODES.items()}
_STORED_AS = {
    **{"int2": "int8", "uint2": "uint8", "int4": "int8", "uint4": "uint8", "complex128": "float64"},
    **{"float8_e3m4": "float16", "float8_e4m3": "float16", "float8_e4m3b11fnuz": "float16"},
    # Only for an odd number of elements, because F4 packs two elements into a byte.
    "float4_e2m1fn": "float8_e4m3fn",
}
"""Dtypes that the format lacks, with a wider dtype of the format that represents all values."""
_DTYPES_KEY = "sqs_dtypes"
SQS = "an sqs file, which is compressed already; unfold it with: sqs decompress"
DAMAGED = "the file is damaged or cut short; copy it again"


class _Entry(NamedTuple):
    """Entry of a tensor in the header; `start` and `end` are offsets in the data, bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(source: SourceFile) -> Checkpoint:
    """Open a safetensors file by reading its header alone.

    Args:
        source: Untrusted file.

    Returns:
        Checkpoint whose metadata are the file's `__metadata__`.

    Raises:
        CheckpointError: If the file breaks a rule of the format, or is an sqs file.
    """
    try:
        with source.open() as file:
            text, begin = _header_text(source, file)
        header = load_json(text)
        if not isinstance(header, dict):
            raise ValueError("the header is no JSON object")
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
            raise ValueError("__metadata__ is no object of strings")
        if metadata.get("format") == "sqs":
            raise source.error(SQS)
        entries = {name: _entry(source, name, value) for name, value in header.items()}
        _check_layout(entries, source.size - begin)
        restored = _restored_dtypes(metadata, entries)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise source.error(f"{error}; {DAMAGED}") from error
    tree = {}
    for name, entry in entries.items():
        read = functools.partial(_read, source, name, entry, begin)
        if name in restored:
            shape = entry.shape[:-1] if restored[name].kind == "c" else entry.shape
            tree[name] = LazyArray(shape, restored[name], _restoring(read, restored[name]))
        else:
            tree[name] = LazyArray(entry.shape, entry.dtype, read)
    kept = {key: text for key, text in metadata.items() if key != _DTYPES_KEY}
    return Checkpoint(tree, "safetensors", kept, source.size)


def _restored_dtypes(metadata: Mapping[str, str], entries: Mapping[str, _Entry]) -> dict[str, Any]:
    """Return the original dtypes of the tensors that are stored in a wider dtype."""
    text = metadata.get(_DTYPES_KEY)
    if text is None:
        return {}
    names = load_json(text.encode("utf-8", "surrogatepass"))
    if not isinstance(names, dict):
        raise ValueError(f"{_DTYPES_KEY} in __metadata__ is no object")
    for name, dtype in names.items():
        entry = entries.get(name)
        wider = isinstance(dtype, str) and _STORED_AS.get(dtype)
        fits = entry is not None and wider == entry.dtype.name
        if fits and entry is not None and dtype == "complex128":
            fits = entry.shape[-1:] == (2,)
        if not fits:
            raise ValueError(f"{_DTYPES_KEY} in __metadata__ says {name!r:.80} is {dtype!r:.80}")
    return {name: DTYPES[dtype] for name, dtype in names.items()}


def _restoring(read: Callable[[], np.ndarray], dtype: np.dtype) -> Callable[[], np.ndarray]:
    """Wrap a read function to cast stored values to the original dtype."""

    def restored() -> np.ndarray:
        stored = read()
        if dtype.kind == "c":
            return stored.view(dtype).reshape(stored.shape[:-1])
        with np.errstate(all="ignore"):  # only an invalid file has values outside of the dtype
            return stored.astype(dtype)

    return restored


def _header_text(source: SourceFile, file: BinaryIO) -> tuple[bytes, int]:
    if source.size < 8:
        raise ValueError(f"{source.size} bytes are no safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER:
        raise ValueError(f"the header claims {length} bytes, more than {MAX_HEADER}")
    if 8 + length > source.size:
        raise ValueError(f"the header claims {length} bytes of a file of {source.size}")
    return file.read(length), 8 + length


def load_json(text: bytes) -> Any:
    """Parse JSON text, and refuse objects with duplicate keys.

    Raises:
        ValueError: If a key is duplicate, the text is not JSON, or a string is not valid Unicode.
        RecursionError: If the nesting is too deep.
    """
    value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique)
    if b"\\ud" in text.lower():  # a lone surrogate can be neither printed nor written
        dump_json(value)
    return value


def dump_json(value: Any) -> bytes:
    """Encode a value as compact JSON.

    Raises:
        ValueError: If a string is not valid Unicode.
    """
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for key, value in pairs:
        if key in unique:
            raise ValueError(f"the name {key!r:.80} appears twice")
        unique[key] = value
    return unique


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _entry(source: SourceFile, name: str, value: Any) -> _Entry:
    match value:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise ValueError(f"{name!r:.80} is described by {value!r:.80}")
    if code not in _CODES:
        raise source.error(
            f"{name!r:.80} is of dtype {code!r:.20}; cast it to one of {', '.join(_CODES)}"
        )
    entry = _Entry(DTYPES[_CODES[code]], check_shape(shape), start, end)
    bits = math.prod(entry.shape) * _bits(entry.dtype)
    if bits % 8 or end - start != bits // 8:
        raise ValueError(f"{name!r:.80}: {code}{shape} does not take bytes {start} to {end}")
    return entry


def _bits(dtype: np.dtype) -> int:
    return 4 if dtype.name == "float4_e2m1fn" else 8 * dtype.itemsize


def _check_layout(entries: dict[str, _Entry], data: int) -> None:
    """Check that the tensors cover the data without holes or overlaps."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.start != end:
            kind = "overlaps another tensor" if 0 <= entry.start < end else "lies behind a hole"
            raise ValueError(f"{name!r:.80} {kind}: bytes {entry.start} to {entry.end}")
        end = entry.end
    if end != data:
        raise ValueError(f"the header claims {end} bytes of data, the file has {data}")


def _read(source: SourceFile, name: str, entry: _Entry, begin: int) -> np.ndarray:
    if _bits(entry.dtype) == 4:
        # A byte packs two values, the first in the low half.
        packed = entry._replace(shape=(entry.end - entry.start,), dtype=np.dtype(np.uint8))
        pairs = _read(source, name, packed, begin)
        return np.stack([pairs & 15, pairs >> 4], -1).reshape(entry.shape).view(entry.dtype)
    array = np.empty(entry.shape, entry.dtype)
    try:
        with source.open() as file:
            return fill(array, lambda buffer: source.read(file, begin + entry.start, buffer))
    except CheckpointError:
        raise
    except ValueError as error:
        raise source.error(f"{name!r:.80}: {error}; {DAMAGED}") from error


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write a safetensors file atomically, tensor by tensor.

    Tensors are sorted by descending width of the dtype, then by name, so that each is aligned to
    its dtype.

    Args:
        path: Path of the file to write.
        tensors: numpy arrays, JAX arrays or `LazyArray`s by name.
        metadata: Strings for the header's `__metadata__`, or None.

    Returns:
        Size of the file, bytes.

    Raises:
        CheckpointError: If the format cannot represent a tensor, a name or the metadata; or if a
            lazy array cannot be read.
        OSError: If the file cannot be written; an existing file at `path` is then unchanged.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax.checkpoints import open_checkpoint, write_safetensors
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = write_safetensors(f"{folder}/m.safetensors", {"bias": np.ones(3, "f4")})
        ...     print(open_checkpoint(f"{folder}/m.safetensors").tree)
        {'bias': LazyArray(shape=(3,), dtype=float32)}
    """
    target = os.fspath(path)
    stored = {name: _stored(target, name, tensor) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-_bits(stored[name].dtype), name))
    metadata = dict(metadata or {})
    if not all(map(_is_text, (*metadata, *metadata.values()))):
        raise CheckpointError(f"{target}: metadata must be strings: {metadata!r:.80}")
    original_dtypes = {name: tensors[name].dtype.name for name in order if stored[name].widened}
    if original_dtypes:
        metadata[_DTYPES_KEY] = json.dumps(original_dtypes)
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in order:
        shape, dtype, _ = stored[name]
        start, end = end, end + math.prod(shape) * _bits(dtype) // 8
        header[name] = {
            "dtype": _NAMES[dtype.name],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    try:
        text = dump_json(header)
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{target}: a name or metadata are no Unicode: {error}") from error
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise CheckpointError(f"{target}: the header takes {len(text)} bytes; write fewer tensors")
    with replacing(target) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            _write(file, target, name, tensors[name], stored[name])
    return 8 + len(text) + end


class _Stored(NamedTuple):
    """Representation of a tensor in the file.

    Attributes:
        shape: Shape in the file.
        dtype: Dtype in the file.
        widened: Whether the dtype is not the tensor's own, see `_STORED_AS`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    widened: bool


def _stored(target: str, name: Any, tensor: Any) -> _Stored:
    dtype = getattr(tensor, "dtype", None)
    kind = getattr(dtype, "name", type(tensor).__name__)
    if not isinstance(name, str) or name == "__metadata__":
        raise CheckpointError(f"{target}: {name!r:.80} cannot be a tensor's name; rename it")
    shape = tuple(getattr(tensor, "shape", ()))
    odd = kind == "float4_e2m1fn" and math.prod(shape) % 2
    if kind in _NAMES and not odd:
        return _Stored(shape, DTYPES[kind], widened=False)
    if kind not in _STORED_AS:
        raise CheckpointError(
            f"{target}: {name!r:.80} is {kind}, which safetensors does not have; "
            "cast it, e.g. to float32"
        )
    return _Stored((*shape, 2) if kind == "complex128" else shape, DTYPES[_STORED_AS[kind]], True)


def _write(file: BinaryIO, target: str, name: str, tensor: Any, stored: _Stored) -> None:
    # A separate function, so that its locals free an array before the next is read.
    array: np.ndarray = np.asarray(tensor)
    if array.shape != tuple(tensor.shape):
        raise CheckpointError(f"{target}: {name!r:.80} is {array.shape}, not {tensor.shape}")
    if array.dtype.kind == "c" and stored.widened:
        array = np.ascontiguousarray(array, np.complex128).reshape(-1).view(np.float64)
    array = np.asarray(array, stored.dtype, order="C")
    flat: np.ndarray = array.reshape(-1).view(np.uint8)
    if _bits(stored.dtype) == 4:
        flat = flat[0::2] | flat[1::2] << 4
    if flat.size:
        file.write(flat.data)
