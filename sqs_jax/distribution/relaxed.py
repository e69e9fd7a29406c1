"""Relaxed draws of the components, differentiable in everything."""

from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import components
from sqs_jax.distribution.blocks import over_blocks, whole
from sqs_jax.distribution.components import Logits, Pulled
from sqs_jax.distribution.mixture import Mixture


@jax.jit
def relaxed_component(
    key: jax.Array,
    loc: jax.Array,
    mixture: Mixture,
    temperature: jax.typing.ArrayLike,
    relaxation: jax.typing.ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Draw a Gumbel-softmax mix of components and return its mean and its scale.

    Args:
      key: PRNG key.
      loc: weights, any shape, of the mixture's dtype.
      mixture: the tensor's mixture.
      temperature: of the responsibilities, > 0.
      relaxation: temperature of the Gumbel-softmax, > 0; towards 0 the draw is one-hot.

    Returns:
      (sum_k g_ik mu_k, sum_k g_ik sigma_k), each shaped as `loc`. The noise is made again in the
      backward pass: there is no [N, K] noise in memory.
    """
    temperature, relaxation = (jnp.asarray(x, loc.dtype) for x in (temperature, relaxation))
    values = jnp.stack([mixture.means, jnp.exp(mixture.log_scales)])
    mean, scale = _draw(key, loc, mixture, values, temperature, relaxation)
    return mean, scale


@jax.custom_vjp
def _draw(key: jax.Array, loc: jax.Array, *rest: Any) -> tuple[jax.Array, ...]:
    return _forward(key, loc, *rest)[0]


def _forward(
    key: jax.Array,
    loc: jax.Array,
    mixture: Mixture,
    values: jax.Array,
    temperature: jax.Array,
    relaxation: jax.Array,
) -> tuple[tuple[jax.Array, ...], Any]:
    def of_block(block: jax.Array, loc: jax.Array) -> Any:
        logits = _logits(block, key, loc, mixture, temperature, relaxation)
        return components.average(logits, values).values, None

    drawn, _ = jax.lax.platform_dependent(
        cpu=lambda: over_blocks(of_block, loc), default=lambda: whole(of_block, loc)
    )
    return drawn, (key, loc, mixture, values, temperature, relaxation)


def _backward(inputs: Any, cotangents: tuple[jax.Array, ...]) -> tuple[Any, ...]:
    key, loc, mixture, values, temperature, relaxation = inputs

    def of_block(block: jax.Array, loc: jax.Array, *cotangents: jax.Array) -> Any:
        logits = _logits(block, key, loc, mixture, temperature, relaxation)
        found = components.average(logits, values, slopes=True)
        d_loc = sum(g * slope for g, slope in zip(cotangents, found.slopes, strict=True))
        return d_loc, components.pull(logits, values, found, cotangents)

    d_loc, shared = jax.lax.platform_dependent(
        cpu=lambda: over_blocks(of_block, loc, *cotangents),
        default=lambda: whole(of_block, loc, *cotangents),
    )
    assert isinstance(shared, Pulled)
    return None, d_loc, shared.mixture, shared.values, shared.temperature, shared.relaxation


_draw.defvjp(_forward, _backward)


def _logits(
    block: jax.Array,
    key: jax.Array,
    loc: jax.Array,
    mixture: Mixture,
    temperature: jax.Array,
    relaxation: jax.Array,
) -> Logits:
    key = jax.random.fold_in(key, block)
    return Logits.at(loc, mixture, temperature, relaxation=relaxation, key=key)
