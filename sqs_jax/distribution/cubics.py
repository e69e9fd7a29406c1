"""Averages as a cubic in each cell, with exact values and slopes at the cell's ends.

What makes cubics, checks them, and pulls gradients back from them is written for one window.
"""

import math
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.distribution import components
from sqs_jax.distribution.cells import Lookup, Place, apart, collect, polynomial, read
from sqs_jax.distribution.components import Averages, Logits, Pulled
from sqs_jax.distribution.mixture import Mixture

# A gradient is collected in so many bins per cell.
BINS = 8

# How far a rise may be from the mean of the slopes, in tolerances.
_STEEP = 4

# A bin's centre shares what it has among six edges about it: these, from the start of its cell.
_EDGES = np.arange(-2, 4)


def _lagrange(x: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Return what each of the nodes counts in a polynomial through them, at x: [x, nodes]."""
    factors = [[np.prod([(p - b) / (a - b) for b in nodes if b != a]) for a in nodes] for p in x]
    return np.array(factors)


_SHARES = _lagrange((np.arange(BINS) + 0.5) / BINS, _EDGES)  # [bins, edges]

# Edges beyond the first one are on the polynomial through the first six.
_BEYOND = _lagrange(np.arange(-2, 0), np.arange(6))


class Cubics(NamedTuple):
    """Averages of V values in each cell of a window, and at the cells' edges.

    Attributes:
      rows: [4 V, C], four coefficients of each, of powers of the place in the cell.
      edges: [C + 1].
      exact: averages there, [C + 1] each.
      enough: whether they are within the tolerance, bool [C].
    """

    rows: jax.Array
    edges: jax.Array
    exact: Averages
    enough: jax.Array


def make(
    edges: jax.Array,
    stretch: jax.Array,
    means: jax.Array,
    places: tuple[jax.Array, jax.Array],
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    tolerance: jax.Array,
) -> Cubics:
    """Make the cubics of a window, and find where they are good enough.

    Checked where they err most: a cubic over two cells is compared with the exact average between
    the two. Over one cell it errs a sixteenth of that. So that no steep step meets that by chance,
    an average must also rise by about the mean of its slopes from edge to edge. A component too
    narrow for the edges to see shows at its mean. What is not a number is within no tolerance.

    Args:
      edges: [C + 1], of its cells.
      stretch: [C + 1], derivative of the weight in the cell's number.
      means: of the components, those outside of the window moved to its ends, [K].
      places: their cells, and their places there, [K] each.
      mixture: of this window alone, [1, K].
      values: [V, 1, K].
      temperature: of the responsibilities.
      tolerance: of each value's average, [V].
    """
    count, (cell, place) = edges.shape[0] - 1, places
    logits = Logits.at(jnp.concatenate([edges, means]), mixture, temperature)
    found = components.average(logits, values, slopes=True)
    fails = jnp.zeros(count, jnp.int32)
    rows: list[jax.Array] = []
    for v in range(values.shape[0]):
        value, slope = found.values[v][: count + 1], found.slopes[v][: count + 1] * stretch
        rise, start, stop = value[1:] - value[:-1], slope[:-1], slope[1:]
        row = value[:-1], start, 3 * rise - 2 * start - stop, start + stop - 2 * rise
        between = (value[:-2] + value[2:]) / 2 + (slope[:-2] - slope[2:]) / 4
        bad = jnp.pad(~(jnp.abs(between - value[1:-1]) <= tolerance[v]), 1)  # edges
        steep = ~(jnp.abs(rise - (start + stop) / 2) <= _STEEP * tolerance[v])
        fails |= (bad[:-1] | bad[1:] | steep).astype(jnp.int32)
        off = polynomial([c[cell] for c in row], place) - found.values[v][count + 1 :]
        fails = fails.at[cell].max((~(jnp.abs(off) <= tolerance[v])).astype(jnp.int32))
        rows += row
    at_edges = jax.tree.map(lambda x: x[: count + 1], found._replace(slopes=()))
    return Cubics(jnp.stack(rows), edges, at_edges, fails == 0)


def average(lookup: Lookup, count: int, place: Place) -> Averages:
    """Look up averages and slopes, shaped as the weights, of `count` values in the first rows."""
    again, averages, slopes = apart(place), [], []
    for v in range(count):
        averages.append(
            polynomial([read(lookup, 4 * v + k, place) for k in range(4)], place.within)
        )
        b, c, d = (read(lookup, 4 * v + k, again) for k in range(1, 4))
        slopes.append(place.rate * polynomial([b, 2 * c, 3 * d], place.within))
    return Averages(None, tuple(averages), tuple(slopes))


def collect_bins(
    lookup: Lookup, place: Place, cotangents: list[jax.Array]
) -> tuple[jax.Array, ...]:
    """Collect cotangents of averages in bins, [W, C, BINS] each."""
    shape = (*lookup.cells, BINS)
    inside = jnp.clip(place.within * BINS, 0, BINS - 1).astype(jnp.int32)
    index = place.cell * BINS + inside
    return tuple(collect(g, index, math.prod(shape)).reshape(shape) for g in cotangents)


def pull(
    cubics: Cubics,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    bins: tuple[jax.Array, ...],
) -> Pulled:
    """Pull collected cotangents of a window, [C, BINS] each, back to what its weights share.

    The bins' centres share what they have among the edges; at the edges everything is exact.
    """
    dtype, count, beyond = bins[0].dtype, len(_EDGES), len(_BEYOND)
    shares, left = jnp.asarray(_SHARES, dtype), jnp.asarray(_BEYOND, dtype)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    at_edges = []
    for each in bins:
        parts = product(each, shares).T  # [edges, C]
        ends = [(i, count - 1 - i) for i in range(count)]
        total = reduce(jnp.add, map(jnp.pad, parts, ends))
        inside = total[beyond:-beyond]
        inside = inside.at[:count].add(product(total[:beyond], left))
        right = product(total[-beyond:], left[::-1, ::-1])
        at_edges.append(inside.at[-count:].add(right))
    logits = Logits.at(cubics.edges, mixture, temperature)
    return components.pull(logits, values, cubics.exact, tuple(at_edges))
