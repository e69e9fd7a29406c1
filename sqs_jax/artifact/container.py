"""The container: named byte streams in a safetensors file, one of which is the index.

    8 bytes             length of the header, little-endian
    header              JSON, padded with spaces to a multiple of 8: safetensors' own
    data                the streams "index", "codes", "codebooks", "dense", each of dtype U8,
                        in this order; empty ones are left out

`__metadata__` is {"format": "sqs", "version": "1"}. The index is zlib-compressed JSON.
"""

import itertools
import json
import math
import struct
import zlib
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError, deserialize

from sqs_jax.artifact.storage import DTYPES

__all__ = [
    "DAMAGED",
    "MAX_INDEX",
    "cut",
    "read_container",
    "read_index",
    "rows",
    "write_container",
    "write_index",
]

VERSION = 1
STREAMS = ("index", "codes", "codebooks", "dense")
MAX_INDEX = 1 << 22
"""The most bytes of JSON an index may unfold to: 4 MiB, some 50,000 leaves."""

MAGIC = {
    b"PK\x03\x04": "a zip archive (.npz or a PyTorch file)",
    b"\x93NUMPY": "a numpy array (.npy)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip file",
    b"GGUF": "a GGUF file",
}
DAMAGED = "the file is damaged or cut short; copy it again"


def write_container(streams: dict[str, bytes]) -> bytes:
    """Return the whole file.

    The header is written here and not by safetensors, which puts the two entries of
    `__metadata__` in a random order: the same model must be the same bytes.

    Args:
        streams: The four streams, by name.

    Returns:
        The bytes of a valid safetensors file.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "sqs", "version": str(VERSION)}}
    end = 0
    for name in STREAMS:
        if streams[name]:
            start, end = end, end + len(streams[name])
            header[name] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(streams[name] for name in STREAMS)])


def read_container(data: bytes) -> dict[str, bytes]:
    """Return the streams of a whole file.

    Args:
        data: The content of a file, not to be trusted.

    Returns:
        The four streams, by name.

    Raises:
        ValueError: If this is no such file; says what it seems to be.
    """
    if not data:
        raise ValueError("the file is empty; it was never written, copy it again")
    try:
        entries = deserialize(data)
    except SafetensorError as error:
        for magic, name in MAGIC.items():
            if data.startswith(magic):
                raise ValueError(
                    f"this is {name}, not an sqs file; open it with what wrote it"
                ) from error
        if b'"format":"sqs"' in data[:256]:
            raise ValueError(f"{DAMAGED} ({error})") from error
        raise ValueError(
            f"this is neither an sqs file nor a whole safetensors file ({error}); "
            "give a file that sqs_jax.save wrote"
        ) from error
    # safetensors has checked that the header is a JSON object, but does not hand out its metadata.
    (length,) = struct.unpack_from("<Q", data)
    metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
    if metadata.get("format") != "sqs":
        raise ValueError(
            "this is a safetensors file, but its metadata does not say format 'sqs': "
            f"{metadata!r:.200}; open it with safetensors"
        )
    version = metadata.get("version", "")
    if not (version.isascii() and version.isdecimal() and len(version) < 10 and int(version) > 0):
        raise ValueError(f"format version {version!r:.50} is not a number; {DAMAGED}")
    if int(version) > VERSION:
        raise ValueError(
            f"format version {version} is newer than {VERSION}, the newest that this sqs_jax "
            "reads; upgrade sqs_jax"
        )
    streams = dict.fromkeys(STREAMS, b"")
    for name, entry in entries:
        if name not in streams or entry["dtype"] != "U8" or len(entry["shape"]) != 1:
            raise ValueError(f"unknown entry {name!r:.50}; {DAMAGED}")
        streams[name] = entry["data"]
    return streams


def write_index(index: dict[str, Any]) -> bytes:
    """Return the index as bytes.

    Raises:
        ValueError: If it is longer than a reader accepts.
    """
    text = json.dumps(index, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()
    if len(text) > MAX_INDEX:
        raise ValueError(
            f"the index takes {len(text)} bytes, more than {MAX_INDEX}; keep large data out of "
            "metadata, and stack leaves"
        )
    return zlib.compress(text, 9)


def read_index(data: bytes) -> dict[str, Any]:
    """Return the index from its bytes, which are not to be trusted.

    Raises:
        ValueError: If they are not an index, or unfold to more than 4 MiB.
    """
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress(data, MAX_INDEX)
        if unzip.eof and not unzip.unused_data:
            index = json.loads(text)
            if isinstance(index, dict):
                return index
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"the index cannot be read ({error}); {DAMAGED}") from error
    raise ValueError(f"the index is too long or of another kind; {DAMAGED}")


def rows(columns: Any, types: str, count: int) -> list[tuple[Any, ...]]:
    """Return a table of an index by rows, each value checked by itself.

    Args:
        columns: What stands in the index, not to be trusted.
        types: A letter per column: S is a shape, D a dtype's name, N a number of bytes.
        count: The number of rows there must be.

    Returns:
        `count` rows.

    Raises:
        ValueError: If this is not such a table.
    """
    if not isinstance(columns, list) or len(columns) != (len(types) if count else 0):
        raise ValueError("a table of the index has the wrong columns")
    for column, type_ in zip(columns, types, strict=False):
        if not isinstance(column, list) or len(column) != count:
            raise ValueError("a table of the index is not as long as the tree")
        for value in column:
            if not _IS[type_](value):
                raise ValueError(f"{value!r:.80} in the index is out of place")
    return list(zip(*columns, strict=True))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_shape(value: Any) -> bool:
    # Zeros aside, so that an empty array cannot claim axes that numpy could not hold either.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(map(_is_size, value))
        and _is_size(math.prod(size for size in value if size))
    )


_IS: dict[str, Callable[[Any], bool]] = {
    "S": _is_shape,
    "D": lambda value: isinstance(value, str) and value in DTYPES,
    "N": _is_size,
}


def cut(stream: bytes, sizes: list[int]) -> list[bytes]:
    """Cut a stream into pieces of these sizes, which must be all of it."""
    if sum(sizes) != len(stream):
        raise ValueError(f"the index claims {sum(sizes)} bytes of {len(stream)}")
    ends = itertools.accumulate(sizes)
    return [bytes(stream[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
