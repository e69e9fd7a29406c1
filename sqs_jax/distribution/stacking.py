"""Many tensors and many slices, evaluated by few programs.

A program per tensor compiles for minutes in models of many tensors. Tensors of one shape are
stacked along a new axis, and slices of stacked axes go through one program, one after another.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Largest tensor that is stacked with others, in weights: a stack is a copy.
_STACKED = 1 << 20

# Weights times components that are evaluated at once: 64 MB of float32, several times.
AT_ONCE = 1 << 24


def by_shape(function: Callable[[Any], Any], trees: Sequence[Any]) -> list[Any]:
    """Apply a function to trees of arrays, in a single call where shapes are equal.

    Args:
      function: Function of a tree whose arrays have any number of leading stacked axes; its
        results have the same stacked axes.
      trees: Trees of one structure; the first array of each has the most elements.

    Returns:
      Result for each tree.
    """
    groups: dict[Any, list[int]] = {}
    for i, tree in enumerate(trees):
        leaves = jax.tree.leaves(tree)
        alone = i if leaves[0].size > _STACKED else None
        shapes = tuple((leaf.shape, jnp.result_type(leaf)) for leaf in leaves)
        groups.setdefault((shapes, alone), []).append(i)
    results: list[Any] = [None] * len(trees)
    for members in groups.values():
        if len(members) == 1:
            results[members[0]] = function(trees[members[0]])
            continue
        stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(trees[i] for i in members))
        result = function(stack)
        # a split has a concatenation as its transpose, where slices would be added up
        parts = [jax.lax.split(leaf, [1] * len(members)) for leaf in jax.tree.leaves(result)]
        for place, i in enumerate(members):
            rest = iter(parts)
            results[i] = jax.tree.map(lambda _: next(rest)[place][0], result)  # noqa: B023
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
