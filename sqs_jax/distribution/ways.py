"""The ways to average over the components, and which one a tensor is given.

On CPUs averages are looked up in tables, if the tensor is large enough for one and the table good
enough for its mixture; else they are exact, block by block. On accelerators they are exact, in the
tensor's own shape: of small tensors for all components at once, else in a loop over them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import components, groups, table
from sqs_jax.distribution.alike import alike, stack, widen, widen_values
from sqs_jax.distribution.blocks import at_once, over_blocks, whole
from sqs_jax.distribution.cells import Lookup
from sqs_jax.distribution.components import Averages, Logits, Pulled
from sqs_jax.distribution.groups import Group
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.table import CUBIC, MIXED, NONE, PAIR, Collected, Table

Evaluation = Literal["auto", "table", "loop"]

EVALUATIONS = ("auto", "table", "loop")


class Inputs(NamedTuple):
    """What the averages of a tensor depend on; S are its stacked axes.

    Attributes:
      loc: weights, [*S, *shape].
      gates: inclusion logits, shaped as `loc`.
      kept: bool, shaped as `loc`.
      mixture: [*S, W, K] each, of at least float32.
      values: [*S, V, W, K], what is averaged.
    """

    loc: jax.Array
    gates: jax.Array
    kept: jax.Array
    mixture: Mixture
    values: jax.Array


class Shared(NamedTuple):
    """Cotangents of what a slice's weights share: collected for a table, or pulled back already."""

    collected: Collected | None
    pulled: Pulled


class Way(NamedTuple):
    """A way to average, of one slice.

    Attributes:
      average: (weights, whether slopes are wanted) -> Averages.
      collect: (weights, their Averages, cotangents of the averages) -> Shared.
    """

    average: Callable[[jax.Array, bool], Averages]
    collect: Callable[[jax.Array, Averages, list[jax.Array]], Shared]


Over = Callable[..., tuple[Any, Any]]  # of blocks.py

# What is done with one slice of a tensor: (way, over, inputs, *arrays) -> tree. Hashable, so that
# it is traced once for all tensors of one shape.
Run = Callable[..., Any]


class Tables(NamedTuple):
    """Tables of all tensors.

    Attributes:
      by_group: of each group.
      lookups: what each tensor's weights look up, and the kinds of its slices, int32, with its
        stacked axes; None for a tensor without a table.
    """

    by_group: list[Table]
    lookups: list[tuple[Lookup, jax.Array] | None]


def forward(
    runs: Sequence[Run], tensors: Sequence[Inputs], temperature: jax.Array, evaluation: Evaluation
) -> tuple[list[Any], Tables | None]:
    """Run a function for every tensor, slice by slice.

    Args:
      runs: a function for each tensor.
      tensors: what they are given.
      temperature: of the responsibilities.
      evaluation: how averages are found.

    Returns:
      (what the functions returned, the tables that `backward` uses again).
    """

    def on_cpu() -> tuple[list[Any], Tables]:
        tables = _tables(tensors, temperature)
        parts = zip(runs, tables.lookups, tensors, strict=True)
        return [_on_cpu(run, known, inputs, temperature) for run, known, inputs in parts], tables

    def elsewhere() -> tuple[list[Any], Tables | None]:
        found = _all_elsewhere(runs, tensors, temperature, [()] * len(tensors))
        if evaluation == "loop":
            return found, None
        unused = jax.eval_shape(partial(_tables, tensors, temperature))
        return found, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), unused)

    return _by_platform(evaluation, on_cpu, elsewhere)


