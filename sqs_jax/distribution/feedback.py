"""Codes of one kernel chosen one input after the other, each error made good by what follows.

A linear layer y = x W with inputs of second moments H = E[x x^T] loses, to codes that stand for V,

    E |x (W - V)|^2 = tr((W - V)^T H (W - V)),

the quadratic form of a Gaussian likelihood of its outputs. Rounded input by input, the error of a
row can be compensated in the rows that are not rounded yet (Hassibi and Stork 1993; GPTQ,
arXiv:2210.17323), and given what follows is optimal, a row's error costs (w - v)^2 / U_ii^2 with
U^T U = H^-1. Here that cost is weighed against the length of the code, as everywhere in a budget.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Feedback", "InputMoments", "inverse_factor", "recode", "round_rows", "unusable"]

_DAMPING = 0.01  # of the mean second moment, as in GPTQ
_UNEQUAL = 1e-3  # of the largest: what rounding makes of two equal sums
_BLOCK = 128  # rows whose errors reach the rows after the block in one product
_PADDED = 32  # codebooks of so many values, or a multiple, share a program
_PASSES = 8
_LEAST, _AIM = 0.996, 0.998  # of the bits that a tensor may take
_GAIN = 4.0  # bits follow the price slowly while levels stay where they are


class InputMoments(NamedTuple):
    """What a linear layer gets to see.

    Attributes:
      second: E[x x^T] of its inputs x as they will be, [I, I].
      cross: E[x d^T], where d are its inputs in the network that it is to imitate; None if they are
        the same.
      missing: E[x m^T], [I, O], where m is what its outputs should have more of than its weights
        give them, whatever for: to make good what a residual sum lacks, say. None if nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> inputs = jnp.array([[1.0, 2.0], [3.0, 4.0]])  # of two examples
      >>> moments = sqs_jax.InputMoments(second=inputs.T @ inputs / 2)
      >>> moments.second.tolist()
      [[5.0, 7.0], [7.0, 10.0]]
    """

    second: jax.Array
    cross: jax.Array | None = None
    missing: jax.Array | None = None


class Feedback(NamedTuple):
    """What errors cost, and how the rows make them good.

    Attributes:
      order: the inputs by falling second moment, int [I]; rows are rounded in this order.
      factor: U, upper triangular, [I, I], of the inputs in this order; U^T U = H^-1, damped.
      moments: H, damped, [I, I], in the order of the kernel.
    """

    order: jax.Array
    factor: jax.Array
    moments: jax.Array


@partial(jax.jit, static_argnames="in_order")
def inverse_factor(moments: jax.Array, *, in_order: bool = False) -> Feedback:
    """Factorise second moments of inputs, damped by a hundredth of their mean.

    Args:
      moments: H, float32 [I, I], positive semidefinite.
      in_order: leave the inputs in their order.
    """
    damped = _damped(moments)
    order = jnp.arange(len(moments))
    if not in_order:
        order = jnp.argsort(-jnp.diagonal(moments), stable=True)
    turned = order[::-1]
    # H = R R^T with R upper triangular, by the Cholesky factor of H turned around; U is R^-1
    lower = jnp.linalg.cholesky(damped[turned][:, turned])
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(moments)), lower=True)
    return Feedback(order, inverse[::-1, ::-1], damped)


def _damped(moments: jax.Array) -> jax.Array:
    mean = jnp.mean(jnp.diagonal(moments))
    return moments + (_DAMPING * mean + jnp.finfo(moments.dtype).tiny) * jnp.eye(len(moments))


def unusable(second: jax.Array) -> str | None:
    """Say why a matrix cannot be second moments of inputs; None if it can.

    Args:
      second: [I, I].
    """
    found = jnp.asarray(second, jnp.float32)
    why = None
    if not bool(jnp.isfinite(found).all()):
        why = "are not finite"
    elif bool(jnp.abs(found - found.T).max() > _UNEQUAL * jnp.abs(found).max()):
        why = "are not symmetric"
    elif not bool(jnp.isfinite(jnp.linalg.cholesky(_damped(found))).all()):
        why = "have a negative eigenvalue"
    return why and f"second moments {why}; give x.T @ x / len(x) of the layer's inputs x"


def code_bits(counts: np.ndarray) -> float:
    """Return the bits of codes that occur so often, by their own shares."""
    held = counts[counts > 0].astype(np.float64)
    return float(held @ -np.log2(held / held.sum()))


def recode(
    weights: jax.Array, codes: np.ndarray, levels: np.ndarray, feedback: Feedback
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a kernel's codes anew for its layer's outputs, at no more bits.

    Args:
      weights: W, [I, O].
      codes: as they are, [I, O], 0 for zero and k + 1 for level k.
      levels: [K].
      feedback: of the layer's inputs.

    Returns:
      Codes, of the same dtype, and levels, each near the mean of what was rounded to it. They are
      those that were given if no pass took few enough bits.
    """
    values = np.concatenate([[0.0], levels.astype(np.float64)])
    counts = np.bincount(codes.ravel(), minlength=values.size)
    allowed = code_bits(counts)
    error = float(np.mean(np.square(np.asarray(weights, np.float64) - values[codes])))
    # at high rate, and nearly at any other, distortion falls by 2 ln2 of itself per bit
    price = 2 * math.log(2) * error
    best, most = (codes, levels), 0.0
    for _ in range(_PASSES if allowed and error else 0):
        values = _narrow(values)
        found = _round(weights, feedback, *_padded(values, counts), np.float32(price))
        chosen, mass, moment = (np.asarray(x) for x in found)
        counts = np.bincount(chosen.ravel(), minlength=values.size)
        bits = code_bits(counts)
        if most < bits <= allowed:
            best, most = (chosen.astype(codes.dtype), values[1:].astype(levels.dtype)), bits
        if _LEAST * allowed <= bits <= allowed:
            break
        held = mass[: values.size] > 0
        held[0] = False
        values[held] = moment[: values.size][held] / mass[: values.size][held]
        excess = (bits - _AIM * allowed) / codes.size
        if excess > 0:  # levels further apart take fewer bits
            values, price = values * 2**excess, price * 4**excess
        else:
            price *= 4 ** (_GAIN * excess)
    return best


