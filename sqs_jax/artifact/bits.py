"""Four ways to count the bits of a compressed model, side by side.

| figure  | bits of a leaf of N weights               | what it is                               |
|---------|-------------------------------------------|------------------------------------------|
| paper   | kept * log2 K                             | the published rate: no mask, no windows, |
|         |                                           | no codebook, nothing that stays dense    |
| fixed   | N + kept * ceil(log2 W*K) + codebook      | bitmap, packed codes, codebook           |
| entropy | N * H(code), code in {0 = pruned, 1..W*K} | order-0 bound of a static coder          |
| file    | 8 * bytes on disk                         | the only one to be called compression    |

A dense leaf counts its own dtype under fixed and entropy; one of integers that is stored as byte
planes, the entropy of its planes. A leaf of grids has log2 of its levels
per weight as the published rate, no mask, and the scales and zeros of its groups. Scales of inputs
are free in the published rate, for other layers are said to take them; a weight that is kept as it
is has 32 bits; factors count together, and a product has no zeros. See "Bits" in
docs/math.md.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqs_jax.artifact.spec import ArraySpec, LeafSpec, Spec, SymbolsSpec
from sqs_jax.artifact.storage import DTYPES

__all__ = [
    "AttachmentSize",
    "LeafSize",
    "SizeReport",
    "format_table",
    "leaf_size",
    "printable",
]

FIGURES = ("paper", "fixed", "entropy", "file")


class _PerWeight:
    """Give the four totals of a leaf or a model per weight, in bits."""

    @property
    def paper_bits_per_weight(self) -> float:
        return self._per_weight("paper")

    @property
    def fixed_bits_per_weight(self) -> float:
        return self._per_weight("fixed")

    @property
    def entropy_bits_per_weight(self) -> float:
        return self._per_weight("entropy")

    @property
    def file_bits_per_weight(self) -> float:
        return self._per_weight("file")

    def _per_weight(self, figure: str) -> float:
        # By name: a field of one heir is a property of the other, which no annotation can say.
        weights, bits = (getattr(self, name) for name in ("weights", f"{figure}_bits"))
        return bits / weights if weights else 0.0


@dataclasses.dataclass(frozen=True)
class LeafSize(_PerWeight):
    """Say what one leaf weighs.

    Attributes:
        path: The leaf's keys joined by "/".
        shape: Shape of the parameter.
        dtype: Name of the parameter's dtype.
        weights: N, the number of weights; 0 for a leaf that shares the values of an earlier one.
        kept: The number of codes that are not 0; N for a dense leaf or one of grids.
        components: K, or the levels of a grid; None for a dense leaf.
        windows: W, or the groups of an output; None for a dense leaf.
        original_bytes: The parameter as an array of its dtype.
        paper_bits, fixed_bits, entropy_bits: The figures of this module's table, for the leaf,
            entropy to a tenth of a bit.
        file_bits: What the leaf occupies in the file's streams, codebook included; its share of
            header and index is not.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    weights: int
    kept: int
    components: int | None
    windows: int | None
    original_bytes: int
    paper_bits: float
    fixed_bits: int
    entropy_bits: float
    file_bits: int

    @property
    def compressed(self) -> bool:
        """Whether the leaf has codes."""
        return self.components is not None

    @property
    def sparsity(self) -> float:
        """The fraction of weights that are pruned."""
        return 1 - self.kept / self.weights if self.weights else 0.0


@dataclasses.dataclass(frozen=True)
class AttachmentSize:
    """Say what one attachment weighs.

    Attributes:
        name: The attachment's name.
        original_bytes: Its length.
        file_bytes: What it occupies in the file's streams.
    """

    name: str
    original_bytes: int
    file_bytes: int


