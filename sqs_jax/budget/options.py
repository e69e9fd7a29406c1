"""Options for storing a tensor in a file, with their distortions and bits.

An option stores a tensor as codes and levels, or as values of a narrower dtype.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.artifact.dtypes import NARROW, narrow, round_dense
from sqs_jax.budget.power_diagram import side_by_side
from sqs_jax.budget.quantizer import (
    TABLE_BITS,
    Quantizer,
    assign,
    grid_bits,
    lossless,
    quantize,
    quantize_all,
    split,
    thin,
)
from sqs_jax.budget.sorted_weights import Source, read_sources
from sqs_jax.transform.rules import Rule, require_finite

_GRID_SHARE = 0.8  # lower bound of a quantizer's code bits over those of a uniform grid
_LARGEST_EXPONENT = 20  # weights are scaled if the largest is outside 2**-20..2**20
_STREAM_BITS = 32.0  # approximate overhead of a stream of codes
_BLOCK = 1 << 20  # weights copied to float64 at a time
_BATCH = 256  # tensors that are quantized together
_BATCH_LEVELS = 1 << 20  # levels of all slices of a batch, which bound its memory
_LARGEST_GAIN = 1.5


class Option(NamedTuple):
    """Form in which a file may store a tensor.

    Attributes:
        distortion: Distortion D, see `Tensor`; at least 0.
        bits: Estimated bits in a file.
        codebook: Levels `[T, K]` in the tensor's dtype, K >= 1; None for a dense leaf.
        quantizer: Quantizer of the codes; None for a dense leaf.
        rounding: Dtype that the values of a dense leaf are rounded to; None keeps the values.
    """

    distortion: float
    bits: float
    codebook: np.ndarray | None = None
    quantizer: Quantizer | None = None
    rounding: np.dtype | None = None


class Tensor(NamedTuple):
    """Statistics of a leaf that may be compressed, without its weights.

    The distortion D is the sum of s_i (w_i - v_i)^2 over the weights w of the leaf, for stored
    values v and the sensitivity s: the caller's, or that of `_default_sensitivity`.

    Attributes:
        path: Path of the leaf.
        leaf: Array-like of the weights, which `build` reads again.
        rule: Rule that compresses the leaf.
        sensitivity: Array-like that broadcasts to the leaf; None if all weights share a value.
        norms: Whether levels are scaled to preserve each slice's norm.
        sources: Sorted weights, at least one source per slice.
        fixed: Options that do not depend on the slope, by ascending bits.
        exponent: Exponent e; all statistics are of weights times 2**-e, so that squares neither
            underflow nor overflow.
    """

    path: str
    leaf: Any
    rule: Rule
    sensitivity: Any
    norms: bool
    sources: list[Source]
    fixed: list[Option]
    exponent: int

    @property
    def energy(self) -> float:
        """Return the distortion of pruning every weight."""
        return sum(source.energy for source in self.sources)

    @property
    def norm(self) -> float:
        """Return the sum of the slices' Euclidean norms."""
        squares: dict[int, float] = {}
        for source in self.sources:
            squares[source.row] = squares.get(source.row, 0.0) + float(source.sums[2, -1])
        return sum(map(math.sqrt, squares.values()))

    def scaled(self, factor: float) -> "Tensor":
        """Return the tensor with all distortions multiplied by a factor."""
        sources = [s._replace(sensitivity=factor * s.sensitivity) for s in self.sources]
        fixed = [option._replace(distortion=factor * option.distortion) for option in self.fixed]
        return self._replace(sources=sources, fixed=fixed)

    def exact(self) -> Option:
        """Return the lossless option of fewest bits."""
        return next(option for option in self.fixed if option.distortion == 0)

    def coded(self, slope: float) -> Option:
        """Return the coded option of least distortion + slope * bits."""
        quantizer = quantize(self.sources, slope, prunable=self.rule.prunable)
        return _store_levels([self], [quantizer])[0]

    def refined(self, option: Option, most_bits: float) -> Option:
        """Return a coded option with more levels, or the option itself.

        Args:
            option: Option to refine.
            most_bits: Bound of the estimated bits of the result.
        """
        if option.quantizer is None or option.quantizer.thinned[0]:
            return option
        finer = split(self.sources, option.quantizer, most_bits - option.bits)
        # The old slope chooses the levels' dtype: the slope of `finer` measures another trade-off,
        # that of weights against codes at fixed levels.
        stored = _store_levels([self], [finer._replace(slope=option.quantizer.slope)])[0]
        refined = stored._replace(quantizer=finer)
        better = refined.bits <= most_bits and refined.distortion < option.distortion
        return refined if better else option

    def thinned(self, option: Option, most_bits: float) -> Option | None:
        """Return a coded option with shorter codes and the same levels.

        Args:
            option: Option to shorten.
            most_bits: Estimated bits of the result.

        Returns:
            The option of `most_bits` bits; None for a dense option, or if that is too few bits.
        """
        if option.quantizer is None:
            return None
        quantizer = thin(self.sources, option.quantizer, option.bits - most_bits)
        if quantizer is None:
            return None
        level_rounding = option.distortion - option.quantizer.distortion
        distortion = quantizer.distortion + level_rounding
        return option._replace(distortion=distortion, bits=most_bits, quantizer=quantizer)

    def build(self, option: Option) -> Any:
        """Read the weights again and return the leaf that an option describes."""
        if option.quantizer is None:
            return _rounded(as_array(self.leaf), option.rounding)
        shape, stacked = self.leaf.shape, self.rule.stacked
        sensitivity = None if self.sensitivity is None else _rows(self.sensitivity, shape, stacked)
        weights = _scaled(_rows(self.leaf, shape, stacked), self.exponent)
        codes = assign(weights, self.sources, option.quantizer, sensitivity).reshape(shape)
        assert option.codebook is not None
        return CompressedLeaf(codes, option.codebook.reshape(*shape[:stacked], 1, -1))


