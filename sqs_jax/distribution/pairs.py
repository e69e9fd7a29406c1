"""Averages exact between two components, where no third one matters anywhere in a cell.

Steps from one component to the next get steep at low temperatures, and at the limit there are two
values: the most probable component is this too. What finds the pairs, and pulls gradients back from
them, is written for one window.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import components
from sqs_jax.distribution.cells import Lookup, Place, apart, collect, polynomial, read
from sqs_jax.distribution.components import Averages, Logits
from sqs_jax.distribution.mixture import Mixture


class Pairs(NamedTuple):
    """The two most probable components of each cell of a window; arrays are [C].

    Attributes:
      first, second: their numbers, int32, first <= second.
      centre: weight about which the quadratic is written: the narrower one's mean, if that is
        inside, so that no needle is lost to rounding.
      quadratic: c0 + c1 t + c2 t^2 is the log joint probability of the first less that of the
        second; t is the distance from the centre, in units of the grid's scale.
      enough: whether no third component matters anywhere in the cell.
      values: V tuples of two, what the first component has and the second.
    """

    first: jax.Array
    second: jax.Array
    centre: jax.Array
    quadratic: tuple[jax.Array, ...]
    enough: jax.Array
    values: tuple[tuple[jax.Array, jax.Array], ...]

    @property
    def rows(self) -> list[jax.Array]:
        """What weights look up: centre, quadratic, and two entries for each value."""
        return [self.centre, *self.quadratic, *(x for both in self.values for x in both)]


class Sums(NamedTuple):
    """Cotangents collected over the weights of each cell; arrays are [C].

    Attributes:
      moments: of the cotangent of the quadratic, with powers 0, 1 and 2 of t.
      shares: of the V averages' cotangents, what goes to the first component and to the second.
      temperature: the cotangent of the temperature, of all cells together; scalar.
    """

    moments: tuple[jax.Array, ...]
    shares: tuple[tuple[jax.Array, jax.Array], ...]
    temperature: jax.Array


def find(
    edges: jax.Array,
    unit: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    margins: jax.Array,
) -> Pairs:
    """Find the two most probable components of each cell of a window.

    A component matters if somewhere in the cell its log joint probability comes within its margin
    of what the most probable one exceeds everywhere in the cell.

    Args:
      edges: [C + 1], of the cells.
      unit: of distances, the grid's scale.
      mixture: of this window alone, [1, K].
      values: of its components, [V, 1, K].
      margins: nats, > 0, [K].
    """
    start, stop = edges[:-1], edges[1:]
    left, right = (Logits.at(x, mixture, 1.0) for x in (start, stop))
    rows = left.rows(margins[None, None])

    def least(bound: jax.Array, row: components.Row) -> tuple[jax.Array, None]:
        # a joint is concave: least at an end
        return jnp.maximum(bound, jnp.minimum(left.of(row).joint, right.of(row).joint)), None

    def rank(ranked: Any, row: components.Row) -> tuple[Any, None]:
        best, first, next_best, second, matter = ranked
        most = left._replace(loc=jnp.clip(row.mean, start, stop)).of(row).joint
        wins, follows = most > best, most > next_best
        second = jnp.where(wins, first, jnp.where(follows, row.number, second))
        next_best = jnp.where(wins, best, jnp.where(follows, most, next_best))
        first, best = jnp.where(wins, row.number, first), jnp.maximum(most, best)
        matter += (most + row.values[0] >= bound).astype(jnp.int32)
        return (best, first, next_best, second, matter), None

    lowest, none = jnp.full_like(start, -jnp.inf), jnp.zeros_like(start, jnp.int32)
    bound, _ = jax.lax.scan(least, lowest, rows)
    (_, best, _, other, matter), _ = jax.lax.scan(rank, (lowest, none, lowest, none, none), rows)
    first, second = jnp.minimum(best, other), jnp.maximum(best, other)

    means, scales = mixture.means[0], jnp.exp(mixture.log_scales[0])
    heights = jax.nn.log_softmax(mixture.mixture_logits[0]) - mixture.log_scales[0]
    narrower = jnp.where(scales[first] <= scales[second], first, second)
    centre = jnp.clip(means[narrower], start, stop)

    def about(which: jax.Array) -> tuple[jax.Array, ...]:
        z, rate = (centre - means[which]) / scales[which], unit / scales[which]
        return heights[which] - 0.5 * z * z, -z * rate, -0.5 * rate * rate

    quadratic = tuple(a - b for a, b in zip(about(first), about(second), strict=True))
    finite = jnp.all(jnp.isfinite(jnp.stack(quadratic)), axis=0)
    quadratic = tuple(jnp.where(finite, c, 0) for c in quadratic)
    of_pairs = tuple((value[0, first], value[0, second]) for value in values)
    return Pairs(first, second, centre, quadratic, finite & (matter <= 2), of_pairs)


def joint(
    lookup: Lookup, first_row: int, loc: jax.Array, place: Place
) -> tuple[jax.Array, jax.Array]:
    """Look the quadratic up at each weight, and the weight's distance from the centre."""
    centre, *quadratic = (read(lookup, first_row + i, place) for i in range(4))
    from_centre = (loc - centre) * lookup.numbers[1]  # exact to rounding, unlike place.within
    return polynomial(quadratic, from_centre), from_centre


