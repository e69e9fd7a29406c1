"""Leaf codecs: each kind of leaf as symbols and arrays, and back.

A new kind of leaf is one entry of `CODECS`. Container, index, entropy coder, checksums and size
figures know symbols and arrays only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sqs_jax.artifact import attachments, byte_planes, coding, dtypes, validate
from sqs_jax.artifact.attachments import Attachment
from sqs_jax.artifact.byte_planes import Integers
from sqs_jax.artifact.digest_cache import DigestCache, digest
from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.artifact.leaves import (
    CompressedLeaf,
    GridLeaf,
    OverlayLeaf,
    ProductLeaf,
    ScaledLeaf,
    TransposedLeaf,
    transposed_shape,
)
from sqs_jax.artifact.spec import ArraySpec, LeafSpec, Spec, SymbolsSpec

__all__ = [
    "CODECS",
    "LeafCodec",
    "Symbols",
    "check",
    "check_known",
    "pack",
    "pack_all",
    "pack_shortest",
    "unpack",
]

Map = Callable[..., Any]

_CACHE = DigestCache(1 << 26)
"""Coded leaves of recent calls, up to 64 MiB."""


class Symbols(NamedTuple):
    """Unsigned integers that are to be entropy-coded.

    Attributes:
        values: Unsigned array of any shape, every value below `alphabet`.
        alphabet: Number of different symbols, 1 to 65,536.
        text: True if long sequences may repeat, as in text; see `coding.encode`.
    """

    values: np.ndarray
    alphabet: int
    text: bool = False


class LeafCodec(NamedTuple):
    """The functions that store and rebuild a kind of leaf.

    Attributes:
        type: Class of the leaves.
        split: Function leaf -> (shape, dtype, attributes, parts). Shape and dtype are those of the
            tensor that the leaf stands for. Attributes are a JSON-able dict. Parts are `Symbols`,
            arrays and leaves.
        join: Function (spec, parts) -> leaf, the inverse of `split`. `spec` has been checked, and
            symbols are given as their values. Raises ValueError if the values do not fit.
        check: Function of a spec that raises ValueError unless its parts can be joined.
    """

    type: type
    split: Callable[[Any], tuple[tuple[int, ...], str, dict[str, Any], Sequence[Any]]]
    join: Callable[[LeafSpec, list[Any]], Any]
    check: Callable[[LeafSpec], None]


def _check_codebook(spec: LeafSpec) -> None:
    codes, book = spec.parts if len(spec.parts) == 2 else (None, None)
    if not isinstance(codes, SymbolsSpec) or not isinstance(book, ArraySpec):
        raise ValueError("a codebook leaf is symbols and an array")
    num_values = validate.check_codebook(codes.shape, book.shape, DTYPES[book.dtype])
    if codes.alphabet != num_values + 1 or (codes.shape, book.dtype) != (spec.shape, spec.dtype):
        raise ValueError(f"codes of {codes.alphabet} values for a codebook of {num_values}")


def _join_grid(spec: LeafSpec, parts: list[Any]) -> GridLeaf:
    codes, scales, zeros = parts
    return GridLeaf(codes, scales, zeros, spec.attributes["levels"])


def _check_grid(spec: LeafSpec) -> None:
    codes, scales, zeros = spec.parts if len(spec.parts) == 3 else (None, None, None)
    are_symbols = isinstance(codes, SymbolsSpec) and isinstance(zeros, SymbolsSpec)
    if not are_symbols or scales is None or isinstance(scales, SymbolsSpec):
        raise ValueError("a grid leaf is symbols, an array or a leaf, and symbols")
    assert isinstance(codes, SymbolsSpec) and isinstance(zeros, SymbolsSpec)
    dtype = DTYPES[scales.dtype]
    validate.check_grid(codes.shape, scales.shape, dtype, zeros.shape, codes.alphabet)
    levels = {"levels": codes.alphabet}
    if spec.attributes != levels or codes.alphabet != zeros.alphabet:
        raise ValueError(f"codes of {codes.alphabet} levels on a grid of {spec.attributes!r:.50}")
    if (codes.shape, scales.dtype) != (spec.shape, spec.dtype):
        raise ValueError("a grid leaf is of another shape or dtype than its parts")


def _check_scaled(spec: LeafSpec) -> None:
    leaf, scales = spec.parts if len(spec.parts) == 2 else (None, None)
    if leaf is None or not isinstance(scales, ArraySpec):
        raise ValueError("a scaled leaf is a leaf and an array")
    validate.check_scaled(leaf.shape, scales.shape)
    _check_same_tensor(spec, leaf)
    validate.check_floating(DTYPES[leaf.dtype], DTYPES[scales.dtype])


def _check_overlay(spec: LeafSpec) -> None:
    leaf, places, values = spec.parts if len(spec.parts) == 3 else (None, None, None)
    if leaf is None or not isinstance(places, SymbolsSpec) or not isinstance(values, ArraySpec):
        raise ValueError("an overlay leaf is a leaf, symbols and an array")
    validate.check_overlay(leaf.shape, places.shape, values.shape)
    _check_same_tensor(spec, leaf)
    validate.check_floating(DTYPES[leaf.dtype], DTYPES[values.dtype])
    if places.alphabet != 2:
        raise ValueError(f"places of {places.alphabet} values, they must have two")


def _join_overlay(_: LeafSpec, parts: list[Any]) -> OverlayLeaf:
    validate.check_places(parts[1], parts[2])
    return OverlayLeaf(*parts)


def _check_product(spec: LeafSpec) -> None:
    left, right = spec.parts if len(spec.parts) == 2 else (None, None)
    if left is None or right is None or spec.attributes != {"shape": list(spec.shape)}:
        raise ValueError("a product leaf is two leaves, and has a shape")
    validate.check_product(spec.shape, left.shape, right.shape)
    if left.dtype != spec.dtype or right.dtype != spec.dtype:
        raise ValueError("a product leaf is of another dtype than its factors")
    validate.check_floating(DTYPES[spec.dtype])


def _check_transposed(spec: LeafSpec) -> None:
    if len(spec.parts) != 1:
        raise ValueError("a transposed leaf is one leaf")
    (leaf,) = spec.parts
    if spec.shape != transposed_shape(leaf.shape) or spec.dtype != leaf.dtype:
        raise ValueError("a transposed leaf is of another shape or dtype than the leaf in it")
    validate.check_floating(DTYPES[spec.dtype])


def _check_same_tensor(spec: LeafSpec, leaf: Spec) -> None:
    if (leaf.shape, leaf.dtype) != (spec.shape, spec.dtype):
        raise ValueError(f"a {spec.kind} leaf is of another shape or dtype than the leaf in it")


def _composed(
    type_: type, parts: Callable[[Any], Sequence[Any]], join: Any, check: Any
) -> LeafCodec:
    def split(leaf: Any) -> tuple[tuple[int, ...], str, dict[str, Any], Sequence[Any]]:
        shape, dtype = validate.shape_and_dtype(leaf)
        attributes = {"shape": list(shape)} if type_ is ProductLeaf else {}
        return shape, dtype.name, attributes, parts(leaf)

    return LeafCodec(type_, split, join, check)


def _split_integers(
    leaf: Integers,
) -> tuple[tuple[int, ...], str, dict[str, Any], Sequence[Any]]:
    minimum, planes = byte_planes.planes_of(leaf.array)
    parts = [Symbols(p, int(p.max()) + 1, coding.repetitive(p)) for p in planes]
    return leaf.array.shape, leaf.array.dtype.name, {"minimum": minimum}, parts


CODECS = {
    "codebook": LeafCodec(
        type=CompressedLeaf,
        split=lambda leaf: (
            leaf.codes.shape,
            leaf.codebook.dtype.name,
            {},
            [Symbols(leaf.codes, math.prod(leaf.codebook.shape[-2:]) + 1), leaf.codebook],
        ),
        join=lambda _, parts: CompressedLeaf(*parts),
        check=_check_codebook,
    ),
    "grid": LeafCodec(
        type=GridLeaf,
        split=lambda leaf: (
            leaf.codes.shape,
            validate.shape_and_dtype(leaf)[1].name,
            {"levels": leaf.levels},
            [Symbols(leaf.codes, leaf.levels), leaf.scales, Symbols(leaf.zeros, leaf.levels)],
        ),
        join=_join_grid,
        check=_check_grid,
    ),
    "scaled": _composed(
        ScaledLeaf,
        lambda leaf: (leaf.leaf, leaf.scales),
        lambda _, parts: ScaledLeaf(*parts),
        _check_scaled,
    ),
    "overlay": _composed(
        OverlayLeaf,
        lambda leaf: (leaf.leaf, Symbols(leaf.places, 2), leaf.values),
        _join_overlay,
        _check_overlay,
    ),
    "product": _composed(
        ProductLeaf,
        lambda leaf: (leaf.left, leaf.right),
        lambda spec, parts: ProductLeaf(parts[0], parts[1], spec.shape),
        _check_product,
    ),
    "transposed": _composed(
        TransposedLeaf,
        lambda leaf: (leaf.leaf,),
        lambda _, parts: TransposedLeaf(*parts),
        _check_transposed,
    ),
    byte_planes.KIND: LeafCodec(
        type=Integers,
        split=_split_integers,
        join=byte_planes.from_planes,
        check=byte_planes.check_integers,
    ),
    attachments.KIND: LeafCodec(
        type=Attachment,
        split=lambda leaf: (leaf.data.shape, "uint8", {}, [Symbols(leaf.data, 256, True)]),
        join=lambda _, parts: parts[0].tobytes(),
        check=attachments.check_attachment,
    ),
}


def pack(leaf: Any, map: Map = map) -> tuple[Spec, list[bytes]]:
    """Code a leaf.

    Args:
        leaf: A numpy array, `Symbols`, or a valid leaf of numpy arrays.
        map: Function like `map` that codes chunks, see `coding.encode`.

    Returns:
        The spec of the leaf, and the bytes of its parts in order.
    """
    return pack_all([leaf], map)[0]


def pack_all(leaves: Sequence[Any], map: Map = map) -> list[tuple[Spec, list[bytes]]]:
    """Code many leaves, in the same bytes as `pack` and in less time."""
    nodes = [_split(leaf) for leaf in leaves]
    # Plain arrays are not cached: packing them is quick, and they are large.
    keys = [digest(node) if isinstance(node, _SplitLeaf) else i for i, node in enumerate(nodes)]
    packed = {key: entry for key in keys if (entry := _CACHE.get(key))}
    new = {key: node for key, node in zip(keys, nodes, strict=True) if key not in packed}
    symbols = [part for node in new.values() for part in _symbols_of(node)]
    streams = iter(coding.encode_all(symbols, map))
    for key, node in new.items():
        packed[key] = entry = _pack_node(node, streams)
        if isinstance(node, _SplitLeaf):
            _CACHE.add(key, entry, sum(map(len, entry[1])))
    return [packed[key] for key in keys]


class _SplitLeaf(NamedTuple):
    """A leaf that was split into arrays, `Symbols` and other split leaves."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]
    parts: list[Any]


