"""One small file for a compressed model: save, load, inspect.

docs/file_format.md describes the bytes. In short: the codes of each compressed leaf are one
entropy-coded stream, codebooks and dense leaves are stored in the narrowest dtype that holds them
exactly, and a compressed index holds the tree, shapes, dtypes, lengths, checksums and the user's
metadata. The stored form depends on the values alone, so saving what was loaded gives the same
bytes (with the same zlib; another zlib may pack the index differently).
"""

import collections
import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sqs_jax.artifact import entropy, storage, tree
from sqs_jax.artifact.atomic import write_atomically
from sqs_jax.artifact.bits import SizeReport, leaf_size
from sqs_jax.artifact.compressed import CompressedLeaf
from sqs_jax.artifact.container import (
    DAMAGED,
    cut,
    read_container,
    read_index,
    rows,
    write_container,
    write_index,
)

__all__ = ["SqsFileError", "inspect", "load", "read_metadata", "save", "summarize"]

Path = str | os.PathLike[str]

DATA = ("codes", "codebooks", "dense")


class SqsFileError(ValueError):
    """A file is not a whole, undamaged sqs file that this version can read."""


def save(
    path: Path,
    compressed: Any,
    *,
    dense_dtype: DTypeLike | None = None,
    metadata: dict[str, Any] | None = None,
) -> int:
    """Write a compressed tree to one file, as a whole or not at all.

    Args:
        path: Where to write. What stood there is replaced once the new file is complete.
        compressed: dicts (keys all str or all int), lists, tuples and None around
            `CompressedLeaf`s and arrays of any numeric dtype, e.g.
            `{"params": ..., "batch_stats": ...}`. Python numbers are refused: store arrays.
        dense_dtype: If given, floating leaves that are not compressed and wider than this are
            rounded to it: "float16", "bfloat16", "float32", "float8_e4m3fn" or "float8_e5m2".
            They are loaded in their original dtype all the same. Codebooks are never rounded.
        metadata: A JSON-able dict to keep in the file, see `read_metadata`.

    Returns:
        The size of the file, bytes.

    Raises:
        TypeError: If the tree has a node or leaf that a file cannot keep, or metadata is not
            JSON-able. Names the path of the leaf and the way out.
        ValueError: If a compressed leaf breaks an invariant of `CompressedLeaf`, or a value
            overflows `dense_dtype`.
        OSError: If the file cannot be written; what stood at `path` is then untouched.
    """
    data, _ = _pack(compressed, dense_dtype, metadata)
    write_atomically(os.fspath(path), data)
    return len(data)


def load(path: Path) -> Any:
    """Read a compressed tree.

    Reads files of strangers safely: nothing in a file is executed, and memory stays in proportion
    to the file (see `_most_codes`).

    Args:
        path: A file that `save` wrote.

    Returns:
        The tree that was saved, with the same structure and dtypes; all arrays are numpy's.

    Raises:
        SqsFileError: If the file is damaged, cut short, of another format, or newer. Names the
            path, what was found and the way out.
        OSError: If there is no such file (FileNotFoundError) or it cannot be read.
    """
    return _read(path).tree


def inspect(path: Path) -> SizeReport:
    """Report what a file's leaves weigh in it.

    Args:
        path: A file that `save` wrote.

    Returns:
        The four figures per leaf and in total.

    Raises:
        SqsFileError, OSError: As `load`.
    """
    return _read(path).report()


