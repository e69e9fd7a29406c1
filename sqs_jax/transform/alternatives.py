"""What one tensor may become in a file, and the best of it at a price per bit."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.artifact.storage import NARROW, narrow, round_dense
from sqs_jax.distribution.points import Source, read_sources
from sqs_jax.distribution.quantiser import Quantiser, assign, grid_bits, lossless, quantise, thin
from sqs_jax.transform.rules import Rule, require_finite

_GRID_SHARE = 0.8
_MOST_EXPONENT = 20
_STREAM_BITS = 32.0  # what a stream of codes takes before its first code, about
_BLOCK = 1 << 20


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

    def choose(self, slope: float, fixed: Sequence[Choice]) -> Choice:
        """Return what has the least D + slope * bits: levels for this slope, or a fixed choice."""

        def objective(choice: Choice) -> float:
            return choice.distortion + slope * choice.bits

        best = min(fixed, key=objective, default=None)
        # At a low slope levels are many and slow to find. They cannot win where their codes alone,
        # of a fine grid which no quantiser undercuts by much, cost more than what there is.
        if best is not None and objective(best) < _GRID_SHARE * slope * grid_bits(
            self.sources, slope
        ):
            return best
        quantiser = quantise(self.sources, slope, prunable=self.rule.prunable)
        coded = _coded(quantiser, self.leaf.dtype, self.sources, self.norms, self.exponent)
        return min([coded, *fixed], key=objective)

    def exact(self) -> Choice:
        """Return the alternative of fewest bits that loses nothing."""
        return next(choice for choice in self.fixed if choice.distortion == 0)

    def thinned(self, choice: Choice, most_bits: float) -> Choice | None:
        """Return a coded choice with its codes reduced to so many bits in all, if they can be."""
        if choice.quantiser is None:
            return None
        quantiser = thin(self.sources, choice.quantiser, choice.bits - most_bits)
        return quantiser and choice._replace(bits=most_bits, quantiser=quantiser)

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
    rows = _rows(weights, weights.shape, rule.stacked)
    given = None if sensitivity is None else _check_sensitivity(path, sensitivity, weights.shape)
    varies = given is not None and given.size > 1
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

    fixed = []
    for dtype in [weights.dtype] if dense_dtype else _dtypes(weights.dtype):
        values = _rounded(weights, dtype)
        if np.isfinite(values).all():
            kept = _scaled(values.reshape(rows.shape), exponent)
            error = _squared_error(scaled, kept, each)
            distortion = float(error @ units) if each is None else float(error.sum())
            stored = values if dense_dtype is None else round_dense(path, values, dense_dtype)
            fixed.append(Choice(distortion, 8.0 * narrow(stored).nbytes, rounding=dtype))
    whole = lossless(sources, prunable=rule.prunable)
    if whole is not None:
        fixed.append(_coded(whole, weights.dtype, sources, False, exponent))
    fixed.sort(key=lambda choice: (choice.bits, choice.distortion))
    varying = sensitivity if varies else None
    return Tensor(path, leaf, rule, varying, given is None, sources, fixed, exponent)


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


def _coded(
    quantiser: Quantiser, dtype: np.dtype, sources: list[Source], norms: bool, exponent: int
) -> Choice:
    """Choose how finely the levels are stored, and price the whole."""
    levels, slope, distortion = quantiser.levels, quantiser.slope, quantiser.distortion
    bits = quantiser.bits + _STREAM_BITS
    if not levels.size:  # all is pruned, and a codebook has at least one value
        codebook = np.zeros((len(levels), 1), dtype)
        return Choice(distortion, bits + 8 * codebook.size, codebook, quantiser)
    wanted = levels * _gains(quantiser, sources)[:, None] if norms else levels
    most = float(jnp.finfo(dtype).max)
    wanted = np.clip(np.ldexp(wanted, exponent), -most, most).astype(dtype).astype(np.float64)
    choices = []
    for stored in _dtypes(np.dtype(dtype)):
        codebook = _rounded(wanted.astype(dtype), stored)
        if np.isfinite(codebook).all():
            # of means of weights, so moving one adds its distance squared; their gain is no loss
            distance = np.ldexp(codebook.astype(np.float64) - wanted, -exponent)
            moved = float(np.sum(quantiser.mass * distance**2))
            size = 8.0 * stored.itemsize * levels.size
            choices.append(Choice(distortion + moved, bits + size, codebook, quantiser))
    return min(choices, key=lambda choice: choice.distortion + slope * choice.bits)


def _gains(quantiser: Quantiser, sources: list[Source]) -> np.ndarray:
    """Return what levels are multiplied with so that each slice keeps its norm; [T].

    Means of cells, and zeros for what is pruned, shrink a tensor, and every layer adds to that.
    At low rates this costs a little weight error, and saves much more of the outputs' error.
    """
    before = np.zeros(len(quantiser.levels))
    for source in sources:
        before[source.row] += source.energy
    after = np.sum(quantiser.mass * quantiser.levels**2, axis=1)
    gains = np.sqrt(np.divide(before, after, where=after > 0, out=np.ones_like(after)))
    # rounding errors of the sums are no reason to touch levels that are exact
    return np.where(np.abs(gains - 1) < 1e-9, 1.0, gains)
