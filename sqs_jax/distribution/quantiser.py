"""Entropy-constrained scalar quantisation of one tensor, with an exact zero among its levels.

Minimises D + slope * bits over levels and codes together (Chou, Lookabaugh, Gray,
"Entropy-constrained vector quantization", IEEE Trans. ASSP 37(1), 1989, in one dimension):

    D = sum_i s_i (w_i - level(code_i))^2        bits = sum_i -log2 p(code_i) + K * LEVEL_BITS

where code 0 is the value 0 and p(code) is a code's share of the tensor. How many levels there are
follows from the slope: the start is a uniform grid, and a level stays where it is worth its bits.

The weights are sorted once, and each code has an interval of them: a step costs K log N, not N. On
the host in float64, as in codebook.py.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sqs_jax.distribution.points import Source, group_by_sensitivity

__all__ = [
    "LEVEL_BITS",
    "Quantiser",
    "assign",
    "entropy_bits",
    "grid_bits",
    "lossless",
    "quantise",
    "thin",
]

_TABLE_BITS = 10.0  # of a level in the coder's table, about
LEVEL_BITS = 16.0 + _TABLE_BITS
"""What a level costs beside its codes, its value being stored in 16 bits."""

_MAX_LEVELS = 1 << 15
_BLOCK = 1 << 20  # weights that are coded at a time
_FEW = 64  # edges, with each of which every weight is compared
_GOLDEN = (math.sqrt(5) - 1) / 2
_ANY_SLOPE = 1e-300  # so small that the nearest level wins
_STEPS, _TOLERANCE = 100, 1e-4
# A uniform quantiser with cells of width d has D = d^2 / 12 at high rate, and dD/dbits = -2 ln2 D.
_WIDTH = math.sqrt(6 / math.log(2))


class Quantiser(NamedTuple):
    """Levels and code lengths of one tensor, and what they achieve.

    Attributes:
      levels: [T, K], a codebook for each of T slices, ascending.
      lengths: bits of each code, [K + 1]; inf for a code that must not be used.
      slope: what it was optimised for, distortion per bit.
      mass: the summed sensitivity of each level's weights, [T, K].
      distortion: D, of the whole tensor.
      bits: of the codes and the coder's table, not of the levels' values.
      thinned: (share, slope) of weights, evenly spread, that are coded at another slope.
    """

    levels: np.ndarray
    lengths: np.ndarray
    slope: float
    mass: np.ndarray
    distortion: float
    bits: float
    thinned: tuple[float, float] = (0.0, 0.0)


def quantise(sources: Sequence[Source], slope: float, *, prunable: bool = True) -> Quantiser:
    """Minimise distortion + slope * bits over levels and codes.

    Args:
      sources: of all slices of a tensor; slices share the codes' lengths, not their levels.
      slope: distortion that is worth one bit, > 0.
      prunable: whether the value 0 is one of the levels, as code 0.

    Returns:
      The quantiser; it may have no level at all (K = 0) if every weight is best pruned.
    """
    levels = _grid(sources, slope, prunable)
    lengths = np.zeros(levels.shape[1] + 1)
    lengths[0] = 0.0 if prunable else np.inf
    square, previous = sum(source.energy for source in sources), np.inf
    for step in range(_STEPS):
        count, mass, moment = _statistics(sources, levels, lengths, slope)
        used = count[1:] > 0
        levels, mass, moment = levels[:, used], mass[:, used], moment[:, used]
        count = count[np.append(True, used)]
        held = mass > 0  # a level may have weights in some slices only
        levels = np.where(held, moment / np.where(held, mass, 1.0), levels)
        lengths = _lengths(count)
        distortion = square - float(np.sum(levels * moment))  # levels are means
        objective = distortion + slope * (entropy_bits(count) + LEVEL_BITS * levels.shape[1])
        if objective > previous - _TOLERANCE * abs(previous):
            merged = _merge(levels, count, mass, slope)
            if merged is None or step == _STEPS - 1:
                break
            levels, lengths = merged
        previous = objective
    # sensitivities may have moved levels past each other, unused ones of a slice may lie anywhere
    order = np.argsort(levels, axis=1, kind="stable")
    levels, mass = (np.take_along_axis(x, order, axis=1) for x in (levels, mass))
    bits = entropy_bits(count) + _TABLE_BITS * levels.shape[1]
    return Quantiser(levels, lengths, slope, mass, max(distortion, 0.0), bits)


def grid_bits(sources: Sequence[Source], slope: float) -> float:
    """Return the entropy of the grid that `quantise` starts from, bits; few levels more is best."""
    width = _widths(sources, slope)
    count: dict[float, float] = {}
    for source in sources:
        cells = np.rint(source.values / width[source.row])
        starts = np.flatnonzero(np.append(True, cells[1:] != cells[:-1]))
        ends = np.append(starts, cells.size)
        for cell, number in zip(
            cells[starts].tolist(), np.diff(source.sums[0, ends]).tolist(), strict=True
        ):
            count[cell] = count.get(cell, 0.0) + number
    return entropy_bits(np.array(list(count.values())))


def lossless(sources: Sequence[Source], *, prunable: bool = True) -> Quantiser | None:
    """Give every distinct weight of a slice a code; None where there are too many of them."""
    if any(source.spread for source in sources):
        return None
    values = []
    for t in range(1 + max(source.row for source in sources)):
        mine = np.unique(np.concatenate([s.values for s in sources if s.row == t]))
        values.append(mine[mine != 0] if prunable else mine)
    most = max(mine.size for mine in values)
    if most > _MAX_LEVELS:
        return None
    # slices with fewer values repeat their last one
    levels = np.stack([np.append(v, [v[-1] if v.size else 0.0] * (most - v.size)) for v in values])
    lengths = np.zeros(most + 1)
    lengths[0] = 0.0 if prunable else np.inf
    count, mass, _ = _statistics(sources, levels, lengths, _ANY_SLOPE)
    bits = entropy_bits(count) + _TABLE_BITS * most
    return Quantiser(levels, _lengths(count), _ANY_SLOPE, mass, 0.0, bits)


def _grid(sources: Sequence[Source], slope: float, prunable: bool) -> np.ndarray:
    """Start from multiples of the width that is best for many levels; [T, K] without 0."""
    width = _widths(sources, slope)
    while True:
        cells = [np.unique(np.rint(source.values / width[source.row])) for source in sources]
        multiples = np.unique(np.concatenate(cells))
        if prunable:
            multiples = multiples[multiples != 0]
        if multiples.size <= _MAX_LEVELS:
            return width[:, None] * multiples
        width = width * 1.25


def _widths(sources: Sequence[Source], slope: float) -> np.ndarray:
    """Return the width of cells of each slice, [T]."""
    largest = np.zeros(1 + max(source.row for source in sources))
    for source in sources:
        largest[source.row] = max(largest[source.row], source.sensitivity)
    return _WIDTH * np.sqrt(slope / largest)


def _statistics(
    sources: Sequence[Source], levels: np.ndarray, lengths: np.ndarray, slope: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give every point its best code.

    Returns:
      Number of weights per code, [K + 1]; sums of s and of s w per slice and level, [T, K].
    """
    count = np.zeros(lengths.size)
    sums = np.zeros((2, len(levels), lengths.size))
    for source in sources:
        order, edges = _cells(levels[source.row], slope / source.sensitivity * lengths)
        ends = np.searchsorted(source.values, edges)
        ends = np.concatenate([[0], ends, [source.values.size]])
        number, total, _ = np.diff(source.sums[:, ends], axis=1)
        count[order] += number
        sums[0, source.row, order] += source.sensitivity * number
        sums[1, source.row, order] += source.sensitivity * total
    return count, sums[0, :, 1:], sums[1, :, 1:]


