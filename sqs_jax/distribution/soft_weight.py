"""Soft weights and their KL, in one pass over the weights and one back.

One custom derivative hides how the averages over the components are evaluated: looked up in tables
on CPUs, by a loop over the components elsewhere. Nothing shaped as the weights is kept for the
backward pass but the inputs. All tensors of a model are given together: their tables are made
together.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from sqs_jax.distribution import ways
from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.kl import SpikeSlabPrior, kl_bound, kl_slope
from sqs_jax.distribution.ways import Evaluation, Inputs, Over, Way

# What is made of an average: gated weights, or the KL of the tensor from a prior.
Output = Literal["weight"] | SpikeSlabPrior


class Task(NamedTuple):
    """What is computed, and how.

    Attributes:
      outputs: what is made of each of the V averages.
      evaluation: "loop", over the components, exact; "table", looked up to within
        `table.TOLERANCE` of the values' range, and exact (in blocks) where a table would miss
        that, where a tensor is too small for one, and in float64; "auto", the table on a CPU,
        the loop elsewhere.
    """

    outputs: tuple[Output, ...]
    evaluation: Evaluation


# Compiled as a whole: outside of jit both platforms' branches would be.
@partial(jax.jit, static_argnames="task")
def soft_weights(
    tensors: Sequence[Inputs], temperature: jax.typing.ArrayLike, task: Task
) -> list[tuple[jax.Array, ...]]:
    """Average values of the components under each weight's responsibilities, sum_k phi_ik v_k.

    Args:
      tensors: every slice of a tensor's stacked axes is evaluated alone.
      temperature: of the responsibilities, > 0.
      task: what is made of the V averages. "weight", of the means: E_q[w], shaped and typed as
        `loc`. A prior, of the components' KL from it: `kl_bound`, summed over the tensor.

    Returns:
      V outputs of each tensor. Differentiable in all but `kept` and the boundaries.
    """
    dtype = np.result_type(np.float32, *(t.mixture.means.dtype for t in tensors))
    return _soft_weights(task, list(tensors), jnp.asarray(temperature, dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _soft_weights(
    task: Task, tensors: list[Inputs], temperature: jax.Array
) -> list[tuple[jax.Array, ...]]:
    return _evaluate(task, tensors, temperature)[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Wanted:
    """Which gradients of a tensor somebody asked for: what nobody wants is not computed.

    `shared` is the gradient of mixtures, values or temperature, of any tensor.
    """

    loc: bool
    gates: bool
    shared: bool


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """Makes the outputs of one slice; called as `ways.forward` says."""

    task: Task

    def __call__(
        self, way: Way, over: Over, inputs: Inputs
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        dtype = inputs.mixture.means.dtype

        def of_block(
            _: jax.Array, loc: jax.Array, gates: jax.Array, kept: jax.Array
        ) -> tuple[list[jax.Array], list[jax.Array]]:
            averages = way.average(loc.astype(dtype), False).values
            gates = gates.astype(dtype)
            weights, sums = [], []
            for output, average in zip(self.task.outputs, averages, strict=True):
                if output == "weight":
                    weight = jnp.where(kept, jax.nn.sigmoid(gates) * average, 0)
                    weights.append(weight.astype(loc.dtype))
                else:
                    bound = kl_bound(average, gates, kept, output)
                    # else the sum would take the whole to pieces, each an array
                    sums.append(jnp.sum(jax.lax.optimization_barrier(bound)))
            return weights, sums

        return over(of_block, inputs.loc, inputs.gates, inputs.kept)


@dataclasses.dataclass(frozen=True)
class _Gradients:
    """Makes the gradients of one slice, of the outputs' cotangents; as `ways.backward` says."""

    task: Task
    wanted: _Wanted

    def __call__(self, way: Way, over: Over, inputs: Inputs, *cotangents: jax.Array) -> Any:
        outputs = self.task.outputs
        of_weights = [g for g, o in zip(cotangents, outputs, strict=True) if o == "weight"]
        arrays = inputs.loc, inputs.gates, inputs.kept, *of_weights

        def run(over: Over, wanted: _Wanted) -> Any:
            return over(partial(self._of_block, wanted, way, inputs, cotangents), *arrays)

        if over is not whole:
            return run(over, self.wanted)
        # What is collected goes through memory on its way: in blocks, little of it.
        found, _ = run(whole, dataclasses.replace(self.wanted, shared=False))
        none = _Wanted(False, False, self.wanted.shared)
        return found, run(over_blocks, none)[1]

    def _of_block(
        self,
        wanted: _Wanted,
        way: Way,
        inputs: Inputs,
        cotangents: tuple[jax.Array, ...],
        _: jax.Array,
        loc: jax.Array,
        gates: jax.Array,
        kept: jax.Array,
        *of_weights: jax.Array,
    ) -> Any:
        dtype, outputs = inputs.mixture.means.dtype, self.task.outputs
        rest, pairs = iter(of_weights), zip(cotangents, outputs, strict=True)
        upstream = [next(rest) if output == "weight" else g for g, output in pairs]
        x, logits = loc.astype(dtype), gates.astype(dtype)
        inclusion = jnp.where(kept, jax.nn.sigmoid(logits), 0)
        downstream = [inclusion * g.astype(dtype) for g in upstream]
        found = way.average(x, wanted.loc)
        d_loc = d_gates = shared = None
        if wanted.loc:
            d_loc = _dot(downstream, found.slopes).astype(loc.dtype)
        if wanted.gates:
            slopes = [
                average if output == "weight" else kl_slope(average, logits, output)
                for average, output in zip(found.values, outputs, strict=True)
            ]
            d_gates = jax.nn.sigmoid(-logits) * _dot(downstream, slopes)
            d_gates = d_gates.astype(gates.dtype)
        if wanted.shared:
            shared = way.collect(x, found, downstream)
        return (d_loc, d_gates), shared


