"""Codes of a kernel chosen row by row, with compensation of errors in later rows.

A linear layer y = x W with second moments H = E[x x^T] of its inputs loses, with quantized weights
V in place of W,

    E |x (W - V)|^2 = tr((W - V)^T H (W - V)),

the quadratic form of a Gaussian likelihood of its outputs. If rows are rounded one after another,
later rows can compensate the error of a row (Hassibi and Stork 1993; GPTQ, arXiv:2210.17323). If
they compensate optimally, the error of a row costs (w - v)^2 / U_ii^2 with U^T U = H^-1.
`recode_kernel` minimizes that cost plus the length of the code.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.calibration.moments import damped

__all__ = ["Compensation", "inverse_factor", "recode_kernel", "round_rows"]

_BLOCK = 128  # rows whose errors reach the rows after the block in one product
_PADDED = 32  # codebooks are padded to a multiple of this size, to share a program
_PASSES = 8
_LEAST, _AIM = 0.996, 0.998  # shares of the bits that a tensor may take
_GAIN = 4.0  # the bits of fixed levels follow the price slowly


class Compensation(NamedTuple):
    """Cost of the errors of a kernel's rows, and their compensation by later rows.

    Attributes:
        order: Order in which rows are rounded, by falling second moment, int [I].
        factor: Upper triangular U of the inputs in this order, [I, I]; U^T U = H^-1, damped.
        moments: Damped second moments H, [I, I], in the order of the kernel.
    """

    order: jax.Array
    factor: jax.Array
    moments: jax.Array


@partial(jax.jit, static_argnames="in_order")
def inverse_factor(moments: jax.Array, *, in_order: bool = False) -> Compensation:
    """Factorize the inverse of damped second moments.

    Args:
        moments: Second moments H of a layer's inputs, float32 [I, I], positive semidefinite.
        in_order: Whether the inputs keep their order.

    Returns:
        Order, factor and damped moments.
    """
    matrix = damped(moments)
    order = jnp.arange(len(moments))
    if not in_order:
        order = jnp.argsort(-jnp.diagonal(moments), stable=True)
    reverse = order[::-1]
    # H = R R^T with R upper triangular, by the Cholesky factor of H in reverse order; U is R^-1.
    lower = jnp.linalg.cholesky(matrix[reverse][:, reverse])
    inverse = jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(moments)), lower=True)
    return Compensation(order, inverse[::-1, ::-1], matrix)


def code_bits(counts: np.ndarray) -> float:
    """Return the entropy of codes from their counts, bits in all."""
    used = counts[counts > 0].astype(np.float64)
    return float(used @ -np.log2(used / used.sum()))


def recode_kernel(
    weights: jax.Array, codes: np.ndarray, levels: np.ndarray, compensation: Compensation
) -> tuple[np.ndarray, np.ndarray]:
    """Choose new codes of a kernel for its layer's outputs, at no more bits.

    Args:
        weights: Kernel W, [I, O].
        codes: Present codes, [I, O]: 0 for zero and k + 1 for level k.
        levels: Present levels, [K].
        compensation: Result of `inverse_factor` for the layer's inputs.

    Returns:
        Codes of the same dtype, and levels near the means of the weights rounded to them. Both are
        the present ones if no pass takes few enough bits.
    """
    values = np.concatenate([[0.0], levels.astype(np.float64)])
    counts = np.bincount(codes.ravel(), minlength=values.size)
    allowed = code_bits(counts)
    error = float(np.mean(np.square(np.asarray(weights, np.float64) - values[codes])))
    # At high rate, and approximately at low rates, distortion falls by 2 ln2 of itself per bit.
    price = 2 * math.log(2) * error
    best, most = (codes, levels), 0.0
    for _ in range(_PASSES if allowed and error else 0):
        values = _narrow(values)
        rounded = _round(weights, compensation, *_padded(values, counts), np.float32(price))
        chosen, mass, moment = (np.asarray(x) for x in rounded)
        counts = np.bincount(chosen.ravel(), minlength=values.size)
        bits = code_bits(counts)
        if most < bits <= allowed:
            best, most = (chosen.astype(codes.dtype), values[1:].astype(levels.dtype)), bits
        if _LEAST * allowed <= bits <= allowed:
            break
        moved = mass[: values.size] > 0
        moved[0] = False
        values[moved] = moment[: values.size][moved] / mass[: values.size][moved]
        excess = (bits - _AIM * allowed) / codes.size
        if excess > 0:  # levels further apart take fewer bits
            values, price = values * 2**excess, price * 4**excess
        else:
            price *= 4 ** (_GAIN * excess)
    return best


def _narrow(values: np.ndarray) -> np.ndarray:
    """Round values to float16, if its range includes all values."""
    short = values.astype(np.float16).astype(np.float64)
    return short if np.allclose(short, values, rtol=2**-10, atol=0) else values


def _padded(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and the bits of their codes, padded by values that no code takes."""
    padding = -len(values) % _PADDED
    lengths = -np.log2(np.maximum(counts, 1e-9) / counts.sum())
    lengths[counts == 0] = np.inf
    padded = np.pad(lengths, (0, padding), constant_values=np.inf)
    return np.pad(values, (0, padding)).astype(np.float32), padded.astype(np.float32)


