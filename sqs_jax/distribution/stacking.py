"""Many tensors and many slices, evaluated by few programs.

A program per tensor compiles for minutes in models of many tensors. Tensors of one shape are
stacked along a new axis, and slices of stacked axes go through one program, one after another.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Weights from which on a tensor has a program of its own: tensors that share one are copied from a
# stack of results, which a step of large layers holds beside them (`python -m benchmarks memory`).
_LARGE = 1 << 18

# Most weights of all tensors of a program.
_SHARED = 1 << 20

# Weights times components that are evaluated at once: 64 MB of float32, several times.
AT_ONCE = 1 << 24


def by_shape(
    function: Callable[[Any], Any], trees: Sequence[Any], *, one_by_one: bool
) -> list[Any]:
    """Apply a function to trees of arrays, in a single program where shapes are equal.

    Args:
      function: Function of a tree whose arrays have any number of leading stacked axes; its
        results have the same stacked axes.
      trees: Trees of one structure; the first array of each has the most elements.
      one_by_one: Whether a loop goes from tree to tree, without derivative, instead of one call
        for the stack: on a CPU it copies one tree at a time; an accelerator would wait for the
        host, which chooses the tree.

    Returns:
      Result for each tree.
    """
    groups: dict[Any, list[int]] = {}
    for i, tree in enumerate(trees):
        leaves = jax.tree.leaves(tree)
        shapes = tuple((leaf.shape, jnp.result_type(leaf)) for leaf in leaves)
        size = max(1, leaves[0].size)
        most, number = 1 if size >= _LARGE else _SHARED // size, 0
        while len(groups.get((shapes, number), [])) == most:
            number += 1
        groups.setdefault((shapes, number), []).append(i)
    results: list[Any] = [None] * len(trees)
    for members in groups.values():
        if len(members) == 1:
            results[members[0]] = function(trees[members[0]])
            continue
        group = [trees[i] for i in members]
        if one_by_one:
            branches = [lambda tree=tree: tree for tree in group]
            result = jax.lax.map(
                lambda i: function(jax.lax.switch(i, branches)),  # noqa: B023
                jnp.arange(len(group)),
            )
        else:
            result = function(jax.tree.map(lambda *leaves: jnp.stack(leaves), *group))
        for place, i in enumerate(members):
            results[i] = jax.tree.map(lambda leaf: leaf[place], result)  # noqa: B023
    return results


def per_slice(
    function: Callable[..., Any], stacked: int, *trees: Any, at_once: bool = False
) -> Any:
    """Apply a function to every slice of stacked axes, in a loop or at once.

    Args:
      function: Function of a slice of each tree.
      stacked: Number of leading stacked axes.
      *trees: Trees of arrays with these axes.
      at_once: Whether the slices are evaluated together.

    Returns:
      Result of the function, with the stacked axes.
    """
    if not stacked:
        return function(*trees)
    axes = jax.tree.leaves(trees)[0].shape[:stacked]
    count = math.prod(axes)
    flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[stacked:]), trees)
    results = (
        jax.vmap(function)(*flat) if at_once else jax.lax.map(lambda tree: function(*tree), flat)
    )
    return jax.tree.map(lambda x: x.reshape(*axes, *x.shape[1:]), results)


def fits_at_once(elements: int) -> bool:
    """Return whether arrays of this number of elements may be temporaries."""
    return elements <= AT_ONCE
