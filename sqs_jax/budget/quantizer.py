"""Entropy-constrained scalar quantization of a tensor, with zero among the levels.

Minimizes D + slope * bits over levels and codes together (Chou, Lookabaugh, Gray,
"Entropy-constrained vector quantization", IEEE Trans. ASSP 37(1), 1989, in one dimension):

    D = sum_i s_i (w_i - level(code_i))^2        bits = sum_i -log2 p(code_i) + K * LEVEL_BITS

where code 0 is the value 0 and p(code) is a code's share of the tensor. The slope determines the
number of levels: the start is a uniform grid, and a level remains if it is worth its bits.

The weights are sorted once, and each code has an interval of the weights: a step costs K log N
instead of N. All steps run on a batch of tensors (power_diagram.py), on the host in float64.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sqs_jax.budget.power_diagram import Batch, cells, grid_counts, pack, side_by_side
from sqs_jax.budget.sorted_weights import Source, group_by_sensitivity

__all__ = [
    "LEVEL_BITS",
    "TABLE_BITS",
    "Quantizer",
    "assign",
    "entropy_bits",
    "grid_bits",
    "lossless",
    "quantize",
    "quantize_all",
    "split",
    "thin",
]

TABLE_BITS = 10.0
"""Approximate bits of a level in the coder's table."""

LEVEL_BITS = 16.0 + TABLE_BITS
"""Bits of a level beside its codes, with a value of 16 bits."""

_MAX_LEVELS = 1 << 15
_BLOCK = 1 << 20  # weights that are coded at a time
_FEW = 64  # edges up to which comparing every weight with each edge is faster than a search
_GOLDEN = (math.sqrt(5) - 1) / 2
_ANY_SLOPE = 1e-300  # so small that the nearest level wins
_STEPS, _TOLERANCE = 100, 1e-4
_HALVINGS, _LEAST_SHARE, _LONGER = 12, 1e-4, 8.0  # of `split`
# A uniform quantizer with cells of width d has D = d^2 / 12 at high rate, and dD/dbits = -2 ln2 D.
_WIDTH = math.sqrt(6 / math.log(2))


class Quantizer(NamedTuple):
    """Levels and code lengths of a tensor, with the resulting distortion and bits.

    Attributes:
        levels: Codebooks of T slices, [T, K], ascending.
        lengths: Bits of each code, [K + 1]; inf for a code that must not be used.
        slope: Slope of the objective, distortion per bit.
        mass: Sum of the sensitivities of each level's weights, [T, K].
        distortion: Distortion D of the whole tensor, >= 0.
        bits: Bits of the codes and the coder's table, without the levels' values.
        thinned: Pair (share, code): this share of the weights of the code, evenly spread, has
            other codes.
    """

    levels: np.ndarray
    lengths: np.ndarray
    slope: float
    mass: np.ndarray
    distortion: float
    bits: float
    thinned: tuple[float, int] = (0.0, 0)


def quantize(sources: Sequence[Source], slope: float, *, prunable: bool = True) -> Quantizer:
    """Minimize distortion + slope * bits over the levels and codes of a tensor.

    Args:
        sources: Sources of all slices; slices share the codes' lengths, not their levels.
        slope: Distortion that is worth one bit, > 0.
        prunable: Whether the value 0 is one of the levels, as code 0.

    Returns:
        The quantizer; it may have no level at all (K = 0) if every weight is best pruned.
    """
    return quantize_all(side_by_side([sources]), slope, np.array([prunable]))[0]


