"""One small file for a compressed model: save, load, inspect.

docs/file_format.md describes the bytes. In short: the codes of each compressed leaf are one
entropy-coded stream, codebooks and dense leaves are stored in the narrowest dtype that holds them
exactly, and a compressed index holds the tree, shapes, dtypes, lengths, figures and the
user's metadata. The stored form depends on the values alone, so saving what was loaded gives the
same bytes (with the same liblzma; another may pack the index differently).
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from typing import Any

from numpy.typing import DTypeLike

from sqs_jax.artifact import kinds, storage, tree
from sqs_jax.artifact.atomic import replacing
from sqs_jax.artifact.bits import LeafSize, SizeReport, leaf_size
from sqs_jax.artifact.compressed import LEAVES
from sqs_jax.artifact.container import sealed, write_header, write_index
from sqs_jax.artifact.parallel import mapping
from sqs_jax.artifact.reader import Path, SqsFile, most_codes
from sqs_jax.artifact.spec import ArraySpec, Spec, SymbolsSpec, parts_of, unfolded, write_spec

__all__ = ["inspect", "load", "read_metadata", "save", "summarize"]

SHARED_FROM = 4096
"""Equal leaves of at least so many bytes (as arrays) are stored once: tied embeddings."""


def save(
    path: Path,
    compressed: Any,
    *,
    dense_dtype: DTypeLike | None = None,
    metadata: dict[str, Any] | None = None,
    workers: int = 1,
) -> int:
    """Write a compressed tree to one file, as a whole or not at all.

    Args:
        path: Where to write. What stood there is replaced once the new file is complete.
        compressed: dicts (keys all str or all int), lists, tuples and None around
            `CompressedLeaf`s, `GridLeaf`s and arrays of any numeric dtype, e.g.
            `{"params": ..., "batch_stats": ...}`. Python numbers are refused: store arrays.
        dense_dtype: If given, floating leaves that are not compressed and wider than this are
            rounded to it: "float16", "bfloat16", "float32", "float8_e4m3fn" or "float8_e5m2".
            They are loaded in their original dtype all the same. Codebooks and scales never are.
        metadata: A JSON-able dict to keep in the file, see `read_metadata`.
        workers: How many processes share the coding of large leaves.

    Returns:
        The size of the file, bytes.

    Raises:
        TypeError: If the tree has a node or leaf that a file cannot keep, or metadata is not
            JSON-able. Names the path of the leaf and the way out.
        ValueError: If a compressed leaf breaks an invariant of its kind, or a value overflows
            `dense_dtype`.
        OSError: If the file cannot be written; what stood at `path` is then untouched.
    """
    pieces, report, codes = _pack(compressed, dense_dtype, metadata, mapping(workers))
    if codes > most_codes(report.file_bytes):
        raise ValueError(
            f"{codes} codes in a file of {report.file_bytes} bytes are more than a reader accepts "
            f"({most_codes(report.file_bytes)}); leave out leaves that are pruned entirely, and "
            "products of next to no rank"
        )
    with replacing(os.fspath(path)) as file:
        file.writelines(pieces)
    return report.file_bytes


def load(path: Path, *, workers: int = 1) -> Any:
    """Read a compressed tree.

    Reads files of strangers safely, see `SqsFile`, which reads single leaves.

    Args:
        path: A file that `save` wrote.
        workers: How many processes share the decoding of large leaves.

    Returns:
        The tree that was saved, with the same structure and dtypes; all arrays are numpy's.

    Raises:
        SqsFileError: If the file is damaged, cut short, of another format, or newer. Names the
            path, what was found and the way out.
        OSError: If there is no such file (FileNotFoundError) or it cannot be read.
    """
    with SqsFile(path, workers=workers) as file:
        return file.tree()


def inspect(path: Path) -> SizeReport:
    """Report what a file's leaves weigh in it.

    The figures are those of the index; all checksums are compared, nothing is decoded.

    Args:
        path: A file that `save` wrote.

    Returns:
        The four figures per leaf and in total.

    Raises:
        SqsFileError, OSError: As `load`.
    """
    with SqsFile(path) as file:
        file.check()
        return file.report()


def summarize(
    compressed: Any,
    *,
    dense_dtype: DTypeLike | None = None,
    metadata: dict[str, Any] | None = None,
) -> SizeReport:
    """Report what a compressed tree would weigh in a file.

    Args:
        compressed: A tree as `save` takes it.
        dense_dtype: As given to `save`.
        metadata: As given to `save`.

    Returns:
        The four figures per leaf and in total; the file is exactly what `save` writes with the
        same options.

    Raises:
        TypeError, ValueError: As `save`.
    """
    return _pack(compressed, dense_dtype, metadata, map)[1]


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that was given to `save`, an empty dict if none was.

    Args:
        path: A file that `save` wrote.

    Raises:
        SqsFileError, OSError: As `load`.
    """
    with SqsFile(path) as file:
        return file.metadata


def _pack(
    compressed: Any,
    dense_dtype: DTypeLike | None,
    metadata: dict[str, Any] | None,
    map: Callable[..., Any],
) -> tuple[list[bytes], SizeReport, int]:
    """Return a file's bytes in pieces, its report, and how much it unfolds to."""
    rounding = storage.rounding_dtype(dense_dtype)
    _check_metadata(metadata)
    specs: list[Spec] = []
    sizes: list[LeafSize] = []
    pieces: list[bytes] = []
    seen: dict[Any, int] = {}

    def describe(path: str, given: Any) -> Any:
        where = path or "(root)"
        leaf = storage.check_leaf(where, given)
        if rounding is not None and not isinstance(leaf, LEAVES):
            leaf = storage.round_dense(where, leaf, rounding)
        spec, chunks = kinds.pack(leaf, map)
        data = b"".join(chunks)
        node: Any = write_spec(spec)
        shared = None
        if math.prod(spec.shape) * storage.DTYPES[spec.dtype].itemsize >= SHARED_FROM:
            shared = seen.setdefault((repr(spec), hashlib.sha256(data).digest()), len(sizes))
        if shared is not None and shared < len(sizes):
            node, data = ["r", shared], b""
        else:
            specs.append(spec)
            pieces.append(sealed(data))
        sizes.append(leaf_size(path, spec, len(data), shared=node[:1] == ["r"]))
        return node

    skeleton = tree.flatten(compressed, describe)
    parts = [part for spec in specs for part in parts_of(spec)]
    index: dict[str, Any] = {"tree": skeleton, "metadata": metadata or {}}
    # By column and not by leaf: what repeats stands together, and packs to almost nothing.
    for name, type_ in (("arrays", ArraySpec), ("symbols", SymbolsSpec)):
        table = [part for part in parts if isinstance(part, type_)]
        index[name] = [list(column) for column in zip(*table, strict=True)]
    packed = write_index(index)
    pieces[:0] = [write_header(len(packed), sum(map(len, pieces))), packed]
    if sum(len(size.path) for size in sizes) > tree.MAX_PATHS:
        raise ValueError(
            f"the paths of the leaves have more than {tree.MAX_PATHS} characters together, more "
            "than a reader accepts; shorten the keys"
        )
    return pieces, SizeReport(tuple(sizes), sum(map(len, pieces))), sum(map(unfolded, specs))


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
    if _deeper(metadata, tree.MAX_DEPTH):  # what a reader's stack can take is not known here
        raise TypeError(f"metadata is nested deeper than {tree.MAX_DEPTH}; flatten it")


def _deeper(node: Any, levels: int) -> bool:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return any(levels == 0 or _deeper(child, levels - 1) for child in children)