def read_tensor(
    path: str,
    leaf: Any,
    weights: np.ndarray,
    rule: Rule,
    sensitivity: Any,
    dense_dtype: np.dtype | None,
) -> Tensor:
    """Sort a leaf's weights and list the options that do not depend on the slope.

    Args:
        path: Path of the leaf.
        leaf: Floating array-like, which `Tensor.build` reads again.
        weights: Weights of the leaf, an array of the same shape and dtype.
        rule: Rule that compresses the leaf.
        sensitivity: Array-like of values >= 0 that broadcasts to the leaf, or None.
        dense_dtype: Dtype that `save` rounds dense leaves to. The caller chose that rounding, so
            the distortion does not count it.

    Returns:
        The tensor.

    Raises:
        ValueError: If weights or sensitivities are not finite, sensitivities are negative or do not
            broadcast to the weights, or the rule has a structure.
    """
    if rule.structure is not None:
        raise ValueError(
            f"{path}: a rule of structure {rule.structure} keeps n of every m weights, whatever "
            "the budget is. Use structure=None here; for the pattern, prune a posterior of "
            "spike_slab_gmm."
        )
    require_finite(path, weights)
    sensitivities = (
        None if sensitivity is None else _check_sensitivity(path, sensitivity, weights.shape)
    )
    varies = sensitivities is not None and sensitivities.size > 1
    rows = _rows(weights, weights.shape, rule.stacked)
    row_sensitivity = _rows(sensitivities, weights.shape, rule.stacked) if varies else None
    exponent = _scale_exponent(rows)
    scaled = _scaled(rows, exponent)
    sources = read_sources(scaled, row_sensitivity)
    if sensitivities is None:
        factors = [_default_sensitivity(source) for source in sources]
    else:
        factors = [1.0 if varies else max(float(sensitivities.max()), 1e-200)] * len(sources)
    sources = [
        source._replace(sensitivity=source.sensitivity * factor)
        for source, factor in zip(sources, factors, strict=True)
    ]

    varying = sensitivity if varies else None
    norms = sensitivities is None
    tensor = Tensor(path, leaf, rule, varying, norms, sources, [], exponent)
    fixed = []
    for dtype in [weights.dtype] if dense_dtype else _storage_dtypes(weights.dtype):
        values = _rounded(weights, dtype)
        if np.isfinite(values).all():
            rounded = _scaled(values.reshape(rows.shape), exponent)
            error = _squared_error(scaled, rounded, row_sensitivity)
            distortion = float(error.sum() if varies else error @ factors)
            bits = 8.0 * dtype.itemsize * weights.size
            if dense_dtype is not None:
                bits = 8.0 * narrow(round_dense(path, values, dense_dtype)).nbytes
            fixed.append(Option(distortion, bits, rounding=dtype))
    fixed = _pareto(fixed)
    if _has_few_values(sources, fixed[-1].bits / weights.size, rows.shape[1]):
        table = lossless(sources, prunable=rule.prunable)
        if table is not None:
            fixed.append(_store_levels([tensor._replace(norms=False)], [table])[0])
    return tensor._replace(fixed=_pareto(fixed))