@jax.jit
def _round(
    weights: jax.Array,
    compensation: Compensation,
    values: jax.Array,
    lengths: jax.Array,
    price: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Round all rows; return codes [I, O], and mass and moment of each value's weights."""
    importance = 1 / jnp.square(jnp.diagonal(compensation.factor))
    importance = importance / jnp.mean(importance)

    def choose(row: jax.Array, at: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        distance = row[:, None] - values[None]
        cost = importance[at] * jnp.square(distance) + (price * lengths)[None]
        code = jnp.argmin(cost, axis=-1)
        return code, values[code]

    in_order = weights.astype(jnp.float32)[compensation.order]
    codes, rounded, _ = round_rows(in_order, compensation.factor, _BLOCK, lambda *_: None, choose)
    weight = jnp.broadcast_to(importance[:, None], codes.shape)
    mass = jnp.zeros_like(values).at[codes].add(weight)
    moment = jnp.zeros_like(values).at[codes].add(weight * rounded)
    return jnp.zeros_like(codes).at[compensation.order].set(codes), mass, moment


def round_rows(
    weights: jax.Array,
    factor: jax.Array,
    block: int,
    prepare: Callable[[jax.Array, jax.Array], Any],
    choose: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array, Any]:
    """Round a kernel row by row; later rows compensate the error of a row.

    Args:
        weights: Rows in the order in which they are rounded, [I, O].
        factor: Upper triangular U in that order, [I, I]; U^T U = H^-1.
        block: Number of rows whose errors reach the rows after the block in one product.
        prepare: Function of (compensated rows of a block, index of the first row) that returns an
            argument of `choose`.
        choose: Function of (row [O], index of the row, result of `prepare`) that returns codes [O]
            and their values [O].

    Returns:
        Codes [I, O]; the compensated rows before rounding [I, O]; and the results of `prepare`,
        stacked over the blocks.
    """
    inputs, outputs = weights.shape
    block = min(block, inputs)
    padding = -inputs % block
    rows = jnp.pad(weights, ((0, padding), (0, 0)))
    # A unit factor keeps the errors of the padded rows to themselves.
    factor = jnp.pad(factor, ((0, padding), (0, padding))) + jnp.diag(
        jnp.where(jnp.arange(inputs + padding) < inputs, 0.0, 1.0)
    )

    def round_row(
        carry: jax.Array, i: jax.Array, start: jax.Array, prepared: Any
    ) -> tuple[jax.Array, Any]:
        """Round a row of the block, and compensate its error in the later rows."""
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
        round_block, rows, jnp.arange(0, inputs + padding, block)
    )
    codes, rounded = (x.reshape(-1, outputs)[:inputs] for x in (codes, rounded))
    return codes, rounded, prepared