def backward(
    runs: Sequence[Run],
    tensors: Sequence[Inputs],
    temperature: jax.Array,
    evaluation: Evaluation,
    tables: Tables | None,
    arrays: Sequence[tuple[jax.Array, ...]],
) -> list[tuple[Any, Pulled | None]]:
    """Run a function for every tensor, and pull back what it collected.

    Args:
      runs: a function for each tensor, that returns (tree, Shared or None).
      tensors, temperature, evaluation: as for `forward`.
      tables: from `forward`.
      arrays: what else each function is given, with a tensor's stacked axes.

    Returns:
      For each tensor, the tree, and cotangents of what all weights share, or None.
    """

    def on_cpu() -> list[tuple[Any, Pulled | None]]:
        assert tables is not None
        parts = zip(runs, tables.lookups, tensors, arrays, strict=True)
        found = [_on_cpu(run, known, x, temperature, *more) for run, known, x, more in parts]
        trees, shared = [tree for tree, _ in found], [shared for _, shared in found]
        if any(each is None for each in shared):
            return found
        return list(zip(trees, _pull(shared, tensors, temperature, tables), strict=True))

    def elsewhere() -> list[tuple[Any, Pulled | None]]:
        found = _all_elsewhere(runs, tensors, temperature, arrays)
        return [
            (tree, None if shared is None else _narrowed(shared.pulled, inputs))
            for (tree, shared), inputs in zip(found, tensors, strict=True)
        ]

    return _by_platform(evaluation, on_cpu, elsewhere)


def _by_platform(
    evaluation: Evaluation, on_cpu: Callable[[], Any], elsewhere: Callable[[], Any]
) -> Any:
    if evaluation == "table":
        return on_cpu()
    if evaluation == "loop":
        return elsewhere()
    return jax.lax.platform_dependent(cpu=on_cpu, default=elsewhere)


@partial(jax.jit, static_argnames="run")
def _on_cpu(
    run: Run,
    known: tuple[Lookup, jax.Array] | None,
    inputs: Inputs,
    temperature: jax.Array,
    *arrays: jax.Array,
) -> Any:
    def of_slice(known: tuple[Lookup, jax.Array] | None, inputs: Inputs, *arrays: jax.Array) -> Any:
        lookup, kind = known or (None, None)
        exact = partial(run, _exact(inputs, temperature, lookup), over_blocks, inputs, *arrays)
        if lookup is None:
            return exact()
        # mixed has many results on the way: those of a block stay in a cache
        overs = {CUBIC: whole, PAIR: whole, MIXED: over_blocks}
        by_kind = [
            partial(run, _look_up(inputs, temperature, lookup, each), over, inputs, *arrays)
            for each, over in overs.items()
        ]
        return jax.lax.switch(kind, [*by_kind, exact])

    return groups.per_slice(of_slice, inputs.mixture, known, inputs, *arrays)


def _all_elsewhere(
    runs: Sequence[Run],
    tensors: Sequence[Inputs],
    temperature: jax.Array,
    arrays: Sequence[tuple[jax.Array, ...]],
) -> list[Any]:
    """Run a function for every tensor, those of one shape in one program."""
    found: list[Any] = [None] * len(tensors)
    gates = [(run, t.gates.dtype) for run, t in zip(runs, tensors, strict=True)]
    for members in alike([t.loc for t in tensors], [t.mixture for t in tensors], gates):
        run, first = runs[members[0]], members[0]
        if len(members) == 1:
            found[first] = _elsewhere(run, tensors[first], temperature, *arrays[first])
            continue
        most = max(tensors[i].mixture.means.shape[-1] for i in members)
        together = stack([(_widened(tensors[i], most), arrays[i]) for i in members])
        results = _elsewhere(run, together[0], temperature, *together[1])
        for place, i in enumerate(members):
            found[i] = jax.tree.map(lambda x: x[place], results)  # noqa: B023
    return found


def _widened(inputs: Inputs, count: int) -> Inputs:
    return inputs._replace(
        mixture=widen(inputs.mixture, count), values=widen_values(inputs.values, count)
    )


def _narrowed(pulled: Pulled, inputs: Inputs) -> Pulled:
    """Leave out what components that only fill up have been given: nothing."""
    count, mixture = inputs.mixture.means.shape[-1], pulled.mixture
    return pulled._replace(
        mixture=mixture._replace(
            means=mixture.means[..., :count],
            log_scales=mixture.log_scales[..., :count],
            mixture_logits=mixture.mixture_logits[..., :count],
        ),
        values=pulled.values[..., :count],
    )