def _has_few_values(sources: Sequence[Source], value_bits: float, weights: int) -> bool:
    """Return whether a table of distinct weights may take fewer bits than the weights."""
    distinct = max(source.values.size for source in sources)
    return distinct * (value_bits + TABLE_BITS) < weights * value_bits


def coded_options(
    tensors: Sequence[Tensor], slope: float, rivals: Sequence[float]
) -> list[Option | None]:
    """Quantize tensors for a slope, many at a time.

    Low slopes need many levels, which are slow to optimize. A uniform grid bounds the bits of the
    codes from below; a tensor is skipped if that bound alone exceeds its rival.

    Args:
        tensors: Tensors to quantize.
        slope: Distortion per bit, > 0.
        rivals: Least distortion + slope * bits of the other options of each tensor.

    Returns:
        Coded option of each tensor; None where the rival is better.
    """
    options: list[Option | None] = [None] * len(tensors)
    for start in range(0, len(tensors), _BATCH):
        chunk = tensors[start : start + _BATCH]
        batch = side_by_side([tensor.sources for tensor in chunk])
        bits, sizes = grid_bits(batch, slope)
        worth = _GRID_SHARE * slope * bits <= np.array(rivals[start : start + _BATCH])
        slices = np.bincount(batch.tensors)
        for chosen in _group_by_size(np.flatnonzero(worth), sizes, slices):
            group = [chunk[i] for i in chosen.tolist()]
            prunable = np.array([tensor.rule.prunable for tensor in group])
            mask = np.zeros(len(chunk), bool)
            mask[chosen] = True
            quantizers = quantize_all(batch.take(mask), slope, prunable)
            for i, option in zip(chosen.tolist(), _store_levels(group, quantizers), strict=True):
                options[start + i] = option
    return options


def _group_by_size(indices: np.ndarray, sizes: np.ndarray, slices: np.ndarray) -> list[np.ndarray]:
    """Group tensors of similar numbers of levels, as a batch pads all to the largest."""
    groups: list[list[int]] = []
    rows, smallest = 0, 0
    for i in indices[np.argsort(sizes[indices], kind="stable")].tolist():
        size, added_rows = int(sizes[i]), int(slices[i])
        if not groups or (rows + added_rows) * size > _BATCH_LEVELS or size > 2 * smallest + 16:
            groups.append([])
            rows, smallest = 0, size
        groups[-1].append(i)
        rows += added_rows
    return [np.sort(group) for group in groups]