def quantize_all(batch: Batch, slope: float, prunable: np.ndarray) -> list[Quantizer]:
    """Run `quantize` on P tensors together, which for small tensors is many times as fast.

    Args:
        batch: P tensors.
        slope: Distortion that is worth one bit, > 0.
        prunable: Whether each tensor has the value 0 as code 0, [P].
    """
    levels, lengths = _grid(batch, slope, prunable)
    energies, previous = batch.energies, np.full(len(lengths), np.inf)
    numbers = np.arange(len(lengths))
    results: dict[int, Quantizer] = {}
    for step in range(_STEPS):
        count, mass, moment = batch.sums(levels, lengths, slope)
        used = count[:, 1:] > 0
        number = used.sum(axis=1)
        levels, mass, moment = pack(used[batch.tensors], levels, mass, moment)
        (packed,) = pack(used, count[:, 1:])
        count = np.append(count[:, :1], packed, axis=1)
        occupied = mass > 0  # a level may have weights in some slices only
        levels = np.where(occupied, moment / np.where(occupied, mass, 1.0), levels)
        lengths = _lengths(count)
        distortion = energies - batch.by_tensor(np.sum(levels * moment, axis=1))  # of means
        bits = entropy_bits(count) + TABLE_BITS * number
        objective = distortion + slope * (bits + (LEVEL_BITS - TABLE_BITS) * number)
        last = step == _STEPS - 1
        stalled = (objective > (1 - _TOLERANCE) * previous) | last
        previous = objective
        if not stalled.any():
            continue
        merged_levels, merged_count, merged = _merge(batch, levels, count, mass, slope)
        done = stalled & (~merged | last)
        for i in np.flatnonzero(done).tolist():
            slices, k = batch.tensors == i, int(number[i])
            results[int(numbers[i])] = _ordered(
                Quantizer(
                    levels[slices, :k],
                    lengths[i, : k + 1],
                    slope,
                    mass[slices, :k],
                    max(float(distortion[i]), 0.0),
                    float(bits[i]),
                )
            )
        if done.all():
            break
        joins = stalled & ~done
        levels = np.where(joins[batch.tensors][:, None], merged_levels, levels)
        lengths = np.where(joins[:, None], _lengths(merged_count), lengths)
        if done.any():
            left = ~done
            levels, batch = levels[left[batch.tensors]], batch.take(left)
            lengths, numbers, energies, previous = (
                x[left] for x in (lengths, numbers, energies, previous)
            )
    return [results[i] for i in range(len(results))]


def _ordered(quantizer: Quantizer) -> Quantizer:
    """Sort the levels of each slice, and the codes by the levels of the first slice.

    Sensitivities may change the order of levels. The unused levels of a slice have any value.
    """
    order = np.argsort(quantizer.levels, axis=1, kind="stable")
    return quantizer._replace(
        levels=np.take_along_axis(quantizer.levels, order, 1),
        lengths=quantizer.lengths[np.append(0, 1 + order[0])],
        mass=np.take_along_axis(quantizer.mass, order, 1),
    )


def grid_bits(batch: Batch, slope: float) -> tuple[np.ndarray, np.ndarray]:
    """Describe the grids that `quantize_all` starts from.

    Returns:
        Entropy of the codes of each tensor in bits, [P]: few levels more is best; and the number of
        cells, [P].
    """
    owner, _, number = grid_counts(batch, _widths(batch, slope))
    tensors = int(batch.tensors[-1]) + 1
    terms, totals = (np.bincount(owner, x, tensors) for x in (_xlogx(number), number))
    return _xlogx(totals) - terms, np.bincount(owner, minlength=tensors)


def lossless(sources: Sequence[Source], *, prunable: bool = True) -> Quantizer | None:
    """Return a quantizer with a level per distinct weight; None if they are too many."""
    if any(source.spread for source in sources):
        return None
    values = []
    for t in range(1 + max(source.row for source in sources)):
        distinct = np.unique(np.concatenate([s.values for s in sources if s.row == t]))
        values.append(distinct[distinct != 0] if prunable else distinct)
    most = max(distinct.size for distinct in values)
    if most > _MAX_LEVELS:
        return None
    # Slices with fewer values repeat the last value.
    levels = np.stack([np.append(v, [v[-1] if v.size else 0.0] * (most - v.size)) for v in values])
    lengths = np.zeros(most + 1)
    lengths[0] = 0.0 if prunable else np.inf
    (count,), mass, _ = side_by_side([sources]).sums(levels, lengths[None], _ANY_SLOPE)
    bits = float(entropy_bits(count)) + TABLE_BITS * most
    return Quantizer(levels, _lengths(count), _ANY_SLOPE, mass, 0.0, bits)


