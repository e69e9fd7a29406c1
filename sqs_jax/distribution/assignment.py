"""Which component each weight has: the most probable one, or one drawn; and sums by component."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import components, groups, pairs
from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.cells import Lookup, locate, read
from sqs_jax.distribution.components import Logits
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.pairs import Pairs
from sqs_jax.distribution.table import by_window

# What rounding may make of a difference of log joint probabilities, nats.
_ROUNDING = 0.01


class Candidates(NamedTuple):
    """The two most probable components of every cell of a tensor, for look-ups on CPUs.

    Attributes:
      lookup: entries are `Pairs.rows` and the numbers of the two; arrays have the stacked axes.
      enough: whether no third component is the most probable one anywhere; bool, one per slice.
    """

    lookup: Lookup
    enough: jax.Array


def candidates(locs: Sequence[jax.Array], mixtures: Sequence[Mixture]) -> list[Candidates | None]:
    """Find what `most_probable` looks up; None for tensors that are too small for it.

    Args:
      locs: weights, [*S, *shape] each, of their mixture's dtype.
      mixtures: of the tensors, [*S, W, K] each.
    """

    def of_window(mixture: Mixture, values: jax.Array, unit: jax.Array, edges: jax.Array) -> Pairs:
        return pairs.find(edges, unit, mixture, values, jnp.full_like(mixture.means[0], _ROUNDING))

    def find() -> list[Candidates | None]:
        found: list[Candidates | None] = [None] * len(locs)
        for each in groups.group(locs, mixtures):
            grid = groups.grid(each, locs, mixtures)
            mixture = groups.stack(each, mixtures, mixtures)
            no_values = mixture.means[:, None][:, :0]
            two = by_window(of_window, mixture, no_values, grid.scale, grid.edges)
            rows = [*two.rows, *(x.astype(grid.edges.dtype) for x in (two.first, two.second))]
            lookup = Lookup(jnp.stack(rows, axis=1), grid.numbers, mixture.boundaries)
            parts = Candidates(lookup, jnp.all(two.enough, axis=(1, 2)))
            for i, one in zip(each.members, groups.unstack(each, parts, mixtures), strict=True):
                found[i] = one
        return found

    def unused() -> list[Candidates | None]:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(find))

    return jax.lax.platform_dependent(cpu=find, default=unused)


@partial(jax.jit, static_argnames="use")
def with_most_probable(
    use: Callable[..., tuple[Any, Any]],
    loc: jax.Array,
    mixture: Mixture,
    found: Candidates | None,
    *arrays: jax.Array,
) -> tuple[Any, Any]:
    """Find the most probable component of each weight, and use it at once, slice by slice.

    Args:
      use: (mixture, component, *arrays), all of one slice or of a block of it -> (tree of arrays
        shaped as the component, tree of sums); hashable.
      loc, mixture: of a tensor.
      found: its `candidates`.
      *arrays: shaped as the weights.

    Returns:
      What it returned. A component is window * K + k, int32; ties go to the lower one, where
      rounding leaves them ties.
    """

    def highest(
        mixture: Mixture, at_once: bool, _: jax.Array, loc: jax.Array, *arrays: jax.Array
    ) -> Any:
        logits = Logits.at(loc, mixture, 1.0, at_once=at_once)
        return use(mixture, components.highest(logits), *arrays)

    def of_slice(
        loc: jax.Array, mixture: Mixture, found: Candidates | None, *arrays: jax.Array
    ) -> tuple[Any, Any]:
        def in_blocks() -> Any:
            return over_blocks(partial(highest, mixture, False), loc, *arrays)

        def look_up(lookup: Lookup) -> Any:
            place = locate(lookup, loc)
            log_odds, _ = pairs.joint(lookup, 0, loc, place)
            first, second = (read(lookup, row, place) for row in (4, 5))
            best = jnp.where(log_odds >= 0, first, second).astype(jnp.int32)
            windows, count = lookup.cells
            if windows > 1:
                best = best + place.cell // count * mixture.means.shape[-1]
            return use(mixture, best, *arrays)

        if found is None:
            return in_blocks()
        return jax.lax.cond(found.enough, partial(look_up, found.lookup), in_blocks)

    def on_cpu() -> Any:
        return groups.per_slice(of_slice, mixture, loc, mixture, found, *arrays)

    def elsewhere() -> Any:
        small = groups.small(mixture, loc)

        def one(loc: jax.Array, mixture: Mixture, *arrays: jax.Array) -> Any:
            return whole(partial(highest, mixture, small), loc, *arrays)

        return groups.per_slice(one, mixture, loc, mixture, *arrays, at_once=small)

    return jax.lax.platform_dependent(cpu=on_cpu, default=elsewhere)


def most_probable(loc: jax.Array, mixture: Mixture, found: Candidates | None) -> jax.Array:
    """Return the most probable component of each weight, shaped as `loc`: `with_most_probable`."""
    return with_most_probable(_itself, loc, mixture, found)[0]


def _itself(_: Mixture, component: jax.Array) -> tuple[jax.Array, None]:
    return component, None


def levels(mixture: Mixture, component: jax.Array, loc: jax.Array, kept: jax.Array) -> jax.Array:
    """Look components (window * K + k) up in the codebook; pruned weights are exactly 0.

    Args:
      mixture: of a tensor.
      component, kept: shaped as the weights.
      loc: the weights, whose dtype the levels get.
    """
    level = mixture.means.reshape(-1).at[component].get(mode="promise_in_bounds")
    return jnp.where(kept, level, 0.0).astype(loc.dtype)


def draw_component(
    key: jax.Array, loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Draw a component of each weight with the probabilities phi.

    Args:
      key: PRNG key.
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.

    Returns:
      int32 shaped as `loc`: window * K + component.
    """
    loc, mixture = jax.lax.stop_gradient((loc, mixture))
    return components.highest(Logits.at(loc, mixture, temperature, key=key))


@partial(jax.jit, static_argnames="count")
def sum_by_component(x: jax.Array, component: jax.Array, count: int) -> jax.Array:
    """Sum x over the weights of each component.

    Args:
      x: floating, any shape.
      component: int32 in [0, count), shaped as `x`; what lies outside is not counted.
      count: windows * components.

    Returns:
      [count].
    """

    def scatter() -> jax.Array:
        # In buckets: one running float32 sum would stop growing at some ten million terms.
        buckets = max(1, min(64, (1 << 18) // count))
        axis = max(range(x.ndim), key=lambda i: x.shape[i], default=0)
        bucket = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) % buckets if x.ndim else 0
        inside = (component >= 0) & (component < count)
        index = jnp.where(inside, bucket * count + component, buckets * count)
        sums = jnp.zeros(buckets * count, x.dtype)
        sums = sums.at[index].add(x, mode="drop", wrap_negative_indices=False)
        return jnp.sum(sums.reshape(buckets, count), axis=0)

    def one_by_one() -> jax.Array:
        # Accelerators would queue up at the few sums of a scatter.
        def of(k: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(component == k, x, 0))

        every = jnp.arange(count, dtype=jnp.int32)
        small = x.size * count <= groups.AT_ONCE
        return jax.vmap(of)(every) if small else jax.lax.map(of, every)

    return jax.lax.platform_dependent(cpu=scatter, default=one_by_one)
