"""What is computed of several tensors together: soft weights, KL, deployed weights and codes.

Each tensor is evaluated alone; together they cost less to compile and to run.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution.assignment import (
    Candidates,
    candidates,
    most_probable,
    sum_by_component,
)
from sqs_jax.distribution.kl import SpikeSlabPrior, gaussian_kl
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.soft_weight import Task, soft_weights
from sqs_jax.distribution.sub_distribution import SubDistribution
from sqs_jax.distribution.ways import Evaluation, Inputs


def means(
    leaves: Sequence[SubDistribution],
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Compute E_q[w] of each tensor, shaped and typed as `loc`."""
    tensors = [_inputs(d, d.means) for d in leaves]
    found = soft_weights(tensors, temperature, Task(("weight",), evaluation))
    return [weight for (weight,) in found]


def kls(
    leaves: Sequence[SubDistribution],
    prior: SpikeSlabPrior,
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Bound KL(q || p) of each tensor from above; scalars, nats."""
    tensors = [_inputs(d, _component_kl(d, prior)) for d in leaves]
    found = soft_weights(tensors, temperature, Task((prior,), evaluation))
    return [bound for (bound,) in found]


def means_and_kls(
    leaves: Sequence[SubDistribution],
    prior: SpikeSlabPrior,
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Compute `means` and `kls` in one pass over the weights."""
    tensors = [_inputs(d, d.means, _component_kl(d, prior)) for d in leaves]
    found = soft_weights(tensors, temperature, Task(("weight", prior), evaluation))
    return [weight for weight, _ in found], [bound for _, bound in found]


def _inputs(leaf: SubDistribution, *values: jax.Array) -> Inputs:
    stack = jnp.stack(values, axis=-3)
    return Inputs(leaf.loc, leaf.gate_logits, leaf.kept, leaf.mixture, stack)


def _component_kl(leaf: SubDistribution, prior: SpikeSlabPrior) -> jax.Array:
    return gaussian_kl(leaf.means, leaf.log_scales, prior.scale)


@jax.jit
def modes(leaves: Sequence[SubDistribution]) -> list[jax.Array]:
    """Return the deployed weights of each tensor: kept_i * mu of the most probable component.

    Straight-through: `loc` receives the weight's gradient as it is, pruned weights too, and a
    mean the sum over its kept weights; gates, scales and mixture weights receive none.
    """
    return _straight_through(list(leaves))


@jax.custom_vjp
def _straight_through(leaves: list[SubDistribution]) -> list[jax.Array]:
    return _forward(leaves)[0]


def _forward(leaves: list[SubDistribution]) -> tuple[list[jax.Array], Any]:
    found = candidates(*_parts(leaves))
    weights = [
        leaf.per_slice(SubDistribution.levels, component)
        for leaf, component in zip(leaves, _components(leaves, found), strict=True)
    ]
    return weights, (leaves, found)


def _backward(residuals: Any, cotangents: list[jax.Array]) -> tuple[list[SubDistribution]]:
    leaves, found = residuals
    # The components are found again: an index would be four bytes a weight.
    components = _components(leaves, found)

    def by_mean(leaf: SubDistribution, component: jax.Array, cotangent: jax.Array) -> jax.Array:
        gradient = jnp.where(leaf.kept, cotangent.astype(leaf.means.dtype), 0.0)
        return sum_by_component(gradient, component, leaf.means.size).reshape(leaf.means.shape)

    gradients = []
    for leaf, component, cotangent in zip(leaves, components, cotangents, strict=True):
        of_means = leaf.per_slice(by_mean, component, cotangent)
        none = jax.tree.map(lambda _: None, leaf)
        gradients.append(none.replace(loc=cotangent, means=of_means))
    return (gradients,)


_straight_through.defvjp(_forward, _backward)


@jax.jit
def codes(leaves: Sequence[SubDistribution]) -> list[jax.Array]:
    """Return the deployed codes of each tensor: 0 = pruned, else 1 + window * K + component.

    uint8 where W * K <= 255, else uint16; shaped as `loc`.
    """
    results = []
    components = _components(leaves, candidates(*_parts(leaves)))
    for leaf, component in zip(leaves, components, strict=True):
        windows, number = leaf.means.shape[-2:]
        dtype = jnp.uint8 if windows * number <= 255 else jnp.uint16
        results.append(jnp.where(leaf.kept, 1 + component, 0).astype(dtype))
    return results


def _parts(leaves: Sequence[SubDistribution]) -> tuple[list[jax.Array], list[Mixture]]:
    return jax.lax.stop_gradient(([d.latent for d in leaves], [d.mixture for d in leaves]))


def _components(
    leaves: Sequence[SubDistribution], found: Sequence[Candidates | None]
) -> list[jax.Array]:
    """Find the most probable component of each weight, window * K + k; int32, shaped as `loc`."""
    return [most_probable(*parts) for parts in zip(*_parts(leaves), found, strict=True)]
