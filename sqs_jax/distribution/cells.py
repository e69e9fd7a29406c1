"""Cells over the range of a slice's weights, and look-ups of what each cell has.

A slice is a tensor, or the part of one that has a mixture of its own. Cells are laid over many
slices at once: what is done for each cell is then one program for all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import pick, window_index

# More cells than this a window cannot have, see `_split`.
MOST_CELLS = 1 << 13


class Grid(NamedTuple):
    """C cells over the weights of each of W windows, of each of T slices.

    The cells are equal in u = z / (1 + |z|), z = (weight - middle) / scale: narrow where components
    are dense, wide in long tails.

    Attributes:
      middle, scale: [T], of the components' means.
      low: [T, W], where the first cell begins, in u.
      per: [T, W], cells per unit of u; 0 where a window has a single value, or no weight.
      edges: [T, W, C + 1], where the cells begin and end, in weight.
      stretch: [T, W, C + 1], derivative of the weight in the cell's number, there.
    """

    middle: jax.Array
    scale: jax.Array
    low: jax.Array
    per: jax.Array
    edges: jax.Array
    stretch: jax.Array

    @property
    def cells(self) -> tuple[int, int]:
        """(W, C)."""
        return self.edges.shape[1], self.edges.shape[2] - 1

    @property
    def numbers(self) -> jax.Array:
        """What `Lookup.numbers` has of each slice, [T, 2 + 2 W]."""
        ends = self.middle[:, None], 1 / self.scale[:, None]
        return jnp.concatenate([*ends, self.low, self.per], axis=1)


class Lookup(NamedTuple):
    """What the weights of one slice look up.

    Attributes:
      entries: [R, W, C], R numbers for each cell.
      numbers: [2 + 2 W], middle, 1 / scale, low, per of the grid.
      boundaries: [W - 1], between the windows, in weight.
    """

    entries: jax.Array
    numbers: jax.Array
    boundaries: jax.Array

    @property
    def cells(self) -> tuple[int, int]:
        """(W, C)."""
        return self.entries.shape[1], self.entries.shape[2]


class Place(NamedTuple):
    """Where a slice's weights are; arrays are shaped as the weights.

    Attributes:
      cell: window * C + number, int32.
      within: place in the cell, from 0 to 1.
      rate: derivative of `within` in the weight.
    """

    cell: jax.Array
    within: jax.Array
    rate: jax.Array


def grid_over(low: jax.Array, high: jax.Array, mixture: Mixture, count: int) -> Grid:
    """Cut the range of each window's weights into `count` cells.

    Args:
      low, high: the range of each slice's weights, [T].
      mixture: of the slices, [T, W, K] each.
      count: C.
    """
    means = mixture.means.reshape(low.shape[0], -1)
    middle = jnp.median(means, axis=1)
    spread = jnp.median(jnp.abs(means - middle[:, None]), axis=1)
    scale = spread + jnp.mean(jnp.exp(mixture.log_scales), axis=(1, 2))
    inner = jnp.clip(mixture.boundaries, low[:, None], high[:, None])
    ends = jnp.concatenate([low[:, None], inner, high[:, None]], axis=1)
    ends, _ = _bend(ends, middle[:, None], 1 / scale[:, None])
    low, width = ends[:, :-1], ends[:, 1:] - ends[:, :-1]
    steps = (jnp.arange(count + 1, dtype=low.dtype) / count)[None, None]
    bent = low[..., None] + steps * width[..., None]
    more = 1 / (1 - jnp.abs(bent))
    edges = middle[:, None, None] + scale[:, None, None] * bent * more
    stretch = scale[:, None, None] * more * more * width[..., None] / count
    return Grid(middle, scale, low, jnp.where(width > 0, count / width, 0), edges, stretch)


def places_of(grid: Grid, locs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the cell in its window, and the place in the cell, of numbers [T, W, P] in its range."""
    bent, _ = _bend(locs, grid.middle[:, None, None], 1 / grid.scale[:, None, None])
    return _split((bent - grid.low[..., None]) * grid.per[..., None], grid.cells[1])


def locate(lookup: Lookup, loc: jax.Array) -> Place:
    """Find each weight's cell."""
    windows, count = lookup.cells
    window = window_index(loc, lookup.boundaries) if windows > 1 else None
    bent, slope = _bend(loc, lookup.numbers[0], lookup.numbers[1])
    low, per = (pick(row, window) for row in lookup.numbers[2:].reshape(2, windows))
    cell, within = _split((bent - low) * per, count)
    return Place(cell if window is None else cell + window * count, within, slope * per)


def apart(place: Place) -> Place:
    """Return the same place, for another look-up of the same, lest XLA see that it is.

    It would keep what both look-ups need, an array each.
    """
    return place._replace(cell=place.cell + jax.lax.optimization_barrier(jnp.int32(0)))


def read(lookup: Lookup, row: int, place: Place) -> jax.Array:
    """Read a row of the entries for each weight."""
    index = place.cell + row * (lookup.cells[0] * lookup.cells[1])
    entries = lookup.entries.reshape(-1)
    return entries.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def collect(x: jax.Array, index: jax.Array, size: int) -> jax.Array:
    """Sum x over the weights of each index, [size]."""
    sums = jnp.zeros(size, x.dtype)
    return sums.at[index].add(x, mode="promise_in_bounds", wrap_negative_indices=False)


def polynomial(coefficients: Sequence[jax.Array], x: jax.Array) -> jax.Array:
    """Evaluate c0 + c1 x + c2 x^2 + ... elementwise."""
    total = coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = c + x * total
    return total


def _split(place: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Split places in whole cells, in [0, count), and the rest, from -2^-11 to 1.

    A float32 from 2^13 to 2^14 has ten bits behind the point, and its integer before them. Reading
    it there takes a third of the time of a conversion, which XLA guards against numbers that are
    no integers.
    """
    bits = jax.lax.bitcast_convert_type(place + float(MOST_CELLS), jnp.int32)
    cell = jnp.clip((bits & ((1 << 23) - 1)) >> 10, 0, count - 1)
    return cell, place - cell.astype(place.dtype)


def _bend(
    loc: jax.Array, middle: jax.Array, inverse_scale: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return u, and its derivative in the weight."""
    z = (loc - middle) * inverse_scale
    less = 1 / (1 + jnp.abs(z))
    return z * less, less * less * inverse_scale
