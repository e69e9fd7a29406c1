"""What a file says of its leaves before any of them is read: shapes, dtypes, lengths, figures.

A leaf is an array, or of a kind that is put together from parts: symbols (small unsigned integers,
entropy-coded), arrays, and leaves again. All that the index claims is checked here.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union

from sqs_jax.artifact import storage
from sqs_jax.artifact.storage import MAX_DEPTH

__all__ = [
    "ArraySpec",
    "LeafSpec",
    "Spec",
    "SymbolsSpec",
    "has_kind",
    "parts_of",
    "read_spec",
    "rows",
    "unfolded",
]


class ArraySpec(NamedTuple):
    """An array: its shape, its dtype and the dtype it is stored in."""

    shape: tuple[int, ...]
    dtype: str
    stored: str

    @property
    def nbytes(self) -> int:
        """What it occupies in the file."""
        return math.prod(self.shape) * storage.DTYPES[self.stored].itemsize


class SymbolsSpec(NamedTuple):
    """Symbols below `alphabet`, how many are not 0, and how far their bits exceed the entropy.

    `excess_bits` is 8 * nbytes less the order-0 entropy of all of them, to a tenth of a bit; it is
    negative where a context model helps.
    """

    shape: tuple[int, ...]
    alphabet: int
    nbytes: int
    nonzero: int
    excess_bits: float

    @property
    def entropy_bits(self) -> float:
        """Their order-0 entropy."""
        return 8 * self.nbytes - self.excess_bits

    @property
    def dtype(self) -> str:
        """The dtype they are decoded to."""
        return storage.code_dtype(self.alphabet - 1).name


class LeafSpec(NamedTuple):
    """A leaf of a kind: the tensor it stands for, and the parts it is put together from."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]
    parts: tuple["Spec", ...]

    @property
    def nbytes(self) -> int:
        """What its parts occupy in the file."""
        return sum(part.nbytes for part in self.parts)


Spec = Union[ArraySpec, SymbolsSpec, LeafSpec]  # noqa: UP007 (a forward reference has no |)


def parts_of(spec: Spec) -> Iterator[ArraySpec | SymbolsSpec]:
    """List the arrays and symbols of a leaf, in the order of their bytes."""
    if isinstance(spec, LeafSpec):
        yield from itertools.chain.from_iterable(map(parts_of, spec.parts))
    else:
        yield spec


def has_kind(spec: Spec, kind: str) -> bool:
    """Return whether a leaf, or a leaf in it, is of a kind."""
    if not isinstance(spec, LeafSpec):
        return False
    return spec.kind == kind or any(has_kind(part, kind) for part in spec.parts)


def unfolded(spec: Spec) -> int:
    """Count what a leaf takes in memory beyond its bytes in the file.

    That is its symbols, the weights of products in it, and the bytes of integer tensors, which are
    at least as many as their symbols.
    """
    match spec:
        case SymbolsSpec():
            return math.prod(spec.shape)
        case LeafSpec("integers"):
            return math.prod(spec.shape) * storage.DTYPES[spec.dtype].itemsize
        case LeafSpec():
            product = math.prod(spec.shape) if spec.kind == "product" else 0
            return product + sum(map(unfolded, spec.parts))
    return 0


def read_spec(
    node: Any, arrays: Iterator[ArraySpec], symbols: Iterator[SymbolsSpec], depth: int = 0
) -> Spec:
    """Read one leaf's node of the index.

    Args:
        node: "d", "s", "c" or ["k", kind, shape, dtype, attributes, node, ...]; not to be trusted.
        arrays: The index's arrays; as many are taken as the node has.
        symbols: The index's symbols, likewise.
        depth: Of leaves within leaves.

    Raises:
        ValueError: If this is no such node, or claims parts that the index does not have.
    """
    match node:
        case "d" | "s":
            part = next(arrays if node == "d" else symbols, None)
            if part is None:
                raise ValueError("a table of the index is not as long as the tree")
            return part
        case "c":
            codes = read_spec("s", arrays, symbols)
            book = read_spec("d", arrays, symbols)
            assert isinstance(book, ArraySpec)
            return LeafSpec("codebook", codes.shape, book.dtype, {}, (codes, book))
        case ["k", str(kind), shape, str(dtype), dict(attributes), *parts] if depth < MAX_DEPTH:
            if not is_shape(shape) or dtype not in storage.DTYPES:
                raise ValueError(f"a leaf of kind {kind!r:.50} has no shape or no dtype")
            children = (read_spec(part, arrays, symbols, depth + 1) for part in parts)
            return LeafSpec(kind, tuple(shape), dtype, attributes, tuple(children))
    raise ValueError(f"the tree in the index is damaged: {node!r:.80}")


def write_spec(spec: Spec) -> Any:
    """Return the node that `read_spec` reads."""
    match spec:
        case ArraySpec():
            return "d"
        case SymbolsSpec():
            return "s"
        case LeafSpec("codebook", attributes={}):
            return "c"
    parts = [write_spec(part) for part in spec.parts]
    return ["k", spec.kind, list(spec.shape), spec.dtype, spec.attributes, *parts]


def read_arrays(columns: Any) -> list[ArraySpec]:
    """Read the index's table of arrays: the columns shape, dtype, stored dtype."""
    arrays = [ArraySpec(tuple(row[0]), *row[1:]) for row in rows(columns, "SDD")]
    for array in arrays:
        storage.check_stored(array.dtype, array.stored)
    return arrays


def read_symbols(columns: Any) -> list[SymbolsSpec]:
    """Read the index's table of symbols: shape, alphabet, bytes, nonzero, excess in bits."""
    symbols = [SymbolsSpec(tuple(row[0]), *row[1:]) for row in rows(columns, "SANNE")]
    for entry in symbols:
        count = math.prod(entry.shape)
        if entry.nonzero > count or not -1 < entry.entropy_bits <= 16 * count + 1:
            raise ValueError(f"the figures of {count} symbols in the index are out of place")
    return symbols


def rows(columns: Any, types: str) -> list[tuple[Any, ...]]:
    """Return a table of an index by rows, each value checked by itself.

    Args:
        columns: What stands in the index, not to be trusted: lists of equal length, one per
            column; no column at all for a table without rows.
        types: A letter per column: S is a shape, D a dtype's name, A an alphabet, N a number of
            things, E an excess in bits.

    Raises:
        ValueError: If this is not such a table.
    """
    if not isinstance(columns, list) or len(columns) not in (0, len(types)):
        raise ValueError("a table of the index has the wrong columns")
    for column, type_ in zip(columns, types, strict=False):
        if not isinstance(column, list) or len(column) != len(columns[0]):
            raise ValueError("the columns of a table of the index are not of one length")
        for value in column:
            if not _IS[type_](value):
                raise ValueError(f"{value!r:.80} in the index is out of place")
    return list(zip(*columns, strict=True))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def is_shape(value: Any) -> bool:
    """Whether this is a list of at most 64 sizes whose product is less than 2**48."""
    # Zeros aside, so that an empty array cannot claim axes that numpy could not hold either.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(map(_is_size, value))
        and _is_size(math.prod(size for size in value if size))
    )


_IS: dict[str, Callable[[Any], bool]] = {
    "S": is_shape,
    "D": lambda value: isinstance(value, str) and value in storage.DTYPES,
    "A": lambda value: type(value) is int and 1 <= value <= 1 << 16,
    "N": _is_size,
    "E": lambda value: type(value) in (int, float) and abs(value) < 1 << 52,
}