def _split(leaf: Any) -> Any:
    """Split a leaf with parts, recursively; return arrays and `Symbols` unchanged."""
    if isinstance(leaf, np.ndarray | Symbols):
        return leaf
    kind, codec = next((k, c) for k, c in CODECS.items() if isinstance(leaf, c.type))
    shape, dtype, attributes, parts = codec.split(leaf)
    return _SplitLeaf(kind, shape, dtype, attributes, [_split(part) for part in parts])


def _symbols_of(node: Any) -> Iterator[Symbols]:
    """Iterate over the symbols of a split leaf, in the order of its parts."""
    if isinstance(node, _SplitLeaf):
        for part in node.parts:
            yield from _symbols_of(part)
    elif isinstance(node, Symbols):
        yield node


def _pack_node(node: Any, streams: Iterator[bytes]) -> tuple[Spec, list[bytes]]:
    """Pack a split leaf, taking its coded symbols from `streams`."""
    if isinstance(node, np.ndarray):
        stored = dtypes.narrow(node)
        return ArraySpec(node.shape, node.dtype.name, stored.dtype.name), [stored.tobytes()]
    if isinstance(node, Symbols):
        data = next(streams)
        counts = coding.histogram(node.values.reshape(-1), node.alphabet)
        excess = round(8 * len(data) - coding.entropy_bits(counts), 1)
        nonzero = int(counts[1:].sum())
        return SymbolsSpec(node.values.shape, node.alphabet, len(data), nonzero, excess), [data]
    parts = [_pack_node(part, streams) for part in node.parts]
    specs = tuple(spec for spec, _ in parts)
    spec = LeafSpec(node.kind, node.shape, node.dtype, node.attributes, specs)
    return spec, [data for _, chunks in parts for data in chunks]