def _pareto(options: list[Option]) -> list[Option]:
    """Return the options on the Pareto front of bits and distortion, by ascending bits."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bits, option.distortion)):
        if not kept or option.distortion < kept[-1].distortion:
            kept.append(option)
    return kept


def _scale_exponent(weights: np.ndarray) -> int:
    """Return the exponent e with which weights times 2**-e are within 2**-20..2**20.

    The largest weight decides; 0 for most tensors.
    """
    largest = float(np.abs(weights).max())
    power = math.frexp(largest)[1] if largest else 0
    return power - min(max(power, -_LARGEST_EXPONENT), _LARGEST_EXPONENT)


def _scaled(weights: np.ndarray, exponent: int) -> np.ndarray:
    """Return weights times 2**-exponent, exact unless a weight underflows."""
    if not exponent:
        return weights
    wide = weights if weights.dtype.itemsize > 2 else weights.astype(np.float32)
    return np.ldexp(wide, -exponent)


def _default_sensitivity(source: Source) -> float:
    """Return the sensitivity of a slice for which the caller has none: 1 / ||W||.

    The measure is half-way between the squared error and the relative squared error, whose
    sensitivity is 1 / ||W||^2. Small tensors matter more than their number of weights implies;
    tensors of small weights matter less than their relative error implies. docs/budget.md compares
    these measures on real networks.
    """
    return 1 / math.sqrt(source.energy or 1.0)


def _squared_error(
    rows: np.ndarray, values: np.ndarray, sensitivity: np.ndarray | None
) -> np.ndarray:
    """Return the sum of s (w - v)^2 over each row, [T]."""
    total = np.zeros(len(rows))
    for start in range(0, rows.shape[1], _BLOCK):  # bounds the memory of float64 copies
        block = np.s_[:, start : start + _BLOCK]
        error = (rows[block].astype(np.float64) - values[block]) ** 2
        total += error.sum(1) if sensitivity is None else (error * sensitivity[block]).sum(1)
    return total


def as_array(leaf: Any) -> Any:
    """Return a leaf as an array; lazy leaves are read."""
    return leaf if isinstance(leaf, jax.Array | np.generic) else np.asarray(leaf)


def _rows(array: Any, shape: tuple[int, ...], stacked: int) -> np.ndarray:
    """Return an array, broadcast to a shape, as a row per slice, [T, N]."""
    return np.broadcast_to(np.asarray(array), shape).reshape(int(np.prod(shape[:stacked])), -1)


def _check_sensitivity(path: str, sensitivity: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(sensitivity)
    try:
        np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{path}: sensitivity has shape {array.shape}, which does not broadcast to the "
            f"weights' {shape}."
        ) from None
    bad = int(np.sum(~(np.isfinite(array) & (array >= 0))))
    if bad:
        raise ValueError(
            f"{path}: {bad} of {array.size} sensitivities are negative or not finite; they must "
            "be >= 0, as squared gradients or squared inputs are."
        )
    return array


def _storage_dtypes(dtype: np.dtype) -> list[np.dtype]:
    """Return the dtypes in which a file may store values of a dtype, itself last."""
    return [d for d in map(np.dtype, NARROW) if d.itemsize < dtype.itemsize] + [dtype]


def _rounded(array: Any, dtype: np.dtype | None) -> Any:
    if dtype is None or dtype == array.dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array).astype(dtype).astype(array.dtype)


def _store_levels(tensors: Sequence[Tensor], quantizers: Sequence[Quantizer]) -> list[Option]:
    """Choose the dtype that stores each tensor's levels; return the options."""
    options: dict[int, Option] = {}
    by_dtype: dict[np.dtype, list[int]] = {}
    for i, (tensor, quantizer) in enumerate(zip(tensors, quantizers, strict=True)):
        if quantizer.levels.size:
            by_dtype.setdefault(np.dtype(tensor.leaf.dtype), []).append(i)
        else:  # every weight is pruned, and a codebook has at least one value
            codebook = np.zeros((len(quantizer.levels), 1), tensor.leaf.dtype)
            bits = quantizer.bits + _STREAM_BITS + 8 * codebook.size
            options[i] = Option(quantizer.distortion, bits, codebook, quantizer)
    for dtype, indices in by_dtype.items():
        group = [tensors[i] for i in indices], [quantizers[i] for i in indices]
        options |= zip(indices, _store_levels_of_dtype(*group, dtype), strict=True)
    return [options[i] for i in range(len(tensors))]


