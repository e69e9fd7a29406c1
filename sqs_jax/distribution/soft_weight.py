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
_COLLECTED = 1 << 18


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

    def evaluate(tensor: Tensor) -> tuple[jax.Array, ...]:
        at = jnp.asarray(temperature, tensor.mixture.means.dtype)
        return _soft_weight(task, tensor, at)

    return by_shape(evaluate, list(tensors))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _soft_weight(task: Task, tensor: Tensor, temperature: jax.Array) -> tuple[jax.Array, ...]:
    dtype = tensor.mixture.means.dtype

    def evaluate(plan: _Plan, tensor: Tensor) -> tuple[jax.Array, ...]:
        def of_block(_: jax.Array, *arrays: jax.Array) -> Any:
            latent = arrays[0].astype(dtype)
            return _outputs(task, plan.averages(plan.parameters, latent), *arrays)

        weights, sums = plan.over(of_block, tensor.loc, tensor.gates, tensor.kept)
        soft, bounds = iter(weights), iter(sums)
        return tuple(next(soft if output == "weight" else bounds) for output in task.outputs)

    return _by_platform(task, evaluate, tensor, temperature)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Needed:
    """Gradients that the caller uses; the others are not computed."""

    loc: bool
    gates: bool
    shared: bool


def _forward(task: Task, tensor: Any, temperature: Any) -> tuple[tuple[jax.Array, ...], Any]:
    def is_primal(x: Any) -> bool:
        return isinstance(x, CustomVJPPrimal)

    def asked(*trees: Any) -> bool:
        return any(x.perturbed for x in jax.tree.leaves(trees, is_leaf=is_primal))

    shared = asked(tensor.mixture, temperature)
    needed = _Needed(asked(tensor.loc), asked(tensor.gates), shared)
    inputs = jax.tree.map(lambda x: x.value, (tensor, temperature), is_leaf=is_primal)
    return _soft_weight(task, *inputs), (*inputs, needed)


def _backward(task: Task, residuals: Any, cotangents: Any) -> tuple[Tensor, jax.Array | None]:
    tensor, temperature, needed = residuals
    dtype = tensor.mixture.means.dtype
    cotangents = [
        jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in cotangents
    ]
    of_weights = [g for g, o in zip(cotangents, task.outputs, strict=True) if o == "weight"]
    of_sums = [g for g, o in zip(cotangents, task.outputs, strict=True) if o != "weight"]

    def evaluate(plan: _Plan, tensor: Tensor, of_weights: Any, of_sums: Any) -> Any:
        def pull(used: tuple[bool, bool, bool], _: jax.Array, *arrays: jax.Array) -> Any:
            """Pull the cotangents of a block back to locs, gates and parameters, as used."""
            loc, gates, kept, *upstream = arrays
            primals = loc, gates, plan.parameters

            def function(*live: Any) -> Any:
                rest = iter(live)
                x, s, parameters = (
                    next(rest) if use else primal for use, primal in zip(used, primals, strict=True)
                )
                return _outputs(task, plan.averages(parameters, x.astype(dtype)), x, s, kept)

            live = [primal for use, primal in zip(used, primals, strict=True) if use]
            pulled = iter(jax.vjp(function, *live)[1]((upstream, of_sums)))
            d_loc, d_gates, d_parameters = (next(pulled) if use else None for use in used)
            return (d_loc, d_gates), d_parameters

        arrays = tensor.loc, tensor.gates, tensor.kept, *of_weights
        used = needed.loc, needed.gates, needed.shared
        return plan.over_backward(partial(pull, used), *arrays)

    (d_loc, d_gates), shared = _by_platform(
        task, evaluate, tensor, temperature, of_weights, of_sums, pulled=needed.shared
    )
    none: Any = None
    if shared is None:
        return Tensor(d_loc, d_gates, none, none), None
    return Tensor(d_loc, d_gates, none, shared.mixture), jnp.sum(shared.temperature)


_soft_weight.defvjp(_forward, _backward, symbolic_zeros=True)


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
    tensor: Tensor,
    temperature: jax.Array,
    *trees: Any,
    pulled: bool = False,
) -> Any:
    """Evaluate every slice of a tensor: looked up on CPUs, exactly elsewhere.

    Args:
      task: What is computed.
      evaluate: Function of (plan, slice of the tensor, slices of the trees).
      tensor: Tensor with stacked axes.
      temperature: Softmax temperature of the responsibilities, positive scalar.
      *trees: Further trees of arrays with the stacked axes.
      pulled: Whether the second result of `evaluate` is the gradient of the plan's parameters,
        which becomes one of _Shared.
    """
    means = tensor.mixture.means
    stacked, small = means.ndim - 2, fits_at_once(tensor.loc.size * means.shape[-1])

    def exact(over: Any, at_once: bool, tensor: Tensor, *trees: Any) -> Any:
        def averages(shared: _Shared, loc: jax.Array) -> list[jax.Array]:
            mixture, values = shared.mixture, _values(task, shared.mixture)
            return average(loc, mixture, values, shared.temperature, at_once=at_once)

        plan = _Plan(averages, _Shared(tensor.mixture, temperature), over, over)
        return evaluate(plan, tensor, *trees)

    def looked_up(cells: int, tensor: Tensor, *trees: Any) -> Any:
        grid, points = grid_over(tensor.loc.astype(means.dtype), tensor.mixture, cells)

        def entries_of(shared: _Shared) -> jax.Array:
            values = _values(task, shared.mixture)
            return lookup.entries(points, shared.mixture, values, shared.temperature)

        def averages(entries: jax.Array, loc: jax.Array) -> list[jax.Array]:
            return look_up(Table(entries, grid, tensor.mixture.boundaries), loc)

        shared = _Shared(tensor.mixture, temperature)
        entries, pull_entries = (
            jax.vjp(entries_of, shared) if pulled else (entries_of(shared), None)
        )
        plan = _Plan(averages, entries, whole, partial(over_blocks, size=_COLLECTED))

        def by_table() -> Any:
            results = evaluate(plan, tensor, *trees)
            return (results[0], *pull_entries(results[1])) if pull_entries else results

        table, values = (
            Table(entries, grid, tensor.mixture.boundaries),
            _values(task, tensor.mixture),
        )
        accurate = lookup.is_accurate(table, points, tensor.mixture, values, temperature)
        return jax.lax.cond(accurate, by_table, lambda: exact(over_blocks, False, tensor, *trees))

    def on_cpu() -> Any:
        *stack, windows, components = means.shape
        size = tensor.loc.size // max(1, math.prod(stack))
        cells = lookup.cell_count(size, components, windows)
        if cells and means.dtype == jnp.float32:
            return per_slice(partial(looked_up, cells), stacked, tensor, *trees)
        return per_slice(partial(exact, over_blocks, False), stacked, tensor, *trees)

    def elsewhere() -> Any:
        return per_slice(partial(exact, whole, small), stacked, tensor, *trees, at_once=small)

    if task.evaluation == "table":
        return on_cpu()
    if task.evaluation == "loop":
        return elsewhere()
    return jax.lax.platform_dependent(cpu=on_cpu, default=elsewhere)
