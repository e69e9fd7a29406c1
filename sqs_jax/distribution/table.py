"""The same averages looked up: all that a weight needs of its mixture is a function of one number.

Where gathers are cheap (a CPU) a look-up costs a few passes over the weights whatever K is. The
range of each window's weights is cut into cells, see cells.py. In a cell the average is a cubic
(cubics.py) or, where steps are too steep for that, at low temperatures and at sharp components,
exact between two components (pairs.py). Which of the two a cell gets, and whether neither will do,
is found out in every step, when tables are made: cubics are checked where they err most, third
components are counted.

Tables of many tensors are made at once, a row for each window of each tensor: a program with many
tensors compiles as fast as one with few.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import cubics, pairs
from sqs_jax.distribution.cells import Grid, Lookup, Place, locate, places_of, read
from sqs_jax.distribution.components import Averages, Pulled
from sqs_jax.distribution.cubics import Cubics
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.pairs import Pairs

# Largest error, as a fraction of the reach of the values, see `_reach`.
TOLERANCE = 1e-3

# Weights of a tensor that are worth a table.
_WORTH_IT = 1 << 15

# Kinds of a tensor's table: the order of a switch's branches.
CUBIC, PAIR, MIXED, NONE = range(4)

# What a cell's last entry says.
_BY_PAIR, _BY_CUBIC, _BAD = 0.0, 1.0, 2.0


class Table(NamedTuple):
    """Averages of V values of T slices of tensors.

    Attributes:
      grid: the cells.
      cubics: arrays are [T, W, ...].
      pairs: arrays are [T, W, C].
    """

    grid: Grid
    cubics: Cubics
    pairs: Pairs

    @property
    def entries(self) -> jax.Array:
        """What the weights look up, [T, R, W, C]: rows of cubics, of pairs, and `_choice`."""
        by_pair, by_cubic = self.pairs.enough, self.cubics.enough
        choice = jnp.where(by_pair, _BY_PAIR, jnp.where(by_cubic, _BY_CUBIC, _BAD))
        rows = [*self.pairs.rows, choice.astype(self.grid.edges.dtype)]
        return jnp.concatenate(
            [jnp.moveaxis(self.cubics.rows, 2, 1), jnp.stack(rows, axis=1)], axis=1
        )

    @property
    def kinds(self) -> jax.Array:
        """What serves all cells: CUBIC, PAIR, both (MIXED), or NONE; int32 [T]. See `kind_for`."""
        by_cubic, by_pair = self.cubics.enough, self.pairs.enough
        served = (jnp.all(x, axis=(1, 2)) for x in (by_cubic, by_pair, by_cubic | by_pair))
        some = jnp.stack([*served, jnp.ones(by_pair.shape[:1], bool)])
        return jnp.argmax(some, axis=0).astype(jnp.int32)


class Collected(NamedTuple):
    """Cotangents collected from a slice's weights, by cell.

    Attributes:
      bins: what goes through the cubics, V arrays [W, C, BINS].
      sums: what goes through the pairs, arrays are [W, C].
    """

    bins: tuple[jax.Array, ...]
    sums: pairs.Sums


def cells(size: int, components: int, windows: int) -> int:
    """Return how many cells a window of a tensor's table has; 0 if it is too small for one.

    A component needs some thirty cells; a table is to cost little beside its tensor, to make and to
    compile.

    Args:
      size: weights of the tensor.
      components: of a window.
      windows: how many.
    """
    if size < _WORTH_IT:
        return 0
    most = min(64 * components, 2048 if size < 1 << 20 else 4096) // min(windows, 2)
    budget = min(most, size // (4 * windows))
    return 1 << int(math.log2(budget)) if budget >= 128 else 0


def make(grid: Grid, mixture: Mixture, values: jax.Array, temperature: jax.Array) -> Table:
    """Make the tables of T slices.

    Args:
      grid: their cells.
      mixture: their mixtures, [T, W, K].
      values: [T, V, W, K].
      temperature: of the responsibilities, scalar.
    """
    reach, excess = _reach(values)
    # All that is left out has a responsibility below the tolerance, together, or as much below
    # that as its value is beyond the reach.
    margins = temperature * (math.log(mixture.means.shape[-1] / TOLERANCE) + jnp.log(excess))
    rounding = 8 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values), axis=-1)
    allowed = jnp.moveaxis(TOLERANCE * reach + rounding, 1, 2)  # [T, W, V]

    def of_window(
        mixture: Mixture,
        values: jax.Array,
        unit: jax.Array,
        edges: jax.Array,
        stretch: jax.Array,
        means: jax.Array,
        places: tuple[jax.Array, jax.Array],
        allowed: jax.Array,
        margins: jax.Array,
    ) -> tuple[Cubics, Pairs]:
        at = edges, stretch, means, places
        smooth = cubics.make(*at, mixture, values, temperature, allowed)
        return smooth, pairs.find(edges, unit, mixture, values, margins)

    means = jnp.clip(mixture.means, grid.edges[..., :1], grid.edges[..., -1:])
    parts = grid.edges, grid.stretch, means, places_of(grid, means), allowed, margins
    return Table(grid, *by_window(of_window, mixture, values, grid.scale, *parts))


def _reach(values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find how far the values of most of a window's components are apart.

    One that is far from the others must not make all that happens among them look small.

    Args:
      values: [T, V, W, K].

    Returns:
      reach: [T, V, W], the range, or eight median absolute deviations, if that is less: 5.4
      deviations of a normal distribution.
      excess: [T, W, K], by how much a component is beyond it in any of its values; at least 1.
    """
    off = jnp.abs(values - jnp.median(values, axis=-1, keepdims=True))
    whole = jnp.max(values, axis=-1) - jnp.min(values, axis=-1)
    reach = jnp.minimum(whole, 8 * jnp.median(off, axis=-1))
    least = jnp.finfo(values.dtype).tiny
    excess = off / jnp.maximum(reach, least)[..., None]
    return reach, jnp.clip(jnp.max(excess, axis=1), 1, 1 / jnp.finfo(values.dtype).eps)


