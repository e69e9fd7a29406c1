"""Soft weights and the KL bound, in one pass over the weights and one back.

On CPUs averages over the components are looked up in a table, if the tensor is large enough for one
and the table accurate; else they are exact, block by block. On accelerators they are exact, in the
tensor's own shape. One custom derivative hides the choice and keeps nothing shaped as the weights
for the backward pass but the inputs.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from sqs_jax.distribution import lookup
from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.grid import grid_over
from sqs_jax.distribution.kl import SpikeSlabPrior, gaussian_kl, kl_bound
from sqs_jax.distribution.lookup import Table, look_up
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.soft_average import average
from sqs_jax.distribution.stacking import by_shape, fits_at_once, per_slice

Evaluation = Literal["auto", "table", "loop"]

EVALUATIONS = ("auto", "table", "loop")

# Gated weights, their KL bound from a prior, or the length of their codes.
Output = Literal["weight", "length"] | SpikeSlabPrior


class Tensor(NamedTuple):
    """A tensor with stacked axes S.

    Attributes:
      loc: Weights, [*S, *shape].
      gates: Inclusion logits, shaped as `loc`.
      kept: Pruning decision, bool, shaped as `loc`.
      mixture: Mixtures, [*S, W, K], of at least float32.
    """

    loc: jax.Array
    gates: jax.Array
    kept: jax.Array
    mixture: Mixture


class Task(NamedTuple):
    """What is computed of a tensor, and how.

    Attributes:
      outputs: V outputs, each made from an average over the components.
      evaluation: "loop", exact; "table", looked up to within `lookup.TOLERANCE` of the values'
        reach, and exact where a table would miss that, where a tensor is too small for one, and in
        float64; "auto", the table on a CPU, the loop elsewhere.
    """

    outputs: tuple[Output, ...]
    evaluation: Evaluation


class _Shared(NamedTuple):
    """What all weights of a slice share."""

    mixture: Mixture
    temperature: jax.Array


class _Plan(NamedTuple):
    """Plan of the evaluation of a slice.

    Attributes:
      averages: Function of (parameters, weights) that returns V averages.
      parameters: What its averages depend on beside the weights.
      over: Function of blocks.py that evaluates the outputs.
      over_backward: Function of blocks.py that evaluates their gradients.
    """

    averages: Callable[[Any, jax.Array], list[jax.Array]]
    parameters: Any
    over: Callable[..., tuple[Any, Any]]
    over_backward: Callable[..., tuple[Any, Any]]


# Weights of a block of the backward pass through a table: each block adds up all of its bins.
_COLLECTED = 1 << 16


# Compiled as a whole: outside of jit both platforms' branches would be.
@partial(jax.jit, static_argnames="task")
def soft_weights(
    tensors: Sequence[Tensor], temperature: jax.typing.ArrayLike, task: Task
) -> list[tuple[jax.Array, ...]]:
    """Compute averages over the components under each weight's responsibilities.

    Args:
      tensors: Tensors; every slice of their stacked axes is evaluated alone.
      temperature: Softmax temperature of the responsibilities, positive scalar.
      task: Outputs and evaluation. "weight": E_q[w], shaped and typed as `loc`. A prior: `kl_bound`
        from it, summed over each slice, [*S], nats. "length": expected code length of the kept
        weights' components, summed over each slice, [*S], nats.

    Returns:
      V outputs of each tensor, differentiable in all but `kept` and the boundaries.
    """

    tensors = [Tensor(*tensor) for tensor in tensors]
    dtype = np.result_type(np.float32, *(tensor.mixture.means.dtype for tensor in tensors))
    return _soft_weights(task, tensors, jnp.asarray(temperature, dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _soft_weights(
    task: Task, tensors: list[Tensor], temperature: jax.Array
) -> list[tuple[jax.Array, ...]]:
    def evaluate(plan: _Plan, tensor: Tensor) -> tuple[jax.Array, ...]:
        def of_block(_: jax.Array, *arrays: jax.Array) -> Any:
            latent = arrays[0].astype(tensor.mixture.means.dtype)
            return _outputs(task, plan.averages(plan.parameters, latent), *arrays)

        weights, sums = plan.over(of_block, tensor.loc, tensor.gates, tensor.kept)
        soft, bounds = iter(weights), iter(sums)
        return tuple(next(soft if output == "weight" else bounds) for output in task.outputs)

    return _by_platform(task, evaluate, [(tensor,) for tensor in tensors], temperature)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Needed:
    """Gradients that the caller uses, of any tensor; the others are not computed."""

    loc: bool
    gates: bool
    shared: bool


def _forward(task: Task, tensors: Any, temperature: Any) -> tuple[Any, Any]:
    def is_primal(x: Any) -> bool:
        return isinstance(x, CustomVJPPrimal)

    def asked(*trees: Any) -> bool:
        return any(x.perturbed for x in jax.tree.leaves(trees, is_leaf=is_primal))

    needed = _Needed(
        asked([tensor.loc for tensor in tensors]),
        asked([tensor.gates for tensor in tensors]),
        asked([tensor.mixture for tensor in tensors], temperature),
    )
    inputs = jax.tree.map(lambda x: x.value, (tensors, temperature), is_leaf=is_primal)
    return _soft_weights(task, *inputs), (*inputs, needed)


def _backward(task: Task, residuals: Any, cotangents: Any) -> tuple[list[Tensor], Any]:
    tensors, temperature, needed = residuals
    used = needed.loc, needed.gates, needed.shared

    def evaluate(plan: _Plan, tensor: Tensor, of_weights: Any, of_sums: Any) -> Any:
        def pull(_: jax.Array, *arrays: jax.Array) -> Any:
            """Pull the cotangents of a block back to locs, gates and parameters, as used."""
            loc, gates, kept, *upstream = arrays
            primals = loc, gates, plan.parameters

            def function(*live: Any) -> Any:
                rest = iter(live)
                x, s, parameters = (
                    next(rest) if use else primal for use, primal in zip(used, primals, strict=True)
                )
                latent = x.astype(tensor.mixture.means.dtype)
                return _outputs(task, plan.averages(parameters, latent), x, s, kept)

            live = [primal for use, primal in zip(used, primals, strict=True) if use]
            pulled = iter(jax.vjp(function, *live)[1]((upstream, of_sums)))
            d_loc, d_gates, d_parameters = (next(pulled) if use else None for use in used)
            return (d_loc, d_gates), d_parameters

        return plan.over_backward(pull, tensor.loc, tensor.gates, tensor.kept, *of_weights)

    def split(cotangents: Any) -> tuple[list[jax.Array], list[jax.Array]]:
        """Return the cotangents of weights and of sums."""
        weights: list[jax.Array] = []
        sums: list[jax.Array] = []
        for g, output in zip(cotangents, task.outputs, strict=True):
            array = jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g
            (weights if output == "weight" else sums).append(array)
        return weights, sums

    trees = [(tensor, *split(g)) for tensor, g in zip(tensors, cotangents, strict=True)]
    results = _by_platform(task, evaluate, trees, temperature, pulled=needed.shared)
    gradients, d_temperature, none = [], jnp.zeros_like(temperature), None
    for (d_loc, d_gates), shared in results:
        mixture: Any = shared.mixture if needed.shared else none
        gradients.append(Tensor(d_loc, d_gates, none, mixture))  # type: ignore[arg-type]
        if needed.shared:
            d_temperature += jnp.sum(shared.temperature).astype(temperature.dtype)
    return gradients, d_temperature


_soft_weights.defvjp(_forward, _backward, symbolic_zeros=True)


def _values(task: Task, mixture: Mixture) -> jax.Array:
    """Return the components' values whose averages make the outputs, [V, W, K]."""

    def value(output: Output) -> jax.Array:
        if output == "weight":
            return mixture.means
        if output == "length":
            return -jax.nn.log_softmax(mixture.mixture_logits, axis=-1)
        return gaussian_kl(mixture.means, mixture.log_scales, output.scale)

    return jnp.stack([value(output) for output in task.outputs])


