"""Updates of a slice: decisions of its codes, and M-steps of scales and shares."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution.codebook import FLOOR_OF_ZEROS, RELATIVE_FLOOR
from sqs_jax.distribution.hard import most_probable, sum_by_component

# Mean of a half-normal distribution, in standard deviations.
_HALF_NORMAL = math.sqrt(2 / math.pi)

_USUAL = 30  # binary orders of magnitude about 1 whose squares float32 holds with ease

_ROUNDS = 2  # times that codes' shares, and then codes by these, are taken


def refit(leaf: Any) -> Any:
    """Refit a slice, see `SubDistribution.refit`."""
    unit = _unit(leaf.latent)
    count, variance = _spreads(leaf, unit)
    # Fewer than two weights have no spread of their own.
    pooled = jnp.sum(variance * count, -1, keepdims=True) / jnp.maximum(
        jnp.sum(count, -1, keepdims=True), 1
    )
    variance = jnp.where(count > 1, variance, pooled)
    size = _mean_size(leaf.latent / unit)
    floor = jnp.where(size > 0, RELATIVE_FLOOR * size, FLOOR_OF_ZEROS)
    share = jnp.maximum(count, 0.5)
    return leaf.replace(
        log_scales=jnp.log(unit) + 0.5 * jnp.log(jnp.maximum(variance, floor * floor)),
        mixture_logits=jnp.log(share / jnp.sum(share, axis=-1, keepdims=True)),
    )


def at_price(leaf: Any, widening: jax.typing.ArrayLike) -> Any:
    """Decide the codes of a slice, see `SubDistribution.at_price`."""
    width = jnp.mean(leaf.log_scales) + jnp.log(widening)
    leaf = leaf.replace(log_scales=jnp.full_like(leaf.log_scales, width))
    (component, nearest), size = most_probable(leaf.latent, leaf.mixture), leaf.means.size
    for _ in range(_ROUNDS):
        kept = jnp.where(leaf.kept, component, size)  # out of range: dropped
        counts = sum_by_component(jnp.ones_like(leaf.latent), kept, size)
        shares = jnp.log(jnp.maximum(counts, 0.5))
        leaf = leaf.replace(mixture_logits=shares.reshape(leaf.means.shape))
        component, nearest = most_probable(leaf.latent, leaf.mixture)
        if leaf.prunable and leaf.structure is None:
            zeros = jnp.log(jnp.maximum(leaf.kept.size - jnp.sum(counts), 0.5))
            unit = _unit(leaf.latent)
            weights = leaf.latent / unit
            gain = weights**2 - (weights - nearest / unit) ** 2
            nats = zeros - shares[component]  # that the zero saves, of either sign
            leaf = leaf.replace(kept=gain > 2 * jnp.exp(2 * (width - jnp.log(unit))) * nats)
    return leaf


def revive(leaf: Any) -> Any:
    """Revive the components of a slice, see `SubDistribution.revive`."""
    unit = _unit(leaf.latent)
    count, variance = _spreads(leaf, unit)
    numbers = jnp.arange(count.shape[-1])[None]

    def split(
        _: int, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        means, count, error = state
        # K is small: comparisons fuse, gathers and scatters would not
        dead = numbers == jnp.argmin(count, axis=-1, keepdims=True)
        widest = numbers == jnp.argmax(error, axis=-1, keepdims=True)

        def of(x: jax.Array, which: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(which, x, 0), axis=-1, keepdims=True)

        weights, squares, centre = of(count, widest), of(error, widest), of(means, widest)
        spread = jnp.sqrt(squares / jnp.maximum(weights, 1))
        due = (of(count, dead) == 0) & (spread > 0)
        for which, sign in ((dead, 1), (widest, -1)):
            means = jnp.where(due & which, centre + sign * _HALF_NORMAL * spread * unit, means)
            count = jnp.where(due & which, weights / 2, count)
            left = (1 - _HALF_NORMAL**2) * squares / 2
            error = jnp.where(due & which, left, error)
        return means, count, error

    state = (leaf.means, count, count * variance)
    means, count, error = jax.lax.fori_loop(0, leaf.means.shape[-1], split, state)
    moved = means != leaf.means
    spread = jnp.sqrt(error / jnp.maximum(count, 0.5))
    share = jnp.maximum(count, 0.5)
    share = jnp.log(share / jnp.sum(share, axis=-1, keepdims=True))
    changed = jnp.any(moved, axis=-1, keepdims=True)
    return leaf.replace(
        means=means,
        log_scales=jnp.where(
            moved, jnp.log(unit) + jnp.log(jnp.maximum(spread, 1e-30)), leaf.log_scales
        ),
        mixture_logits=jnp.where(changed, share, leaf.mixture_logits),
    )


def _spreads(leaf: Any, unit: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Count the kept weights of components, and average their squared distances.

    Args:
      leaf: one slice of a sub-distribution.
      unit: weight in whose square distances are measured, see `_unit`; scalar, > 0.

    Returns:
      Counts and mean squares, [W, K] each.
    """
    size, shape, latent = leaf.means.size, leaf.means.shape, leaf.latent
    component, nearest = most_probable(latent, leaf.mixture)
    component = jnp.where(leaf.kept, component, size)  # out of range: dropped
    count = sum_by_component(jnp.ones_like(latent), component, size).reshape(shape)
    distance = (latent - nearest) / unit
    square = sum_by_component(distance**2, component, size).reshape(shape)
    return count, square / jnp.maximum(count, 1)


def _mean_size(weights: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(weights)) / max(weights.size, 1)


def _unit(weights: jax.Array) -> jax.Array:
    """Return the unit of squares, 1 unless these could vanish or overflow.

    Powers of 2 change no digit, so that usual tensors have the same results as without a unit.
    """
    size = _mean_size(weights)
    usual = (size > 2.0**-_USUAL) & (size < 2.0**_USUAL) | (size == 0)
    return jnp.where(usual, 1.0, jnp.exp2(jnp.floor(jnp.log2(jnp.where(usual, 1.0, size)))))
