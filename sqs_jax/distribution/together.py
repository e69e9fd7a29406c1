"""What is computed of several tensors together: soft weights, KL, rate, deployed weights, codes.

Each tensor is evaluated alone; together they cost less to compile and to run.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution.alike import alike, stack, widen
from sqs_jax.distribution.assignment import (
    Candidates,
    candidates,
    levels,
    sum_by_component,
    with_most_probable,
)
from sqs_jax.distribution.kl import SpikeSlabPrior, gaussian_kl
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.soft_weight import Task, soft_weights
from sqs_jax.distribution.ways import Evaluation, Inputs
from sqs_jax.distribution.windows import window_index

if TYPE_CHECKING:  # its methods are these, of one
    from sqs_jax.distribution.sub_distribution import SubDistribution


def means(
    leaves: Sequence["SubDistribution"],
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Compute E_q[w] of each tensor, shaped and typed as `loc`."""
    tensors = [_inputs(d, d.means) for d in leaves]
    found = soft_weights(tensors, temperature, Task(("weight",), evaluation))
    return [weight for (weight,) in found]


def kls(
    leaves: Sequence["SubDistribution"],
    prior: SpikeSlabPrior,
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Bound KL(q || p) of each tensor from above; scalars, nats."""
    tensors = [_inputs(d, _component_kl(d, prior)) for d in leaves]
    found = soft_weights(tensors, temperature, Task((prior,), evaluation))
    return [bound for (bound,) in found]


def means_and_kls(
    leaves: Sequence["SubDistribution"],
    prior: SpikeSlabPrior,
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Compute `means` and `kls` in one pass over the weights."""
    tensors = [_inputs(d, d.means, _component_kl(d, prior)) for d in leaves]
    found = soft_weights(tensors, temperature, Task(("weight", prior), evaluation))
    return [weight for weight, _ in found], [bound for _, bound in found]


def code_lengths(
    leaves: Sequence["SubDistribution"],
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Compute the expected length of each tensor's codes; scalars, nats.

    What a mask and windows take depends on shares alone, and has no gradient.
    """

    def inputs(leaf: "SubDistribution") -> Inputs:
        length = -jax.nn.log_softmax(leaf.mixture_logits, axis=-1)
        open_gates = jnp.full_like(leaf.gate_logits, 40.0)  # a kept weight has a code, sure or not
        return _inputs(leaf.replace(gate_logits=open_gates), length)

    tensors = [inputs(leaf) for leaf in leaves]
    found = soft_weights(tensors, temperature, Task(("weight",), evaluation))
    return [
        jnp.sum(lengths.astype(leaf.means.dtype)) + jnp.sum(leaf._per_slice(_choices))
        for leaf, (lengths,) in zip(leaves, found, strict=True)
    ]


def _choices(leaf: "SubDistribution") -> jax.Array:
    """Compute what it takes to say which weights are pruned, and each other one's window; nats."""
    windows = leaf.means.shape[0]
    place = jnp.where(leaf.kept, window_index(leaf.latent, leaf.boundaries), windows)
    # windows are few: sums of comparisons, in integers, which no number of weights rounds
    counted = jnp.stack([jnp.sum(place == choice) for choice in range(windows + 1)])
    counts = counted.astype(leaf.means.dtype)
    shares = jnp.maximum(counts, 0.5) / max(leaf.loc.size, 1)
    return -jnp.sum(counts * jnp.log(shares))


def _inputs(leaf: "SubDistribution", *values: jax.Array) -> Inputs:
    stack = jnp.stack(values, axis=-3)
    return Inputs(leaf.loc, leaf.gate_logits, leaf.kept, leaf.mixture, stack)


def _component_kl(leaf: "SubDistribution", prior: SpikeSlabPrior) -> jax.Array:
    return gaussian_kl(leaf.means, leaf.log_scales, prior.scale)


@jax.jit
def modes(leaves: Sequence["SubDistribution"]) -> list[jax.Array]:
    """Return the deployed weights of each tensor: kept_i * mu of the most probable component.

    Straight-through: `loc` receives the weight's gradient as it is, pruned weights too, and a
    mean the sum over its kept weights; gates, scales and mixture weights receive none.
    """
    return _straight_through(list(leaves))


@jax.custom_vjp
def _straight_through(leaves: list["SubDistribution"]) -> list[jax.Array]:
    return _forward(leaves)[0]


def _forward(leaves: list["SubDistribution"]) -> tuple[list[jax.Array], Any]:
    found = candidates(*_parts(leaves))
    more = [(leaf.loc, leaf.kept) for leaf in leaves]
    weights = [weight for weight, _ in _with_most_probable(_levels, leaves, found, more)]
    return weights, (leaves, found)


def _backward(residuals: Any, cotangents: list[jax.Array]) -> tuple[list["SubDistribution"]]:
    leaves, found = residuals
    # The components are found again: an index would be four bytes a weight.
    more = [(leaf.kept, g) for leaf, g in zip(leaves, cotangents, strict=True)]
    sums = _with_most_probable(_by_mean, leaves, found, more)
    gradients = []
    for leaf, cotangent, (_, of_means) in zip(leaves, cotangents, sums, strict=True):
        none = jax.tree.map(lambda _: None, leaf)
        gradients.append(none.replace(loc=cotangent, means=of_means))
    return (gradients,)


def _levels(mixture: Mixture, component: jax.Array, *rest: jax.Array) -> tuple[jax.Array, None]:
    return levels(mixture, component, *rest), None


def _by_mean(
    mixture: Mixture, component: jax.Array, kept: jax.Array, cotangent: jax.Array
) -> tuple[None, jax.Array]:
    gradient = jnp.where(kept, cotangent.astype(mixture.means.dtype), 0.0)
    sums = sum_by_component(gradient, component, mixture.means.size)
    return None, sums.reshape(mixture.means.shape)


_straight_through.defvjp(_forward, _backward)


@jax.jit
def codes(leaves: Sequence["SubDistribution"]) -> list[jax.Array]:
    """Return the deployed codes of each tensor: 0 = pruned, else 1 + window * K + component.

    uint8 where W * K <= 255, else uint16; shaped as `loc`.
    """
    found = candidates(*_parts(leaves))
    parts = _with_most_probable(_codes, leaves, found, [(leaf.kept,) for leaf in leaves])
    return [code for code, _ in parts]


def _codes(mixture: Mixture, component: jax.Array, kept: jax.Array) -> tuple[jax.Array, None]:
    dtype = jnp.uint8 if mixture.means.size <= 255 else jnp.uint16
    return jnp.where(kept, 1 + component, 0).astype(dtype), None


def _parts(leaves: Sequence["SubDistribution"]) -> tuple[list[jax.Array], list[Mixture]]:
    return jax.lax.stop_gradient(([d.latent for d in leaves], [d.mixture for d in leaves]))


def _with_most_probable(
    use: Callable[..., tuple[Any, Any]],
    leaves: Sequence["SubDistribution"],
    found: Sequence[Candidates | None],
    more: Sequence[tuple[jax.Array, ...]],
) -> list[tuple[Any, Any]]:
    """Use the most probable components of each tensor, as `with_most_probable` does of one."""
    locs, mixtures = _parts(leaves)

    def one_by_one() -> list[tuple[Any, Any]]:
        parts = zip(locs, mixtures, found, more, strict=True)
        return [with_most_probable(use, *one, *arrays) for *one, arrays in parts]

    def by_shape() -> list[tuple[Any, Any]]:
        return most_probable_by_shape(use, locs, mixtures, more)

    return jax.lax.platform_dependent(cpu=one_by_one, default=by_shape)


def most_probable_by_shape(
    use: Callable[..., tuple[Any, Any]],
    locs: Sequence[jax.Array],
    mixtures: Sequence[Mixture],
    more: Sequence[tuple[jax.Array, ...]],
) -> list[tuple[Any, Any]]:
    """Use the most probable components of each tensor, those of one shape in one program."""
    results: list[Any] = [None] * len(locs)
    for members in alike(locs, mixtures, [None] * len(locs)):
        counts = [mixtures[i].means.shape[-1] for i in members]
        parts = [(locs[i], widen(mixtures[i], max(counts)), more[i]) for i in members]
        loc, mixture, arrays = stack(parts) if len(members) > 1 else parts[0]
        of_weights, sums = with_most_probable(use, loc, mixture, None, *arrays)
        for place, (i, count) in enumerate(zip(members, counts, strict=True)):
            one = (of_weights, sums)
            if len(members) > 1:
                one = jax.tree.map(lambda x: x[place], one)  # noqa: B023
            results[i] = one[0], jax.tree.map(lambda x: x[..., :count], one[1])  # noqa: B023
    return results