def _store_levels_of_dtype(
    tensors: Sequence[Tensor], quantizers: Sequence[Quantizer], dtype: np.dtype
) -> list[Option]:
    """Choose the stored dtype of levels, for tensors of equal dtype that have levels."""
    shapes = [quantizer.levels.shape for quantizer in quantizers]
    sizes = np.array([math.prod(shape) for shape in shapes])
    owner = np.repeat(np.arange(len(tensors)), sizes)
    levels = np.concatenate([quantizer.levels.ravel() for quantizer in quantizers])
    mass = np.concatenate([quantizer.mass.ravel() for quantizer in quantizers])
    exponent = np.array([tensor.exponent for tensor in tensors])[owner]

    largest = float(jnp.finfo(dtype).max)
    unrounded = np.ldexp(levels * _norm_gains(tensors, shapes, levels, mass), exponent)
    unrounded = np.clip(unrounded, -largest, largest).astype(dtype)
    costs, distortions, codebooks = [], [], []
    slopes = np.array([quantizer.slope for quantizer in quantizers])
    for stored in _storage_dtypes(dtype):
        codebook = _rounded(unrounded, stored)
        finite = np.isfinite(codebook)
        # A level is the mean of its weights, so that rounding it adds the squared difference. The
        # gain is not counted as a distortion.
        difference = np.where(finite, codebook, 0).astype(np.float64) - unrounded.astype(np.float64)
        added = np.bincount(owner, mass * np.ldexp(difference, -exponent) ** 2, len(tensors))
        added[owner[~finite]] = np.inf
        codebooks.append(codebook)
        distortions.append(added)
        costs.append(added + slopes * 8.0 * stored.itemsize * sizes)
    best = np.argmin(costs, axis=0).tolist()
    ends = np.cumsum(sizes).tolist()
    widths = [8.0 * stored.itemsize for stored in _storage_dtypes(dtype)]
    return [
        Option(
            quantizer.distortion + float(distortions[j][i]),
            quantizer.bits + _STREAM_BITS + widths[j] * math.prod(shape),
            codebooks[j][end - math.prod(shape) : end].reshape(shape),
            quantizer,
        )
        for i, (j, quantizer, shape, end) in enumerate(
            zip(best, quantizers, shapes, ends, strict=True)
        )
    ]


def _norm_gains(
    tensors: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    levels: np.ndarray,
    mass: np.ndarray,
) -> np.ndarray:
    """Return the factor per level that preserves the norm of the slice, with a bound.

    Means of cells, and zeros for pruned weights, shrink a tensor, and the losses of all layers
    multiply. At low rates the factor raises the weights' error a little, and lowers the outputs'
    error much more.

    With the factor that preserves the norm, a tensor of relative distortion d has the squared error
    2 - 2 sqrt(1 - d). From d = 3/4 that exceeds 1, the error of pruning everything. The bound keeps
    the error below 1 and monotone in d.
    """
    slices = np.repeat(np.arange(sum(t for t, _ in shapes)), np.concatenate(
        [np.full(t, k) for t, k in shapes]
    ))  # fmt: skip
    first_slices = np.cumsum([0, *(t for t, _ in shapes)])
    before = np.zeros(first_slices[-1])
    for start, tensor in zip(first_slices.tolist(), tensors, strict=False):
        for source in tensor.sources:
            before[start + source.row] += source.energy if tensor.norms else np.nan
    after = np.bincount(slices, mass * levels**2, before.size)
    gains = np.sqrt(np.divide(before, after, where=after > 0, out=np.ones_like(after)))
    gains = np.minimum(np.nan_to_num(gains, nan=1.0), _LARGEST_GAIN)
    # Rounding errors of the sums must not change levels that are exact.
    return np.where(np.abs(gains - 1) < 1e-9, 1.0, gains)[slices]