def _cells(levels: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes that win somewhere, by ascending level, and the edges between them.

    Code c costs (w - level)^2 + penalty at w, a line in w when w^2 is taken off: the winners are
    the lower convex hull of the points (level, level^2 + penalty).
    """
    levels = np.append(0.0, levels)
    heights = levels**2 + penalties
    order = np.lexsort((heights, levels))
    order = order[np.isfinite(heights[order])]
    keep = np.append(True, np.diff(levels[order]) > 0)  # of equal levels the cheapest
    while True:
        order = order[keep]
        edges = np.diff(heights[order]) / (2 * np.diff(levels[order]))
        # a point above the line between its neighbours is no corner of the hull
        keep = np.concatenate([[True], np.diff(edges) > 0, [True]])[: order.size]
        if keep.all():
            return order, edges


def _lengths(count: np.ndarray) -> np.ndarray:
    return -np.log2(count / count.sum(), where=count > 0, out=np.full(count.shape, -np.inf))


def entropy_bits(count: np.ndarray) -> float:
    """Return N * H of codes that occur so many times, bits."""
    return float(_xlogx(count.sum()) - _xlogx(count).sum())


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log2(np.maximum(x, 1.0))


def _merge(
    levels: np.ndarray, count: np.ndarray, mass: np.ndarray, slope: float
) -> tuple[np.ndarray, np.ndarray] | None:
    """Join levels with the next one, or with 0, where that lowers the objective.

    Returns:
      Fewer levels and the codes' lengths; None if there is nothing to join.
    """
    number = count[1:]
    if not number.size:
        return None
    after, rise = np.full((2, number.size), np.inf)
    if count[0]:
        saved = _xlogx(number + count[0]) - _xlogx(number) - _xlogx(count[0])
        rise = np.sum(mass * levels**2, 0) - slope * (saved + LEVEL_BITS)
    saved = _xlogx(number[1:] + number[:-1]) - _xlogx(number[1:]) - _xlogx(number[:-1])
    joint = mass[:, 1:] * mass[:, :-1] / np.maximum(mass[:, 1:] + mass[:, :-1], 1e-300)
    after[:-1] = np.sum(joint * np.diff(levels) ** 2, 0) - slope * (saved + LEVEL_BITS)

    best = np.minimum(rise, after)
    padded = np.concatenate([[np.inf], best, [np.inf]])
    due = (best < 0) & (best <= padded[:-2]) & (best < padded[2:])  # never two neighbours
    if not due.any():
        return None
    levels, count = levels.copy(), count.copy()
    pruned = due & (rise <= after)  # each makes pruning the others cheaper still
    (first,) = np.nonzero(due & (after < rise))
    share = mass[:, first + 1] / np.maximum(mass[:, first] + mass[:, first + 1], 1e-300)
    levels[:, first + 1] = levels[:, first] + share * (levels[:, first + 1] - levels[:, first])
    count[first + 2] += count[first + 1]
    count[0] += number[pruned].sum()
    stays = ~pruned
    stays[first] = False
    return levels[:, stays], _lengths(count[np.append(True, stays)])


def thin(sources: Sequence[Source], quantiser: Quantiser, excess: float) -> Quantiser | None:
    """Take bits from the codes and leave the levels: for sizes that no slope has as its optimum.

    As between the sizes of a tensor of few distinct values. The slope of the codes alone grows
    until they fit, and of equal weights only as many as needed change their code.

    Args:
      sources: as given to `quantise`.
      quantiser: what that returned.
      excess: bits to take, at least.

    Returns:
      The quantiser, its levels as they were; None if its codes have fewer bits.
    """
    levels = quantiser.levels
    # strictly ordered, so that one code is the cheapest
    lengths = quantiser.lengths + 1e-3 * np.argsort(np.argsort(quantiser.lengths, kind="stable"))

    def count(slope: float) -> np.ndarray:
        return _statistics(sources, levels, lengths, slope)[0]

    low = high = quantiser.slope
    most = entropy_bits(count(low)) - excess
    if most < 0:
        return None
    while entropy_bits(count(high)) > most:
        low, high = high, 1e3 * high
    for _ in range(40):
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (low, middle) if entropy_bits(count(middle)) <= most else (middle, high)
    dear, cheap = count(low), count(high)
    share, enough = 0.0, 1.0
    for _ in range(40):
        middle = (share + enough) / 2
        fits = entropy_bits((1 - middle) * dear + middle * cheap) <= most
        share, enough = (share, middle) if fits else (middle, enough)
    bits, thinned = quantiser.bits - excess, (enough, high)
    return quantiser._replace(lengths=lengths, slope=low, bits=bits, thinned=thinned)


def assign(
    weights: np.ndarray,
    sources: Sequence[Source],
    quantiser: Quantiser,
    sensitivity: np.ndarray | None = None,
) -> np.ndarray:
    """Give every weight its best code.

    Args:
      weights: [T, N], as given to `read_sources`.
      sources: what that returned.
      quantiser: of these sources.
      sensitivity: as given to `read_sources`.

    Returns:
      Codes in {0, ..., K}, [T, N]; uint8 where K <= 255, else uint16.
    """
    levels, lengths = quantiser.levels, quantiser.lengths
    codes = np.empty(weights.shape, np.uint8 if levels.shape[1] <= 255 else np.uint16)
    share, other = quantiser.thinned
    group = np.zeros(weights.shape[1], np.int8)
    for t, row in enumerate(weights):
        mine = [source for source in sources if source.row == t]
        if sensitivity is not None:
            group = group_by_sensitivity(sensitivity[t])
        for start in range(0, row.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            thinned = np.zeros(row[block].size, bool)
            if share:  # multiples of the golden ratio mod 1: any share of them is spread evenly
                thinned = (np.arange(start, start + thinned.size) * _GOLDEN) % 1 < share
            for g, source in enumerate(mine):
                for slope, chosen in ((quantiser.slope, ~thinned), (other, thinned)):
                    where: Any = chosen & (group[block] == g)
                    if where.any():
                        order, edges = _cells(levels[t], slope / source.sensitivity * lengths)
                        where = slice(None) if where.all() else where  # which copies nothing
                        numbers = _edges_below(row[block][where], edges)
                        codes[t, block][where] = order.astype(codes.dtype)[numbers]
    return codes


def _edges_below(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count the edges that are not above each value; exact, whatever the values' dtype is."""
    values = values.astype(np.result_type(values, np.float32), copy=False)
    if edges.size > _FEW:
        return np.searchsorted(edges, values.astype(np.float64), "right")
    count = np.zeros(values.shape, np.uint8)
    for edge in edges:  # several times as fast as a search
        least = values.dtype.type(edge)  # that is no less than the edge
        if least < edge:
            least = np.nextafter(least, values.dtype.type(np.inf))
        count += values >= least
    return count
