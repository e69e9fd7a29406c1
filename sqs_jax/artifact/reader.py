"""Read a file leaf by leaf."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sqs_jax.artifact import attachments, kinds, tree
from sqs_jax.artifact.bits import AttachmentSize, SizeReport, leaf_size
from sqs_jax.artifact.container import (
    CHECKSUM,
    DAMAGED,
    max_index,
    read_header,
    read_index,
    unsealed,
)
from sqs_jax.artifact.parallel import mapping
from sqs_jax.artifact.spec import (
    LeafSpec,
    Spec,
    read_arrays,
    read_spec,
    read_symbols,
    unfolded,
)

__all__ = ["Leaf", "Path", "SqsFile", "SqsFileError", "most_codes"]

Path = str | os.PathLike[str]


class SqsFileError(ValueError):
    """A file is not a whole, undamaged sqs file that this version can read."""


def most_codes(file_bytes: int) -> int:
    """Return how much a file may unfold to, by `unfolded`: 2**26, and 4,096 per byte of it.

    A pruned tensor takes a few bytes whatever its size, and a product of two vectors as many as
    they are long, so a file of a kilobyte could ask for any amount of memory. `save` and `load`
    agree on this bound.
    """
    return (1 << 26) + 4096 * file_bytes


class Leaf(NamedTuple):
    """Where a leaf of a file lies, and what it is.

    Attributes:
        path: The leaf's keys joined by "/"; the name of an attachment.
        spec: Its shapes, dtypes and figures.
        offset: Of its bytes, from the beginning of the file.
        shared_with: The number of an earlier leaf whose values, and bytes, are these; or None.
    """

    path: str
    spec: Spec
    offset: int
    shared_with: int | None

    @property
    def file_bytes(self) -> int:
        """What the leaf adds to the file."""
        return self.spec.nbytes if self.shared_with is None else 0

    @property
    def label(self) -> str:
        """What the leaf is, and its path, for messages."""
        return f"{'attachment' if _is_attachment(self.spec) else 'leaf'} {self.path!r:.200}"


def _is_attachment(spec: Spec) -> bool:
    return isinstance(spec, LeafSpec) and spec.kind == attachments.KIND


def _is_earlier(number: int, count: int) -> bool:
    return type(number) is int and 0 <= number < count  # true is no number


class SqsFile:
    """An open file, of which single leaves are read.

    Opening reads the index; a leaf's bytes are read, checked and decoded when it is asked for, so
    that memory holds one leaf at a time. Files of strangers are safe: nothing in a file is
    executed, and memory stays in proportion to the file (see `most_codes`).

    Example:
        >>> with sqs_jax.SqsFile("model.sqs") as file:
        ...     for leaf in file.leaves:
        ...         weights = sqs_jax.materialize(file.read(leaf.path))

    Attributes:
        path: Of the file.
        file_bytes: Its length.
        version: The format's, two numbers.
        leaves: A `Leaf` for each leaf, in the order of `jax.tree`.
        metadata: What was given to `save`.
        attachments: The length of each attachment in bytes, by ascending name.

    Raises:
        SqsFileError: If the file is damaged, cut short, of another format, newer, or changes while
            it is read. Names the path, what was found and the way out.
        OSError: If there is no such file (FileNotFoundError) or it cannot be read.
    """

    def __init__(self, path: Path, *, workers: int = 1) -> None:
        """Open a file; `workers` processes decode large leaves."""
        self.path = os.fspath(path)
        self._map = mapping(workers)
        if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
            raise SqsFileError(f"{self.path}: a device or a pipe; copy it to a file first")
        self._file = open(path, "rb")  # noqa: SIM115 (closed by __exit__)
        try:
            self._state = self._stat()
            self.file_bytes = self._state[0]
            with self._named():
                streams = read_header(self._file, self.file_bytes)
                self.version = streams.version
                start, end = streams.data
                index, text_bytes = read_index(self._bytes(*streams.of_index), end - start)
            with self._named(DAMAGED):
                self._read_index(index, text_bytes, start, end)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "SqsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; leaves that were read stay."""
        self._file.close()

    def read(self, path: str) -> Any:
        """Return one leaf: a `CompressedLeaf` or an array, of numpy arrays.

        Args:
            path: The leaf's keys joined by "/".

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
        """Return one attachment.

        Args:
            name: One of `attachments`.

        Raises:
            KeyError: If there is no attachment of this name.
            SqsFileError: As for the class; the others may still be readable.
        """
        if name not in self._attachments:
            shown = ", ".join(list(self._attachments)[:8]) or "none"
            raise KeyError(f"{self.path}: no attachment {name!r}; there are: {shown}")
        data: bytes = self._read(self._attachments[name])
        return data

    def tree(self, leaf: Callable[[Leaf], Any] | None = None) -> Any:
        """Return the tree, each leaf being `leaf(...)` of its `Leaf`; by default all are read."""
        if leaf is not None:
            return tree.unflatten(self._skeleton, map(leaf, self.leaves))
        values: list[Any] = []
        for entry in self.leaves:  # shared leaves are one object again
            again = entry.shared_with
            values.append(self._read(entry) if again is None else values[again])
        return tree.unflatten(self._skeleton, iter(values))

    def report(self) -> SizeReport:
        """Return the size figures that the index states; nothing is decoded."""
        sizes = [
            leaf_size(leaf.path, leaf.spec, leaf.file_bytes, shared=leaf.shared_with is not None)
            for leaf in self.leaves
        ]
        attached = [
            AttachmentSize(name, self.attachments[name], leaf.file_bytes)
            for name, leaf in self._attachments.items()
        ]
        return SizeReport(tuple(sizes), self.file_bytes, tuple(attached))

    def check(self) -> None:
        """Compare the bytes of leaves and attachments with their checksums; decode nothing."""
        for leaf in (*self.leaves, *self._attachments.values()):
            if leaf.shared_with is None:
                self._checked(leaf)

    def _read_index(self, index: dict[str, Any], text_bytes: int, start: int, end: int) -> None:
        """Fill in leaves, tree and metadata. All that the index claims is checked before use."""
        skeleton, attached = attachments.unwrap(index)
        nodes = tree.leaf_nodes(skeleton)
        count = len(nodes)
        arrays = iter(read_arrays(index.get("arrays")))
        symbols = iter(read_symbols(index.get("symbols")))
        leaves: list[Leaf] = []
        for i, (path, node) in enumerate([*nodes, *attached.items()]):
            match node:
                case ["r", int(number)] if _is_earlier(number, len(leaves)) and i < count:
                    leaves.append(leaves[number]._replace(path=path, shared_with=number))
                case _:
                    spec = read_spec(node, arrays, symbols)
                    kinds.check(spec)
                    if _is_attachment(spec) != (i >= count):
                        raise ValueError(
                            "an attachment lies in the tree, or a leaf among the attachments"
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
        if sum(map(unfolded, own)) > most_codes(self.file_bytes):
            raise ValueError("the index claims more weights than a file of this size may hold")
        if not isinstance(index.get("metadata"), dict):
            raise ValueError("the index has no metadata")
        self.leaves, self._skeleton = tuple(leaves[:count]), skeleton
        self.metadata: dict[str, Any] = index["metadata"]
        self._at = {leaf.path: number for number, leaf in enumerate(self.leaves)}
        self._attachments = {leaf.path: leaf for leaf in leaves[count:]}
        self.attachments = {name: leaf.spec.shape[0] for name, leaf in self._attachments.items()}

    def _read(self, leaf: Leaf) -> Any:
        with self._named(leaf.label):
            kinds.check_known(leaf.spec)
        data = self._checked(leaf)
        with self._named(leaf.label, DAMAGED):
            return kinds.unpack(leaf.spec, data, self._map)

    def _checked(self, leaf: Leaf) -> bytes:
        data = self._bytes(leaf.offset, leaf.offset + leaf.spec.nbytes + CHECKSUM)
        with self._named(leaf.label):
            return unsealed(data)

    def _bytes(self, start: int, end: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(end - start)
        if len(data) != end - start or self._stat() != self._state:
            raise SqsFileError(f"{self.path}: the file changed while it was read; read it again")
        return data

    def _stat(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    @contextlib.contextmanager
    def _named(self, *notes: str) -> Iterator[None]:
        """Turn what is wrong with the content into an error that names the file."""
        try:
            yield
        except SqsFileError:
            raise
        except (ValueError, RecursionError) as error:
            raise SqsFileError(f"{self.path}: {'; '.join([str(error), *notes])}") from error
