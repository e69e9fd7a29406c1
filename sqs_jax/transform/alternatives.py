"""What one tensor may become in a file, and the best of it at a price per bit."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.artifact.dtypes import NARROW, narrow, round_dense
from sqs_jax.distribution.points import Source, read_sources
from sqs_jax.distribution.power_diagram import side_by_side
from sqs_jax.distribution.quantiser import (
    TABLE_BITS,
    Quantiser,
    assign,
    grid_bits,
    lossless,
    quantise,
    quantise_all,
    split,
    thin,
)
from sqs_jax.transform.rules import Rule, require_finite

_GRID_SHARE = 0.8
_MOST_EXPONENT = 20
_STREAM_BITS = 32.0  # what a stream of codes takes before its first code, about
_BLOCK = 1 << 20
_BATCH = 256  # tensors that are quantized together
_BATCH_LEVELS = 1 << 20  # levels of all slices of a batch, which bound its memory
_MOST_GAIN = 1.5


class Choice(NamedTuple):
    """One thing that a tensor may become.

    Attributes:
      distortion: D, see `Tensor`.
      bits: what it takes in a file, about.
      codebook: [T, K] in the tensor's dtype, K >= 1; None for a dense leaf.
      quantiser: of the codes; None for a dense leaf.
      rounding: a dtype that a dense leaf's values are rounded to; None leaves them as they are.
    """

    distortion: float
    bits: float
    codebook: np.ndarray | None = None
    quantiser: Quantiser | None = None
    rounding: np.dtype | None = None


class Tensor(NamedTuple):
    """A leaf that may be compressed, without its weights.

    D is the sum of s_i (w_i - v_i)^2 over its weights, with the sensitivity s that the caller gave
    or that `_unit` says.

    Attributes:
      path: of the leaf.
      leaf: the array-like itself, which is read again when the tensor is built.
      rule: that compresses it.
      sensitivity: array-like, if it has one that differs between weights.
      norms: whether levels are scaled to keep each slice's norm.
      sources: the weights as sorted points.
      fixed: the alternatives that do not depend on the price, the one of fewest bits first.
      exponent: the weights are taken by 2**-exponent, so that squares neither vanish nor overflow.
    """

    path: str
    leaf: Any
    rule: Rule
    sensitivity: Any
    norms: bool
    sources: list[Source]
    fixed: list[Choice]
    exponent: int

    @property
    def energy(self) -> float:
        """D of pruning every weight."""
        return sum(source.energy for source in self.sources)

    @property
    def norm(self) -> float:
        """The norms of its slices, summed."""
        squares: dict[int, float] = {}
        for source in self.sources:
            squares[source.row] = squares.get(source.row, 0.0) + float(source.sums[2, -1])
        return sum(map(math.sqrt, squares.values()))

    def scaled(self, factor: float) -> "Tensor":
        """Return the tensor with another unit of D."""
        sources = [s._replace(sensitivity=factor * s.sensitivity) for s in self.sources]
        fixed = [choice._replace(distortion=factor * choice.distortion) for choice in self.fixed]
        return self._replace(sources=sources, fixed=fixed)

    def exact(self) -> Choice:
        """Return the alternative of fewest bits that loses nothing."""
        return next(choice for choice in self.fixed if choice.distortion == 0)

    def coded(self, slope: float) -> Choice:
        """Quantize for a slope: the choice of least D + slope * bits among the coded ones."""
        quantiser = quantise(self.sources, slope, prunable=self.rule.prunable)
        return _priced([self], [quantiser])[0]

    def refined(self, choice: Choice, most_bits: float) -> Choice:
        """Return a coded choice with further levels, as many as fit into so many bits in all."""
        if choice.quantiser is None or choice.quantiser.thinned[0]:
            return choice
        finer = split(self.sources, choice.quantiser, most_bits - choice.bits)
        # the levels' dtype is a matter of the old slope: the new one gives weights away for bits
        priced = _priced([self], [finer._replace(slope=choice.quantiser.slope)])[0]
        refined = priced._replace(quantiser=finer)
        better = refined.bits <= most_bits and refined.distortion < choice.distortion
        return refined if better else choice

    def thinned(self, choice: Choice, most_bits: float) -> Choice | None:
        """Return a coded choice with its codes reduced to so many bits in all, if they can be."""
        if choice.quantiser is None:
            return None
        quantiser = thin(self.sources, choice.quantiser, choice.bits - most_bits)
        if quantiser is None:
            return None
        rounding = choice.distortion - choice.quantiser.distortion  # of the levels
        distortion = quantiser.distortion + rounding
        return choice._replace(distortion=distortion, bits=most_bits, quantiser=quantiser)

    def build(self, choice: Choice) -> Any:
        """Read the weights again and make of them what was chosen."""
        if choice.quantiser is None:
            return _rounded(as_array(self.leaf), choice.rounding)
        shape, stacked = self.leaf.shape, self.rule.stacked
        sensitivity = None if self.sensitivity is None else _rows(self.sensitivity, shape, stacked)
        weights = _scaled(_rows(self.leaf, shape, stacked), self.exponent)
        codes = assign(weights, self.sources, choice.quantiser, sensitivity).reshape(shape)
        assert choice.codebook is not None
        return CompressedLeaf(codes, choice.codebook.reshape(*shape[:stacked], 1, -1))


def read_tensor(
    path: str,
    leaf: Any,
    weights: np.ndarray,
    rule: Rule,
    sensitivity: Any,
    dense_dtype: np.dtype | None,
) -> Tensor:
    """Sort a leaf's weights and list its fixed alternatives.

    Args:
      path: of the leaf.
      leaf: floating array-like.
      weights: what it holds now.
      rule: that compresses it.
      sensitivity: array-like that broadcasts to the leaf, or None.
      dense_dtype: what `save` will round it to, should it stay dense: no loss of ours.

    Raises:
      ValueError: for weights or sensitivities that are not finite, a sensitivity that is negative
        or does not fit, or a rule with a structure.
    """
    if rule.structure is not None:
        raise ValueError(
            f"{path}: a rule of structure {rule.structure} keeps n of every m weights, whatever "
            "the budget is. Use structure=None here; for the pattern, prune a posterior of "
            "spike_slab_gmm."
        )
    require_finite(path, weights)
    given = None if sensitivity is None else _check_sensitivity(path, sensitivity, weights.shape)
    varies = given is not None and given.size > 1
    rows = _rows(weights, weights.shape, rule.stacked)
    each = _rows(given, weights.shape, rule.stacked) if varies else None
    exponent = _exponent(rows)
    scaled = _scaled(rows, exponent)
    sources = read_sources(scaled, each)
    if given is None:
        units = [_unit(source) for source in sources]
    else:
        units = [1.0 if varies else max(float(given.max()), 1e-200)] * len(sources)
    sources = [
        s._replace(sensitivity=s.sensitivity * unit) for s, unit in zip(sources, units, strict=True)
    ]

    varying = sensitivity if varies else None
    tensor = Tensor(path, leaf, rule, varying, given is None, sources, [], exponent)
    fixed = []
    for dtype in [weights.dtype] if dense_dtype else _dtypes(weights.dtype):
        values = _rounded(weights, dtype)
        if np.isfinite(values).all():
            kept = _scaled(values.reshape(rows.shape), exponent)
            error = _squared_error(scaled, kept, each)
            distortion = float(error @ units) if each is None else float(error.sum())
            bits = 8.0 * dtype.itemsize * weights.size  # a dtype that holds the same has less
            if dense_dtype is not None:
                bits = 8.0 * narrow(round_dense(path, values, dense_dtype)).nbytes
            fixed.append(Choice(distortion, bits, rounding=dtype))
    fixed = _pareto(fixed)
    if _few_values(sources, fixed[-1].bits / weights.size, rows.shape[1]):
        whole = lossless(sources, prunable=rule.prunable)
        if whole is not None:
            fixed.append(_priced([tensor._replace(norms=False)], [whole])[0])
    return tensor._replace(fixed=_pareto(fixed))


def _few_values(sources: Sequence[Source], value_bits: float, weights: int) -> bool:
    """Return whether a table of a slice's distinct weights may be smaller than the weights."""
    distinct = max(source.values.size for source in sources)
    return distinct * (value_bits + TABLE_BITS) < weights * value_bits