def summarize(compressed: Any) -> SizeReport:
    """Report what a compressed tree would weigh in a file.

    Args:
        compressed: A tree as `save` takes it.

    Returns:
        The four figures per leaf and in total; the file is exactly what `save` writes by default.

    Raises:
        TypeError, ValueError: As `save`.
    """
    return _pack(compressed, None, None)[1].report()


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that was given to `save`, an empty dict if none was.

    Args:
        path: A file that `save` wrote.

    Raises:
        SqsFileError, OSError: As `load`.
    """
    return _open(path)[0]["metadata"]


class _Content(NamedTuple):
    """A tree, and per leaf its path, its arrays and its bytes in the streams."""

    tree: Any
    leaves: list[tuple[str, CompressedLeaf | np.ndarray, int]]
    file_bytes: int

    def report(self) -> SizeReport:
        return SizeReport(tuple(leaf_size(*leaf) for leaf in self.leaves), self.file_bytes)


def _most_codes(file_bytes: int) -> int:
    """Return how many codes a file may unfold to: 2**28, and 4,096 per byte of it.

    A pruned tensor takes a few bytes whatever its size, so a file of a kilobyte could ask for any
    amount of memory. `save` and `load` agree on this bound.
    """
    return (1 << 28) + 4096 * file_bytes


def _pack(
    compressed: Any, dense_dtype: DTypeLike | None, metadata: dict[str, Any] | None
) -> tuple[bytes, _Content]:
    rounding = storage.rounding_dtype(dense_dtype)
    _check_metadata(metadata)
    skeleton, named = tree.flatten(compressed)
    parts: dict[str, list[bytes]] = {name: [] for name in DATA}
    table: dict[str, list[tuple[Any, ...]]] = {"compressed": [], "dense": []}
    leaves = []
    for path, given in named:
        where = path or "(root)"
        leaf = storage.check_leaf(where, given)
        if isinstance(leaf, CompressedLeaf):
            codes, codebook = leaf.codes, storage.narrow(leaf.codebook)
            values = math.prod(codebook.shape[-2:])
            stream = entropy.encode(codes.ravel(), values + 1)
            size = len(stream) + codebook.nbytes
            parts["codes"].append(stream)
            parts["codebooks"].append(codebook.tobytes())
            names = (leaf.codebook.dtype.name, codebook.dtype.name)
            table["compressed"].append((codes.shape, codebook.shape, *names, len(stream)))
        else:
            if rounding is not None:
                leaf = storage.round_dense(where, leaf, rounding)
            stored = storage.narrow(leaf)
            size = stored.nbytes
            parts["dense"].append(stored.tobytes())
            table["dense"].append((leaf.shape, leaf.dtype.name, stored.dtype.name))
        leaves.append((path, leaf, size))
    streams = {name: b"".join(chunks) for name, chunks in parts.items()}
    index: dict[str, Any] = {"tree": skeleton, "metadata": metadata or {}}
    # By column and not by leaf: what repeats stands together, and packs to almost nothing.
    index["compressed"] = [list(column) for column in zip(*table["compressed"], strict=True)]
    index["dense"] = [list(column) for column in zip(*table["dense"], strict=True)]
    index["crc32"] = [zlib.crc32(streams[name]) for name in DATA]
    data = write_container({"index": write_index(index), **streams})
    count = sum(math.prod(row[0]) for row in table["compressed"])
    if count > _most_codes(len(data)):
        raise ValueError(
            f"{count} codes in a file of {len(data)} bytes are more than a reader accepts "
            f"({_most_codes(len(data))}); leave out leaves that are pruned entirely"
        )
    return data, _Content(compressed, leaves, len(data))


def _check_metadata(metadata: dict[str, Any] | None) -> None:
    if metadata is None:
        return
    try:
        same = json.loads(json.dumps(metadata, allow_nan=False)) == metadata
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"metadata cannot be stored as JSON: {error}") from error
    if not same or not isinstance(metadata, dict):
        raise TypeError(
            "metadata does not survive JSON: use a dict with str keys, of dicts, lists, str, "
            f"numbers, bools and None; got {metadata!r:.200}"
        )


def _open(path: Path) -> tuple[dict[str, Any], dict[str, bytes], int]:
    """Return a file's index, its streams and its size, container and checksums being right."""
    with open(path, "rb") as file:
        data = file.read()
    with _named(path):
        streams = read_container(data)
        index = read_index(streams["index"])
        whole = index.get("crc32") == [zlib.crc32(streams[name]) for name in DATA]
        if not (whole and isinstance(index.get("metadata"), dict)):
            raise ValueError(f"a checksum does not match; {DAMAGED}")
    return index, streams, len(data)


def _read(path: Path) -> _Content:
    index, streams, file_bytes = _open(path)
    with _named(path, DAMAGED):
        leaves = list(_unfold(index, streams, file_bytes))
        restored = tree.unflatten(index["tree"], iter([leaf for _, leaf, _ in leaves]))
    return _Content(restored, leaves, file_bytes)


@contextlib.contextmanager
def _named(path: Path, *way_out: str) -> Iterator[None]:
    """Turn what is wrong with a file's content into an error that names the file."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise SqsFileError(f"{os.fspath(path)}: {'; '.join([str(error), *way_out])}") from error


def _unfold(
    index: dict[str, Any], streams: dict[str, bytes], file_bytes: int
) -> Iterator[tuple[str, CompressedLeaf | np.ndarray, int]]:
    """Yield path, leaf and stored bytes. All that the index claims is checked before any of it."""
    kinds = tree.kinds(index.get("tree"))
    number = collections.Counter(kind for _, kind in kinds)
    compressed = rows(index.get("compressed"), "SSDDN", number["c"])
    dense = rows(index.get("dense"), "SDD", number["d"])
    for shape, book, dtype, stored, _ in compressed:
        storage.check_codebook(shape, book, storage.DTYPES[dtype])
        storage.check_stored(dtype, stored)
    for _, dtype, stored in dense:
        storage.check_stored(dtype, stored)
    if sum(math.prod(row[0]) for row in compressed) > _most_codes(file_bytes):
        raise ValueError("the index claims more weights than a file of this size may hold")
    codes = cut(streams["codes"], [row[4] for row in compressed])
    books = cut(streams["codebooks"], [_nbytes(row[1], row[3]) for row in compressed])
    arrays = cut(streams["dense"], [_nbytes(row[0], row[2]) for row in dense])

    compressed_leaves = zip(compressed, codes, books, strict=True)
    dense_leaves = zip(dense, arrays, strict=True)
    for path, kind in kinds:
        try:
            if kind == "c":
                (shape, book, dtype, stored, _), stream, values = next(compressed_leaves)
                codebook = storage.load_array(values, book, dtype, stored)
                leaf = storage.load_codes(stream, shape, codebook)
                yield path, leaf, len(stream) + len(values)
            else:
                (shape, dtype, stored), values = next(dense_leaves)
                yield path, storage.load_array(values, shape, dtype, stored), len(values)
        except ValueError as error:
            raise ValueError(f"leaf {path!r}: {error}") from error


def _nbytes(shape: list[int], dtype: str) -> int:
    return math.prod(shape) * storage.DTYPES[dtype].itemsize
