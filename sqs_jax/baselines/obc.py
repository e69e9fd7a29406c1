"""Optimal Brain Compression: exact greedy pruning, then exact greedy rounding, output by output.

Frantar, Singh and Alistarh 2022, arXiv:2208.11580: ExactOBS and the Optimal Brain Quantiser.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.baselines import wanda
from sqs_jax.baselines.grids import Kernel, lay_grids, per_kernel
from sqs_jax.transform.rules import DEFAULT_RULES, Rule

_DAMPING = 0.01  # of the mean second moment
_FLOATS = 1 << 26  # of the inverse Hessians that are in memory together


def compress(
    params: Any,
    *,
    sparsity: float = 0.0,
    structure: tuple[int, int] | None = None,
    block: int = 1,
    levels: int,
    calibration: Any,
    rules: Iterable[Rule] = DEFAULT_RULES,
) -> Any:
    """Prune kernels by ExactOBS and round what is left by OBQ; without calibration by magnitude.

    Kept: one weight at a time, the one that costs least, with the inverse Hessian of what is left;
    the outputs' traces merged so that a layer prunes where it loses least; rounding on what pruning
    leaves, zeros fixed, weights beyond half a step first. Different: grids are laid from least to
    greatest weight; second moments, singular or not, are damped by a hundredth of their mean, as
    the public code does where it is told to. How much of each layer is for `allocate`, in
    obc_allocation.py.

    Args:
      params: tree of arrays; kernels are [*inputs, outputs].
      sparsity: fraction of every kernel to prune, in [0, 1).
      structure: (n, m) keeps n of every m inputs in turn of each output, in place of a sparsity.
      block: so many inputs in turn of an output are pruned together; with a sparsity.
      levels: of each output's grid, at least 2.
      calibration: tree with `sqs_jax.InputMoments` at paths of kernels; of these `second` is used.
      rules: which kernels.

    Returns:
      The tree with `GridLeaf`s; a pruned weight has the code of the grid's zero.

    Raises:
      ValueError: for a sparsity and a structure, or a structure that is no n <= m, or, naming the
        path, rows that structure or block does not divide; or see `per_kernel`.
    """
    if block < 1 or (block > 1 and structure is not None):
        raise ValueError(
            f"block is {block} and structure {structure}; give one of them, a block of 1 or more."
        )
    if structure is not None and (sparsity or not 0 < structure[0] <= structure[1]):
        raise ValueError(
            f"structure is {structure} and sparsity {sparsity}; give one of them, (n, m) with "
            "0 < n <= m or a fraction."
        )

    def compressed(kernel: Kernel) -> tuple[Any, Any, Any]:
        weights = kernel.weights
        unit = structure[1] if structure else block
        if len(weights) % unit:
            asked = f"structure {structure}" if structure else f"block {block}"
            raise ValueError(
                f"{kernel.path}: {asked} needs rows that are a multiple of {unit}; it has "
                f"{len(weights)}."
            )
        if unit == 1 and kernel.second is None:
            return wanda.prune_and_round(weights, None, sparsity, levels, None)
        hessian = _damped(jnp.eye(len(weights)) if kernel.second is None else kernel.second)
        if structure:
            kept = prune_in_groups(weights, hessian, *structure)
        else:
            kept = prune(weights, hessian, round(sparsity * weights.size / block), block)
        return quantise(weights, hessian, kept, levels)

    return per_kernel(
        params, rules, levels, None, compressed, calibration=calibration, sparsity=sparsity
    )


def prune(weights: jax.Array, hessian: jax.Array, number: int, block: int = 1) -> jax.Array:
    """Choose the weights to keep by ExactOBS.

    Args:
      weights: [I, O].
      hessian: second moments of the inputs, positive definite, [I, I].
      number: of blocks to prune.
      block: weights in turn of an output that are pruned together.

    Returns:
      bool [I, O].
    """
    rows, inverse = len(weights), jnp.linalg.inv(hessian)
    if block == 1:
        order, loss = _traces(weights, inverse, rows, rows)  # one group, all of it
    else:
        order, loss = _block_traces(weights, inverse, block)
    # made never to fall along a trace, so that what is pruned of an output is its beginning
    dear = np.maximum.accumulate(np.asarray(loss), axis=1)
    due = np.zeros(dear.size, bool)
    due[np.argsort(dear, axis=None, kind="stable")[:number]] = True
    kept = np.ones(dear.shape, bool)
    np.put_along_axis(kept, np.asarray(order), ~due.reshape(dear.shape), axis=1)
    return jnp.asarray(np.repeat(kept, block, axis=1).T)


def prune_in_groups(weights: jax.Array, hessian: jax.Array, keep: int, group: int) -> jax.Array:
    """Choose the weights to keep by ExactOBS, so many of every group of inputs; bool [I, O]."""
    kept = np.ones(weights.T.shape, bool)
    if keep == group:
        return jnp.asarray(kept.T)
    order, _ = _traces(weights, jnp.linalg.inv(hessian), group, group - keep)
    np.put_along_axis(kept, np.asarray(order), False, axis=1)
    return jnp.asarray(kept.T)


@partial(jax.jit, static_argnames=("group", "lost"))
def _traces(
    weights: jax.Array, inverse: jax.Array, group: int, lost: int
) -> tuple[jax.Array, jax.Array]:
    """Return the order in which each output loses its weights, and what each costs.

    Of every group of inputs so many are lost; both arrays are [O, how many that are in all].
    """
    count = len(weights) // group * lost

    def of_output(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            w, inverse, alive = carry
            left = jnp.sum(alive.reshape(-1, group), axis=1, keepdims=True) > group - lost
            free = (alive.reshape(-1, group) & left).ravel()
            cost = jnp.where(free, w**2 / _diagonal(inverse), jnp.inf)
            p = jnp.argmin(cost)
            w, inverse = _eliminate(w, inverse, p, 0.0)
            return (w, inverse, alive.at[p].set(False)), (p, cost[p])

        start = w, inverse, jnp.ones(w.shape, bool)
        return jax.lax.scan(step, start, None, count)[1]

    return jax.lax.map(of_output, weights.T, batch_size=_batch(weights))


@partial(jax.jit, static_argnames="block")
def _block_traces(
    weights: jax.Array, inverse: jax.Array, block: int
) -> tuple[jax.Array, jax.Array]:
    """Return the order in which each output loses its blocks, and what each costs, [O, I / block].

    A block w_P costs w_P^T ((H^-1)_PP)^-1 w_P, and the others make good what they can.
    """
    count = len(weights) // block
    turn = jnp.arange(count)

    def of_output(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            w, inverse, alive = carry
            parts = inverse.reshape(count, block, count, block)[turn, :, turn]
            parts = jnp.where(alive[:, None, None], parts, jnp.eye(block))
            solved = jnp.linalg.solve(parts, w.reshape(count, block, 1))[..., 0]
            cost = jnp.where(alive, jnp.sum(w.reshape(count, block) * solved, 1), jnp.inf)
            p = jnp.argmin(cost)
            columns = jax.lax.dynamic_slice_in_dim(inverse, p * block, block, axis=1)
            w = w - columns @ solved[p]
            inverse = inverse - columns @ jnp.linalg.solve(parts[p], columns.T)
            alive = alive.at[p].set(False)
            there = jnp.repeat(alive, block)
            inverse = jnp.where(there[:, None] & there[None], inverse, 0.0)
            return (jnp.where(there, w, 0.0), inverse, alive), (p, cost[p])

        start = w, inverse, jnp.ones(count, bool)
        return jax.lax.scan(step, start, None, count)[1]

    return jax.lax.map(of_output, weights.T, batch_size=_batch(weights))


def reconstruct(
    weights: jax.Array, hessian: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Give the kept weights of an output their best values.

    Args:
      weights, kept: [I].
      hessian: [I, I].

    Returns:
      (weights [I], inverse of the Hessian of the kept ones, 0 elsewhere, [I, I]).
    """
    both = kept[:, None] & kept[None]
    inverse = jnp.linalg.inv(jnp.where(both, hessian, jnp.eye(weights.size)))
    inverse = jnp.where(both, inverse, 0.0)
    return inverse @ (hessian @ weights), inverse