def coded_choices(
    tensors: Sequence[Tensor], slope: float, rivals: Sequence[float]
) -> list[Choice | None]:
    """Quantize tensors for a slope, many at a time.

    Args:
      tensors: Tensors to quantize.
      slope: Distortion that is worth one bit.
      rivals: Least D + slope * bits of each tensor's other alternatives.

    Returns:
      The coded choice of each tensor, None where it cannot beat the rival. At a low slope levels
      are many and slow to find. They lose where their codes alone, on a fine grid that no
      quantizer undercuts by much, cost more than the rival.
    """
    choices: list[Choice | None] = [None] * len(tensors)
    for start in range(0, len(tensors), _BATCH):
        chunk = tensors[start : start + _BATCH]
        batch = side_by_side([tensor.sources for tensor in chunk])
        bits, sizes = grid_bits(batch, slope)
        worth = _GRID_SHARE * slope * bits <= np.array(rivals[start : start + _BATCH])
        slices = np.bincount(batch.tensors)
        for chosen in _similar(np.flatnonzero(worth), sizes, slices):
            mine = [chunk[i] for i in chosen.tolist()]
            prunable = np.array([tensor.rule.prunable for tensor in mine])
            mask = np.zeros(len(chunk), bool)
            mask[chosen] = True
            quantisers = quantise_all(batch.take(mask), slope, prunable)
            for i, choice in zip(chosen.tolist(), _priced(mine, quantisers), strict=True):
                choices[start + i] = choice
    return choices