def kind_for(lookup: Lookup, kind: jax.Array, loc: jax.Array) -> jax.Array:
    """Return a slice's kind, given that of its table: bad cells may have no weights. int32."""

    def look() -> jax.Array:
        choice = read(lookup, lookup.entries.shape[0] - 1, locate(lookup, loc))
        return jnp.where(jnp.any(choice == _BAD), NONE, MIXED).astype(jnp.int32)

    return jax.lax.cond(kind == NONE, look, lambda: kind)


def average(lookup: Lookup, kind: int, temperature: jax.Array, loc: jax.Array) -> Averages:
    """Look up V averages and V slopes of a slice's weights, shaped as they are.

    Args:
      lookup: of the slice.
      kind: CUBIC, PAIR or MIXED.
      temperature: that the table was made for.
      loc: its weights.
    """
    place, count = locate(lookup, loc), _values(lookup)
    if kind == CUBIC:
        return cubics.average(lookup, count, place)
    exact = pairs.average(lookup, 4 * count, count, temperature, loc, place)
    if kind == PAIR:
        return exact
    smooth = cubics.average(lookup, count, place)
    by_pair = _by_pair(lookup, place)
    return jax.tree.map(lambda a, b: jnp.where(by_pair, a, b), exact, smooth)


def collect(
    lookup: Lookup, kind: int, temperature: jax.Array, loc: jax.Array, cotangents: list[jax.Array]
) -> Collected:
    """Collect cotangents of a slice's V averages by cell; arguments are those of `average`."""
    place, rows = locate(lookup, loc), 4 * len(cotangents)
    if kind == CUBIC:
        bins = cubics.collect_bins(lookup, place, cotangents)
        return no_cotangents(lookup)._replace(bins=bins)
    if kind == PAIR:
        sums = pairs.collect_sums(lookup, rows, temperature, loc, place, cotangents)
        return no_cotangents(lookup)._replace(sums=sums)
    by_pair = _by_pair(lookup, place)
    through_cubics = [jnp.where(by_pair, 0, g) for g in cotangents]
    through_pairs = [jnp.where(by_pair, g, 0) for g in cotangents]
    return Collected(
        cubics.collect_bins(lookup, place, through_cubics),
        pairs.collect_sums(lookup, rows, temperature, loc, place, through_pairs),
    )


