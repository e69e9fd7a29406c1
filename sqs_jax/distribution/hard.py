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


# (component, its mean, kept, *more) of a block -> (tree of arrays shaped as it, tree of sums)
_Use = Callable[..., tuple[Any, Any]]


def _with_most_probable(use: _Use, tensor: Tensor) -> tuple[Any, Any]:
    """Apply a function to the most probable component of each weight, slice by slice."""
    means = tensor.mixture.means
    stacked, small = means.ndim - 2, fits_at_once(tensor.loc.size * means.shape[-1])

    def of_slice(over: Any, at_once: bool, tensor: Tensor) -> tuple[Any, Any]:
        def of_block(_: jax.Array, loc: jax.Array, kept: jax.Array, *more: jax.Array) -> Any:
            latent = loc.astype(means.dtype)
            component, mean = highest(latent, tensor.mixture, at_once=at_once)
            return use(component, mean, kept, *more)

        return over(of_block, tensor.loc, tensor.kept, *tensor.more)

    return jax.lax.platform_dependent(
        cpu=lambda: per_slice(partial(of_slice, over_blocks, False), stacked, tensor),
        default=lambda: per_slice(partial(of_slice, whole, small), stacked, tensor, at_once=small),
    )


@jax.jit
def most_probable(loc: jax.Array, mixture: Mixture) -> tuple[jax.Array, jax.Array]:
    """Return the most probable component of each weight, window * K + k, and its mean."""

    def itself(component: jax.Array, mean: jax.Array, _: jax.Array) -> Any:
        return (component, mean), None

    return _with_most_probable(itself, Tensor(loc, jnp.ones_like(loc, bool), mixture))[0]


@jax.jit
def codes(tensors: Sequence[Tensor]) -> list[jax.Array]:
    """Return the deployed codes of each tensor.

    0 is a pruned weight, 1 + window * K + component another; uint8 where W * K <= 255, else
    uint16; shaped as `loc`.
    """

    def of_tensor(tensor: Tensor) -> jax.Array:
        *_, windows, components = tensor.mixture.means.shape
        dtype = jnp.uint8 if windows * components <= 255 else jnp.uint16

        def code(component: jax.Array, _: jax.Array, kept: jax.Array) -> Any:
            return jnp.where(kept, 1 + component, 0).astype(dtype), None

        return _with_most_probable(code, tensor)[0]

    return by_shape(of_tensor, list(tensors))


@jax.jit
def deployed_weights(tensors: Sequence[Tensor]) -> list[jax.Array]:
    """Return the deployed weights of each tensor.

    kept_i * mu of the most probable component. Straight-through: `loc` receives the weight's
    gradient as it is, pruned weights too, and a mean the sum over its kept weights; scales and
    mixture weights receive none.
    """
    return by_shape(lambda tensor: _straight_through(None, tensor)[0], list(tensors))


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
      Pair of deployed weights and KL, nats, [*S], for each tensor.
    """

    def of_tensor(tensor: Tensor) -> tuple[jax.Array, jax.Array]:
        weights, inclusions, gate_kl = _straight_through(prior, tensor)
        log_scales = jax.lax.stop_gradient(tensor.mixture.log_scales)
        slab = gaussian_kl(tensor.mixture.means, log_scales, prior.scale)
        return weights, gate_kl + jnp.sum(inclusions * slab, axis=(-2, -1))

    return by_shape(of_tensor, list(tensors))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _straight_through(
    prior: SpikeSlabPrior | None, tensor: Tensor
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the deployed weights and, with a prior, the terms of the KL at the mode.

    Args:
      prior: Spike-and-slab prior; None for weights alone.
      tensor: Tensor; `more` are the inclusion logits if there is a prior.

    Returns:
      Weights; sums of inclusions, [*S, W, K]; and the KL of the gates, nats, [*S].
    """
    shape, dtype = tensor.mixture.means.shape, tensor.loc.dtype

    def use(component: jax.Array, mean: jax.Array, kept: jax.Array, *gates: jax.Array) -> Any:
        weight = jnp.where(kept, mean, 0).astype(dtype)
        if prior is None:
            return weight, None
        logits = gates[0].astype(mean.dtype)
        inclusion = jnp.where(kept, jax.nn.sigmoid(logits), 0)
        gate_kl = jnp.sum(kl_bound(jnp.zeros((), mean.dtype), logits, kept, prior))
        return weight, (sum_by_component(inclusion, component, shape[-2] * shape[-1]), gate_kl)

    weights, sums = _with_most_probable(use, tensor)
    inclusions, gate_kl = sums or (jnp.zeros(shape), jnp.zeros(shape[:-2]))
    return weights, inclusions.reshape(shape), gate_kl


def _forward(prior: SpikeSlabPrior | None, tensor: Tensor) -> tuple[Any, Tensor]:
    return _straight_through(prior, tensor), tensor


def _backward(
    prior: SpikeSlabPrior | None, tensor: Tensor, cotangents: tuple[jax.Array, ...]
) -> tuple[Tensor]:
    shape, d_weights = tensor.mixture.means.shape, cotangents[0]
    none: Any = None

    def use(component: jax.Array, mean: jax.Array, kept: jax.Array, d_weight: jax.Array) -> Any:
        kept_part = jnp.where(kept, d_weight.astype(mean.dtype), 0)
        return None, sum_by_component(kept_part, component, shape[-2] * shape[-1])

    # The components are searched again: indices would take four bytes a weight.
    _, d_means = _with_most_probable(use, tensor._replace(more=(d_weights,)))
    return (Tensor(d_weights, none, Mixture(d_means.reshape(shape), none, none, none), none),)


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
