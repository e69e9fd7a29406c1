"""The weights of a tensor as points on a line, sorted: what a scalar quantiser works on."""

from typing import NamedTuple

import numpy as np

__all__ = ["Source", "group_by_sensitivity", "read_sources"]

_MAX_POINTS = 1 << 15
_TAIL_POINTS = 1 << 11

# Sensitivities are rounded: groups an octave wide, the last with all that is smaller still.
_MAX_GROUPS = 20


class Source(NamedTuple):
    """The weights of one slice that share a sensitivity, as points on a line.

    Attributes:
      row: of the weights, which slice they are from.
      sensitivity: s of each of these weights, > 0.
      values: the points, [M], ascending: the distinct weights, or means of neighbours where there
        are too many of those.
      sums: number, sum and sum of squares of the weights before each point and in all, [3, M + 1].
      spread: squared distance of the weights from their points, summed; 0 for distinct weights.
    """

    row: int
    sensitivity: float
    values: np.ndarray
    sums: np.ndarray
    spread: float

    @property
    def energy(self) -> float:
        """Sum of s w^2: the distortion of pruning all."""
        return self.sensitivity * float(self.sums[2, -1])


def read_sources(weights: np.ndarray, sensitivity: np.ndarray | None = None) -> list[Source]:
    """Sort a tensor's weights.

    Args:
      weights: [T, N], T slices, floating, finite, N > 0.
      sensitivity: [T, N], finite, >= 0; 1 by default.

    Returns:
      The sources of all slices, in their order.
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
            # above 0, which would divide by it: such weights go to the cheapest code all the same
            mean = max(mean, 1e-12 * float(s.max()), 1e-200)
            sources.append(Source(t, mean, *_points(row[group == g])))
    return sources


def group_by_sensitivity(sensitivity: np.ndarray) -> np.ndarray:
    """Number the groups of about equal sensitivity, 0, 1, ..., none of them empty; [N]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        octaves = np.log2(sensitivity.max() / sensitivity.astype(np.float64))
    octaves = np.nan_to_num(octaves, nan=0.0)  # all are zero
    group = np.minimum(octaves, _MAX_GROUPS - 1).astype(np.int8)
    occupied = np.bincount(group) > 0
    return (np.cumsum(occupied) - 1).astype(np.int8)[group]


def _points(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Sort weights [N] and put them together to points; returns values, sums and spread."""
    ordered = np.sort(weights)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    distinct = starts.size <= _MAX_POINTS
    if not distinct:  # equal numbers of weights, fewer toward the ends: tails matter most
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
