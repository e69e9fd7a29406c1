"""Exact selection of the lowest of many scores, by counting.

Radix selection needs no sort and no copy of all scores on one device: devices exchange counts only.
A count is a pair of uint32, high * 2^16 + low, so that 2^32 scores and more can be counted.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Count = tuple[jax.Array, jax.Array]

_LIMB = 16
_ALL = 0xFFFFFFFF  # greater than every position


def keep_highest(scores: tuple[jax.Array, ...], number: int) -> list[jax.Array]:
    """Return masks that drop an exact number of the lowest scores of all arrays.

    Of equal scores, the first are dropped, in the order of the arrays and their positions.

    Args:
        scores: Floating arrays of any shapes, each of fewer than 2^32 - 1 scores, without NaN.
        number: Number of scores to drop, 0 to the number of scores.

    Returns:
        List of bool masks in the shapes of the scores, False for dropped scores.

    Example:
        >>> (mask,) = keep_highest((jnp.array([3.0, 1.0, 2.0, 1.0]),), 2)
        >>> mask.tolist()
        [True, False, True, False]
    """
    return _keep_highest(scores, (number >> _LIMB, number % (1 << _LIMB)))


@jax.jit
def _keep_highest(scores: tuple[jax.Array, ...], number: tuple[int, int]) -> list[jax.Array]:
    # `number` is a traced argument, so that another number does not recompile.
    due_in_all: Count = (jnp.uint32(number[0]), jnp.uint32(number[1]))
    dtype = jnp.float64 if any(s.dtype == jnp.float64 for s in scores) else jnp.float32
    keys = [_ordered_bits(s.astype(dtype)) for s in scores]

    # The threshold is the key of the last dropped score: the largest key with fewer than `number`
    # keys below.
    threshold = _largest(lambda t: _less(_total([k < t for k in keys]), due_in_all), keys[0].dtype)
    ties = _minus(due_in_all, _total([k < threshold for k in keys]))
    kept = []
    for key in keys:
        tied = key == threshold
        reach, taken = _first(tied, ties)
        ties = _minus(ties, taken)
        kept.append(~((key < threshold) | (tied & (_position(key.shape) < reach))))
    return kept


def _first(tied: jax.Array, number: Count) -> tuple[jax.Array, Count]:
    """Return the position before which `number` tied entries lie.

    Args:
        tied: Bool array of any shape.
        number: Number of tied entries to drop.

    Returns:
        Position, uint32, and the number of tied entries before: `number`, or the number of all
        tied entries if that is smaller.
    """
    here = _total([tied])
    fewer = _less(here, number)
    due = (jnp.where(fewer, here[0], number[0]), jnp.where(fewer, here[1], number[1]))

    def search() -> jax.Array:
        position = _position(tied.shape)
        last = _largest(lambda p: _less(_total([tied & (position < p)]), due), jnp.uint32)
        return jnp.where((due[0] == 0) & (due[1] == 0), 0, last + 1)

    # A threshold usually has one tied entry, which is dropped: then there is nothing to search.
    every = (due[0] == here[0]) & (due[1] == here[1])
    return jax.lax.cond(every, lambda: jnp.uint32(_ALL), search), due


def _largest(holds: Callable[[jax.Array], jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Return the largest unsigned integer with a decreasing predicate true; 0 if none."""
    bits = jnp.iinfo(dtype).bits

    def settle(i: jax.Array, value: jax.Array) -> jax.Array:
        trial = value | (jnp.ones((), dtype) << (bits - 1 - i).astype(dtype))
        return jnp.where(holds(trial), trial, value)

    return jax.lax.fori_loop(0, bits, settle, jnp.zeros((), dtype))


def _total(masks: list[jax.Array]) -> Count:
    """Return the number of True entries of all masks."""
    counts = [jnp.sum(mask, dtype=jnp.uint32) for mask in masks]
    low = sum((c % (1 << _LIMB) for c in counts), start=jnp.uint32(0))
    high = sum((c >> _LIMB for c in counts), start=low >> _LIMB)
    return high, low % (1 << _LIMB)


def _less(a: Count, b: Count) -> jax.Array:
    """Return whether a < b."""
    return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))


def _minus(a: Count, b: Count) -> Count:
    """Return a - b, for a >= b."""
    borrow = (a[1] < b[1]).astype(jnp.uint32)
    return a[0] - b[0] - borrow, a[1] + (borrow << _LIMB) - b[1]


def _position(shape: tuple[int, ...]) -> jax.Array:
    """Return the flat index of every entry, uint32; elementwise, for sharded arrays."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return position


def _ordered_bits(score: jax.Array) -> jax.Array:
    """Map floats to unsigned integers of the same order, with 0 and -0 equal."""
    unsigned = jnp.uint64 if score.dtype == jnp.float64 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(score, unsigned)
    sign = jnp.ones((), unsigned) << (score.dtype.itemsize * 8 - 1)
    bits = jnp.where(
        bits == sign, bits ^ sign, bits
    )  # -0 becomes 0; XLA removes the addition of 0.0
    return jnp.where(bits & sign != 0, ~bits, bits | sign)
