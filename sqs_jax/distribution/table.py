"""The same averages from a table: linear interpolation between points that are evaluated exactly.

All that a weight needs of its mixture is a function of one number. Where gathers are cheap (a
CPU) a look-up costs a few passes over the weights whatever K is. An upper bound of the error is
computed first: it says where the points must lie, and where no table will do (very sharp
components, very low temperatures), so that the caller evaluates exactly.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.blocks import blockwise
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.windows import pick, window_index

# Bound of the interpolation error, as a fraction of the range of the values.
TOLERANCE = 1e-3

# A component this many temperatures (nats) below the best has a responsibility below 2e-7.
_NEGLIGIBLE = 16.0

# A window has at most so many cells; the bound is computed, and intervals are given out, per cell.
_CELLS = 2048

# A gradient is gathered in so many bins per interval before it goes to the interval's two points.
_BINS = 4


class Layout(NamedTuple):
    """Where a table's points lie: each window is cut into C equal cells, a cell into intervals."""

    low: jax.Array  # [W], where the window begins
    width: jax.Array  # [W], of the window
    first: jax.Array  # [W, C], a cell's first interval
    size: jax.Array  # [W, C], its number of intervals, >= 1


class Plan(NamedTuple):
    """Two tables for the same weights, and bounds of their error, fractions of the values' range.

    In the even one all intervals are equal, which costs less. The other one is fitted: fair to
    heavy tails, and to the narrow steps of low temperatures.
    """

    fitted: Layout
    fitted_error: jax.Array
    even_error: jax.Array


