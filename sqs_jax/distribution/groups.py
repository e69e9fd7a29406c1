"""Tensors whose tables have the same shape, so that the tables are made together.

A tensor with stacked axes counts as so many slices, each with a mixture of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution import table
from sqs_jax.distribution.cells import Grid, grid_over
from sqs_jax.distribution.mixture import Mixture

# Weights times components that an accelerator evaluates together: 64 MB of float32, several times.
AT_ONCE = 1 << 24


class Group(NamedTuple):
    """Some tensors of a list.

    Attributes:
      members: their numbers in the list.
      first: the number of each one's first slice among all slices of the group.
      cells: of each window.
    """

    members: tuple[int, ...]
    first: tuple[int, ...]
    cells: int


def group(locs: Sequence[jax.Array], mixtures: Sequence[Mixture]) -> list[Group]:
    """Group tensors; those that are too small for a table, or float64, are in no group.

    Args:
      locs: weights, [*S, *shape] each.
      mixtures: [*S, W, K] each.
    """
    members: dict[Any, list[int]] = {}
    for i, (loc, mixture) in enumerate(zip(locs, mixtures, strict=True)):
        windows, components = mixture.means.shape[-2:]
        count = table.cells(loc.size // max(slices(mixture), 1), components, windows)
        if count and mixture.means.dtype == jnp.float32:
            members.setdefault((count, windows, components), []).append(i)
    groups = []
    for (count, _, _), numbers in members.items():
        first, total = [], 0
        for i in numbers:
            first.append(total)
            total += slices(mixtures[i])
        groups.append(Group(tuple(numbers), tuple(first), count))
    return groups


def slices(mixture: Mixture) -> int:
    """Count the slices of a tensor."""
    return mixture.means.size // (mixture.means.shape[-2] * mixture.means.shape[-1])


def flatten(tree: Any, mixture: Mixture) -> Any:
    """Make one axis of the stacked axes of a tensor; without any, add it."""
    stacked, count = mixture.means.ndim - 2, slices(mixture)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[stacked:]), tree)


def unflatten(tree: Any, mixture: Mixture) -> Any:
    """Undo `flatten`."""
    return jax.tree.map(lambda x: x.reshape(*mixture.means.shape[:-2], *x.shape[1:]), tree)


def per_slice(
    function: Callable[..., Any], mixture: Mixture, *trees: Any, at_once: bool = False
) -> Any:
    """Apply function(*trees) to every slice of a tensor, one after another or all at once.

    Args:
      function: takes a slice of the trees.
      mixture: the tensor's.
      *trees: of arrays with the tensor's stacked axes.
      at_once: whether the slices are evaluated together.

    Returns:
      What the function returned, with the stacked axes.
    """
    if mixture.means.ndim == 2:
        return function(*trees)
    flat = flatten(trees, mixture)
    if at_once:
        return unflatten(jax.vmap(function)(*flat), mixture)
    return unflatten(jax.lax.map(lambda each: function(*each), flat), mixture)


def small(mixture: Mixture, loc: jax.Array) -> bool:
    """Whether all components of all weights of a tensor may be in memory at once."""
    return loc.size * mixture.means.shape[-1] <= AT_ONCE


def stack(group: Group, trees: Sequence[Any], mixtures: Sequence[Mixture]) -> Any:
    """Put what the members have in one, slice after slice: arrays are [T, ...]."""
    flat = [flatten(trees[i], mixtures[i]) for i in group.members]
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *flat)


def unstack(group: Group, tree: Any, mixtures: Sequence[Mixture]) -> list[Any]:
    """Undo `stack`: what each member has."""
    found = []
    for i, first in zip(group.members, group.first, strict=True):
        part = slice(first, first + slices(mixtures[i]))
        found.append(unflatten(jax.tree.map(lambda x: x[part], tree), mixtures[i]))  # noqa: B023
    return found


def grid(group: Group, locs: Sequence[jax.Array], mixtures: Sequence[Mixture]) -> Grid:
    """Lay cells over the weights of all slices of a group."""
    mixture = stack(group, mixtures, mixtures)

    def ends(which: Any) -> jax.Array:
        found = [flatten(locs[i], mixtures[i]) for i in group.members]
        lines = [which(x, axis=tuple(range(1, x.ndim))) for x in found]
        return jnp.concatenate(lines).astype(mixture.means.dtype)

    return grid_over(ends(jnp.min), ends(jnp.max), mixture, group.cells)