def average(
    lookup: Lookup,
    first_row: int,
    count: int,
    temperature: jax.Array,
    loc: jax.Array,
    place: Place,
) -> Averages:
    """Look up averages and slopes, shaped as the weights, of `count` values.

    Args:
      lookup: has `Pairs.rows` in the rows from `first_row`.
      first_row, count: see there.
      temperature: of the responsibilities.
      loc: the weights.
      place: where they are.
    """
    averages, slopes = [], []
    log_odds, _ = joint(lookup, first_row, loc, place)
    share = jax.nn.sigmoid(log_odds / temperature)
    for v in range(count):
        first, second = _both(lookup, first_row, v, place)
        averages.append(second + share * (first - second))

    place = apart(place)
    log_odds, from_centre = joint(lookup, first_row, loc, place)
    linear, square = (read(lookup, first_row + i, place) for i in (2, 3))
    steepness = linear + 2 * from_centre * square
    rate = jax.nn.sigmoid(log_odds / temperature) * jax.nn.sigmoid(-log_odds / temperature)
    for v in range(count):
        first, second = _both(lookup, first_row, v, place)
        slopes.append(lookup.numbers[1] / temperature * steepness * rate * (first - second))
    return Averages(None, tuple(averages), tuple(slopes))


def _both(lookup: Lookup, first_row: int, value: int, place: Place) -> tuple[jax.Array, jax.Array]:
    """Read a value of the first component and of the second."""
    row = first_row + 4 + 2 * value
    return read(lookup, row, place), read(lookup, row + 1, place)


def collect_sums(
    lookup: Lookup,
    first_row: int,
    temperature: jax.Array,
    loc: jax.Array,
    place: Place,
    cotangents: list[jax.Array],
) -> Sums:
    """Collect cotangents of the averages; arrays are [W, C]."""
    log_odds, from_centre = joint(lookup, first_row, loc, place)
    share = jax.nn.sigmoid(log_odds / temperature)
    lift = jnp.zeros_like(loc)
    for v, g in enumerate(cotangents):
        first, second = _both(lookup, first_row, v, place)
        lift += g * (first - second)
    d_joint = lift * share * (1 - share) / temperature

    def by_cell(x: jax.Array) -> jax.Array:
        windows, count = lookup.cells
        return collect(x, place.cell, windows * count).reshape(windows, count)

    return Sums(
        tuple(by_cell(x) for x in (d_joint, d_joint * from_centre, d_joint * from_centre**2)),
        tuple((by_cell(g * share), by_cell(g * (1 - share))) for g in cotangents),
        -jnp.sum(d_joint * log_odds) / temperature,
    )


def pull(pairs: Pairs, unit: jax.Array, mixture: Mixture, sums: Sums) -> tuple[Mixture, jax.Array]:
    """Pull collected cotangents of a window back to its mixture, and to its values, [V, 1, K].

    Moments about a cell's centre give those about the means of its two components.
    """
    means, scales = mixture.means[0], jnp.exp(mixture.log_scales[0])
    zeroth, first, second = sums.moments

    def about(which: jax.Array) -> tuple[jax.Array, ...]:
        z, rate = (pairs.centre - means[which]) / scales[which], unit / scales[which]
        square = z * z * zeroth + 2 * z * rate * first + rate * rate * second
        return zeroth, z * zeroth + rate * first, square

    def by_component(a: jax.Array, b: jax.Array) -> jax.Array:
        """Add up what the cells have for their first and second component; [1, K]."""
        sums = jnp.zeros(means.shape, a.dtype).at[pairs.first].add(a)
        return sums.at[pairs.second].add(b)[None]

    both = zip(about(pairs.first), about(pairs.second), strict=True)
    d_mixture = components.gradient_of(mixture, *(by_component(a, -b) for a, b in both))
    return d_mixture, jnp.stack([by_component(a, b) for a, b in sums.shares])