def _outputs(
    task: Task, averages: list[jax.Array], loc: jax.Array, gates: jax.Array, kept: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Return the soft weights of a block of weights, and its sums."""
    logits = gates.astype(averages[0].dtype)
    weights, sums = [], []
    for output, average_ in zip(task.outputs, averages, strict=True):
        if output == "weight":
            weight = jnp.where(kept, jax.nn.sigmoid(logits) * average_, 0)
            weights.append(weight.astype(loc.dtype))
        elif output == "length":
            sums.append(jnp.sum(jnp.where(kept, average_, 0)))
        else:
            sums.append(jnp.sum(kl_bound(average_, logits, kept, output)))
    return weights, sums


def _by_platform(
    task: Task,
    evaluate: Callable[..., Any],
    trees: list[Any],
    temperature: jax.Array,
    *,
    pulled: bool = False,
) -> list[Any]:
    """Evaluate every slice of tensors: looked up on CPUs, exactly elsewhere.

    Args:
      task: What is computed.
      evaluate: Function of (plan, slice of a tensor, slices of its further arrays).
      trees: Tuple of a tensor and trees of further arrays, with its stacked axes, for each.
      temperature: Softmax temperature of the responsibilities, positive scalar.
      pulled: Whether the second result of `evaluate` is the gradient of the plan's parameters,
        which becomes one of _Shared.
    """

    def shared_by(tensor: Tensor) -> _Shared:
        return _Shared(tensor.mixture, temperature.astype(tensor.mixture.means.dtype))

    def exact(over: Any, at_once: bool, tensor: Tensor, *more: Any) -> Any:
        def averages(shared: _Shared, loc: jax.Array) -> list[jax.Array]:
            mixture, values = shared.mixture, _values(task, shared.mixture)
            return average(loc, mixture, values, shared.temperature, at_once=at_once)

        return evaluate(_Plan(averages, shared_by(tensor), over, over), tensor, *more)

    def looked_up(cells: int, tensor: Tensor, *more: Any) -> Any:
        mixture, shared = tensor.mixture, shared_by(tensor)
        grid, points = grid_over(tensor.loc.astype(mixture.means.dtype), mixture, cells)

        def entries_of(shared: _Shared) -> jax.Array:
            values = _values(task, shared.mixture)
            return lookup.entries(points, shared.mixture, values, shared.temperature)

        def averages(entries: jax.Array, loc: jax.Array) -> list[jax.Array]:
            return look_up(Table(entries, grid, mixture.boundaries), loc)

        entries, pull_entries = entries_of(shared), None
        if pulled:
            entries, pull_entries = jax.vjp(entries_of, shared)
        plan = _Plan(averages, entries, whole, partial(over_blocks, size=_COLLECTED))

        def by_table() -> Any:
            results = evaluate(plan, tensor, *more)
            return (results[0], *pull_entries(results[1])) if pull_entries else results

        table = Table(entries, grid, mixture.boundaries)
        accurate = lookup.is_accurate(
            table, points, mixture, _values(task, mixture), shared.temperature
        )
        return jax.lax.cond(accurate, by_table, lambda: exact(over_blocks, False, tensor, *more))

    def on_cpu(tree: Any) -> Any:
        means = tree[0].mixture.means
        *stack, windows, components = means.shape
        size = tree[0].loc.size // max(1, math.prod(stack))
        cells = lookup.cell_count(size, components, windows)
        if cells and means.dtype == jnp.float32 and task.evaluation != "loop":
            return per_slice(partial(looked_up, cells), len(stack), *tree)
        return per_slice(partial(exact, over_blocks, False), len(stack), *tree)

    def elsewhere(tree: Any) -> Any:
        means = tree[0].mixture.means
        small = fits_at_once(tree[0].loc.size * means.shape[-1])
        return per_slice(partial(exact, whole, small), means.ndim - 2, *tree, at_once=small)

    if task.evaluation == "table":
        return by_shape(on_cpu, trees, one_by_one=True)
    return jax.lax.platform_dependent(
        cpu=lambda: by_shape(on_cpu, trees, one_by_one=True),
        default=lambda: by_shape(elsewhere, trees, one_by_one=False),
    )