def _forward(task: Task, tensors: Any, temperature: Any) -> tuple[list[tuple[jax.Array, ...]], Any]:
    def is_primal(x: Any) -> bool:
        return isinstance(x, CustomVJPPrimal)

    def asked(*trees: Any) -> bool:
        return any(x.perturbed for x in jax.tree.leaves(trees, is_leaf=is_primal))

    shared = asked([(t.mixture, t.values) for t in tensors], temperature)
    wanted = [_Wanted(asked(t.loc), asked(t.gates), shared) for t in tensors]
    inputs = jax.tree.map(lambda x: x.value, (tensors, temperature), is_leaf=is_primal)
    results, tables = _evaluate(task, *inputs)
    return results, (*inputs, tables, wanted)


def _evaluate(
    task: Task, tensors: list[Inputs], temperature: jax.Array
) -> tuple[list[tuple[jax.Array, ...]], Any]:
    """Return the outputs, and the tables for the backward pass."""

    runs = [_Outputs(task)] * len(tensors)
    found, tables = ways.forward(runs, tensors, temperature, task.evaluation)
    results = []
    for weights, sums in found:
        soft, bounds = iter(weights), (jnp.sum(x) for x in sums)
        results.append(tuple(next(soft if o == "weight" else bounds) for o in task.outputs))
    return results, tables


def _backward(task: Task, residuals: Any, cotangents: Any) -> tuple[list[Inputs], jax.Array]:
    tensors, temperature, tables, wanted = residuals

    runs = [_Gradients(task, each) for each in wanted]
    arrays = []
    for inputs, given in zip(tensors, cotangents, strict=True):
        given = [jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g for g in given]
        stacked = inputs.mixture.means.shape[:-2]
        arrays.append(tuple(g if g.ndim else jnp.broadcast_to(g, stacked) for g in given))
    found = ways.backward(runs, tensors, temperature, task.evaluation, tables, arrays)
    gradients, total = [], jnp.zeros_like(temperature)
    none: Any = None
    for (d_loc, d_gates), shared in found:
        if shared is None:
            gradients.append(Inputs(d_loc, d_gates, none, none, none))
        else:
            gradients.append(Inputs(d_loc, d_gates, none, shared.mixture, shared.values))
            total += jnp.sum(shared.temperature).astype(total.dtype)
    return gradients, total


_soft_weights.defvjp(_forward, _backward, symbolic_zeros=True)


def _dot(many: Sequence[jax.Array], others: Sequence[jax.Array]) -> jax.Array:
    return reduce(jnp.add, map(jnp.multiply, many, others))