@partial(jax.jit, static_argnames="run")
def _elsewhere(run: Run, inputs: Inputs, temperature: jax.Array, *arrays: jax.Array) -> Any:
    small = groups.small(inputs.mixture, inputs.loc)

    def of_slice(inputs: Inputs, *arrays: jax.Array) -> Any:
        way = _exact(inputs, temperature, None, at_once=small)
        return run(way, at_once if small else whole, inputs, *arrays)

    return groups.per_slice(of_slice, inputs.mixture, inputs, *arrays, at_once=small)


def _exact(
    inputs: Inputs, temperature: jax.Array, lookup: Lookup | None, *, at_once: bool = False
) -> Way:
    """Average exactly; `lookup` is the slice's, in whose place this is."""

    def at(x: jax.Array) -> Logits:
        return Logits.at(x, inputs.mixture, temperature, at_once=at_once)

    def average(x: jax.Array, slopes: bool) -> Averages:
        return components.average(at(x), inputs.values, slopes=slopes)

    def collect(x: jax.Array, averages: Averages, cotangents: list[jax.Array]) -> Shared:
        nothing = None if lookup is None else table.no_cotangents(lookup)
        return Shared(nothing, components.pull(at(x), inputs.values, averages, cotangents))

    return Way(average, collect)


def _look_up(inputs: Inputs, temperature: jax.Array, lookup: Lookup, kind: int) -> Way:
    at = temperature.astype(inputs.values.dtype)

    def average(x: jax.Array, _: bool) -> Averages:
        return table.average(lookup, kind, at, x)

    def collect(x: jax.Array, _: Averages, cotangents: list[jax.Array]) -> Shared:
        zero = jax.tree.map(jnp.zeros_like, Pulled(inputs.mixture, inputs.values, at, at))
        return Shared(table.collect(lookup, kind, at, x, cotangents), zero)

    return Way(average, collect)


def _groups(tensors: Sequence[Inputs]) -> list[Group]:
    return groups.group([t.loc for t in tensors], [t.mixture for t in tensors])


def _tables(tensors: Sequence[Inputs], temperature: jax.Array) -> Tables:
    mixtures = [t.mixture for t in tensors]
    by_group: list[Table] = []
    lookups: list[tuple[Lookup, jax.Array] | None] = [None] * len(tensors)
    for each in _groups(tensors):
        grid = groups.grid(each, [t.loc for t in tensors], mixtures)
        mixture, values = groups.stack(each, [(t.mixture, t.values) for t in tensors], mixtures)
        made = table.make(grid, mixture, values, temperature.astype(values.dtype))
        by_group.append(made)
        parts = Lookup(made.entries, grid.numbers, mixture.boundaries), made.kinds
        for i, (lookup, kind) in zip(
            each.members, groups.unstack(each, parts, mixtures), strict=True
        ):
            lookups[i] = lookup, _kinds(lookup, kind, tensors[i].mixture, tensors[i].loc)
    return Tables(by_group, lookups)


@jax.jit
def _kinds(lookup: Lookup, kind: jax.Array, mixture: Mixture, loc: jax.Array) -> jax.Array:
    latent = loc.astype(mixture.means.dtype)
    return groups.per_slice(table.kind_for, mixture, lookup, kind, latent)


def _pull(
    shared: Sequence[Shared], tensors: Sequence[Inputs], temperature: jax.Array, tables: Tables
) -> list[Pulled]:
    """Pull back what was collected: together for each group."""
    mixtures = [t.mixture for t in tensors]
    pulled = [each.pulled for each in shared]
    kinds = [None if known is None else known[1] for known in tables.lookups]
    trees = [(t.mixture, t.values, *s) for t, s in zip(tensors, shared, strict=True)]
    for each, made in zip(_groups(tensors), tables.by_group, strict=True):
        mixture, values, collected, exact = groups.stack(each, trees, mixtures)
        looked_up = table.pull(made, mixture, values, temperature.astype(values.dtype), collected)
        none = groups.stack(each, kinds, mixtures) == NONE

        def choose(a: jax.Array, b: jax.Array, none: jax.Array = none) -> jax.Array:
            return jnp.where(none.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

        both = jax.tree.map(choose, exact, looked_up)
        for i, one in zip(each.members, groups.unstack(each, both, mixtures), strict=True):
            pulled[i] = one
    return pulled