def _narrow(values: np.ndarray) -> np.ndarray:
    """Round values to what two bytes hold, if they are neither too large nor too small for that."""
    short = values.astype(np.float16).astype(np.float64)
    return short if np.allclose(short, values, rtol=2**-10, atol=0) else values


def _padded(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and the bits of their codes, with some that are never chosen."""
    room = -len(values) % _PADDED
    lengths = -np.log2(np.maximum(counts, 1e-9) / counts.sum())
    lengths[counts == 0] = np.inf
    padded = np.pad(lengths, (0, room), constant_values=np.inf)
    return np.pad(values, (0, room)).astype(np.float32), padded.astype(np.float32)


@jax.jit
def _round(
    weights: jax.Array, feedback: Feedback, values: jax.Array, lengths: jax.Array, price: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Round all rows; returns codes [I, O], and mass and moment of each value's weights."""
    importance = 1 / jnp.square(jnp.diagonal(feedback.factor))
    importance = importance / jnp.mean(importance)

    def choose(row: jax.Array, at: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        distance = row[:, None] - values[None]
        cost = importance[at] * jnp.square(distance) + (price * lengths)[None]
        code = jnp.argmin(cost, axis=-1)
        return code, values[code]

    in_order = weights.astype(jnp.float32)[feedback.order]
    codes, rounded, _ = round_rows(in_order, feedback.factor, _BLOCK, lambda *_: None, choose)
    weight = jnp.broadcast_to(importance[:, None], codes.shape)
    mass = jnp.zeros_like(values).at[codes].add(weight)
    moment = jnp.zeros_like(values).at[codes].add(weight * rounded)
    return jnp.zeros_like(codes).at[feedback.order].set(codes), mass, moment


def round_rows(
    weights: jax.Array,
    factor: jax.Array,
    block: int,
    prepare: Callable[[jax.Array, jax.Array], Any],
    choose: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array, Any]:
    """Round a kernel row by row, each row's error made good in those after it.

    Args:
      weights: [I, O], rows in the order in which they are rounded.
      factor: U, upper triangular, [I, I]; U^T U = H^-1 in that order.
      block: rows whose errors reach the rows after the block in one product.
      prepare: (rows of a block, as they are by then, number of the first) -> what `choose` is
        given for them.
      choose: (row [O], its number, that) -> (codes [O], the values that they stand for [O]).

    Returns:
      (codes [I, O], the rows as they were when they were rounded [I, O], what `prepare` returned,
      stacked over the blocks).
    """
    inputs, outputs = weights.shape
    block = min(block, inputs)
    room = -inputs % block
    rows = jnp.pad(weights, ((0, room), (0, 0)))
    # what fills up the last block has errors that nobody makes good
    factor = jnp.pad(factor, ((0, room), (0, room))) + jnp.diag(
        jnp.where(jnp.arange(inputs + room) < inputs, 0.0, 1.0)
    )

    def round_row(
        carry: jax.Array, i: jax.Array, start: jax.Array, prepared: Any
    ) -> tuple[jax.Array, Any]:
        """Round a row of the block, and make its errors good in those after it."""
        row, at = carry[i], start + i
        code, value = choose(row, at, prepared)
        steps = jax.lax.dynamic_slice(factor[at], (start,), (block,))
        error = (row - value) / steps[i]
        later = jnp.where(jnp.arange(block) > i, steps, 0.0)
        return carry - later[:, None] * error[None], (code, row, error)

    def round_block(rows: jax.Array, start: jax.Array) -> tuple[jax.Array, Any]:
        here = jax.lax.dynamic_slice_in_dim(rows, start, block)
        prepared = prepare(here, start)
        _, (codes, rounded, errors) = jax.lax.scan(
            partial(round_row, start=start, prepared=prepared), here, jnp.arange(block)
        )
        steps = jax.lax.dynamic_slice_in_dim(factor, start, block)
        after = jnp.arange(len(rows)) >= start + block
        later = jnp.where(after[None], steps, 0.0)
        return rows - later.T @ errors, (codes, rounded, prepared)

    _, (codes, rounded, prepared) = jax.lax.scan(
        round_block, rows, jnp.arange(0, inputs + room, block)
    )
    codes, rounded = (x.reshape(-1, outputs)[:inputs] for x in (codes, rounded))
    return codes, rounded, prepared