def no_cotangents(lookup: Lookup) -> Collected:
    """Return what is collected from no weights."""
    dtype, values = lookup.entries.dtype, _values(lookup)
    zero = jnp.zeros(lookup.cells, dtype)
    sums = pairs.Sums((zero,) * 3, ((zero, zero),) * values, jnp.zeros((), dtype))
    return Collected((jnp.zeros((*lookup.cells, cubics.BINS), dtype),) * values, sums)


def _values(lookup: Lookup) -> int:
    """Count the values: each has 4 rows of cubics and 2 of pairs; 5 rows are for all."""
    return (lookup.entries.shape[0] - 5) // 6


def _by_pair(lookup: Lookup, place: Place) -> jax.Array:
    return read(lookup, lookup.entries.shape[0] - 1, place) == _BY_PAIR


def pull(
    table: Table, mixture: Mixture, values: jax.Array, temperature: jax.Array, collected: Collected
) -> Pulled:
    """Pull what was collected from T slices back to what the weights of each share.

    Args:
      table, mixture, values, temperature: as for `make`.
      collected: stacked, arrays are [T, ...].

    Returns:
      Gradients of [T, W, K], [T, V, W, K] and [T].
    """

    def of_window(
        mixture: Mixture,
        values: jax.Array,
        unit: jax.Array,
        curves: Cubics,
        two: Pairs,
        collected: Collected,
    ) -> Pulled:
        smooth = cubics.pull(curves, mixture, values, temperature, collected.bins)
        d_mixture, d_values = pairs.pull(two, unit, mixture, collected.sums)
        return smooth._replace(
            mixture=jax.tree.map(jnp.add, smooth.mixture, d_mixture),
            values=smooth.values + d_values,
        )

    by_pair = collected.sums.temperature
    none = jnp.zeros(table.grid.per.shape, by_pair.dtype)
    collected = collected._replace(sums=collected.sums._replace(temperature=none))
    parts = table.cubics, table.pairs, collected
    found = by_window(of_window, mixture, values, table.grid.scale, *parts)
    means, log_scales, logits = (x[:, :, 0] for x in found.mixture[:-1])
    return Pulled(
        Mixture(means, log_scales, logits, jnp.zeros_like(mixture.boundaries)),
        jnp.moveaxis(found.values[..., 0, :], 1, 2),
        jnp.sum(found.temperature, axis=1) + by_pair,
        jnp.zeros_like(by_pair),
    )


def by_window(
    function: Callable[..., Any],
    mixture: Mixture,
    values: jax.Array,
    of_slice: jax.Array,
    *of_window: Any,
) -> Any:
    """Apply function(mixture, values, of_slice, *of_window) to every window alone.

    Args:
      function: takes [1, K], [V, 1, K], and the entries of the rest.
      mixture, values: of T slices.
      of_slice: [T].
      *of_window: trees of arrays [T, W, ...].

    Returns:
      What the function returned, stacked: [T, W, ...].
    """

    def alone(
        rows: tuple[jax.Array, ...], values: jax.Array, of_slice: jax.Array, of_window: Any
    ) -> Any:
        means, log_scales, logits = (row[None] for row in rows)
        one = Mixture(means, log_scales, logits, jnp.zeros(0, values.dtype))
        return function(one, values[:, None], of_slice, *of_window)

    windows = jax.vmap(alone, in_axes=(0, 0, None, 0))
    return jax.vmap(windows)(mixture[:-1], jnp.moveaxis(values, 1, 2), of_slice, of_window)