def _grid(batch: Batch, slope: float, prunable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the start: multiples of the width that is best for many levels.

    Returns:
        Levels without 0, [S, K]; lengths of the codes, [P, K + 1], inf for padding.
    """
    width = _widths(batch, slope)
    tensors = len(prunable)
    while True:
        owner, multiple, _ = grid_counts(batch, width)
        level = (multiple != 0) | ~prunable[owner]
        owner, multiple = owner[level], multiple[level]
        sizes = np.bincount(owner, minlength=tensors)
        if sizes.max() <= _MAX_LEVELS:
            break
        width = np.where((sizes > _MAX_LEVELS)[batch.tensors], 1.25 * width, width)
    place = np.arange(owner.size) - (np.cumsum(sizes) - sizes)[owner]
    multiples = np.zeros((tensors, int(sizes.max())))
    multiples[owner, place] = multiple
    lengths = np.zeros((tensors, multiples.shape[1] + 1))
    lengths[:, 0] = np.where(prunable, 0.0, np.inf)
    lengths[:, 1:] = np.where(np.arange(multiples.shape[1]) < sizes[:, None], 0.0, np.inf)
    return width[:, None] * multiples[batch.tensors], lengths


def _widths(batch: Batch, slope: float) -> np.ndarray:
    """Return the width of cells of each slice, [S]."""
    return _WIDTH * np.sqrt(slope / batch.largest_sensitivities())


def _lengths(count: np.ndarray) -> np.ndarray:
    share = count / count.sum(axis=-1, keepdims=True)
    return -np.log2(share, where=count > 0, out=np.full(count.shape, -np.inf))


def entropy_bits(count: np.ndarray) -> Any:
    """Return the entropy N * H of codes from their counts, bits; [..., K] -> [...]."""
    return _xlogx(count.sum(axis=-1)) - _xlogx(count).sum(axis=-1)


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log2(np.maximum(x, 1.0))


def _merge(
    batch: Batch, levels: np.ndarray, count: np.ndarray, mass: np.ndarray, slope: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Merge levels with the next level, or with 0, if that lowers the objective.

    Args:
        batch: P tensors.
        levels, mass: Levels, and sums of their weights' sensitivities, [S, K].
        count: Numbers of weights per code, [P, K + 1]; the last codes are padding.
        slope: Distortion that is worth one bit.

    Returns:
        Levels, [S, K]; counts, 0 for a merged level, [P, K + 1]; and whether any levels of a
        tensor were merged, [P].
    """
    number, zeros = count[:, 1:], count[:, :1]
    after, rise = np.full((2, *number.shape), np.inf)
    saved = _xlogx(number + zeros) - _xlogx(number) - _xlogx(zeros)
    pruning = batch.by_tensor(mass * levels**2) - slope * (saved + LEVEL_BITS)
    rise = np.where((zeros > 0) & (number > 0), pruning, np.inf)
    saved = _xlogx(number[:, 1:] + number[:, :-1]) - _xlogx(number[:, 1:])
    saved -= _xlogx(number[:, :-1])
    both = np.maximum(mass[:, 1:] + mass[:, :-1], 1e-300)
    apart = batch.by_tensor(mass[:, 1:] * mass[:, :-1] / both * np.diff(levels) ** 2)
    after[:, :-1] = np.where(number[:, 1:] > 0, apart - slope * (saved + LEVEL_BITS), np.inf)

    best = np.minimum(rise, after)
    padded = np.pad(best, ((0, 0), (1, 1)), constant_values=np.inf)
    # Neighbors do not merge in one step.
    due = (best < 0) & (best <= padded[:, :-2]) & (best < padded[:, 2:])
    pruned = due & (rise <= after)  # each pruned level makes pruning the next one cheaper
    joined = due & ~pruned
    count = count.copy()
    count[:, 1:][pruned | joined] = 0.0
    count[:, 2:][joined[:, :-1]] += number[joined]
    count[:, 0] += np.sum(np.where(pruned, number, 0.0), axis=1)
    middle = levels[:, :-1] + mass[:, 1:] / both * np.diff(levels)
    levels = levels.copy()
    levels[:, 1:] = np.where(joined[batch.tensors][:, :-1], middle, levels[:, 1:])
    return levels, count, due.any(axis=1)


def split(sources: Sequence[Source], quantizer: Quantizer, spare: float) -> Quantizer:
    """Add levels, to reach sizes that no slope has as its optimum.

    New levels halve the cells that distort most. Their codes are long, and the slope decides how
    many weights use them, from none to all nearest ones. With fixed levels the distortion falls
    with the slope, and the bits grow almost continuously.

    Args:
        sources: Sources as given to `quantize`.
        quantizer: Result of `quantize`.
        spare: Largest number of added bits, the levels' values included.

    Returns:
        A quantizer of no more distortion; the same one if the bits do not suffice.
    """
    levels, lengths = quantizer.levels, quantizer.lengths
    if not 0 < levels.shape[1] < _MAX_LEVELS // 2 or quantizer.slope <= _ANY_SLOPE:
        return quantizer
    batch = side_by_side([sources])
    value_bits = 16.0 * len(levels)
    most = quantizer.bits + value_bits * levels.shape[1] + spare
    (count,), mass, _ = batch.sums(levels, lengths[None], quantizer.slope)
    gain = batch.spreads(levels, lengths[None], quantizer.slope)
    deviation = np.sqrt(np.divide(gain, mass, where=mass > 0, out=np.zeros_like(gain)))
    gaps = np.append(np.diff(levels, axis=1), np.full((len(levels), 1), np.inf), axis=1)
    middle = levels + np.minimum(deviation, gaps / 2)
    costs = count[1:] + TABLE_BITS + value_bits
    order = np.argsort(-gain.sum(axis=0) / costs, kind="stable")
    longest = lengths[np.isfinite(lengths)].max() + _LONGER

    def measure(number: int, slope: float) -> Quantizer:
        places = 1 + np.sort(order[:number])
        tried = np.insert(levels, places, middle[:, places - 1], axis=1)
        code_bits = np.insert(lengths, places + 1, longest)
        (count,), mass, moment = batch.sums(tried, code_bits[None], slope)
        used = count[1:] > 0
        tried, mass, moment = tried[:, used], mass[:, used], moment[:, used]
        distortion = batch.energies[0] + np.sum(tried * (tried * mass - 2 * moment))
        bits = float(entropy_bits(count)) + TABLE_BITS * tried.shape[1]
        code_bits = code_bits[np.append(True, used)]
        return Quantizer(tried, code_bits, slope, mass, max(float(distortion), 0.0), bits)

    best = quantizer
    most_levels = min(order.size, int(spare / (TABLE_BITS + value_bits)))
    for number in [0, *(1 << i for i in range(most_levels.bit_length() - 1)), most_levels]:
        low, high = _LEAST_SHARE * quantizer.slope, quantizer.slope
        for step in range(_HALVINGS):
            slope = math.sqrt(low * high) if step else low
            tried = measure(number, slope)
            if tried.bits + value_bits * tried.levels.shape[1] <= most:
                high = slope
                if tried.distortion < best.distortion:
                    best = tried
                if slope == low:
                    break
            else:
                low = slope
    return best


def thin(sources: Sequence[Source], quantizer: Quantizer, excess: float) -> Quantizer | None:
    """Remove bits from the codes at equal levels, to reach sizes that no slope has.

    A tensor of few distinct values has large steps between its sizes. Levels are excluded one
    after another, the least valuable first, and the last one only for as many weights as needed.

    Args:
        sources: Sources as given to `quantize`.
        quantizer: Result of `quantize`.
        excess: Least number of removed bits.

    Returns:
        Quantizer of the same levels; None if the codes have too few bits.
    """
    levels, lengths = quantizer.levels, quantizer.lengths.copy()
    batch = side_by_side([sources])
    energy = float(batch.energies[0])

    def measure() -> tuple[np.ndarray, np.ndarray, float]:
        (count,), mass, moment = batch.sums(levels, lengths[None], quantizer.slope)
        distortion = energy + float(np.sum(levels * (levels * mass - 2 * moment)))
        return count, mass, distortion

    count, mass, distortion = measure()
    most = float(entropy_bits(count)) - excess
    number = max(1, lengths.size // 8)  # levels excluded in one step
    while most >= 0:
        usable = np.flatnonzero(np.isfinite(lengths))
        if usable.size < 2:
            return None
        number = min(number, usable.size - 1)
        loss = _losses(levels, mass, usable)
        codes = usable[np.argsort(loss, kind="stable")[:number]]
        old, lengths[codes] = lengths[codes], np.inf
        fewer, less_mass, farther = measure()
        if entropy_bits(fewer) > most:
            count, mass, distortion = fewer, less_mass, farther
            continue
        lengths[codes] = old
        if number > 1:
            number //= 2
            continue
        share, enough = 0.0, 1.0
        for _ in range(40):
            middle = (share + enough) / 2
            fits = entropy_bits((1 - middle) * count + middle * fewer) <= most
            share, enough = (share, middle) if fits else (middle, enough)
        return quantizer._replace(
            lengths=lengths,
            distortion=max((1 - enough) * distortion + enough * farther, 0.0),
            bits=quantizer.bits - excess,
            thinned=(enough, int(codes[0])),
        )
    return None


def _losses(levels: np.ndarray, mass: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the approximate rise of the distortion if a code is excluded, per code."""
    values = np.concatenate([np.zeros((len(levels), 1)), levels], axis=1)[:, codes]
    order = np.argsort(values, axis=1)
    gaps = np.diff(np.take_along_axis(values, order, 1), axis=1)
    ends = np.full((len(gaps), 1), np.inf)
    nearest = np.minimum(np.append(ends, gaps, axis=1), np.append(gaps, ends, axis=1))
    loss = np.take_along_axis(np.append(ends, mass, axis=1)[:, codes], order, 1) * nearest**2
    losses = np.empty_like(loss)
    np.put_along_axis(losses, order, loss, 1)
    return np.where(codes == 0, np.inf, losses.sum(axis=0))


def assign(
    weights: np.ndarray,
    sources: Sequence[Source],
    quantizer: Quantizer,
    sensitivity: np.ndarray | None = None,
) -> np.ndarray:
    """Give every weight its best code.

    Args:
        weights: Weights as given to `read_sources`, [T, N].
        sources: Result of `read_sources`.
        quantizer: Quantizer of these sources.
        sensitivity: Sensitivities as given to `read_sources`.

    Returns:
        Codes in {0, ..., K}, [T, N]; uint8 where K <= 255, else uint16.
    """
    levels, lengths = quantizer.levels, quantizer.lengths
    codes = np.empty(weights.shape, np.uint8 if levels.shape[1] <= 255 else np.uint16)
    share, dropped = quantizer.thinned
    fewer = np.where(np.arange(lengths.size) == dropped, np.inf, lengths)
    group = np.zeros(weights.shape[1], np.int8)
    affected = 0  # weights of the thinned code so far
    for t, row in enumerate(weights):
        row_sources = [source for source in sources if source.row == t]
        if sensitivity is not None:
            group = group_by_sensitivity(sensitivity[t])

        def best(t: int, chosen: Any, bits: np.ndarray, source: Source, row: np.ndarray) -> Any:
            penalties = quantizer.slope / source.sensitivity * bits
            (order,), (edges,), (used,) = cells(levels[t : t + 1], penalties[None])
            numbers = _edges_below(row[chosen], edges[: used - 1])
            return order[:used].astype(codes.dtype)[numbers]

        for start in range(0, row.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            here = codes[t, block]
            for g, source in enumerate(row_sources):
                where: Any = group[block] == g
                where = slice(None) if where.all() else where  # a slice copies nothing
                here[where] = best(t, where, lengths, source, row[block])
            if share:  # multiples of the golden ratio mod 1 spread any share evenly
                places = np.flatnonzero(here == dropped)
                order = np.arange(affected, affected + places.size)
                places = places[(order * _GOLDEN) % 1 < share]
                affected += order.size
                for g, source in enumerate(row_sources):
                    where = places[group[block][places] == g]
                    here[where] = best(t, where, fewer, source, row[block])
    return codes


def _edges_below(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count the edges at or below each value, exactly in every dtype."""
    values = values.astype(np.result_type(values, np.float32), copy=False)
    if edges.size > _FEW:
        return np.searchsorted(edges, values.astype(np.float64), "right")
    count = np.zeros(values.shape, np.uint8)
    for edge in edges:  # several times as fast as a search
        least = values.dtype.type(edge)  # rounded up to the values' dtype
        if least < edge:
            least = np.nextafter(least, values.dtype.type(np.inf))
        count += values >= least
    return count
