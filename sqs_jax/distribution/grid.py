"""A grid over the range of a tensor's weights, fine where components are dense."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import pick, window_index

# Largest |z / (1 + |z|)| of a point: float32 has no neighbor of 1 that would be finite in z.
_LARGEST = 1 - 2.0**-16


class Grid(NamedTuple):
    """Cells of each window, equal in u = z / (1 + |z|), z = (weight - center) / scale.

    Attributes:
      center: Median of the means, [W], units of the weights.
      inverse_scale: Reciprocal of the spread of the means, [W].
      low: Start of the first cell, [W], in u.
      cells_per_unit: Cells per unit of u, [W]; 0 in a window of a single value.
    """

    center: jax.Array
    inverse_scale: jax.Array
    low: jax.Array
    cells_per_unit: jax.Array


class Place(NamedTuple):
    """Position of each weight in the grid.

    Attributes:
      window: Index of the window, int32 shaped as the weights; None for one window.
      cell: Index of the cell in its window, int32 shaped as the weights.
      fraction: Position in the cell, from 0 to 1.
      rate: Derivative of the position in the weight, cells per unit of weight.
    """

    window: jax.Array | None
    cell: jax.Array
    fraction: jax.Array
    rate: jax.Array


def grid_over(loc: jax.Array, mixture: Mixture, cells: int) -> tuple[Grid, jax.Array]:
    """Lay cells over the weights of each window.

    Args:
      loc: Weights of one tensor, any shape, of the mixture's dtype.
      mixture: Mixture of the tensor, [W, K].
      cells: Number of cells of a window, C.

    Returns:
      Grid, and the weights at the ends of its cells, [W, C + 1].
    """
    low, high = jnp.min(loc), jnp.max(loc)
    edges = mixture.boundaries
    low, high = (jnp.append(low, edges), jnp.append(edges, high))
    low, high = (
        jnp.clip(low, jnp.min(loc), jnp.max(loc)),
        jnp.clip(high, jnp.min(loc), jnp.max(loc)),
    )
    center = jnp.median(mixture.means, axis=-1)
    off = jnp.abs(mixture.means - center[:, None])
    scale = jnp.median(off, axis=-1) + jnp.mean(jnp.exp(mixture.log_scales), axis=-1)

    def bend(x: jax.Array) -> jax.Array:
        z = (x - center) / scale
        return jnp.clip(z / (1 + jnp.abs(z)), -_LARGEST, _LARGEST)

    first, last = bend(low), bend(high)
    span = last - first
    steps = jnp.arange(cells + 1, dtype=loc.dtype)[None] / cells
    u = first[:, None] + span[:, None] * steps
    points = center[:, None] + scale[:, None] * u / (1 - jnp.abs(u))
    per_unit = jnp.where(span > 0, cells / jnp.where(span > 0, span, 1), 0)
    return Grid(center, 1 / scale, first, per_unit), points


def locate(
    grid: Grid, boundaries: jax.Array, cells: int, loc: jax.Array, window: jax.Array | None = None
) -> Place:
    """Locate weights in a grid; weights outside are in the extension of the nearest cell.

    Args:
      grid: Grid of a tensor of W windows.
      boundaries: Edges of the windows, [W - 1].
      cells: Number of cells of a window.
      loc: Weights, any shape.
      window: Index of each weight's window; by default that of the window that holds the weight.
    """
    if window is None and boundaries.shape[0]:
        window = window_index(loc, boundaries)
    inverse_scale, per_unit = pick(grid.inverse_scale, window), pick(grid.cells_per_unit, window)
    z = (loc - pick(grid.center, window)) * inverse_scale
    bent = 1 / (1 + jnp.abs(z))
    position = (z * bent - pick(grid.low, window)) * per_unit
    cell = jnp.clip(position.astype(jnp.int32), 0, cells - 1)
    rate = bent * bent * inverse_scale * per_unit
    return Place(window, cell, position - cell.astype(loc.dtype), rate)