def _similar(numbers: np.ndarray, sizes: np.ndarray, slices: np.ndarray) -> list[np.ndarray]:
    """Group tensors of similar numbers of levels: a batch pads all to the largest."""
    groups: list[list[int]] = []
    rows, smallest = 0, 0
    for i in numbers[np.argsort(sizes[numbers], kind="stable")].tolist():
        size, mine = int(sizes[i]), int(slices[i])
        if not groups or (rows + mine) * size > _BATCH_LEVELS or size > 2 * smallest + 16:
            groups.append([])
            rows, smallest = 0, size
        groups[-1].append(i)
        rows += mine
    return [np.sort(group) for group in groups]


def _pareto(choices: list[Choice]) -> list[Choice]:
    """Drop the choices that are no better than one of fewer bits; the others by their bits."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.bits, choice.distortion)):
        if not kept or choice.distortion < kept[-1].distortion:
            kept.append(choice)
    return kept


def _exponent(weights: np.ndarray) -> int:
    """Return what brings the largest weight into 2**-20..2**20; 0 for most tensors."""
    largest = float(np.abs(weights).max())
    power = math.frexp(largest)[1] if largest else 0
    return power - min(max(power, -_MOST_EXPONENT), _MOST_EXPONENT)


def _scaled(weights: np.ndarray, exponent: int) -> np.ndarray:
    """Return weights times 2**-exponent, exact but for what is vanishingly small beside others."""
    if not exponent:
        return weights
    wide = weights if weights.dtype.itemsize > 2 else weights.astype(np.float32)
    return np.ldexp(wide, -exponent)


def _unit(source: Source) -> float:
    """Return the sensitivity of a slice that was given none: 1 / ||W||.

    Half-way between the squared error and the relative squared error, 1 / ||W||^2: small tensors
    matter more than their number of weights says, tensors of small weights less than their relative
    error says. docs/budget.md compares such measures on real networks.
    """
    return 1 / math.sqrt(source.energy or 1.0)


def _squared_error(
    rows: np.ndarray, values: np.ndarray, sensitivity: np.ndarray | None
) -> np.ndarray:
    """Sum s (w - v)^2 over each row, [T]."""
    total = np.zeros(len(rows))
    for start in range(0, rows.shape[1], _BLOCK):  # float64 copies of all would take memory
        block = np.s_[:, start : start + _BLOCK]
        error = (rows[block].astype(np.float64) - values[block]) ** 2
        total += error.sum(1) if sensitivity is None else (error * sensitivity[block]).sum(1)
    return total


def as_array(leaf: Any) -> Any:
    """Read a leaf, if it is no array yet."""
    return leaf if isinstance(leaf, jax.Array | np.generic) else np.asarray(leaf)


def _rows(array: Any, shape: tuple[int, ...], stacked: int) -> np.ndarray:
    """Read an array that broadcasts to the shape; [T, N], a row for each slice."""
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


def _dtypes(dtype: np.dtype) -> list[np.dtype]:
    """Return what a file may store values of this dtype in."""
    return [d for d in map(np.dtype, NARROW) if d.itemsize < dtype.itemsize] + [dtype]


def _rounded(array: Any, dtype: np.dtype | None) -> Any:
    if dtype is None or dtype == array.dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(array).astype(dtype).astype(array.dtype)


def _priced(tensors: Sequence[Tensor], quantisers: Sequence[Quantiser]) -> list[Choice]:
    """Choose how finely the levels of each tensor are stored, and add up D and bits."""
    choices: dict[int, Choice] = {}
    by_dtype: dict[np.dtype, list[int]] = {}
    for i, (tensor, quantiser) in enumerate(zip(tensors, quantisers, strict=True)):
        if quantiser.levels.size:
            by_dtype.setdefault(np.dtype(tensor.leaf.dtype), []).append(i)
        else:  # all is pruned, and a codebook has at least one value
            codebook = np.zeros((len(quantiser.levels), 1), tensor.leaf.dtype)
            bits = quantiser.bits + _STREAM_BITS + 8 * codebook.size
            choices[i] = Choice(quantiser.distortion, bits, codebook, quantiser)
    for dtype, numbers in by_dtype.items():
        mine = [tensors[i] for i in numbers], [quantisers[i] for i in numbers]
        choices |= zip(numbers, _priced_alike(*mine, dtype), strict=True)
    return [choices[i] for i in range(len(tensors))]


def _priced_alike(
    tensors: Sequence[Tensor], quantisers: Sequence[Quantiser], dtype: np.dtype
) -> list[Choice]:
    """Do what `_priced` says, for tensors of one dtype that have levels."""
    shapes = [quantiser.levels.shape for quantiser in quantisers]
    sizes = np.array([math.prod(shape) for shape in shapes])
    owner = np.repeat(np.arange(len(tensors)), sizes)
    levels = np.concatenate([quantiser.levels.ravel() for quantiser in quantisers])
    mass = np.concatenate([quantiser.mass.ravel() for quantiser in quantisers])
    exponent = np.array([tensor.exponent for tensor in tensors])[owner]

    most = float(jnp.finfo(dtype).max)
    wanted = np.ldexp(levels * _gains(tensors, shapes, levels, mass), exponent)
    wanted = np.clip(wanted, -most, most).astype(dtype)
    costs, distortions, codebooks = [], [], []
    slopes = np.array([quantiser.slope for quantiser in quantisers])
    for stored in _dtypes(dtype):
        codebook = _rounded(wanted, stored)
        finite = np.isfinite(codebook)
        # of means of weights, so moving one adds its distance squared; their gain is no loss
        apart = np.where(finite, codebook, 0).astype(np.float64) - wanted.astype(np.float64)
        moved = np.bincount(owner, mass * np.ldexp(apart, -exponent) ** 2, len(tensors))
        moved[owner[~finite]] = np.inf
        codebooks.append(codebook)
        distortions.append(moved)
        costs.append(moved + slopes * 8.0 * stored.itemsize * sizes)
    best = np.argmin(costs, axis=0).tolist()
    ends = np.cumsum(sizes).tolist()
    widths = [8.0 * stored.itemsize for stored in _dtypes(dtype)]
    return [
        Choice(
            quantiser.distortion + float(distortions[j][i]),
            quantiser.bits + _STREAM_BITS + widths[j] * math.prod(shape),
            codebooks[j][end - math.prod(shape) : end].reshape(shape),
            quantiser,
        )
        for i, (j, quantiser, shape, end) in enumerate(
            zip(best, quantisers, shapes, ends, strict=True)
        )
    ]


def _gains(
    tensors: Sequence[Tensor],
    shapes: Sequence[tuple[int, ...]],
    levels: np.ndarray,
    mass: np.ndarray,
) -> np.ndarray:
    """Return the factor of each level with which a slice keeps its norm, at most `_MOST_GAIN`.

    Means of cells, and zeros for pruned weights, shrink a tensor, and every layer adds to that. At
    low rates the factor costs a little weight error, and saves much more of the outputs' error.

    With the factor that keeps the norm, the squared error of a tensor with the relative distortion
    d is 2 - 2 sqrt(1 - d): more than 1, the error of pruning everything, from d = 3/4. The bound
    keeps the error below 1 and falling with d.
    """
    slices = np.repeat(np.arange(sum(t for t, _ in shapes)), np.concatenate(
        [np.full(t, k) for t, k in shapes]
    ))  # fmt: skip
    first = np.cumsum([0, *(t for t, _ in shapes)])
    before = np.zeros(first[-1])
    for start, tensor in zip(first.tolist(), tensors, strict=False):
        for source in tensor.sources:
            before[start + source.row] += source.energy if tensor.norms else np.nan
    after = np.bincount(slices, mass * levels**2, before.size)
    gains = np.sqrt(np.divide(before, after, where=after > 0, out=np.ones_like(after)))
    gains = np.minimum(np.nan_to_num(gains, nan=1.0), _MOST_GAIN)
    # rounding errors of the sums are no reason to touch levels that are exact
    return np.where(np.abs(gains - 1) < 1e-9, 1.0, gains)[slices]
