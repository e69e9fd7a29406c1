"""Reading a file leaf by leaf, and the checks that make untrusted files safe."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqs_jax.artifact import attachments, leaf_codecs, tree
from sqs_jax.artifact.container import (
    CHECKSUM,
    DAMAGED,
    max_index,
    read_header,
    read_index,
    unsealed,
)
from sqs_jax.artifact.size_report import AttachmentSize, SizeReport, leaf_size
from sqs_jax.artifact.spec import (
    LeafSpec,
    Spec,
    read_arrays,
    read_spec,
    read_symbols,
    unfolded_size,
)
from sqs_jax.artifact.workers import parallel_map

__all__ = ["Leaf", "Path", "SqsFile", "SqsFileError", "max_unfolded"]

Path = str | os.PathLike[str]


class SqsFileError(ValueError):
    """Raised for a file that is damaged, or no sqs file, or too new for this version.

    Example:
        >>> import os, tempfile
        >>> import sqs_jax
        >>> path = os.path.join(tempfile.mkdtemp(), "model.sqs")
        >>> with open(path, "wb") as file:
        ...     _ = file.write(b"not a model")
        >>> try:
        ...     sqs_jax.load(path)
        ... except sqs_jax.SqsFileError as error:
        ...     print(isinstance(error, ValueError))
        True
    """


def max_unfolded(file_bytes: int) -> int:
    """Return the largest `unfolded_size` of a file: 2**26 + 4,096 * `file_bytes`.

    Without a bound, a file of a kilobyte could claim any amount of memory. A pruned tensor takes a
    few bytes whatever its size, and a product of two vectors takes as many bytes as the vectors.
    `save` and `load` apply the same bound.
    """
    return (1 << 26) + 4096 * file_bytes


class Leaf(NamedTuple):
    """Entry of a leaf or attachment in a file.

    Attributes:
        path: Keys of the leaf joined by "/"; the name of an attachment.
        spec: Shapes, dtypes and size figures of the leaf.
        offset: Position of the leaf's data in the file, bytes from the beginning.
        shared_with: Number of an earlier leaf with the same data; None if the leaf has its own.
    """

    path: str
    spec: Spec
    offset: int
    shared_with: int | None

    @property
    def file_bytes(self) -> int:
        """Bytes that the leaf adds to the file; 0 with the data of another leaf."""
        return self.spec.nbytes if self.shared_with is None else 0

    @property
    def label(self) -> str:
        """Description of the leaf for messages: "leaf" or "attachment", and the path."""
        return f"{'attachment' if _is_attachment(self.spec) else 'leaf'} {self.path!r:.200}"


def _is_attachment(spec: Spec) -> bool:
    return isinstance(spec, LeafSpec) and spec.kind == attachments.KIND


def _is_earlier(number: int, count: int) -> bool:
    return type(number) is int and 0 <= number < count  # bool is a subclass of int


class SqsFile:
    """An open file whose leaves can be read separately.

    Opening reads the index. `read` reads, verifies and decodes one leaf, so memory holds one leaf
    at a time. Untrusted files are safe: nothing in a file is executed, and memory stays in
    proportion to the length of the file.

    Attributes:
        path: Path of the file.
        file_bytes: Length of the file.
        version: Version of the format, (major, minor).
        leaves: One `Leaf` per leaf, in the order of `jax.tree`.
        metadata: Metadata that was passed to `save`; an empty dict if none was.
        attachments: Length of each attachment in bytes, by ascending name.

    Raises:
        SqsFileError: If the file is damaged, cut short, of another format, newer, or changes while
            it is read. The message has the path, the cause and a remedy.
        OSError: If the file does not exist (FileNotFoundError) or cannot be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from sqs_jax import SqsFile, materialize, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = save(f"{folder}/model.sqs", {"dense": {"bias": np.float32([1, 2])}})
        ...     with SqsFile(f"{folder}/model.sqs") as file:
        ...         for leaf in file.leaves:
        ...             print(leaf.path, materialize(file.read(leaf.path)))
        dense/bias [1. 2.]
    """

    def __init__(self, path: Path, *, workers: int = 1) -> None:
        """Open the file at `path`; `workers` processes share the decoding of large leaves."""
        self.path = os.fspath(path)
        self._map = parallel_map(workers)
        if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
            raise SqsFileError(f"{self.path}: a device or a pipe; copy it to a file first")
        self._file = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        try:
            self._state = self._stat()
            self.file_bytes = self._state[0]
            with self._file_errors():
                streams = read_header(self._file, self.file_bytes)
                self.version = streams.version
                start, end = streams.data_span
                index, text_bytes = read_index(self._bytes(*streams.index_span), end - start)
            with self._file_errors(DAMAGED):
                self._read_index(index, text_bytes, start, end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "SqsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; leaves that were read stay valid."""
        self._file.close()

    def read(self, path: str) -> Any:
        """Read a leaf.

        Args:
            path: Keys of the leaf joined by "/".

        Returns:
            The leaf, a `CompressedLeaf` or similar of numpy arrays, or a numpy array.

        Raises:
            KeyError: If there is no leaf at this path.
            SqsFileError: As for the class; other leaves may still be readable.
        """
        if path not in self._at:
            shown = ", ".join(leaf.path for leaf in self.leaves[:8])
            more = ", ..." if len(self.leaves) > 8 else ""
            raise KeyError(f"{self.path}: no leaf {path!r}; there are: {shown or 'none'}{more}")
        return self._read(self.leaves[self._at[path]])

    def read_attachment(self, name: str) -> bytes:
        """Read an attachment.

        Args:
            name: Name of the attachment, a key of `attachments`.

        Returns:
            The bytes of the attachment.

        Raises:
            KeyError: If there is no attachment of this name.
            SqsFileError: As for the class; other attachments may still be readable.
        """
        if name not in self._attachments:
            shown = ", ".join(list(self._attachments)[:8]) or "none"
            raise KeyError(f"{self.path}: no attachment {name!r}; there are: {shown}")
        data: bytes = self._read(self._attachments[name])
        return data

    def tree(self, leaf: Callable[[Leaf], Any] | None = None) -> Any:
        """Return the tree that was saved.

        Args:
            leaf: Function from `Leaf` to the leaf of the returned tree. By default every leaf is
                read, and leaves that share data are one object.
        """
        if leaf is not None:
            return tree.unflatten(self._skeleton, map(leaf, self.leaves))
        values: list[Any] = []
        for entry in self.leaves:
            original = entry.shared_with
            values.append(self._read(entry) if original is None else values[original])
        return tree.unflatten(self._skeleton, iter(values))

    def report(self) -> SizeReport:
        """Return the sizes that the index states, without reading leaves."""
        sizes = [
            leaf_size(leaf.path, leaf.spec, leaf.file_bytes, shared=leaf.shared_with is not None)
            for leaf in self.leaves
        ]
        attachment_sizes = [
            AttachmentSize(name, self.attachments[name], leaf.file_bytes)
            for name, leaf in self._attachments.items()
        ]
        return SizeReport(tuple(sizes), self.file_bytes, tuple(attachment_sizes))

    def check(self) -> None:
        """Verify the checksums of all leaves and attachments, without decoding.

        Raises:
            SqsFileError: If a checksum does not match.
        """
        for leaf in (*self.leaves, *self._attachments.values()):
            if leaf.shared_with is None:
                self._verified(leaf)

    def _read_index(self, index: dict[str, Any], text_bytes: int, start: int, end: int) -> None:
        """Set leaves, tree and metadata, after checking every claim of the index."""
        skeleton, attachment_nodes = attachments.unwrap(index)
        nodes = tree.leaf_nodes(skeleton)
        count = len(nodes)
        arrays = iter(read_arrays(index.get("arrays")))
        symbols = iter(read_symbols(index.get("symbols")))
        leaves: list[Leaf] = []
        for i, (path, node) in enumerate([*nodes, *attachment_nodes.items()]):
            match node:
                case ["r", int(number)] if _is_earlier(number, len(leaves)) and i < count:
                    leaves.append(leaves[number]._replace(path=path, shared_with=number))
                case _:
                    spec = read_spec(node, arrays, symbols)
                    leaf_codecs.check(spec)
                    if _is_attachment(spec) != (i >= count):
                        raise ValueError(
                            "an attachment is in the tree, or a leaf among the attachments"
                        )
                    leaves.append(Leaf(path, spec, start, shared_with=None))
                    start += spec.nbytes + CHECKSUM
        if any(next(table, None) is not None for table in (arrays, symbols)):
            raise ValueError("a table of the index is longer than the tree")
        if start != end:
            raise ValueError(f"the index claims {start} bytes of {end}")
        own = [leaf.spec for leaf in leaves if leaf.shared_with is None]
        if text_bytes > max_index(len(own)):
            raise ValueError(f"an index of {text_bytes} bytes is too long for {len(own)} leaves")
        if sum(map(unfolded_size, own)) > max_unfolded(self.file_bytes):
            raise ValueError("the index claims more weights than a file of this size may hold")
        if not isinstance(index.get("metadata"), dict):
            raise ValueError("the index has no metadata")
        self.leaves, self._skeleton = tuple(leaves[:count]), skeleton
        self.metadata: dict[str, Any] = index["metadata"]
        self._at = {leaf.path: number for number, leaf in enumerate(self.leaves)}
        self._attachments = {leaf.path: leaf for leaf in leaves[count:]}
        self.attachments = {name: leaf.spec.shape[0] for name, leaf in self._attachments.items()}

    def _read(self, leaf: Leaf) -> Any:
        with self._file_errors(leaf.label):
            leaf_codecs.check_known(leaf.spec)
        data = self._verified(leaf)
        with self._file_errors(leaf.label, DAMAGED):
            return leaf_codecs.unpack(leaf.spec, data, self._map)

    def _verified(self, leaf: Leaf) -> bytes:
        data = self._bytes(leaf.offset, leaf.offset + leaf.spec.nbytes + CHECKSUM)
        with self._file_errors(leaf.label):
            return unsealed(data)

    def _bytes(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(end - start)
        if len(data) != end - start or self._stat() != self._state:
            raise SqsFileError(f"{self.path}: the file changed while it was read; read it again")
        return data

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    @contextlib.contextmanager
    def _file_errors(self, *notes: str) -> Iterator[None]:
        """Raise errors of the content as `SqsFileError` with path and notes."""
        try:
            yield
        except SqsFileError:
            raise
        except (ValueError, RecursionError) as error:
            raise SqsFileError(f"{self.path}: {'; '.join([str(error), *notes])}") from error