def intervals(size: int, components: int, windows: int) -> int:
    """Return how many intervals a window's table has for a tensor of `size` weights; 0 for none.

    A table is to cost little beside the tensor, in time and in space.
    """
    budget = min(size // 8, 4 * size // components, (1 << 21) // components, 1 << 16) // windows
    return 1 << int(math.log2(budget)) if budget >= 256 else 0


@partial(jax.jit, static_argnames="count")
def plan(
    loc: jax.Array, mixture: Mixture, values: jax.Array, temperature: jax.Array, count: int
) -> Plan:
    """Lay out a table's points and bound the error of looking up there.

    With weights phi = softmax(l / T): f' = Cov(v, l') / T, and f'' = E[(v - Ev)(l' - El')^2] / T^2
    + Cov(v, l'') / T. So |f'| <= R(v) R(l') / 4T and |f''| <= R(v) (R(l')^2 / T^2 + R(l'') / T) / 4
    with R the range over the components that matter in a cell; linear interpolation errs by at
    most h^2 / 8 of the second, and rounding by 2^-23 of the window's width times the first.

    Args:
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      values: [V, W, K].
      temperature: scalar, > 0.
      count: intervals of each window, see `intervals`; the even table has a quarter of them.

    Returns:
      The plan. It receives no gradient.
    """
    loc, mixture, values, temperature = jax.lax.stop_gradient((loc, mixture, values, temperature))
    low, width = _extent(loc, mixture)
    cells = min(_CELLS, count // 4)
    logs = jax.nn.log_softmax(mixture.mixture_logits, axis=-1)[:, None]
    mean, scale = mixture.means[:, None], jnp.exp(mixture.log_scales)[:, None]  # [W, 1, K]
    edges = jnp.arange(cells + 1, dtype=loc.dtype)[None] / cells
    edges = low[:, None] + edges * width[:, None]
    start, stop = edges[:, :-1, None], edges[:, 1:, None]  # [W, C, 1]

    def joint(x: jax.Array) -> jax.Array:
        z = (x - mean) / scale
        return logs - jnp.log(scale) - 0.5 * z * z

    best = jnp.max(jnp.minimum(joint(start), joint(stop)), axis=-1, keepdims=True)
    matters = joint(jnp.clip(mean, start, stop)) >= best - _NEGLIGIBLE * temperature

    def spread(x: jax.Array) -> jax.Array:
        high = jnp.max(jnp.where(matters, x, -jnp.inf), axis=-1)
        return high - jnp.min(jnp.where(matters, x, jnp.inf), axis=-1)

    # in units of the window's width, so that weights of any size neither overflow nor vanish
    tiny = jnp.finfo(loc.dtype).tiny
    unit = jnp.maximum(width, tiny)[:, None, None]
    rates = [spread((mean - x) / scale * (unit / scale)) for x in (start, stop)]
    rate = jnp.maximum(*rates) / temperature  # [W, C]
    bend = rate**2 + spread(-((unit / scale) ** 2)) / temperature
    share = jnp.zeros_like(rate)  # of the values' range
    for value in values:
        reach = jnp.maximum(jnp.max(value) - jnp.min(value), tiny)
        share = jnp.maximum(share, spread(value[:, None]) / reach)
    square, rounding = bend * share / 32, 2.0**-25 * rate * share

    # errors fall as the square of the intervals: these make them equal
    need = jnp.sqrt(square)
    spare = (count - cells) / jnp.maximum(jnp.sum(need, axis=-1, keepdims=True), tiny)
    size = jnp.minimum(1 + jnp.floor(need * spare), count)  # a need may be infinite
    return Plan(
        Layout(low, width, jnp.cumsum(size, axis=-1) - size, size),
        jnp.max(square / (cells * size) ** 2 + rounding),
        jnp.max(square / (count // 4) ** 2 + rounding),
    )


@partial(jax.jit, static_argnames=("count", "even"))
def look_up(
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    *,
    plan: Plan,
    count: int,
    even: bool,
) -> tuple[jax.Array, ...]:
    """Average values of the components, each weight by its responsibilities, from a table.

    Args:
      loc, mixture, values, temperature, count: as for `plan`.
      plan: from `plan`.
      even: which of its two tables.

    Returns:
      V arrays shaped as `loc`. Differentiable as `components.mix` is: the weights' gradient is
      interpolated between exact derivatives, everything else's is gathered at the points.
    """
    layout = plan.fitted
    if even:  # a cell for every interval
        count //= 4
        shape = (*layout.low.shape, count)
        first = jax.lax.broadcasted_iota(loc.dtype, shape, 1)
        layout = layout._replace(first=first, size=jnp.ones(shape, loc.dtype))
    cells = layout.size.shape[-1]
    point = jnp.arange(count + 2, dtype=loc.dtype)

    def fractions(first: jax.Array, size: jax.Array) -> jax.Array:
        """Return where the points lie in a window, [count + 2]; those left over at its end."""
        repeats = size.astype(jnp.int32)
        cell = jnp.repeat(jnp.arange(cells), repeats, total_repeat_length=count + 2)
        part = (point - first[cell]) / size[cell]
        return jnp.minimum((cell.astype(loc.dtype) + part) / cells, 1)

    at = point[None] / count if even else jax.vmap(fractions)(layout.first, layout.size)
    at = at * layout.width[:, None] + layout.low[:, None]
    table, slope = _tabulate(at, mixture, values, temperature, loc.size)
    return _interpolate(loc, layout, mixture.boundaries, table, jax.lax.stop_gradient(slope))


def _extent(loc: jax.Array, mixture: Mixture) -> tuple[jax.Array, jax.Array]:
    """Return where each window's weights begin, and how wide they lie; [W] each."""
    low, high = jnp.min(loc), jnp.max(loc)
    inner = jnp.clip(mixture.boundaries, low, high)
    edges = jnp.concatenate([low[None], inner, high[None]])
    return edges[:-1], edges[1:] - edges[:-1]


def _tabulate(
    at: jax.Array, mixture: Mixture, values: jax.Array, temperature: jax.Array, size: int
) -> tuple[jax.Array, jax.Array]:
    """Evaluate averages and their derivatives at points [W, P]; both [V, W, P].

    `size` is that of the tensor: a few blocks that are small beside it use all cores.
    """
    elements = max(1 << 16, size // 8 + 4 * mixture.means.shape[-1])

    def of_window(
        at: jax.Array, means: jax.Array, log_scales: jax.Array, logits: jax.Array, values: jax.Array
    ) -> jax.Array:
        scales, logs = jnp.exp(log_scales)[None], jax.nn.log_softmax(logits) - log_scales

        def of_block(block: jax.Array, _: jax.Array) -> jax.Array:
            z = (block[:, None] - means[None]) / scales  # [B, K]
            phi = jax.nn.softmax((logs[None] - 0.5 * z * z) / temperature, axis=-1)
            rate = -z / (scales * temperature)  # of each logit
            pull = phi * (rate - jnp.sum(phi * rate, axis=-1, keepdims=True))
            product = partial(jnp.einsum, "vk,bk->vb", precision=jax.lax.Precision.HIGHEST)
            averages, slopes = product(values, phi), product(values, pull)
            return jnp.concatenate([averages, jax.lax.stop_gradient(slopes)])

        return blockwise(of_block, at, means.shape[0], elements=elements)  # [2 V, P]

    both = jax.vmap(of_window, in_axes=(0, 0, 0, 0, 1), out_axes=1)(
        at, mixture.means, mixture.log_scales, mixture.mixture_logits, values
    )
    return both[: values.shape[0]], both[values.shape[0] :]


@jax.custom_vjp
def _interpolate(
    loc: jax.Array, layout: Layout, boundaries: jax.Array, table: jax.Array, slope: jax.Array
) -> tuple[jax.Array, ...]:
    index, part = _locate(loc, layout, boundaries, table.shape[-1])
    return tuple(_between(row, index, part) for row in table)


def _forward(*inputs: Any) -> tuple[tuple[jax.Array, ...], Any]:
    return _interpolate(*inputs), inputs


def _backward(inputs: Any, cotangents: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    loc, layout, boundaries, table, slope = inputs
    index, part = _locate(loc, layout, boundaries, table.shape[-1])
    slopes = (_between(row, index, part) for row in slope)
    d_loc = sum(g * rate for g, rate in zip(cotangents, slopes, strict=True))
    bins = index * _BINS + (part * _BINS).astype(jnp.int32)
    d_table = jnp.stack([_to_points(g, bins, slope[0].size) for g in cotangents])
    return d_loc, None, None, d_table.reshape(slope.shape), None


_interpolate.defvjp(_forward, _backward)


def _to_points(g: jax.Array, bins: jax.Array, points: int) -> jax.Array:
    """Add each weight's number to the two points about it, by its place between them; [points]."""
    sums = jnp.zeros(points * _BINS, g.dtype).at[bins].add(g, mode="promise_in_bounds")
    sums = sums.reshape(points, _BINS)
    place = (jnp.arange(_BINS, dtype=g.dtype) + 0.5) / _BINS
    right = sums @ place
    return jnp.sum(sums, axis=-1) - right + jnp.roll(right, 1)  # nothing is beyond the last point


def _locate(
    loc: jax.Array, layout: Layout, boundaries: jax.Array, points: int
) -> tuple[jax.Array, jax.Array]:
    """Find each weight's interval in the windows' tables end to end, and its place in it."""
    windows, cells = layout.size.shape
    window = window_index(loc, boundaries) if windows > 1 else None
    per = jnp.where(layout.width > 0, cells / layout.width, 0)  # 0: one value, at the first point
    place = (loc - pick(layout.low, window)) * pick(per, window)
    cell = jnp.clip(place, 0, cells - 1).astype(jnp.int32)
    place = place - cell.astype(loc.dtype)
    if cells + 2 < points:  # else a cell is an interval
        at = cell if window is None else cell + window * cells
        place = place * _read(layout.size, at)
        whole = jnp.floor(place)
        cell = (_read(layout.first, at) + whole).astype(jnp.int32)
        place = place - whole
    # place 1, the very end of a window, stays in its interval
    place = jnp.minimum(place, 1 - jnp.finfo(loc.dtype).epsneg)
    return cell if window is None else cell + window * points, place


def _read(table: jax.Array, index: jax.Array) -> jax.Array:
    return table.reshape(-1).at[index].get(mode="promise_in_bounds")


def _between(row: jax.Array, index: jax.Array, part: jax.Array) -> jax.Array:
    left = _read(row, index)
    return left + part * (_read(row, index + 1) - left)
