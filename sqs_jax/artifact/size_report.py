"""Size reports: four ways to count the bits of a compressed model, side by side.

| figure  | bits of a leaf of N weights               | what it is                               |
|---------|-------------------------------------------|------------------------------------------|
| paper   | kept * log2 K                             | the published rate: no mask, no windows, |
|         |                                           | no codebook, nothing that stays dense    |
| fixed   | N + kept * ceil(log2 W*K) + codebook      | bitmap, packed codes, codebook           |
| entropy | N * H(code), code in {0 = pruned, 1..W*K} | order-0 bound of a static coder          |
| file    | 8 * bytes on disk                         | the only figure to call compression      |

Other leaves count as follows (see "Bits" in docs/math.md):

- A dense leaf counts its own dtype under fixed and entropy. Integers that are stored as byte planes
  count the entropy of the planes.
- A `GridLeaf` of L levels has log2 L bits per weight as the published rate. It has no mask; fixed
  and entropy add the scales and zeros of its groups.
- The scales of a `ScaledLeaf` are free in the published rate: AWQ folds them into other layers.
- Each outlier of an `OverlayLeaf` has 32 bits in the published rate.
- A `ProductLeaf` counts both factors; none of its weights is pruned.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from sqs_jax.artifact.dtypes import DTYPES
from sqs_jax.artifact.spec import ArraySpec, LeafSpec, Spec, SymbolsSpec
from sqs_jax.artifact.text_table import format_table

__all__ = ["AttachmentSize", "LeafSize", "SizeReport", "leaf_size"]

FIGURES = ("paper", "fixed", "entropy", "file")


class _PerWeight:
    """Mixin: the four figures of a leaf or a model per weight, in bits."""

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
        # By name, because `weights` is a field of `LeafSize` and a property of `SizeReport`, which
        # no annotation of this class covers.
        weights, bits = (getattr(self, name) for name in ("weights", f"{figure}_bits"))
        return bits / weights if weights else 0.0


@dataclasses.dataclass(frozen=True)
class LeafSize(_PerWeight):
    """Sizes of a leaf.

    Attributes:
        path: Keys of the leaf joined by "/".
        shape: Shape of the parameter.
        dtype: Name of the parameter's dtype.
        weights: Number N of weights; 0 for a leaf that shares the values of an earlier leaf.
        kept: Number of non-zero codes; N for a dense leaf or a `GridLeaf`.
        components: Components K of a window, or levels of a grid; None for a dense leaf.
        windows: Windows W, or groups per output of a grid; None for a dense leaf.
        original_bytes: Bytes of the parameter as an array of its dtype.
        paper_bits: Published rate, see the table of this module.
        fixed_bits: Bits with fixed-length codes.
        entropy_bits: Bits at the order-0 entropy, to a tenth of a bit.
        file_bits: Bits of the leaf in the data of the file, codebook included; header and index are
            not.
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
        """True if the leaf has codes."""
        return self.components is not None

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are pruned."""
        return 1 - self.kept / self.weights if self.weights else 0.0


@dataclasses.dataclass(frozen=True)
class AttachmentSize:
    """Sizes of an attachment.

    Attributes:
        name: Name of the attachment.
        original_bytes: Length before coding.
        file_bytes: Length in the data of the file.
    """

    name: str
    original_bytes: int
    file_bytes: int


@dataclasses.dataclass(frozen=True)
class SizeReport(_PerWeight):
    """Sizes of a whole model: per leaf, in total, and as a file.

    `str` of a report is a table for a terminal.

    Attributes:
        leaves: One `LeafSize` per leaf, in tree order.
        file_bytes: Bytes of the whole file: header, index, leaves and attachments.
        attachments: One `AttachmentSize` per attachment, by name. Attachments count in `file_bytes`
            and `file_bits`, and in no other total.

    Example:
        >>> import numpy as np
        >>> import sqs_jax
        >>> codes = np.tile(np.uint8([0, 0, 0, 1, 2]), (100, 20))
        >>> leaf = sqs_jax.CompressedLeaf(codes, np.float32([[-0.5, 0.5]]))
        >>> report = sqs_jax.summarize({"kernel": leaf, "bias": np.zeros(100, np.float32)})
        >>> report.weights, report.sparsity, report.original_bytes
        (10100, 0.6, 40400)
        >>> report.ratio > 20
        True
    """

    leaves: tuple[LeafSize, ...]
    file_bytes: int
    attachments: tuple[AttachmentSize, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights of the model, dense leaves included."""
        return sum(leaf.weights for leaf in self.leaves)

    @property
    def compressed_weights(self) -> int:
        """Number of weights of compressed leaves."""
        return sum(leaf.weights for leaf in self.leaves if leaf.compressed)

    @property
    def kept(self) -> int:
        """Number of weights of compressed leaves that are not pruned."""
        return sum(leaf.kept for leaf in self.leaves if leaf.compressed)

    @property
    def sparsity(self) -> float:
        """Fraction of the compressed leaves' weights that are pruned."""
        return 1 - self.kept / self.compressed_weights if self.compressed_weights else 0.0

    @property
    def original_bytes(self) -> int:
        """Bytes of all leaves as arrays of their dtypes."""
        return sum(leaf.original_bytes for leaf in self.leaves)

    @property
    def ratio(self) -> float:
        """Compression of the whole file, `original_bytes / file_bytes`."""
        return self.original_bytes / self.file_bytes

    @property
    def paper_bits(self) -> float:
        """Published rate, kept * log2 K, summed over compressed leaves."""
        return math.fsum(leaf.paper_bits for leaf in self.leaves)

    @property
    def fixed_bits(self) -> int:
        """Bits of bitmaps, packed codes, codebooks and dense leaves."""
        return sum(leaf.fixed_bits for leaf in self.leaves)

    @property
    def entropy_bits(self) -> float:
        """N * H(code) of the compressed leaves, plus the bits of the dense leaves."""
        return math.fsum(leaf.entropy_bits for leaf in self.leaves)

    @property
    def file_bits(self) -> int:
        """8 * `file_bytes`."""
        return 8 * self.file_bytes

    def as_dict(self) -> dict[str, Any]:
        """Return totals, leaves and attachments as plain Python values, for JSON."""
        names = ["weights", "compressed_weights", "kept", "sparsity", "original_bytes", "ratio"]
        names += [f"{figure}_bits" for figure in FIGURES]
        names += [f"{figure}_bits_per_weight" for figure in FIGURES]
        leaves = [{**dataclasses.asdict(leaf), "shape": list(leaf.shape)} for leaf in self.leaves]
        totals = {name: getattr(self, name) for name in names}
        attachments = list(map(dataclasses.asdict, self.attachments))
        lists = {"leaves": leaves, "attachments": attachments}
        return {"file_bytes": self.file_bytes, **totals, **lists}

    def __str__(self) -> str:
        head = ["path", "shape", "dtype", "W x K", "weights", "sparsity", *FIGURES]
        head += ["bytes", "share"]
        rows = [[*_row(leaf), *self._share(leaf.file_bits)] for leaf in self.leaves]
        rest = self.file_bits - sum(leaf.file_bits for leaf in self.leaves)
        for attachment in self.attachments:
            bits = 8 * attachment.file_bytes
            about = [attachment.name, str(attachment.original_bytes), "uint8", "attachment"]
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


