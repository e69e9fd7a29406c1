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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sqs_jax.artifact import integers, kinds, storage, tree
from sqs_jax.artifact.atomic import replacing
from sqs_jax.artifact.attachments import Attachment, check_attachments, wrap
from sqs_jax.artifact.bits import AttachmentSize, LeafSize, SizeReport, leaf_size
from sqs_jax.artifact.compressed import LEAVES
from sqs_jax.artifact.container import (
    FIRST_VERSION,
    MAX_INDEX,
    VERSION,
    index_text,
    sealed,
    write_header,
    write_index,
)
from sqs_jax.artifact.parallel import mapping
from sqs_jax.artifact.reader import Path, SqsFile, most_codes
from sqs_jax.artifact.spec import (
    ArraySpec,
    LeafSpec,
    Spec,
    SymbolsSpec,
    has_kind,
    parts_of,
    unfolded,
    write_spec,
)

__all__ = ["inspect", "load", "read_attachments", "read_metadata", "save", "summarize"]

SHARED_FROM = 4096
"""Equal leaves of at least so many bytes (as arrays) are stored once: tied embeddings."""

_BATCH, _BATCH_WEIGHTS = 1024, 1 << 20  # leaves that are coded at a time


def save(
    path: Path,
    compressed: Any,
    *,
    dense_dtype: DTypeLike | None = None,
    metadata: dict[str, Any] | None = None,
    attachments: Mapping[str, bytes] | None = None,
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
        attachments: Byte strings to keep in the file by name, such as a tokenizer, see
            `read_attachments`. A name must do as the name of a file.
        workers: How many processes share the coding of large leaves.

    Returns:
        The size of the file, bytes.

    Raises:
        TypeError: If the tree has a node or leaf that a file cannot keep, metadata is not
            JSON-able, or an attachment is not bytes-like. Names the leaf's path and a remedy.
        ValueError: If a compressed leaf breaks an invariant of its kind, a value overflows
            `dense_dtype`, or an attachment has a name that no file can have.
        OSError: If the file cannot be written; what stood at `path` is then untouched.
    """
    pieces, report, codes = _pack(compressed, dense_dtype, metadata, attachments, mapping(workers))
    if codes > most_codes(report.file_bytes):
        raise ValueError(
            f"{codes} codes in a file of {report.file_bytes} bytes are more than a reader accepts "
            f"({most_codes(report.file_bytes)}); leave out leaves that are pruned entirely, "
            "products of next to no rank, and attachments of one byte repeated"
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
    attachments: Mapping[str, bytes] | None = None,
) -> SizeReport:
    """Report what a compressed tree would weigh in a file.

    Args:
        compressed: A tree as `save` takes it.
        dense_dtype: As given to `save`.
        metadata: As given to `save`.
        attachments: As given to `save`.

    Returns:
        The four figures per leaf and in total; the file is exactly what `save` writes with the
        same options.

    Raises:
        TypeError, ValueError: As `save`.
    """
    return _pack(compressed, dense_dtype, metadata, attachments, map).report


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that was given to `save`, an empty dict if none was.

    Args:
        path: A file that `save` wrote.

    Raises:
        SqsFileError, OSError: As `load`.
    """
    with SqsFile(path) as file:
        return file.metadata


def read_attachments(path: Path) -> dict[str, bytes]:
    """Return the attachments that were given to `save`, an empty dict if none were.

    Args:
        path: A file that `save` wrote.

    Returns:
        The bytes of each attachment, by ascending name. Every name is also safe as that of a file.

    Raises:
        SqsFileError, OSError: As `load`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/m.sqs", {}, attachments={"config.json": b"{}"})
        ...     read_attachments(f"{folder}/m.sqs")
        {'config.json': b'{}'}
    """
    with SqsFile(path) as file:
        return {name: file.read_attachment(name) for name in file.attachments}


class _Packed(NamedTuple):
    """A file's bytes in pieces, its report, and how much it unfolds to."""

    pieces: list[bytes]
    report: SizeReport
    codes: int


def _pack(
    compressed: Any,
    dense_dtype: DTypeLike | None,
    metadata: dict[str, Any] | None,
    attachments: Mapping[str, bytes] | None,
    map: Callable[..., Any],
) -> _Packed:
    rounding = storage.rounding_dtype(dense_dtype)
    _check_metadata(metadata)
    attached = check_attachments(attachments)

    def pack(leaves: "_Leaves") -> _Packed:
        found: list[tuple[str, Any]] = []
        tree.flatten(compressed, lambda *leaf: found.append(leaf))
        described = leaves.describe(found)
        skeleton = tree.flatten(compressed, lambda *_: next(described))
        nodes = {name: leaves.attach(name, value) for name, value in attached.items()}
        return leaves.file(skeleton, nodes, metadata or {})

    leaves = _Leaves(rounding, map, kinds.pack_shortest)
    packed = pack(leaves)
    if leaves.has_planes and packed.codes > most_codes(packed.report.file_bytes):
        # As plain arrays, integers do not count: what 1.0 could store is stored.
        packed = pack(_Leaves(rounding, map, kinds.pack))
    return packed


class _Leaves:
    """Collect the leaves of a file, in order, and put the file together.

    Attributes:
        has_planes: Whether a leaf of integers is stored as byte planes.
    """

    def __init__(
        self, rounding: np.dtype | None, map: Callable[..., Any], pack: Callable[..., Any]
    ) -> None:
        """Prepare for leaves of the tree, which `pack` codes, and then attachments."""
        self.has_planes = False
        self._rounding, self._map, self._pack = rounding, map, pack
        self._specs: list[Spec] = []
        self._pieces: list[bytes] = []
        self._sizes: list[LeafSize] = []
        self._attached: list[AttachmentSize] = []
        self._seen: dict[Any, int] = {}
        self._coded: dict[Any, tuple[Spec, list[bytes]]] = {}

    def describe(self, found: Sequence[tuple[str, Any]]) -> Iterator[Any]:
        """Add the leaves of the tree, by their paths, and return the node of each."""
        batch: list[tuple[str, Any]] = []
        weights = 0
        for number, (path, value) in enumerate(found, 1):
            leaf = self._checked(path or "(root)", value)
            batch.append((path, leaf))
            weights += math.prod(storage.shape_and_dtype(leaf)[0])
            if number == len(found) or len(batch) == _BATCH or weights >= _BATCH_WEIGHTS:
                packed = self._pack_batch([leaf for _, leaf in batch])
                for (where, _), (spec, chunks) in zip(batch, packed, strict=True):
                    yield self._describe(where, spec, chunks)
                batch, weights = [], 0

    def _checked(self, where: str, value: Any) -> Any:
        leaf = storage.check_leaf(where, value)
        if self._rounding is None or isinstance(leaf, LEAVES):
            return leaf
        return storage.round_dense(where, leaf, self._rounding)

    def _describe(self, path: str, spec: Spec, chunks: list[bytes]) -> Any:
        data = b"".join(chunks)
        number, shared = len(self._sizes), None
        if math.prod(spec.shape) * storage.DTYPES[spec.dtype].itemsize >= SHARED_FROM:
            key = repr(spec), hashlib.sha256(data).digest()
            shared = self._seen.setdefault(key, number)
        is_shared = shared is not None and shared < number
        self._sizes.append(leaf_size(path, spec, 0 if is_shared else len(data), shared=is_shared))
        return ["r", shared] if is_shared else self._add(spec, data)

    def attach(self, name: str, attachment: Attachment) -> Any:
        """Add an attachment, and return its node; after all leaves of the tree."""
        spec, (data,) = kinds.pack(attachment, self._map)
        self._attached.append(AttachmentSize(name, attachment.data.size, len(data)))
        return self._add(spec, data)

    def file(self, skeleton: Any, nodes: dict[str, Any], metadata: dict[str, Any]) -> _Packed:
        """Put the file together."""
        index: dict[str, Any] = {"tree": skeleton, "metadata": metadata}
        wrap(index, nodes)
        parts = [part for spec in self._specs for part in parts_of(spec)]
        # By column and not by leaf: what repeats stands together, and packs to almost nothing.
        for name, type_ in (("arrays", ArraySpec), ("symbols", SymbolsSpec)):
            table = [part for part in parts if isinstance(part, type_)]
            index[name] = [list(column) for column in zip(*table, strict=True)]
        text = index_text(index, len(self._specs))
        if sum(len(size.path) for size in self._sizes) > tree.MAX_PATHS:
            raise ValueError(
                f"the paths of the leaves have more than {tree.MAX_PATHS} characters together, "
                "more than a reader accepts; shorten the keys"
            )
        newer = self.has_planes or bool(nodes) or len(text) >= MAX_INDEX
        newer = newer or any(has_kind(spec, "transposed") for spec in self._specs)
        packed = write_index(text)
        data_bytes = sum(map(len, self._pieces))
        header = write_header(len(packed), data_bytes, VERSION if newer else FIRST_VERSION)
        pieces = [header, packed, *self._pieces]
        file_bytes = len(header) + len(packed) + data_bytes
        report = SizeReport(tuple(self._sizes), file_bytes, tuple(self._attached))
        return _Packed(pieces, report, sum(map(unfolded, self._specs)))

    def _pack_batch(self, leaves: list[Any]) -> list[tuple[Spec, list[bytes]]]:
        """Code leaves; integer arrays that come again, such as each layer's mask, only once."""
        plain = [isinstance(leaf, np.ndarray) and integers.is_integer(leaf) for leaf in leaves]
        others = [leaf for leaf, is_plain in zip(leaves, plain, strict=True) if not is_plain]
        packed = iter(kinds.pack_all(others, self._map))
        return [
            self._pack_integers(leaf) if is_plain else next(packed)
            for leaf, is_plain in zip(leaves, plain, strict=True)
        ]

    def _pack_integers(self, leaf: np.ndarray) -> tuple[Spec, list[bytes]]:
        digest = hashlib.sha256(leaf.reshape(-1).view(np.uint8).data).digest()
        key = leaf.shape, leaf.dtype.name, digest
        packed = self._coded.get(key) or self._pack(leaf, self._map)
        if isinstance(packed[0], LeafSpec):  # not a plain array, which is large and quickly packed
            self._coded[key] = packed
            self.has_planes = True
        return packed

    def _add(self, spec: Spec, data: bytes) -> Any:
        self._specs.append(spec)
        self._pieces.append(sealed(data))
        return write_spec(spec)


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
