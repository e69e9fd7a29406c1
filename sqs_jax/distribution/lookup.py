"""Averages of component values, looked up in a table with linear interpolation.

All that a weight needs of its mixture is a function of one number, so that the exact averages at
the ends of some thousands of cells serve millions of weights. JAX differentiates the table as it
does any function; only the look-up has a derivative of its own, which collects the cotangents of a
cell's weights in a few bins.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.grid import Grid, Place, locate
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.soft_average import average

# Largest error of an average, as a fraction of the reach of the values, see `_reach`.
TOLERANCE = 1e-3

# Least number of weights of a tensor that is looked up: smaller ones are evaluated exactly.
LEAST_WEIGHTS = 1 << 15

# Cells of a window for each component: at temperature 0.05 a transition of one component
# to the next of sixteen spans two or three cells.
_CELLS_PER_COMPONENT = 1 << 11

# Most cells of a window: more of them did not make K = 64 accurate at temperature 0.05, and a table
# of all 2^17 took four times as long to make (`python -m benchmarks soft_weight`).
_MOST_CELLS = 1 << 15

# Bins of a cell, in which cotangents are collected; their middles stand for the weights' places.
_BINS = 4

# Distances from the means at which tables are checked, standard deviations.
_CHECKED = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)


class Table(NamedTuple):
    """Table of the averages at the ends of a tensor's cells.

    Attributes:
      entries: Averages, [V, W, C + 1].
      grid: Grid of the cells.
      boundaries: Edges of the windows, [W - 1].
    """

    entries: jax.Array
    grid: Grid
    boundaries: jax.Array

    @property
    def cells(self) -> int:
        """Number of cells of a window."""
        return self.entries.shape[-1] - 1


def cell_count(size: int, components: int, windows: int) -> int:
    """Return the number of cells of a window; 0 for a tensor too small to be looked up.

    Args:
      size: Number of weights of the tensor.
      components: Number of components of a window.
      windows: Number of windows.
    """
    if size < LEAST_WEIGHTS:
        return 0
    return min(_CELLS_PER_COMPONENT * components, _MOST_CELLS, size // (4 * windows))


def entries(
    points: jax.Array, mixture: Mixture, values: jax.Array, temperature: jax.Array
) -> jax.Array:
    """Compute the averages at the ends of the cells.

    Args:
      points: Weights at the ends of the cells, [W, C + 1].
      mixture: Mixture of the tensor, [W, K].
      values: Values of the components, [V, W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.

    Returns:
      Array of shape [V, W, C + 1].
    """
    window = _windows(points) if points.shape[0] > 1 else None
    return jnp.stack(average(points, mixture, values, temperature, window=window))


def look_up(table: Table, loc: jax.Array) -> list[jax.Array]:
    """Look up the V averages of each weight; differentiable in entries and loc."""
    return _look_up(table, loc)


@jax.custom_vjp
def _look_up(table: Table, loc: jax.Array) -> list[jax.Array]:
    return _interpolate(table, locate(table.grid, table.boundaries, table.cells, loc))[0]


def _interpolate(table: Table, place: Place) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the V averages, and their differences between the ends of each weight's cell."""
    index = _index(place, table.cells + 1)
    averages, differences = [], []
    for row in table.entries.reshape(table.entries.shape[0], -1):
        start = row.at[index].get(mode="promise_in_bounds")
        difference = row.at[index + 1].get(mode="promise_in_bounds") - start
        averages.append(start + place.fraction * difference)
        differences.append(difference)
    return averages, differences


def _index(place: Place, stride: int) -> jax.Array:
    return place.cell if place.window is None else place.window * stride + place.cell


def _forward(table: Table, loc: jax.Array) -> tuple[list[jax.Array], Any]:
    return _look_up(table, loc), (table, loc)


def _backward(residuals: Any, cotangents: list[jax.Array]) -> tuple[Table, jax.Array]:
    table, loc = residuals
    place = locate(table.grid, table.boundaries, table.cells, loc)
    _, differences = _interpolate(table, place)
    slopes = [g * d for g, d in zip(cotangents, differences, strict=True)]
    d_loc = sum(slopes[1:], slopes[0]) * place.rate
    windows = table.entries.shape[1]
    fine = jnp.clip((place.fraction * _BINS).astype(jnp.int32), 0, _BINS - 1)
    index = _index(place, table.cells) * _BINS + fine
    middles = (jnp.arange(_BINS, dtype=loc.dtype) + 0.5) / _BINS
    d_entries = []
    for cotangent in cotangents:
        sums = jnp.zeros(windows * table.cells * _BINS, loc.dtype)
        sums = sums.at[index].add(cotangent, mode="promise_in_bounds")
        sums = sums.reshape(windows, table.cells, _BINS)
        starts, ends = sums @ (1 - middles), sums @ middles
        d_entries.append(jnp.pad(starts, ((0, 0), (0, 1))) + jnp.pad(ends, ((0, 0), (1, 0))))
    none: Any = None
    return Table(jnp.stack(d_entries), none, none), d_loc


_look_up.defvjp(_forward, _backward)


def is_accurate(
    table: Table,
    points: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    """Return whether look-ups are within the tolerance, a bool scalar.

    The tolerance is `TOLERANCE` times the reach of the values.

    Between two ends of a cell, linear interpolation errs by an eighth of the second difference;
    a component too narrow for the grid to see shows at points about its mean. Both checks allow
    half of the tolerance.

    Args:
      table: Table of a tensor.
      points: Weights at the ends of its cells, [W, C + 1].
      mixture: Mixture of the tensor, [W, K].
      values: Values of the components, [V, W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.
    """
    rounding = 8 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values), axis=-1)
    allowed = (TOLERANCE * _reach(values) + rounding) / 2  # [V, W]
    bend = jnp.max(jnp.abs(jnp.diff(table.entries, n=2, axis=-1)), axis=-1) / 8
    offsets = jnp.asarray(_CHECKED, values.dtype)
    checked = (
        mixture.means[..., None] + jnp.exp(mixture.log_scales)[..., None] * offsets[None, None]
    )
    checked = checked.reshape(checked.shape[0], -1)
    checked = jnp.clip(checked, points[:, :1], points[:, -1:])
    window = _windows(checked) if checked.shape[0] > 1 else None
    exact = entries(checked, mixture, values, temperature)
    place = locate(table.grid, table.boundaries, table.cells, checked, window)
    off = jnp.max(jnp.abs(jnp.stack(_interpolate(table, place)[0]) - exact), axis=-1)
    return jnp.all((bend <= allowed) & (off <= allowed))


def _windows(points: jax.Array) -> jax.Array:
    """Number the windows of points [W, ...]."""
    return jnp.broadcast_to(jnp.arange(points.shape[0], dtype=jnp.int32)[:, None], points.shape)


def _reach(values: jax.Array) -> jax.Array:
    """Return how far the values of most of a window's components are apart, [V, W].

    The reach is the range, or eight median absolute deviations if that is less (5.4 deviations of
    a normal distribution): a component far from the others must not make all that happens among
    them look small.
    """
    off = jnp.abs(values - jnp.median(values, axis=-1, keepdims=True))
    whole = jnp.max(values, axis=-1) - jnp.min(values, axis=-1)
    return jnp.minimum(whole, 8 * jnp.median(off, axis=-1))
