"""Hard assignment of weights to components: the most probable, or drawn ones.

It makes the codes and the deployed weights, which have a straight-through derivative and whose KL
is a sum over K components.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.kl import SpikeSlabPrior, gaussian_kl, kl_bound
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.soft_average import highest
from sqs_jax.distribution.stacking import by_shape, fits_at_once, per_slice


class Tensor(NamedTuple):
    """A tensor with stacked axes S.

    Attributes:
      loc: Weights, [*S, *shape].
      kept: Pruning decision, bool, shaped as `loc`.
      mixture: Mixtures, [*S, W, K].
      more: Further arrays, shaped as `loc`.
    """

    loc: jax.Array
    kept: jax.Array
    mixture: Mixture
    more: tuple[jax.Array, ...] = ()


# (W * K, component, its mean, kept, *more) of a block -> (tree of arrays, tree of sums)
_Use = Callable[..., tuple[Any, Any]]


def _with_most_probable(use: _Use, tensors: Sequence[Tensor]) -> list[tuple[Any, Any]]:
    """Apply a function to the most probable components of each tensor, slice by slice."""

    def of_slice(over: Any, at_once: bool, tensor: Tensor) -> tuple[Any, Any]:
        def of_block(_: jax.Array, loc: jax.Array, kept: jax.Array, *more: jax.Array) -> Any:
            latent = loc.astype(tensor.mixture.means.dtype)
            component, mean = highest(latent, tensor.mixture, at_once=at_once)
            return use(tensor.mixture.means.size, component, mean, kept, *more)

        return over(of_block, tensor.loc, tensor.kept, *tensor.more)

    def on_cpu(tensor: Tensor) -> tuple[Any, Any]:
        stacked = tensor.mixture.means.ndim - 2
        return per_slice(partial(of_slice, over_blocks, False), stacked, tensor)

    def elsewhere(tensor: Tensor) -> tuple[Any, Any]:
        means = tensor.mixture.means
        small = fits_at_once(tensor.loc.size * means.shape[-1])
        return per_slice(partial(of_slice, whole, small), means.ndim - 2, tensor, at_once=small)

    return jax.lax.platform_dependent(
        cpu=lambda: by_shape(on_cpu, tensors, one_by_one=True),
        default=lambda: by_shape(elsewhere, tensors, one_by_one=False),
    )


@jax.jit
def most_probable(loc: jax.Array, mixture: Mixture) -> tuple[jax.Array, jax.Array]:
    """Return the most probable component of each weight, window * K + k, and its mean."""

    def itself(_: int, component: jax.Array, mean: jax.Array, __: jax.Array) -> Any:
        return (component, mean), None

    ((found, _),) = _with_most_probable(itself, [Tensor(loc, jnp.ones_like(loc, bool), mixture)])
    return found


@jax.jit
def codes(tensors: Sequence[Tensor]) -> list[jax.Array]:
    """Return the deployed codes of each tensor.

    0 is a pruned weight, 1 + window * K + component another; uint8 where W * K <= 255, else
    uint16; shaped as `loc`.
    """

    def code(count: int, component: jax.Array, _: jax.Array, kept: jax.Array) -> Any:
        return jnp.where(kept, 1 + component, 0).astype(
            jnp.uint8 if count <= 255 else jnp.uint16
        ), None

    return [codes for codes, _ in _with_most_probable(code, tensors)]


@jax.jit
def deployed_weights(tensors: Sequence[Tensor]) -> list[jax.Array]:
    """Return the deployed weights of each tensor.

    kept_i * mu of the most probable component. Straight-through: `loc` receives the weight's
    gradient as it is, pruned weights too, and a mean the sum over its kept weights; scales and
    mixture weights receive none.
    """
    return [weights for weights, _ in _straight_through(None, list(tensors))]


@partial(jax.jit, static_argnames="prior")
def deployed_weights_and_kl(
    tensors: Sequence[Tensor], prior: SpikeSlabPrior
) -> list[tuple[jax.Array, jax.Array]]:
    """Return the deployed weights and the KL at the mode of each tensor.

    At the mode phi is one-hot, the limit at temperature 0: the slabs' part is a sum over the
    components of their KL times the inclusions of their weights. It is differentiable in the means
    alone: nothing in the likelihood would oppose its pull on scales and gates.

    Args:
      tensors: Tensors; `more` are the inclusion logits.
      prior: Spike-and-slab prior.

    Returns:
      Pair of deployed weights and KL, nats, for each tensor.
    """
    results = []
    for tensor, (weights, sums) in zip(
        tensors, _straight_through(prior, list(tensors)), strict=True
    ):
        assert sums is not None  # there is a prior
        means, log_scales = tensor.mixture.means, jax.lax.stop_gradient(tensor.mixture.log_scales)
        slab = gaussian_kl(means, log_scales, prior.scale)
        bound = jnp.sum(sums.gate_kl) + jnp.sum(sums.inclusions.reshape(means.shape) * slab)
        results.append((weights, bound))
    return results


class _Sums(NamedTuple):
    """Sums over the weights of a slice.

    Attributes:
      inclusions: Inclusions of each component's weights, [W * K].
      gate_kl: KL of the gates, nats, scalar.
    """

    inclusions: jax.Array
    gate_kl: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _straight_through(
    prior: SpikeSlabPrior | None, tensors: list[Tensor]
) -> list[tuple[jax.Array, _Sums | None]]:
    """Return the deployed weights of each tensor and, with a prior, sums of its slices, [*S, ...].

    Args:
      prior: Spike-and-slab prior; None for weights alone.
      tensors: Tensors; `more` are the inclusion logits if there is a prior.
    """

    def use(
        count: int, component: jax.Array, mean: jax.Array, kept: jax.Array, *gates: jax.Array
    ) -> Any:
        weight = jnp.where(kept, mean, 0)
        if prior is None:
            return weight, None
        logits = gates[0].astype(mean.dtype)
        inclusions = jnp.where(kept, jax.nn.sigmoid(logits), 0)
        gate_kl = jnp.sum(kl_bound(jnp.zeros((), mean.dtype), logits, kept, prior))
        return weight, _Sums(sum_by_component(inclusions, component, count), gate_kl)

    results = _with_most_probable(use, tensors)
    pairs = zip(tensors, results, strict=True)
    return [(weights.astype(tensor.loc.dtype), sums) for tensor, (weights, sums) in pairs]


def _forward(prior: SpikeSlabPrior | None, tensors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    return _straight_through(prior, tensors), tensors


def _backward(
    _: SpikeSlabPrior | None, tensors: list[Tensor], cotangents: list[Any]
) -> tuple[list[Tensor]]:
    none: Any = None

    def use(
        count: int, component: jax.Array, mean: jax.Array, kept: jax.Array, d_weight: jax.Array
    ) -> Any:
        kept_part = jnp.where(kept, d_weight.astype(mean.dtype), 0)
        return None, sum_by_component(kept_part, component, count)

    # The components are searched again: indices would take four bytes a weight.
    upstream = [d_weights for d_weights, _ in cotangents]
    again = [tensor._replace(more=(d,)) for tensor, d in zip(tensors, upstream, strict=True)]
    gradients = []
    for tensor, d_weights, (_, sums) in zip(
        tensors, upstream, _with_most_probable(use, again), strict=True
    ):
        d_means = sums.reshape(tensor.mixture.means.shape)
        gradients.append(Tensor(d_weights, none, Mixture(d_means, none, none, none), none))
    return (gradients,)


_straight_through.defvjp(_forward, _backward)


def draw_weights(
    key: jax.Array,
    loc: jax.Array,
    kept: jax.Array,
    mixture: Mixture,
    temperature: jax.typing.ArrayLike,
) -> jax.Array:
    """Draw the K-level weights of a slice, kept_i * mu_k with k ~ phi_i.

    Args:
      key: PRNG key.
      loc: Weights, any shape.
      kept: Pruning decision, bool, shaped as `loc`.
      mixture: Mixture of the slice, [W, K].
      temperature: Softmax temperature of the responsibilities, positive scalar.

    Returns:
      Weights shaped and typed as `loc`.
    """
    latent = jax.lax.stop_gradient(loc.astype(mixture.means.dtype))
    _, mean = highest(latent, jax.lax.stop_gradient(mixture), temperature, key=key)
    return jnp.where(kept, mean, 0).astype(loc.dtype)


@partial(jax.jit, static_argnames="count")
def sum_by_component(x: jax.Array, component: jax.Array, count: int) -> jax.Array:
    """Sum x over the weights of each component.

    Args:
      x: Terms, floating, any shape.
      component: Components in [0, count), int32 shaped as `x`; terms of others are left out.
      count: Number of components of all windows.

    Returns:
      Sums, [count].
    """

    def scatter() -> jax.Array:
        # In buckets: one running float32 sum would stop growing at some ten million terms.
        buckets = max(1, min(64, (1 << 18) // count))
        axis = max(range(x.ndim), key=lambda i: x.shape[i], default=0)
        bucket = jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) % buckets if x.ndim else 0
        inside = (component >= 0) & (component < count)
        index = jnp.where(inside, bucket * count + component, buckets * count)
        sums = jnp.zeros(buckets * count, x.dtype)
        sums = sums.at[index].add(x, mode="drop", wrap_negative_indices=False)
        return jnp.sum(sums.reshape(buckets, count), axis=0)

    def one_by_one() -> jax.Array:
        # Accelerators would queue up at the few sums of a scatter.
        def of(k: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(component == k, x, 0))

        every = jnp.arange(count, dtype=jnp.int32)
        return jax.vmap(of)(every) if fits_at_once(x.size * count) else jax.lax.map(of, every)

    return jax.lax.platform_dependent(cpu=scatter, default=one_by_one)