def leaf_size(path: str, spec: Spec, file_bytes: int, *, shared: bool = False) -> LeafSize:
    """Count the bits of a leaf.

    Args:
        path: Keys of the leaf joined by "/".
        spec: Description of the leaf in the index.
        file_bytes: Bytes of the leaf in the data of the file.
        shared: True if an earlier leaf has the same values, and is counted for both.

    Returns:
        The sizes of the leaf; all but `file_bits` are 0 if it is shared.
    """
    count = 0 if shared else math.prod(spec.shape)
    itemsize = DTYPES[spec.dtype].itemsize
    figures = _figures(spec)
    if shared:
        figures = _Figures(0, figures.windows, figures.components, 0.0, 0, 0.0)
    return LeafSize(
        path=path,
        shape=spec.shape,
        dtype=spec.dtype,
        weights=count,
        kept=figures.kept,
        components=figures.components,
        windows=figures.windows,
        original_bytes=count * itemsize,
        paper_bits=figures.paper,
        fixed_bits=figures.fixed,
        entropy_bits=figures.entropy,
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
    """Count the bits of a leaf as the sum over its parts."""
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
            groups, scale_bits = math.prod(scales.shape), _bits_of_scales(scales)
            fixed = (count + groups) * (components - 1).bit_length() + int(scale_bits)
            entropy = codes.entropy_bits + zeros.entropy_bits + scale_bits
            return _Figures(
                count, windows, components, count * math.log2(components), fixed, entropy
            )
        case LeafSpec("scaled", parts=(leaf, ArraySpec() as scales)):
            inner, values = _figures(leaf), _stored_bits(scales)
            return inner._replace(fixed=inner.fixed + values, entropy=inner.entropy + values)
        case LeafSpec("overlay", parts=(leaf, SymbolsSpec() as places, ArraySpec() as values_spec)):
            inner, values = _figures(leaf), _stored_bits(values_spec)
            outliers = 32 * places.nonzero  # SpQR's rate: 16 bits of value and 16 of column index
            return inner._replace(
                paper=inner.paper + outliers,
                fixed=inner.fixed + outliers,
                entropy=inner.entropy + places.entropy_bits + values,
            )
        case LeafSpec("transposed", parts=(leaf,)):
            return _figures(leaf)
        case LeafSpec("product", parts=(left, right)):
            a, b = _figures(left), _figures(right)
            sums = (a.paper + b.paper, a.fixed + b.fixed, a.entropy + b.entropy)
            return _Figures(count, a.windows, a.components, *sums)
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
