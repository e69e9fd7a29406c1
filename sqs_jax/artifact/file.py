"""One small file for a compressed model: save, load, inspect.

docs/file_format.md describes the bytes. In short:

- The codes of each compressed leaf are one entropy-coded stream.
- Codebooks and dense leaves are stored in the narrowest dtype that represents them exactly.
- A compressed index holds the tree, shapes, dtypes, lengths, size figures and metadata.

The bytes depend on the values alone: saving a loaded tree gives the same file. (Another version of
liblzma may compress the index differently.)
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sqs_jax.artifact import byte_planes, leaf_codecs, tree
from sqs_jax.artifact.atomic import replacing
from sqs_jax.artifact.attachments import Attachment, check_attachments, wrap
from sqs_jax.artifact.container import (
    FIRST_VERSION,
    MAX_INDEX,
    VERSION,
    index_text,
    sealed,
    write_header,
    write_index,
)
from sqs_jax.artifact.dtypes import DTYPES, round_dense, rounding_dtype
from sqs_jax.artifact.leaves import LEAVES
from sqs_jax.artifact.reader import Path, SqsFile, max_unfolded
from sqs_jax.artifact.size_report import AttachmentSize, LeafSize, SizeReport, leaf_size
from sqs_jax.artifact.spec import (
    ArraySpec,
    LeafSpec,
    Spec,
    SymbolsSpec,
    has_kind,
    parts_of,
    unfolded_size,
    write_spec,
)
from sqs_jax.artifact.validate import check_leaf, shape_and_dtype
from sqs_jax.artifact.workers import parallel_map

__all__ = ["inspect", "load", "read_attachments", "read_metadata", "save", "summarize"]

SHARED_FROM = 4096
"""Smallest size, bytes as an array, at which equal leaves share data in a file: tied embeddings."""

_BATCH_LEAVES, _BATCH_WEIGHTS = 1024, 1 << 20  # leaves are coded together up to these numbers


def save(
    path: Path,
    compressed: Any,
    *,
    dense_dtype: DTypeLike | None = None,
    metadata: dict[str, Any] | None = None,
    attachments: Mapping[str, bytes] | None = None,
    workers: int = 1,
) -> int:
    """Write a compressed tree to a file.

    The file is replaced atomically, once the new content is complete.

    Args:
        path: Path of the file.
        compressed: dicts (keys all str or all int), lists, tuples and None around
            `CompressedLeaf`s, `GridLeaf`s and arrays of any numeric dtype, e.g.
            `{"params": ..., "batch_stats": ...}`. Python numbers are refused: store arrays.
        dense_dtype: Dtype to which wider floating arrays are rounded: "float16", "bfloat16",
            "float32", "float8_e4m3fn" or "float8_e5m2"; None keeps every value. `load` returns the
            arrays in their original dtype. Codebooks and scales are never rounded.
        metadata: JSON-able dict, see `read_metadata`.
        attachments: Byte strings by name, such as a tokenizer, see `read_attachments`. A name must
            be valid as a file name.
        workers: Number of processes that share the coding of large leaves.

    Returns:
        The size of the file, bytes.

    Raises:
        TypeError: If the tree has a node or leaf that a file cannot store, metadata is not
            JSON-able, or an attachment is not bytes-like. The message has the leaf's path and a
            remedy.
        ValueError: If a compressed leaf breaks an invariant of its class, a value overflows
            `dense_dtype`, or the name of an attachment is not valid as a file name.
        OSError: If the file cannot be written; the previous content of `path` is then unchanged.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax import CompressedLeaf, load, materialize, save
        >>> codes = np.zeros((64, 64), np.uint8)
        >>> codes[0, :3] = 1, 3, 2
        >>> params = {"kernel": CompressedLeaf(codes, np.float32([[-0.5, 0.25, 1.0]]))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/model.sqs", {"params": params})
        ...     kernel = materialize(load(f"{folder}/model.sqs"))["params"]["kernel"]
        >>> kernel[0, :4]
        array([-0.5 ,  1.  ,  0.25,  0.  ], dtype=float32)
    """
    packed = _pack(compressed, dense_dtype, metadata, attachments, parallel_map(workers))
    file_bytes = packed.report.file_bytes
    if packed.unfolded > max_unfolded(file_bytes):
        raise ValueError(
            f"{packed.unfolded} codes in a file of {file_bytes} bytes are more than a reader "
            f"accepts ({max_unfolded(file_bytes)}); leave out leaves that are pruned entirely, "
            "products of very low rank, and attachments of one byte repeated"
        )
    with replacing(os.fspath(path)) as file:
        file.writelines(packed.pieces)
    return file_bytes


def load(path: Path, *, workers: int = 1) -> Any:
    """Read a compressed tree from a file.

    Untrusted files are safe to read. `SqsFile` reads single leaves of a file.

    Args:
        path: Path of a file that `save` wrote.
        workers: Number of processes that share the decoding of large leaves.

    Returns:
        The tree that was saved, with the same structure and dtypes; all arrays are numpy's.

    Raises:
        SqsFileError: If the file is damaged, cut short, of another format, or newer. The message
            has the path, the cause and a remedy.
        OSError: If the file does not exist (FileNotFoundError) or cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax import load, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/model.sqs", {"params": {"bias": np.float32([1, 2])}})
        ...     load(f"{folder}/model.sqs")
        {'params': {'bias': array([1., 2.], dtype=float32)}}
    """
    with SqsFile(path, workers=workers) as file:
        return file.tree()


def inspect(path: Path) -> SizeReport:
    """Report the sizes of a file and its leaves.

    The sizes come from the index. Checksums of all leaves are verified; no leaf is decoded.

    Args:
        path: Path of a file that `save` wrote.

    Returns:
        The sizes per leaf and in total.

    Raises:
        SqsFileError, OSError: As `load`.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax import inspect, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/model.sqs", {"bias": np.float32([1, 2])})
        ...     report = inspect(f"{folder}/model.sqs")
        >>> report.weights, report.file_bytes == size
        (2, True)
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
    """Report the sizes that a compressed tree has as a file.

    The tree is coded as `save` codes it, and no file is written.

    Args:
        compressed: Tree as for `save`.
        dense_dtype: Dtype to which wider floating arrays are rounded, as for `save`.
        metadata: Metadata as for `save`.
        attachments: Attachments as for `save`.

    Returns:
        The sizes per leaf and in total. `file_bytes` is exactly the size of the file that `save`
        writes with the same arguments.

    Raises:
        TypeError, ValueError: As `save`.

    Example:
        >>> import numpy as np
        >>> from sqs_jax import CompressedLeaf, summarize
        >>> codes = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
        >>> report = summarize({"kernel": CompressedLeaf(codes, np.float32([[-1, 0.5, 2]]))})
        >>> report.weights, report.kept, report.sparsity, report.entropy_bits
        (64, 48, 0.25, 128.0)
    """
    return _pack(compressed, dense_dtype, metadata, attachments, map).report


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a file.

    Args:
        path: Path of a file that `save` wrote.

    Returns:
        The metadata that was passed to `save`; an empty dict if none was.

    Raises:
        SqsFileError, OSError: As `load`.

    Example:
        >>> import tempfile
        >>> from sqs_jax import read_metadata, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/model.sqs", {}, metadata={"epochs": 3})
        ...     read_metadata(f"{folder}/model.sqs")
        {'epochs': 3}
    """
    with SqsFile(path) as file:
        return file.metadata


def read_attachments(path: Path) -> dict[str, bytes]:
    """Return the attachments of a file.

    Args:
        path: Path of a file that `save` wrote.

    Returns:
        The bytes of each attachment, by ascending name; an empty dict if there are none. Every name
        is safe as a file name.

    Raises:
        SqsFileError, OSError: As `load`.

    Example:
        >>> import tempfile
        >>> from sqs_jax import read_attachments, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/model.sqs", {}, attachments={"config.json": b"{}"})
        ...     read_attachments(f"{folder}/model.sqs")
        {'config.json': b'{}'}
    """
    with SqsFile(path) as file:
        return {name: file.read_attachment(name) for name in file.attachments}


class _Packed(NamedTuple):
    """A file that is ready to be written.

    Attributes:
        pieces: Bytes of the file, in pieces.
        report: Sizes of the file and its leaves.
        unfolded: Sum of the `unfolded_size` of its leaves, which a reader bounds.
    """

    pieces: list[bytes]
    report: SizeReport
    unfolded: int


def _pack(
    compressed: Any,
    dense_dtype: DTypeLike | None,
    metadata: dict[str, Any] | None,
    attachments: Mapping[str, bytes] | None,
    map: Callable[..., Any],
) -> _Packed:
    rounding = rounding_dtype(dense_dtype)
    _check_metadata(metadata)
    checked_attachments = check_attachments(attachments)

    def build(builder: "_FileBuilder") -> _Packed:
        paths_and_leaves: list[tuple[str, Any]] = []
        tree.flatten(compressed, lambda *leaf: paths_and_leaves.append(leaf))
        nodes = builder.add_leaves(paths_and_leaves)
        skeleton = tree.flatten(compressed, lambda *_: next(nodes))
        attachment_nodes = {
            name: builder.add_attachment(name, value) for name, value in checked_attachments.items()
        }
        return builder.build(skeleton, attachment_nodes, metadata or {})

    builder = _FileBuilder(rounding, map, leaf_codecs.pack_shortest)
    packed = build(builder)
    if builder.has_planes and packed.unfolded > max_unfolded(packed.report.file_bytes):
        # Plain integer arrays do not count towards the bound. With them instead of byte planes,
        # every tree that format 1.0 can store is accepted.
        packed = build(_FileBuilder(rounding, map, leaf_codecs.pack))
    return packed


class _FileBuilder:
    """Collects the leaves of a file, in order, and assembles the file.

    Attributes:
        has_planes: True if an integer leaf is stored as byte planes.
    """

    def __init__(
        self, rounding: np.dtype | None, map: Callable[..., Any], pack: Callable[..., Any]
    ) -> None:
        """Create a builder without leaves.

        Args:
            rounding: Dtype to which wider floating arrays are rounded; None keeps every value.
            map: Function like `map` that codes chunks.
            pack: Function that codes an integer array, `leaf_codecs.pack_shortest` or `pack`.
        """
        self.has_planes = False
        self._rounding, self._map, self._pack = rounding, map, pack
        self._specs: list[Spec] = []
        self._pieces: list[bytes] = []
        self._leaf_sizes: list[LeafSize] = []
        self._attachment_sizes: list[AttachmentSize] = []
        self._number_of_data: dict[Any, int] = {}
        self._packed_integers: dict[Any, tuple[Spec, list[bytes]]] = {}

    def add_leaves(self, paths_and_leaves: Sequence[tuple[str, Any]]) -> Iterator[Any]:
        """Add the leaves of the tree with their paths, and yield the node of each."""
        batch: list[tuple[str, Any]] = []
        weights = 0
        for number, (path, value) in enumerate(paths_and_leaves, 1):
            leaf = self._validated(path or "(root)", value)
            batch.append((path, leaf))
            weights += math.prod(shape_and_dtype(leaf)[0])
            is_last = number == len(paths_and_leaves)
            if is_last or len(batch) == _BATCH_LEAVES or weights >= _BATCH_WEIGHTS:
                packed = self._pack_batch([leaf for _, leaf in batch])
                for (leaf_path, _), (spec, chunks) in zip(batch, packed, strict=True):
                    yield self._add_leaf(leaf_path, spec, chunks)
                batch, weights = [], 0

    def add_attachment(self, name: str, attachment: Attachment) -> Any:
        """Add an attachment, after all leaves of the tree, and return its node."""
        spec, (data,) = leaf_codecs.pack(attachment, self._map)
        self._attachment_sizes.append(AttachmentSize(name, attachment.data.size, len(data)))
        return self._add_data(spec, data)

    def build(
        self, skeleton: Any, attachment_nodes: dict[str, Any], metadata: dict[str, Any]
    ) -> _Packed:
        """Assemble the file from the leaves and attachments that were added."""
        index: dict[str, Any] = {"tree": skeleton, "metadata": metadata}
        wrap(index, attachment_nodes)
        parts = [part for spec in self._specs for part in parts_of(spec)]
        # Tables by column, not by leaf: repeated values are adjacent and compress to a few bytes.
        for name, type_ in (("arrays", ArraySpec), ("symbols", SymbolsSpec)):
            table = [part for part in parts if isinstance(part, type_)]
            index[name] = [list(column) for column in zip(*table, strict=True)]
        text = index_text(index, len(self._specs))
        if sum(len(size.path) for size in self._leaf_sizes) > tree.MAX_PATHS:
            raise ValueError(
                f"the paths of the leaves have more than {tree.MAX_PATHS} characters together, "
                "more than a reader accepts; shorten the keys"
            )
        needs_1_1 = self.has_planes or bool(attachment_nodes) or len(text) >= MAX_INDEX
        needs_1_1 = needs_1_1 or any(has_kind(spec, "transposed") for spec in self._specs)
        index_bytes = write_index(text)
        data_bytes = sum(map(len, self._pieces))
        version = VERSION if needs_1_1 else FIRST_VERSION
        header = write_header(len(index_bytes), data_bytes, version)
        pieces = [header, index_bytes, *self._pieces]
        file_bytes = len(header) + len(index_bytes) + data_bytes
        report = SizeReport(tuple(self._leaf_sizes), file_bytes, tuple(self._attachment_sizes))
        return _Packed(pieces, report, sum(map(unfolded_size, self._specs)))

    def _validated(self, path: str, value: Any) -> Any:
        leaf = check_leaf(path, value)
        if self._rounding is None or isinstance(leaf, LEAVES):
            return leaf
        return round_dense(path, leaf, self._rounding)

    def _pack_batch(self, leaves: list[Any]) -> list[tuple[Spec, list[bytes]]]:
        """Code leaves; equal integer arrays, as the masks of layers, only once."""
        are_integers = [
            isinstance(leaf, np.ndarray) and byte_planes.is_integer(leaf) for leaf in leaves
        ]
        others = [
            leaf for leaf, is_integer in zip(leaves, are_integers, strict=True) if not is_integer
        ]
        packed = iter(leaf_codecs.pack_all(others, self._map))
        return [
            self._pack_integers(leaf) if is_integer else next(packed)
            for leaf, is_integer in zip(leaves, are_integers, strict=True)
        ]

    def _pack_integers(self, leaf: np.ndarray) -> tuple[Spec, list[bytes]]:
        digest = hashlib.sha256(leaf.reshape(-1).view(np.uint8).data).digest()
        key = leaf.shape, leaf.dtype.name, digest
        packed = self._packed_integers.get(key) or self._pack(leaf, self._map)
        if isinstance(packed[0], LeafSpec):  # plain arrays are large, and quick to pack again
            self._packed_integers[key] = packed
            self.has_planes = True
        return packed

    def _add_leaf(self, path: str, spec: Spec, chunks: list[bytes]) -> Any:
        data = b"".join(chunks)
        number, original = len(self._leaf_sizes), None
        if math.prod(spec.shape) * DTYPES[spec.dtype].itemsize >= SHARED_FROM:
            key = repr(spec), hashlib.sha256(data).digest()
            original = self._number_of_data.setdefault(key, number)
        is_shared = original is not None and original < number
        leaf_bytes = 0 if is_shared else len(data)
        self._leaf_sizes.append(leaf_size(path, spec, leaf_bytes, shared=is_shared))
        return ["r", original] if is_shared else self._add_data(spec, data)

    def _add_data(self, spec: Spec, data: bytes) -> Any:
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
    # Bounded, because a reader may run with a smaller recursion limit than this process.
    if _is_deeper(metadata, tree.MAX_DEPTH):
        raise TypeError(f"metadata is nested deeper than {tree.MAX_DEPTH}; flatten it")


def _is_deeper(node: Any, levels: int) -> bool:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return any(levels == 0 or _is_deeper(child, levels - 1) for child in children)