@dataclasses.dataclass(frozen=True)
class SizeReport(_PerWeight):
    """Say what a whole model weighs: totals over leaves, and the bytes of the whole file.

    Attributes:
        leaves: One `LeafSize` per leaf, in tree order.
        file_bytes: The whole file: streams, index, header and attachments.
        attachments: One `AttachmentSize` per attachment, by name. They count in `file_bytes` and in
            the file's bits, and in no other total.
    """

    leaves: tuple[LeafSize, ...]
    file_bytes: int
    attachments: tuple[AttachmentSize, ...] = ()

    @property
    def weights(self) -> int:
        """All weights of the model, dense leaves included."""
        return sum(leaf.weights for leaf in self.leaves)

    @property
    def compressed_weights(self) -> int:
        """The weights of compressed leaves."""
        return sum(leaf.weights for leaf in self.leaves if leaf.compressed)

    @property
    def kept(self) -> int:
        """The weights of compressed leaves that are not pruned."""
        return sum(leaf.kept for leaf in self.leaves if leaf.compressed)

    @property
    def sparsity(self) -> float:
        """The fraction of the compressed leaves' weights that are pruned."""
        return 1 - self.kept / self.compressed_weights if self.compressed_weights else 0.0

    @property
    def original_bytes(self) -> int:
        """Every leaf as an array of its dtype."""
        return sum(leaf.original_bytes for leaf in self.leaves)

    @property
    def ratio(self) -> float:
        """`original_bytes / file_bytes`: the compression of the whole file."""
        return self.original_bytes / self.file_bytes

    @property
    def paper_bits(self) -> float:
        """kept * log2 K, summed over compressed leaves."""
        return math.fsum(leaf.paper_bits for leaf in self.leaves)

    @property
    def fixed_bits(self) -> int:
        """Bitmaps, packed codes, codebooks and dense leaves."""
        return sum(leaf.fixed_bits for leaf in self.leaves)

    @property
    def entropy_bits(self) -> float:
        """N * H(code) summed over compressed leaves, and the dense leaves."""
        return math.fsum(leaf.entropy_bits for leaf in self.leaves)

    @property
    def file_bits(self) -> int:
        """8 * `file_bytes`."""
        return 8 * self.file_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain Python values, for JSON: totals, leaves and attachments."""
        names = ["weights", "compressed_weights", "kept", "sparsity", "original_bytes", "ratio"]
        names += [f"{figure}_bits" for figure in FIGURES]
        names += [f"{figure}_bits_per_weight" for figure in FIGURES]
        leaves = [{**dataclasses.asdict(leaf), "shape": list(leaf.shape)} for leaf in self.leaves]
        totals = {name: getattr(self, name) for name in names}
        attachments = list(map(dataclasses.asdict, self.attachments))
        listed = {"leaves": leaves, "attachments": attachments}
        return {"file_bytes": self.file_bytes, **totals, **listed}

    def __str__(self) -> str:
        head = ["path", "shape", "dtype", "W x K", "weights", "sparsity", *FIGURES]
        head += ["bytes", "share"]
        rows = [[*_row(leaf), *self._share(leaf.file_bits)] for leaf in self.leaves]
        rest = self.file_bits - sum(leaf.file_bits for leaf in self.leaves)
        for entry in self.attachments:
            bits = 8 * entry.file_bytes
            about = [entry.name, str(entry.original_bytes), "uint8", "attachment"]
            rows.append([*about, *[""] * 6, *self._share(bits)])
            rest -= bits
        rows.append(["header, index, checksums", *[""] * 9, *self._share(rest)])
        total = ["total", "", "", "", *_numbers(self, bool(self.compressed_weights))]
        total += self._share(self.file_bits)
        smaller = self.ratio >= 1 or not self.original_bytes
        note = (
            f"bits per weight: {', '.join(FIGURES)}; the file is "
            f"{self.ratio if smaller else 1 / self.ratio:.2f}x "
            f"{'smaller' if smaller else 'larger'} than the {self.original_bytes:,} bytes of the "
            "original"
        )
        return f"{format_table(head, rows, 4, total)}\n{note}"

    def _share(self, bits: int) -> list[str]:
        return [f"{bits // 8:,}", f"{bits / self.file_bits:.1%}"]


def format_table(
    head: Sequence[str], rows: Iterable[list[str]], left: int, total: list[str] | None = None
) -> str:
    """Return a table of text, the first `left` columns aligned to the left, the others right."""
    table = [list(head), *rows, *([total] if total else [])]
    table = [list(map(printable, row)) for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    rule = "-" * max(map(len, lines))
    lines[1:1] = [rule]
    if total:
        lines[-1:-1] = [rule]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Escape what a terminal would obey: names in a stranger's file may hold anything."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def leaf_size(path: str, spec: Spec, file_bytes: int, *, shared: bool = False) -> LeafSize:
    """Count the bits of one leaf.

    Args:
        path: The leaf's keys joined by "/".
        spec: The leaf, as a file describes it.
        file_bytes: What the leaf occupies in the file's streams.
        shared: Whether it was counted before, at another path.

    Returns:
        The leaf's four figures, in bits.
    """
    count = 0 if shared else math.prod(spec.shape)
    itemsize = DTYPES[spec.dtype].itemsize
    found = _figures(spec)
    if shared:
        found = _Figures(0, found.windows, found.components, 0.0, 0, 0.0)
    return LeafSize(
        path=path,
        shape=spec.shape,
        dtype=spec.dtype,
        weights=count,
        kept=found.kept,
        components=found.components,
        windows=found.windows,
        original_bytes=count * itemsize,
        paper_bits=found.paper,
        fixed_bits=found.fixed,
        entropy_bits=found.entropy,
        file_bits=8 * file_bytes,
    )


class _Figures(NamedTuple):
    kept: int
    windows: int | None
    components: int | None
    paper: float
    fixed: int
    entropy: float


def _figures(spec: Spec) -> _Figures:
    """Count a leaf's bits, its parts' added up."""
    count = math.prod(spec.shape)
    dense = 8 * count * DTYPES[spec.dtype].itemsize
    match spec:
        case LeafSpec("codebook", parts=(SymbolsSpec() as codes, ArraySpec() as book)):
            windows, components = book.shape[-2:]
            values = 8 * math.prod(book.shape) * DTYPES[book.dtype].itemsize
            paper = codes.nonzero * math.log2(components)
            fixed = count + codes.nonzero * (codes.alphabet - 2).bit_length() + values
            return _Figures(codes.nonzero, windows, components, paper, fixed, codes.entropy_bits)
        case LeafSpec("grid", parts=(SymbolsSpec() as codes, scales, SymbolsSpec() as zeros)):
            windows, components = scales.shape[-2], codes.alphabet
            groups, held = math.prod(scales.shape), _bits_of_scales(scales)
            fixed = (count + groups) * (components - 1).bit_length() + int(held)
            entropy = codes.entropy_bits + zeros.entropy_bits + held
            return _Figures(
                count, windows, components, count * math.log2(components), fixed, entropy
            )
        case LeafSpec("scaled", parts=(leaf, ArraySpec() as scales)):
            inner, values = _figures(leaf), _stored_bits(scales)
            return inner._replace(fixed=inner.fixed + values, entropy=inner.entropy + values)
        case LeafSpec("overlay", parts=(leaf, SymbolsSpec() as places, ArraySpec() as values_spec)):
            inner, values = _figures(leaf), _stored_bits(values_spec)
            outliers = 32 * places.nonzero  # a value and its column in 16 bits each, as published
            return inner._replace(
                paper=inner.paper + outliers,
                fixed=inner.fixed + outliers,
                entropy=inner.entropy + places.entropy_bits + values,
            )
        case LeafSpec("transposed", parts=(leaf,)):
            return _figures(leaf)
        case LeafSpec("product", parts=(left, right)):
            a, b = _figures(left), _figures(right)
            together = (a.paper + b.paper, a.fixed + b.fixed, a.entropy + b.entropy)
            return _Figures(count, a.windows, a.components, *together)
        case LeafSpec("integers", parts=planes):
            return _Figures(count, None, None, 0.0, dense, math.fsum(map(_symbol_bits, planes)))
    return _Figures(count, None, None, 0.0, dense, float(dense))


def _symbol_bits(spec: Spec) -> float:
    return spec.entropy_bits if isinstance(spec, SymbolsSpec) else 0.0


def _bits_of_scales(spec: Spec) -> float:
    return _stored_bits(spec) if isinstance(spec, ArraySpec) else _figures(spec).entropy


def _stored_bits(array: ArraySpec) -> int:
    return 8 * math.prod(array.shape) * DTYPES[array.stored].itemsize


def _row(leaf: LeafSize) -> list[str]:
    shape = "x".join(map(str, leaf.shape)) or "scalar"
    codebook = f"{leaf.windows} x {leaf.components}" if leaf.compressed else "dense"
    return [leaf.path or "(root)", shape, leaf.dtype, codebook, *_numbers(leaf, leaf.compressed)]


def _numbers(size: LeafSize | SizeReport, compressed: bool) -> list[str]:
    rates = [f"{getattr(size, f'{figure}_bits_per_weight'):.3f}" for figure in FIGURES]
    return [f"{size.weights:,}", f"{size.sparsity:.1%}" if compressed else "-", *rates]