def pack_shortest(leaf: Any, map: Map = map) -> tuple[Spec, list[bytes]]:
    """Code a leaf as `pack` does, or as byte planes if that is shorter.

    Small counters stay plain arrays, because a file without byte planes has version 1.0.
    """
    if isinstance(leaf, np.ndarray) and byte_planes.worth_coding(leaf):
        spec, chunks = pack(Integers(leaf), map)
        if spec.nbytes + byte_planes.ENTRY < leaf.nbytes:
            return spec, chunks
    return pack(leaf, map)


def check(spec: Spec) -> None:
    """Raise ValueError if the parts of a leaf do not fit its kind, where known."""
    if isinstance(spec, LeafSpec):
        if spec.kind in CODECS:
            CODECS[spec.kind].check(spec)
        for part in spec.parts:
            check(part)


def check_known(spec: Spec) -> None:
    """Raise ValueError if a leaf or a nested leaf has an unknown kind."""
    if isinstance(spec, LeafSpec):
        if spec.kind not in CODECS:
            raise ValueError(
                f"leaf kind {spec.kind!r:.50} is not known to this sqs_jax; upgrade it"
            )
        for part in spec.parts:
            check_known(part)


def unpack(spec: Spec, data: bytes, map: Map = map) -> Any:
    """Decode a leaf, the inverse of `pack`.

    Args:
        spec: Spec of the leaf, which `check` and `check_known` have accepted.
        data: Bytes of its parts, joined.
        map: Function like `map` that decodes chunks, see `coding.encode`.

    Returns:
        The leaf, of numpy arrays.

    Raises:
        ValueError: If the bytes are not such a leaf.
    """
    if isinstance(spec, ArraySpec):
        return dtypes.load_array(data, spec.shape, spec.dtype, spec.stored)
    if isinstance(spec, SymbolsSpec):
        dtype = dtypes.code_dtype(spec.alphabet - 1)
        return coding.decode(data, spec.shape, spec.alphabet, dtype, map=map)
    parts, end = [], 0
    for part in spec.parts:
        start, end = end, end + part.nbytes
        parts.append(unpack(part, data[start:end], map))
    return CODECS[spec.kind].join(spec, parts)
