"""Power diagrams in 1-D, for a batch of tensors.

Code c costs (w - level_c)^2 + penalty_c at a weight w. Without w^2 that is a line in w, so the
weights that prefer a code form an interval: a cell of the power diagram (Aurenhammer 1987) of the
levels. The codes with a cell are the lower convex hull of the points (level, level^2 + penalty).

A `Batch` holds the sources of several tensors. All diagrams of a batch are computed together: for
tensors of a few hundred weights the calls of numpy, not the arithmetic, take the time.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sqs_jax.budget.sorted_weights import Source

__all__ = ["Batch", "cells", "grid_counts", "pack", "side_by_side"]


class Batch(NamedTuple):
    """The sources of P tensors: R sources in S slices, in the order of the tensors.

    Attributes:
        sources: The sources of all tensors, R in all.
        slices: Number of the slice that each source belongs to, [R], ascending.
        tensors: Number of the tensor that each slice belongs to, [S], ascending.
        sensitivities: Sensitivity of each source, [R].
    """

    sources: list[Source]
    slices: np.ndarray
    tensors: np.ndarray
    sensitivities: np.ndarray

    @property
    def energies(self) -> np.ndarray:
        """Distortion of pruning all weights of each tensor, [P]."""
        squares = np.array([source.sums[2, -1] for source in self.sources])
        return self._totals(self.sensitivities * squares, self.tensors[self.slices])

    def by_tensor(self, x: np.ndarray) -> np.ndarray:
        """Sum over the slices of each tensor; [S, ...] -> [P, ...]."""
        return self._totals(x, self.tensors)

    def take(self, chosen: np.ndarray) -> "Batch":
        """Return the batch of some of the tensors; `chosen` is [P], bool."""
        slices = chosen[self.tensors]
        rows = slices[self.slices]
        return Batch(
            [source for source, row in zip(self.sources, rows.tolist(), strict=True) if row],
            (np.cumsum(slices) - 1)[self.slices[rows]],
            (np.cumsum(chosen) - 1)[self.tensors[slices]],
            self.sensitivities[rows],
        )

    def largest_sensitivities(self) -> np.ndarray:
        """Return the largest sensitivity within each slice, [S]."""
        return np.maximum.reduceat(self.sensitivities, _starts(self.slices))

    def sums(
        self, levels: np.ndarray, lengths: np.ndarray, slope: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give every point its best code and sum over the points of each code.

        Args:
            levels: Levels of each slice, [S, K].
            lengths: Bits of each code, [P, K + 1]; inf for codes that must not be used.
            slope: Distortion that is worth one bit.

        Returns:
            Number of weights per code, [P, K + 1]; sums of s and of s w per slice and level,
            [S, K].
        """
        order, (number, total, _) = self._cell_sums(levels, lengths, slope)
        count = self._by_code(number, order, self.tensors[self.slices], lengths.shape)
        shape, scale = (len(levels), lengths.shape[1]), self.sensitivities[:, None]
        mass, moment = (
            self._by_code(scale * x, order, self.slices, shape)[:, 1:] for x in (number, total)
        )
        return count, mass, moment

    def spreads(self, levels: np.ndarray, lengths: np.ndarray, slope: float) -> np.ndarray:
        """Sum s (w - level)^2 over the weights of each level, [S, K]; arguments as for `sums`."""
        order, (number, total, square) = self._cell_sums(levels, lengths, slope)
        zero = np.zeros((len(levels), 1))
        level = np.take_along_axis(np.append(zero, levels, axis=1)[self.slices], order, 1)
        error = self.sensitivities[:, None] * (square - level * (2 * total - level * number))
        shape = len(levels), lengths.shape[1]
        return np.maximum(self._by_code(error, order, self.slices, shape)[:, 1:], 0.0)

    def _cell_sums(
        self, levels: np.ndarray, lengths: np.ndarray, slope: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes by ascending level, [R, H], and sums over their cells, [3, R, H]."""
        tensors = self.tensors[self.slices]
        penalties = (slope / self.sensitivities)[:, None] * lengths[tensors]
        order, edges, used = cells(levels[self.slices], penalties)
        sums = np.empty((3, *order.shape))
        for row, (source, corners) in enumerate(zip(self.sources, used.tolist(), strict=True)):
            ends = source.values.searchsorted(edges[row, : corners - 1])
            sums[:, row, : corners - 1] = source.sums[:, ends]
            sums[:, row, corners - 1 :] = source.sums[:, -1:]
        sums[:, :, 1:] -= sums[:, :, :-1].copy()
        return order, sums

    def _by_code(
        self, x: np.ndarray, order: np.ndarray, owner: np.ndarray, shape: tuple[int, ...]
    ) -> np.ndarray:
        """Add the cells of equal codes in rows of the same owner; [R, H] -> [owners, codes]."""
        where = (owner[:, None] * shape[1] + order).ravel()
        return np.bincount(where, x.ravel(), math.prod(shape)).reshape(shape)

    def _totals(self, x: np.ndarray, owner: np.ndarray) -> np.ndarray:
        return x if len(x) == owner[-1] + 1 else np.add.reduceat(x, _starts(owner), axis=0)


def side_by_side(tensors: Sequence[Sequence[Source]]) -> Batch:
    """Return the batch of the sources of several tensors."""
    sources = [source for tensor in tensors for source in tensor]
    owners = np.repeat(np.arange(len(tensors)), [len(tensor) for tensor in tensors])
    rows = np.array([source.row for source in sources])
    new = np.append(True, (owners[1:] != owners[:-1]) | (rows[1:] != rows[:-1]))
    sensitivities = np.array([source.sensitivity for source in sources])
    return Batch(sources, np.cumsum(new) - 1, owners[new], sensitivities)


def cells(levels: np.ndarray, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute power diagrams of levels, with the value 0 as code 0.

    Args:
        levels: Levels of one diagram per row, [R, K].
        penalties: Penalties of code 0 and of the levels, [R, K + 1]; inf for codes without a cell.

    Returns:
        Codes by ascending level, [R, K + 1]; the edges between their cells, [R, K]; and the number
        of cells in each row, [R]. Entries past that number have no meaning.
    """
    levels = np.concatenate([np.zeros((len(levels), 1)), levels], axis=1)
    heights = levels**2 + penalties
    finite = np.isfinite(heights)
    levels = np.where(finite, levels, np.inf)
    order = np.lexsort((heights, levels))
    levels, heights = (np.take_along_axis(x, order, 1) for x in (levels, heights))
    used = finite.sum(axis=1)
    keep = np.arange(order.shape[1]) < used[:, None]
    keep[:, 1:] &= levels[:, 1:] > levels[:, :-1]  # of equal levels the cheapest
    while True:
        count = keep.sum(axis=1)
        if (count < used).any():
            order, levels, heights = pack(keep, order, levels, heights)
            used = count
        with np.errstate(invalid="ignore", divide="ignore"):  # of padding
            edges = np.diff(heights) / (2 * np.diff(levels))
        inside = np.arange(order.shape[1]) < used[:, None]
        # a point above the line between its neighbors is no corner of the hull
        keep = inside.copy()
        keep[:, 1:-1] &= (edges[:, 1:] > edges[:, :-1]) | ~inside[:, 2:]
        if (keep == inside).all():
            return order, edges, used


def pack(keep: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
    """Move chosen columns to the left and drop columns that are unused in all rows.

    Args:
        keep: Chosen columns of each row, bool [R, K].
        *arrays: Arrays [R, K]; in the results the other columns are padding.
    """
    width = int(keep.sum(axis=1).max())
    if keep[:, :width].all():
        return [x[:, :width] for x in arrays]
    places = np.argsort(~keep, axis=1, kind="stable")[:, :width]
    return [np.take_along_axis(x, places, 1) for x in arrays]


def grid_counts(batch: Batch, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the weights in each cell of uniform grids.

    Args:
        batch: P tensors in S slices.
        widths: Width of the cells of each slice, [S]; a cell is around a multiple of that.

    Returns:
        Tensor, multiple and number of weights of each cell that has any, by tensor and multiple.
    """
    owners, multiples, numbers = [], [], []
    for source, width, owner in zip(
        batch.sources,
        widths[batch.slices].tolist(),
        batch.tensors[batch.slices].tolist(),
        strict=True,
    ):
        cell = np.rint(source.values / width)
        starts = np.flatnonzero(cell[1:] != cell[:-1]) + 1
        before = np.concatenate([[0.0], source.sums[0, starts], source.sums[0, -1:]])
        multiples.append(cell[np.concatenate([[0], starts])])
        numbers.append(before[1:] - before[:-1])
        owners.append(np.full(starts.size + 1, owner))
    owner, multiple, number = map(np.concatenate, (owners, multiples, numbers))
    if len(batch.sources) > len(set(batch.tensors.tolist())):  # sources of a tensor share cells
        order = np.lexsort((multiple, owner))
        owner, multiple, number = owner[order], multiple[order], number[order]
        new = np.append(True, (np.diff(owner) > 0) | (np.diff(multiple) > 0))
        first = np.flatnonzero(new)
        owner, multiple, number = owner[first], multiple[first], np.add.reduceat(number, first)
    return owner, multiple, number


def _starts(owner: np.ndarray) -> np.ndarray:
    """Return where each of the numbers 0, 1, ... begins in an ascending array."""
    return np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
