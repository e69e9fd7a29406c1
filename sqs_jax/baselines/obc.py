"""Optimal Brain Compression: exact greedy pruning, then exact greedy rounding.

Frantar, Singh and Alistarh 2022, arXiv:2208.11580: ExactOBS and the Optimal Brain Quantizer.
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

_DAMPING = 0.01  # fraction of the mean second moment that is added to the diagonal
_FLOATS = 1 << 26  # size limit of the inverse Hessians that are in memory together


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
    """Prune kernels by ExactOBS and round the remaining weights by OBQ.

    A kernel without calibration data is pruned by magnitude and rounded to nearest; blocks and
    structures then use the identity as the Hessian.

    Kept: weights are pruned one at a time, the cheapest first, with the inverse Hessian of the
    remaining ones. The traces of the outputs are merged, so that a layer prunes where its loss is
    least. Rounding starts from the pruned kernel with its zeros fixed; weights with an error beyond
    half a step come first. Different: grids span the minimum to the maximum weight. Second moments,
    singular or not, are damped by a hundredth of their mean; the public code has that as an option.
    `obc_allocation.allocate` chooses how much each layer is compressed.

    Args:
        params: Tree of arrays; a kernel has shape [*inputs, outputs].
        sparsity: Fraction of every kernel's weights to prune, in [0, 1).
        structure: Pair (n, m) that keeps n of every m consecutive inputs of each output; replaces
            `sparsity`.
        block: Block size: consecutive inputs of an output that are pruned together; used with
            `sparsity`.
        levels: Number of levels of each output's grid; 2 to 65,536.
        calibration: Tree of `sqs_jax.InputMoments` at the paths of kernels; the field `second`
            is used.
        rules: Rules that choose the kernels; the first match decides.

    Returns:
        Copy of the tree in which each kernel is a `GridLeaf`; a pruned weight has the code of the
        grid's zero.

    Raises:
        ValueError: If sparsity and structure are both set, or the structure lacks 0 < n <= m. If
            structure or block does not divide a kernel's rows, naming the path. Or as
            `sqs_jax.baselines.grids.per_kernel`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import InputMoments, materialize
        >>> from sqs_jax.baselines import obc
        >>> params = {"kernel": jnp.array([[1.0], [2.0], [3.0], [4.0]])}
        >>> moments = {"kernel": InputMoments(jnp.diag(jnp.array([100.0, 1.0, 1.0, 1.0])))}
        >>> compressed = obc.compress(params, sparsity=0.5, levels=16, calibration=moments)
        >>> (materialize(compressed)["kernel"] != 0).ravel().tolist()  # the first input is large
        [True, False, False, True]
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
            setting = f"structure {structure}" if structure else f"block {block}"
            raise ValueError(
                f"{kernel.path}: {setting} needs rows that are a multiple of {unit}; it has "
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
    """Choose the weights to keep by ExactOBS, over all outputs together.

    Args:
        weights: Weights, float [I, O].
        hessian: Second moments of the inputs, positive definite, [I, I].
        number: Number of blocks to prune.
        block: Block size: consecutive weights of an output that are pruned together.

    Returns:
        Mask of the weights to keep, bool [I, O].

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines import obc
        >>> weights = jnp.array([[1.0, 4.0], [2.0, 3.0]])
        >>> obc.prune(weights, jnp.eye(2), number=2).tolist()
        [[False, True], [False, True]]
    """
    rows, inverse = len(weights), jnp.linalg.inv(hessian)
    if block == 1:
        order, loss = _traces(weights, inverse, rows, rows)  # one group of all rows
    else:
        order, loss = _block_traces(weights, inverse, block)
    # With costs that never fall along a trace, the cheapest blocks are a prefix of each trace.
    costs = np.maximum.accumulate(np.asarray(loss), axis=1)
    pruned = np.zeros(costs.size, bool)
    pruned[np.argsort(costs, axis=None, kind="stable")[:number]] = True
    kept = np.ones(costs.shape, bool)
    np.put_along_axis(kept, np.asarray(order), ~pruned.reshape(costs.shape), axis=1)
    return jnp.asarray(np.repeat(kept, block, axis=1).T)


def prune_in_groups(weights: jax.Array, hessian: jax.Array, keep: int, group: int) -> jax.Array:
    """Choose the weights to keep by ExactOBS, a fixed number in every group of inputs.

    Args:
        weights: Weights, float [I, O].
        hessian: Second moments of the inputs, positive definite, [I, I].
        keep: Number of weights to keep in each group, 1 to `group`.
        group: Group size: consecutive inputs of an output; divides I.

    Returns:
        Mask of the weights to keep, bool [I, O].

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines import obc
        >>> weights = jnp.array([[1.0], [2.0], [4.0], [3.0]])
        >>> obc.prune_in_groups(weights, jnp.eye(4), keep=1, group=2).ravel().tolist()
        [False, True, True, False]
    """
    kept = np.ones(weights.T.shape, bool)
    if keep == group:
        return jnp.asarray(kept.T)
    order, _ = _traces(weights, jnp.linalg.inv(hessian), group, group - keep)
    np.put_along_axis(kept, np.asarray(order), False, axis=1)
    return jnp.asarray(kept.T)


@partial(jax.jit, static_argnames=("group", "drop"))
def _traces(
    weights: jax.Array, inverse: jax.Array, group: int, drop: int
) -> tuple[jax.Array, jax.Array]:
    """Return the pruning order of each output's weights and the cost of each step.

    Args:
        weights: Weights, float [I, O].
        inverse: Inverse Hessian of the inputs, [I, I].
        group: Group size in inputs; divides I.
        drop: Number of weights to prune in each group.

    Returns:
        Indices of the inputs and costs, both [O, I / group * drop].
    """
    count = len(weights) // group * drop

    def of_output(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            w, inverse, alive = carry
            left = jnp.sum(alive.reshape(-1, group), axis=1, keepdims=True) > group - drop
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
    """Return the pruning order of each output's blocks and their costs, [O, I / block].

    A block w_P costs w_P^T ((H^-1)_PP)^-1 w_P; the remaining weights compensate its error.
    """
    count = len(weights) // block
    blocks = jnp.arange(count)

    def of_output(w: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            w, inverse, alive = carry
            parts = inverse.reshape(count, block, count, block)[blocks, :, blocks]
            parts = jnp.where(alive[:, None, None], parts, jnp.eye(block))
            solved = jnp.linalg.solve(parts, w.reshape(count, block, 1))[..., 0]
            cost = jnp.where(alive, jnp.sum(w.reshape(count, block) * solved, 1), jnp.inf)
            p = jnp.argmin(cost)
            columns = jax.lax.dynamic_slice_in_dim(inverse, p * block, block, axis=1)
            w = w - columns @ solved[p]
            inverse = inverse - columns @ jnp.linalg.solve(parts[p], columns.T)
            alive = alive.at[p].set(False)
            remaining = jnp.repeat(alive, block)
            inverse = jnp.where(remaining[:, None] & remaining[None], inverse, 0.0)
            return (jnp.where(remaining, w, 0.0), inverse, alive), (p, cost[p])

        start = w, inverse, jnp.ones(count, bool)
        return jax.lax.scan(step, start, None, count)[1]

    return jax.lax.map(of_output, weights.T, batch_size=_batch(weights))


def reconstruct(
    weights: jax.Array, hessian: jax.Array, kept: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Compute the values of an output's kept weights that minimize the output error.

    Args:
        weights: Weights before pruning, float [I].
        hessian: Second moments of the inputs, positive definite, [I, I].
        kept: Mask of the weights to keep, bool [I].

    Returns:
        Weights [I], 0 where pruned; and the inverse Hessian of the kept weights, [I, I], 0 in the
        rows and columns of pruned weights.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines import obc
        >>> hessian = jnp.array([[2.0, 1.0], [1.0, 2.0]])
        >>> values, _ = obc.reconstruct(jnp.ones(2), hessian, jnp.array([True, False]))
        >>> values.tolist()
        [1.5, 0.0]
    """
    both = kept[:, None] & kept[None]
    inverse = jnp.linalg.inv(jnp.where(both, hessian, jnp.eye(weights.size)))
    inverse = jnp.where(both, inverse, 0.0)
    return inverse @ (hessian @ weights), inverse


@jax.jit
def quantise(
    weights: jax.Array, hessian: jax.Array, kept: jax.Array, levels: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Prune to a mask, and round the kept weights by the Optimal Brain Quantizer.

    Args:
        weights: Weights before pruning, float [I, O].
        hessian: Second moments of the inputs, positive definite, [I, I].
        kept: Mask of the weights to keep, bool [I, O].
        levels: Number of levels of each output's grid, at least 2.

    Returns:
        Codes [I, O], scales [1, O] and zeros [1, O].

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax.baselines import obc
        >>> weights = jnp.array([[1.0], [-1.0], [0.1]])
        >>> kept = jnp.array([[True], [True], [False]])
        >>> codes, scales, zeros = obc.quantise(weights, jnp.eye(3), kept, 3)
        >>> codes.ravel().tolist(), scales.tolist(), zeros.tolist()
        ([2.0, 0.0, 1.0], [[1.0]], [[1.0]])
    """

    def of_output(column_and_mask: tuple[jax.Array, jax.Array]) -> Any:
        column, mask = column_and_mask
        values, inverse = reconstruct(column, hessian, mask)
        scales, zeros = lay_grids(values[:, None], levels, None)
        codes = _round(values, inverse, mask, scales[0, 0], zeros[0, 0], levels)
        return codes, scales[:, 0], zeros[:, 0]

    outputs = jax.lax.map(of_output, (weights.T, kept.T), batch_size=_batch(weights))
    codes, scales, zeros = (x.T for x in outputs)
    return codes, scales, zeros


def _round(
    w: jax.Array,
    inverse: jax.Array,
    kept: jax.Array,
    scale: jax.Array,
    zero: jax.Array,
    levels: int,
) -> jax.Array:
    """Round the kept weights [I] of an output sequentially; return codes [I]."""

    def step(carry: Any, _: None) -> tuple[Any, None]:
        w, inverse, due, codes = carry
        code = jnp.clip(jnp.round(w / scale + zero), 0, levels - 1)
        error = jnp.abs(w - (code - zero) * scale)
        # A weight beyond its grid only moves further away: round the worst of these first.
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
    """Set weight p to a value, compensate its error, and remove p from the inverse."""
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
