"""Sorted weights of a tensor, as points on a line: the input of a scalar quantizer."""

from typing import NamedTuple

import numpy as np

__all__ = ["Source", "group_by_sensitivity", "read_sources"]

_MAX_POINTS = 1 << 15
_TAIL_POINTS = 1 << 11

# Sensitivities are rounded to groups an octave wide; the last group has all smaller ones.
_MAX_GROUPS = 20


class Source(NamedTuple):
    """Weights of a slice with a common sensitivity, as sorted points on a line.

    Attributes:
        row: Index of the slice of the weights.
        sensitivity: Sensitivity s of each weight, > 0.
        values: Points, [M], ascending: the distinct weights, or means of neighbors where the
            distinct weights are too many.
        sums: Number, sum and sum of squares of the weights before each point, and of all weights,
            [3, M + 1].
        spread: Sum of squared distances of the weights from their points; 0 for distinct weights.
    """

    row: int
    sensitivity: float
    values: np.ndarray
    sums: np.ndarray
    spread: float

    @property
    def energy(self) -> float:
        """Return the sum of s w^2, the distortion of pruning all weights."""
        return self.sensitivity * float(self.sums[2, -1])


def read_sources(weights: np.ndarray, sensitivity: np.ndarray | None = None) -> list[Source]:
    """Sort a tensor's weights.

    Args:
        weights: Weights of T slices, [T, N], floating, finite, N > 0.
        sensitivity: Sensitivities of the weights, [T, N], finite, >= 0; 1 by default.

    Returns:
        List of the sources of all slices, in the order of the slices.
    """
    if weights.dtype.itemsize < 4:
        weights = weights.astype(np.float32)  # numpy sorts it ten times faster
    if sensitivity is None:
        return [Source(t, 1.0, *_points(row)) for t, row in enumerate(weights)]
    sources = []
    for t, (row, s) in enumerate(zip(weights, sensitivity, strict=True)):
        group = group_by_sensitivity(s)
        for g in range(int(group.max()) + 1):
            mean = float(s[group == g].mean(dtype=np.float64))
            # A sensitivity of 0 would divide by zero; these weights get the cheapest code anyway.
            mean = max(mean, 1e-12 * float(s.max()), 1e-200)
            sources.append(Source(t, mean, *_points(row[group == g])))
    return sources


def group_by_sensitivity(sensitivity: np.ndarray) -> np.ndarray:
    """Return the group of each weight by sensitivity, [N]: 0, 1, ...; no group is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.log2(sensitivity.max() / sensitivity.astype(np.float64))
    octaves = np.nan_to_num(octaves, nan=0.0)  # NaN if all sensitivities are 0
    group = np.minimum(octaves, _MAX_GROUPS - 1).astype(np.int8)
    occupied = np.bincount(group) > 0
    return (np.cumsum(occupied) - 1).astype(np.int8)[group]


def _points(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Sort weights [N] and group them to points; return values, sums and spread."""
    ordered = np.sort(weights)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    distinct = starts.size <= _MAX_POINTS
    if not distinct:  # equal numbers of weights per point, fewer in the tails, which matter most
        size = ordered.size
        tail = np.geomspace(1, size, _TAIL_POINTS).astype(np.int64)
        body = np.arange(_MAX_POINTS - 2 * _TAIL_POINTS) * size // (_MAX_POINTS - 2 * _TAIL_POINTS)
        starts = np.unique(np.concatenate([tail - 1, body, size - tail]))
    sums = np.zeros((3, starts.size + 1))
    ends = np.append(starts, ordered.size)
    for first in range(0, starts.size, 4096):  # blocks: float64 copies of all would take memory
        cuts = ends[first : first + 4097]
        part = ordered[cuts[0] : cuts[-1]].astype(np.float64)
        inner = cuts[:-1] - cuts[0]
        sums[1, first + 1 : first + cuts.size] = np.add.reduceat(part, inner)
        sums[2, first + 1 : first + cuts.size] = np.add.reduceat(part * part, inner)
    sums[0, 1:] = np.diff(ends)
    values = ordered[starts].astype(np.float64) if distinct else sums[1, 1:] / sums[0, 1:]
    spread = 0.0
    if not distinct:
        spread = max(1e-300, float(sums[2].sum() - sums[0, 1:] @ values**2))
    return values, np.cumsum(sums, axis=1), spread
