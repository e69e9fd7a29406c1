"""Blocks of large arrays: a function is applied to each, with temporaries of a block."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Elements of a block, 128 kB of float32: several are alive at a time, in a core's cache.
_SIZE = 1 << 15

# Elements that must be together in memory: a cache line.
_TOGETHER = 16

# (number of the block, blocks) -> (tree of arrays shaped as the blocks, tree of sums)
Function = Callable[..., tuple[Any, Any]]


def over_blocks(function: Function, *arrays: jax.Array, size: int = _SIZE) -> tuple[Any, Any]:
    """Apply a function to arrays of the same shape, block by block.

    A block is every n-th part along one axis: so an axis that is split over devices stays where it
    is, where blocks one after another would each come from one device. What is left at the axis'
    end, where no good n divides its length, is a block more.

    Args:
      function: Function of (number of the block, blocks of the arrays).
      *arrays: Arrays of one shape.
      size: Elements of a block.

    Returns:
      Pair of arrays shaped as the given ones, and sums over all blocks.
    """
    shape = arrays[0].shape
    axis, number = _split(shape, size)
    if number == 1:
        return whole(function, *arrays)
    inside = shape[axis] // number
    if inside * number == shape[axis]:
        return _loop(function, axis, number, *arrays)
    cut = [jnp.split(x, [inside * number], axis) for x in arrays]
    results, sums = _loop(function, axis, number, *(most for most, _ in cut))
    more, rest = function(jnp.int32(number), *(few for _, few in cut))
    results = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis), results, more)
    return results, jax.tree.map(jnp.add, sums, rest)


def _loop(function: Function, axis: int, number: int, *arrays: jax.Array) -> tuple[Any, Any]:
    """Apply a function to `number` blocks along an axis, whose length that divides."""
    shape = arrays[0].shape
    inside = shape[axis] // number

    def apart(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:axis], inside, number, *x.shape[axis + 1 :])

    split = [apart(x) for x in arrays]

    def of(i: jax.Array) -> tuple[Any, Any]:
        blocks = [jax.lax.dynamic_index_in_dim(x, i, axis + 1, keepdims=False) for x in split]
        return function(i, *blocks)

    def body(i: jax.Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        blocks, sums = of(i)
        results = jax.tree.map(
            lambda x, block: jax.lax.dynamic_update_index_in_dim(x, block, i, axis + 1),
            carry[0], blocks,
        )  # fmt: skip
        return results, jax.tree.map(jnp.add, carry[1], sums)

    blocks, sums = jax.eval_shape(of, jnp.int32(0))
    begin = (
        jax.tree.map(lambda x: apart(jnp.zeros(shape, x.dtype)), blocks),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
    )
    results, sums = jax.lax.fori_loop(0, number, body, begin)
    return jax.tree.map(lambda x: x.reshape(shape), results), sums


def whole(function: Function, *arrays: jax.Array) -> tuple[Any, Any]:
    """Apply a function of blocks to whole arrays, as a single block."""
    return function(jnp.int32(0), *arrays)


def _split(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Choose an axis and the number of its blocks, of about `size` elements.

    The number divides the length of the axis, unless that would take many more blocks.
    """
    count = max(1, -(-math.prod(shape) // size))
    best = (0, 1)
    for axis, length in enumerate(shape):
        if axis and math.prod(shape[axis + 1 :]) < _TOGETHER:
            break
        most = min(2 * count, length)
        number = next((n for n in range(count, most + 1) if length % n == 0), min(count, length))
        if best[1] < min(number, count):
            best = (axis, number)
    return best
