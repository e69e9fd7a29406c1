"""The kinds of leaves, taken apart into symbols and arrays, and put together again.

A new kind is one more entry of `KINDS`: the container, the index, the coder, checksums and the
size figures know symbols and arrays only.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sqs_jax.artifact import attachments, coding, composed, integers, storage
from sqs_jax.artifact.attachments import Attachment
from sqs_jax.artifact.composed import OverlayLeaf, ProductLeaf, ScaledLeaf, TransposedLeaf
from sqs_jax.artifact.compressed import CompressedLeaf, GridLeaf
from sqs_jax.artifact.integers import Integers
from sqs_jax.artifact.recent import Recent, digest
from sqs_jax.artifact.spec import ArraySpec, LeafSpec, Spec, SymbolsSpec

__all__ = [
    "KINDS",
    "Kind",
    "Symbols",
    "check",
    "check_known",
    "pack",
    "pack_all",
    "pack_shortest",
    "unpack",
]

Map = Callable[..., Any]

_RECENT = Recent(1 << 26)
"""Packed leaves of the files weighed last, up to 64 MiB."""


class Symbols(NamedTuple):
    """Unsigned integers below `alphabet`, to be entropy-coded.

    Attributes:
        values: Unsigned array of any shape.
        alphabet: The number of different symbols there can be, 1 to 65,536.
        text: Whether they may repeat at any length, as text does; see `coding.encode`.
    """

    values: np.ndarray
    alphabet: int
    text: bool = False


class Kind(NamedTuple):
    """How a kind of leaf is stored.

    Attributes:
        type: Of its leaves.
        take_apart: (leaf) -> (shape, dtype, attributes, parts): of the tensor that it stands for, a
            JSON-able dict, and `Symbols`, arrays or leaves.
        put_together: (spec, parts) -> leaf; the spec has been checked, and symbols arrive as their
            values. Raises ValueError if the values do not fit.
        check: (spec) -> None; raises ValueError unless such parts can be put together.
    """

    type: type
    take_apart: Callable[[Any], tuple[tuple[int, ...], str, dict[str, Any], Sequence[Any]]]
    put_together: Callable[[LeafSpec, list[Any]], Any]
    check: Callable[[LeafSpec], None]


def _check_codebook(spec: LeafSpec) -> None:
    codes, book = spec.parts if len(spec.parts) == 2 else (None, None)
    if not isinstance(codes, SymbolsSpec) or not isinstance(book, ArraySpec):
        raise ValueError("a codebook leaf is symbols and an array")
    values = storage.check_codebook(codes.shape, book.shape, storage.DTYPES[book.dtype])
    if codes.alphabet != values + 1 or (codes.shape, book.dtype) != (spec.shape, spec.dtype):
        raise ValueError(f"codes of {codes.alphabet} values for a codebook of {values}")


def _grid_leaf(spec: LeafSpec, parts: list[Any]) -> GridLeaf:
    codes, scales, zeros = parts
    return GridLeaf(codes, scales, zeros, spec.attributes["levels"])


def _check_grid(spec: LeafSpec) -> None:
    codes, scales, zeros = spec.parts if len(spec.parts) == 3 else (None, None, None)
    symbols = isinstance(codes, SymbolsSpec) and isinstance(zeros, SymbolsSpec)
    if not symbols or scales is None or isinstance(scales, SymbolsSpec):
        raise ValueError("a grid leaf is symbols, an array or a leaf, and symbols")
    assert isinstance(codes, SymbolsSpec) and isinstance(zeros, SymbolsSpec)
    dtype = storage.DTYPES[scales.dtype]
    storage.check_grid(codes.shape, scales.shape, dtype, zeros.shape, codes.alphabet)
    levels = {"levels": codes.alphabet}
    if spec.attributes != levels or codes.alphabet != zeros.alphabet:
        raise ValueError(f"codes of {codes.alphabet} levels on a grid of {spec.attributes!r:.50}")
    if (codes.shape, scales.dtype) != (spec.shape, spec.dtype):
        raise ValueError("a grid leaf is of another shape or dtype than its parts")


def _check_scaled(spec: LeafSpec) -> None:
    leaf, scales = spec.parts if len(spec.parts) == 2 else (None, None)
    if leaf is None or not isinstance(scales, ArraySpec):
        raise ValueError("a scaled leaf is a leaf and an array")
    composed.check_scaled(leaf.shape, scales.shape)
    _check_same(spec, leaf)
    storage.check_floating(storage.DTYPES[leaf.dtype], storage.DTYPES[scales.dtype])


def _check_overlay(spec: LeafSpec) -> None:
    leaf, places, values = spec.parts if len(spec.parts) == 3 else (None, None, None)
    if leaf is None or not isinstance(places, SymbolsSpec) or not isinstance(values, ArraySpec):
        raise ValueError("an overlay leaf is a leaf, symbols and an array")
    composed.check_overlay(leaf.shape, places.shape, values.shape)
    _check_same(spec, leaf)
    storage.check_floating(storage.DTYPES[leaf.dtype], storage.DTYPES[values.dtype])
    if places.alphabet != 2:
        raise ValueError(f"places of {places.alphabet} values, they must have two")


def _overlay_leaf(_: LeafSpec, parts: list[Any]) -> OverlayLeaf:
    composed.check_places(parts[1], parts[2])
    return OverlayLeaf(*parts)


def _check_product(spec: LeafSpec) -> None:
    left, right = spec.parts if len(spec.parts) == 2 else (None, None)
    if left is None or right is None or spec.attributes != {"shape": list(spec.shape)}:
        raise ValueError("a product leaf is two leaves, and has a shape")
    composed.check_product(spec.shape, left.shape, right.shape)
    if left.dtype != spec.dtype or right.dtype != spec.dtype:
        raise ValueError("a product leaf is of another dtype than its factors")
    storage.check_floating(storage.DTYPES[spec.dtype])


def _check_transposed(spec: LeafSpec) -> None:
    if len(spec.parts) != 1:
        raise ValueError("a transposed leaf is one leaf")
    (leaf,) = spec.parts
    if spec.shape != composed.transposed(leaf.shape) or spec.dtype != leaf.dtype:
        raise ValueError("a transposed leaf is of another shape or dtype than the leaf in it")
    storage.check_floating(storage.DTYPES[spec.dtype])


def _check_same(spec: LeafSpec, leaf: Spec) -> None:
    if (leaf.shape, leaf.dtype) != (spec.shape, spec.dtype):
        raise ValueError(f"a {spec.kind} leaf is of another shape or dtype than the leaf in it")


def _composed(type_: type, parts: Callable[[Any], Sequence[Any]], put: Any, check: Any) -> Kind:
    def take_apart(leaf: Any) -> tuple[tuple[int, ...], str, dict[str, Any], Sequence[Any]]:
        shape, dtype = storage.shape_and_dtype(leaf)
        attributes = {"shape": list(shape)} if type_ is ProductLeaf else {}
        return shape, dtype.name, attributes, parts(leaf)

    return Kind(type_, take_apart, put, check)


def _take_apart_integers(
    leaf: Integers,
) -> tuple[tuple[int, ...], str, dict[str, Any], Sequence[Any]]:
    minimum, planes = integers.planes_of(leaf.array)
    parts = [Symbols(p, int(p.max()) + 1, coding.repetitive(p)) for p in planes]
    return leaf.array.shape, leaf.array.dtype.name, {"minimum": minimum}, parts


KINDS = {
    "codebook": Kind(
        type=CompressedLeaf,
        take_apart=lambda leaf: (
            leaf.codes.shape,
            leaf.codebook.dtype.name,
            {},
            [Symbols(leaf.codes, math.prod(leaf.codebook.shape[-2:]) + 1), leaf.codebook],
        ),
        put_together=lambda _, parts: CompressedLeaf(*parts),
        check=_check_codebook,
    ),
    "grid": Kind(
        type=GridLeaf,
        take_apart=lambda leaf: (
            leaf.codes.shape,
            storage.shape_and_dtype(leaf)[1].name,
            {"levels": leaf.levels},
            [Symbols(leaf.codes, leaf.levels), leaf.scales, Symbols(leaf.zeros, leaf.levels)],
        ),
        put_together=_grid_leaf,
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
        _overlay_leaf,
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
    integers.KIND: Kind(
        type=Integers,
        take_apart=_take_apart_integers,
        put_together=integers.from_planes,
        check=integers.check_integers,
    ),
    attachments.KIND: Kind(
        type=Attachment,
        take_apart=lambda leaf: (leaf.data.shape, "uint8", {}, [Symbols(leaf.data, 256, True)]),
        put_together=lambda _, parts: parts[0].tobytes(),
        check=attachments.check_attachment,
    ),
}


def pack(leaf: Any, map: Map = map) -> tuple[Spec, list[bytes]]:
    """Return a leaf's spec and the bytes of its parts, in order.

    Args:
        leaf: A numpy array, `Symbols`, or a valid leaf of a kind, of numpy arrays.
        map: See `coding.encode`.
    """
    return pack_all([leaf], map)[0]


def pack_all(leaves: Sequence[Any], map: Map = map) -> list[tuple[Spec, list[bytes]]]:
    """Do what `pack` does for many leaves, whose symbols are coded together."""
    taken = [_take_apart(leaf) for leaf in leaves]
    # arrays are quickly packed, and too large to be kept
    keys = [digest(leaf) if isinstance(leaf, _Taken) else i for i, leaf in enumerate(taken)]
    done = {key: packed for key in keys if (packed := _RECENT.get(key))}
    new = {key: leaf for key, leaf in zip(keys, taken, strict=True) if key not in done}
    symbols = [part for leaf in new.values() for part in _symbols_of(leaf)]
    streams = iter(coding.encode_all(symbols, map))
    for key, leaf in new.items():
        done[key] = packed = _packed(leaf, streams)
        if isinstance(leaf, _Taken):
            _RECENT.add(key, packed, sum(map(len, packed[1])))
    return [done[key] for key in keys]


class _Taken(NamedTuple):
    """A leaf of a kind, and its parts: arrays, `Symbols` and such leaves."""

    kind: str
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]
    parts: list[Any]


def _take_apart(leaf: Any) -> Any:
    """Return a leaf of a kind as `_Taken`, all others as they are."""
    if isinstance(leaf, np.ndarray | Symbols):
        return leaf
    name, kind = next((n, k) for n, k in KINDS.items() if isinstance(leaf, k.type))
    shape, dtype, attributes, parts = kind.take_apart(leaf)
    return _Taken(name, shape, dtype, attributes, [_take_apart(part) for part in parts])


def _symbols_of(leaf: Any) -> Iterator[Symbols]:
    """List the symbols of a leaf that was taken apart, in the order of its parts."""
    if isinstance(leaf, _Taken):
        for part in leaf.parts:
            yield from _symbols_of(part)
    elif isinstance(leaf, Symbols):
        yield leaf


def _packed(leaf: Any, streams: Iterator[bytes]) -> tuple[Spec, list[bytes]]:
    """Do what `pack` says for a leaf that was taken apart, whose coded symbols are the next."""
    if isinstance(leaf, np.ndarray):
        stored = storage.narrow(leaf)
        return ArraySpec(leaf.shape, leaf.dtype.name, stored.dtype.name), [stored.tobytes()]
    if isinstance(leaf, Symbols):
        data = next(streams)
        counts = coding.histogram(leaf.values.reshape(-1), leaf.alphabet)
        excess = round(8 * len(data) - coding.entropy_bits(counts), 1)
        nonzero = int(counts[1:].sum())
        return SymbolsSpec(leaf.values.shape, leaf.alphabet, len(data), nonzero, excess), [data]
    packed = [_packed(part, streams) for part in leaf.parts]
    specs = tuple(part for part, _ in packed)
    spec = LeafSpec(leaf.kind, leaf.shape, leaf.dtype, leaf.attributes, specs)
    return spec, [data for _, chunks in packed for data in chunks]


def pack_shortest(leaf: Any, map: Map = map) -> tuple[Spec, list[bytes]]:
    """Return what `pack` does, integer arrays as byte planes where this makes the file smaller.

    Small counters stay plain arrays: a file without planes is of version 1.0.
    """
    if isinstance(leaf, np.ndarray) and integers.worth_coding(leaf):
        spec, chunks = pack(Integers(leaf), map)
        if spec.nbytes + integers.ENTRY < leaf.nbytes:
            return spec, chunks
    return pack(leaf, map)


def check(spec: Spec) -> None:
    """Raise ValueError if a leaf's parts do not fit its kind; unknown kinds are passed over."""
    if isinstance(spec, LeafSpec):
        if spec.kind in KINDS:
            KINDS[spec.kind].check(spec)
        for part in spec.parts:
            check(part)


def check_known(spec: Spec) -> None:
    """Raise ValueError if a leaf is, or has a part that is, of an unknown kind."""
    if isinstance(spec, LeafSpec):
        if spec.kind not in KINDS:
            raise ValueError(
                f"leaf kind {spec.kind!r:.50} is not known to this sqs_jax; upgrade it"
            )
        for part in spec.parts:
            check_known(part)


def unpack(spec: Spec, data: bytes, map: Map = map) -> Any:
    """Put a leaf together from its bytes, `spec` having been checked, also for being known.

    Raises:
        ValueError: If the bytes are not such a leaf.
    """
    if isinstance(spec, ArraySpec):
        return storage.load_array(data, spec.shape, spec.dtype, spec.stored)
    if isinstance(spec, SymbolsSpec):
        dtype = storage.code_dtype(spec.alphabet - 1)
        return coding.decode(data, spec.shape, spec.alphabet, dtype, map=map)
    parts, end = [], 0
    for part in spec.parts:
        start, end = end, end + part.nbytes
        parts.append(unpack(part, data[start:end], map))
    return KINDS[spec.kind].put_together(spec, parts)