@jax.jit
def quantise(
    weights: jax.Array, hessian: jax.Array, kept: jax.Array, levels: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prune to a mask, and round what is left by the Optimal Brain Quantiser.

    Args:
      weights, kept: [I, O].
      hessian: [I, I].
      levels: of each output's grid.

    Returns:
      Codes [I, O], scales and zeros [1, O].
    """

    def of_output(given: tuple[jax.Array, jax.Array]) -> Any:
        left, inverse = reconstruct(given[0], hessian, given[1])
        scales, zeros = lay_grids(left[:, None], levels, None)
        codes = _round(left, inverse, given[1], scales[0, 0], zeros[0, 0], levels)
        return codes, scales[:, 0], zeros[:, 0]

    found = jax.lax.map(of_output, (weights.T, kept.T), batch_size=_batch(weights))
    codes, scales, zeros = (x.T for x in found)
    return codes, scales, zeros


def _round(
    w: jax.Array,
    inverse: jax.Array,
    kept: jax.Array,
    scale: jax.Array,
    zero: jax.Array,
    levels: int,
) -> jax.Array:
    """Round the kept weights of an output, one after the other; returns codes [I]."""

    def step(carry: Any, _: None) -> tuple[Any, None]:
        w, inverse, due, codes = carry
        code = jnp.clip(jnp.round(w / scale + zero), 0, levels - 1)
        error = jnp.abs(w - (code - zero) * scale)
        # beyond the grid, errors only grow: the largest one at once
        beyond = error > 0.5001 * scale
        cost = jnp.where(beyond, -error, error**2 / _diagonal(inverse))
        p = jnp.argmin(jnp.where(due, cost, jnp.inf))
        changed = _eliminate(w, inverse, p, (code[p] - zero) * scale)
        w, inverse = (jnp.where(due[p], a, b) for a, b in zip(changed, (w, inverse), strict=True))
        codes = codes.at[p].set(jnp.where(due[p], code[p], codes[p]))
        return (w, inverse, due.at[p].set(False), codes), None

    start = w, inverse, kept, jnp.broadcast_to(zero, w.shape)
    return jax.lax.scan(step, start, None, w.size)[0][3]


def _eliminate(
    w: jax.Array, inverse: jax.Array, p: jax.Array, value: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Set weight p to a value; the others make good what that changes, and p leaves the inverse."""
    column, pivot = inverse[:, p], inverse[p, p]
    w = (w - column * ((w[p] - value) / pivot)).at[p].set(value)
    inverse = inverse - jnp.outer(column, column / pivot)
    return w, inverse.at[p].set(0.0).at[:, p].set(0.0)


def _diagonal(inverse: jax.Array) -> jax.Array:
    return jnp.maximum(jnp.diagonal(inverse), jnp.finfo(inverse.dtype).tiny)


def _damped(second: jax.Array) -> jax.Array:
    mean = jnp.mean(jnp.diagonal(second))
    return second + _DAMPING * jnp.where(mean > 0, mean, 1.0) * jnp.eye(len(second))


def _batch(weights: jax.Array) -> int:
    inputs, outputs = weights.shape
    return max(1, min(outputs, _FLOATS // inputs**2))
