"""Specs: the description of each leaf in the index of a file.

A spec has shapes, dtypes, lengths and size figures, so that a reader knows a leaf before decoding
it. A leaf is an array, or a kind of leaf with parts: symbols (small unsigned integers,
entropy-coded), arrays, and other leaves. The functions that read specs check every value.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Union

from sqs_jax.artifact.dtypes import DTYPES, check_stored, code_dtype
from sqs_jax.artifact.validate import MAX_NESTING

__all__ = [
    "ArraySpec",
    "LeafSpec",
    "Spec",
    "SymbolsSpec",
    "has_kind",
    "parts_of",
    "read_arrays",
    "read_spec",
    "read_symbols",
    "table_rows",
    "unfolded_size",
    "write_spec",
]


class ArraySpec(NamedTuple):
    """An array in a file.

    Attributes:
        shape: Shape of the array.
        dtype: Name of its dtype.
        stored: Name of the dtype of its elements in the file.
    """

    shape: tuple[int, ...]
    dtype: str
    stored: str

    @property
    def nbytes(self) -> int:
        """Bytes of the array in the file."""
        return math.prod(self.shape) * DTYPES[self.stored].itemsize


class SymbolsSpec(NamedTuple):
    """A stream of entropy-coded symbols in a file.

    Attributes:
        shape: Shape of the array of symbols.
        alphabet: Number of different symbols, 1 to 65,536; a symbol is below `alphabet`.
        nbytes: Bytes of the stream.
        nonzero: Number of symbols that are not 0.
        excess_bits: 8 * `nbytes` minus the order-0 entropy of the stream, to a tenth of a bit;
            negative where a context model helps.
    """

    shape: tuple[int, ...]
    alphabet: int
    nbytes: int
    nonzero: int
    excess_bits: float

    @property
    def entropy_bits(self) -> float:
        """Order-0 entropy of the stream, bits."""
        return 8 * self.nbytes - self.excess_bits

    @property
    def dtype(self) -> str:
        """Name of the dtype of the decoded symbols."""
        return code_dtype(self.alphabet - 1).name


class LeafSpec(NamedTuple):
    """A leaf with parts in a file.

    Attributes:
        kind: Key of `leaf_codecs.CODECS`, or a kind that this version does not know.
        shape: Shape of the tensor that the leaf stands for.
        dtype: Name of the dtype of this tensor.
        attributes: Values of the leaf that are no arrays, from JSON.
        parts: Specs of the parts, in the order of their bytes.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]
    parts: tuple["Spec", ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the parts in the file."""
        return sum(part.nbytes for part in self.parts)


Spec = Union[ArraySpec, SymbolsSpec, LeafSpec]  # noqa: UP007 (a forward reference has no |)


def parts_of(spec: Spec) -> Iterator[ArraySpec | SymbolsSpec]:
    """Iterate over the arrays and symbols of a leaf, in the order of their bytes."""
    if isinstance(spec, LeafSpec):
        yield from itertools.chain.from_iterable(map(parts_of, spec.parts))
    else:
        yield spec


def has_kind(spec: Spec, kind: str) -> bool:
    """Return whether a leaf or a nested leaf has this kind."""
    if not isinstance(spec, LeafSpec):
        return False
    return spec.kind == kind or any(has_kind(part, kind) for part in spec.parts)


def unfolded_size(spec: Spec) -> int:
    """Return a measure of the memory that a leaf takes beyond its bytes in the file.

    Memory is bounded by this number, see `reader.max_unfolded`. It counts each symbol and each
    weight of a product once. For an integer tensor it counts bytes, of which there are at least as
    many as symbols.
    """
    match spec:
        case SymbolsSpec():
            return math.prod(spec.shape)
        case LeafSpec("integers"):
            return math.prod(spec.shape) * DTYPES[spec.dtype].itemsize
        case LeafSpec():
            product = math.prod(spec.shape) if spec.kind == "product" else 0
            return product + sum(map(unfolded_size, spec.parts))
    return 0


def read_spec(
    node: Any, arrays: Iterator[ArraySpec], symbols: Iterator[SymbolsSpec], depth: int = 0
) -> Spec:
    """Read the node of a leaf from the index.

    Args:
        node: Untrusted JSON: "d", "s", "c" or ["k", kind, shape, dtype, attributes, node, ...].
        arrays: Arrays of the index; the node consumes one per array of the leaf.
        symbols: Symbol streams of the index; the node consumes one per stream of the leaf.
        depth: Number of leaves around this one.

    Returns:
        The spec of the leaf.

    Raises:
        ValueError: If `node` is not such a node, or has more parts than the index.
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
        case ["k", str(kind), shape, str(dtype), dict(attributes), *parts] if depth < MAX_NESTING:
            if not is_shape(shape) or dtype not in DTYPES:
                raise ValueError(f"a leaf of kind {kind!r:.50} has no shape or no dtype")
            children = (read_spec(part, arrays, symbols, depth + 1) for part in parts)
            return LeafSpec(kind, tuple(shape), dtype, attributes, tuple(children))
    raise ValueError(f"the tree in the index is damaged: {node!r:.80}")


def write_spec(spec: Spec) -> Any:
    """Return the node of a leaf for the index, the inverse of `read_spec`."""
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
    """Read the table of arrays of an index: the columns shape, dtype, stored dtype."""
    arrays = [ArraySpec(tuple(row[0]), *row[1:]) for row in table_rows(columns, "SDD")]
    for array in arrays:
        check_stored(array.dtype, array.stored)
    return arrays


def read_symbols(columns: Any) -> list[SymbolsSpec]:
    """Read the table of symbols of an index: shape, alphabet, bytes, nonzero, excess."""
    symbols = [SymbolsSpec(tuple(row[0]), *row[1:]) for row in table_rows(columns, "SANNE")]
    for stream in symbols:
        count = math.prod(stream.shape)
        if stream.nonzero > count or not -1 < stream.entropy_bits <= 16 * count + 1:
            raise ValueError(f"the figures of {count} symbols in the index are invalid")
    return symbols


def table_rows(columns: Any, types: str) -> list[tuple[Any, ...]]:
    """Return the rows of a table of the index, after checking the type of every value.

    Args:
        columns: Untrusted JSON: one list per column, all of equal length; no column at all for a
            table without rows.
        types: Letter per column: S for a shape, D for the name of a dtype, A for the size of an
            alphabet, N for a count, E for an excess in bits.

    Returns:
        The rows of the table.

    Raises:
        ValueError: If `columns` is not such a table.
    """
    if not isinstance(columns, list) or len(columns) not in (0, len(types)):
        raise ValueError("a table of the index has the wrong columns")
    for column, type_ in zip(columns, types, strict=False):
        if not isinstance(column, list) or len(column) != len(columns[0]):
            raise ValueError("the columns of a table of the index differ in length")
        for value in column:
            if not _CHECKS[type_](value):
                raise ValueError(f"{value!r:.80} in the index is invalid")
    return list(zip(*columns, strict=True))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def is_shape(value: Any) -> bool:
    """Return whether `value` is a list of at most 64 sizes with a product below 2**48."""
    # The product leaves zeros out: numpy refuses an empty array of too large axes, too.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(map(_is_size, value))
        and _is_size(math.prod(size for size in value if size))
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "S": is_shape,
    "D": lambda value: isinstance(value, str) and value in DTYPES,
    "A": lambda value: type(value) is int and 1 <= value <= 1 << 16,
    "N": _is_size,
    "E": lambda value: type(value) in (int, float) and abs(value) < 1 << 52,
}
