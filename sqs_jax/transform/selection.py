"""The lowest of many scores, found by counting: exact, wherever the scores lie.

No sort, no copy of all scores in one place: of scores that are sharded over devices only counts
travel. Counts are pairs of uint32, high * 2^16 + low, so that no model is too large for them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Count = tuple[jax.Array, jax.Array]

_LIMB = 16
_ALL = 0xFFFFFFFF  # above every position


def keep_highest(scores: tuple[jax.Array, ...], number: int) -> list[jax.Array]:
    """Drop exactly a number of the lowest of all scores together.

    Of equal scores the first are dropped, in the order of the arrays and of positions in them.

    Args:
      scores: floating arrays of any shapes, fewer than 2^32 - 1 scores each, without NaN.
      number: how many to drop, at most as many as there are.

    Returns:
      Bool masks shaped as the scores, False = dropped.
    """
    return _keep_highest(scores, (number >> _LIMB, number % (1 << _LIMB)))


@jax.jit
def _keep_highest(scores: tuple[jax.Array, ...], number: tuple[int, int]) -> list[jax.Array]:
    # `number` is an argument, not a constant: nothing recompiles when it changes
    due_in_all: Count = (jnp.uint32(number[0]), jnp.uint32(number[1]))
    dtype = jnp.float64 if any(s.dtype == jnp.float64 for s in scores) else jnp.float32
    keys = [_ordered_bits(s.astype(dtype)) for s in scores]

    # The largest key with fewer than `number` keys below it: that of the last one dropped.
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
    """Find the position that has `number` of the tied before it; and how many there really are."""
    here = _total([tied])
    fewer = _less(here, number)
    due = (jnp.where(fewer, here[0], number[0]), jnp.where(fewer, here[1], number[1]))

    def search() -> jax.Array:
        position = _position(tied.shape)
        last = _largest(lambda p: _less(_total([tied & (position < p)]), due), jnp.uint32)
        return jnp.where((due[0] == 0) & (due[1] == 0), 0, last + 1)

    # most often all that tie are dropped: there is one
    every = (due[0] == here[0]) & (due[1] == here[1])
    return jax.lax.cond(every, lambda: jnp.uint32(_ALL), search), due


def _largest(holds: Callable[[jax.Array], jax.Array], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Find the largest unsigned integer for which a decreasing predicate holds (0 if none)."""
    bits = jnp.iinfo(dtype).bits

    def settle(i: jax.Array, value: jax.Array) -> jax.Array:
        trial = value | (jnp.ones((), dtype) << (bits - 1 - i).astype(dtype))
        return jnp.where(holds(trial), trial, value)

    return jax.lax.fori_loop(0, bits, settle, jnp.zeros((), dtype))


def _total(masks: list[jax.Array]) -> Count:
    counts = [jnp.sum(mask, dtype=jnp.uint32) for mask in masks]
    low = sum((c % (1 << _LIMB) for c in counts), start=jnp.uint32(0))
    high = sum((c >> _LIMB for c in counts), start=low >> _LIMB)
    return high, low % (1 << _LIMB)


def _less(a: Count, b: Count) -> jax.Array:
    return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] < b[1]))


def _minus(a: Count, b: Count) -> Count:
    borrow = (a[1] < b[1]).astype(jnp.uint32)
    return a[0] - b[0] - borrow, a[1] + (borrow << _LIMB) - b[1]


def _position(shape: tuple[int, ...]) -> jax.Array:
    """Number the entries of an array in their order, uint32; elementwise, so that it shards."""
    position = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = jnp.uint32(math.prod(shape[axis + 1 :]))
        position += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return position


def _ordered_bits(score: jax.Array) -> jax.Array:
    """Map floats to unsigned integers in the same order; equal floats (0 and -0) to equal ones."""
    unsigned = jnp.uint64 if score.dtype == jnp.float64 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(score, unsigned)
    sign = jnp.ones((), unsigned) << (score.dtype.itemsize * 8 - 1)
    bits = jnp.where(bits == sign, bits ^ sign, bits)  # -0 becomes 0: XLA drops an added 0.0
    return jnp.where(bits & sign != 0, ~bits, bits | sign)
