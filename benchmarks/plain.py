"""The mean of a sub-distribution as anyone would write it from docs/math.md: [N, K] softmax."""

import jax
import jax.numpy as jnp


def mean(
    loc: jax.Array,
    gate_logits: jax.Array,
    means: jax.Array,
    log_scales: jax.Array,
    mixture_logits: jax.Array,
    temperature: jax.Array,
) -> jax.Array:
    """Compute sigmoid(s) sum_k phi_k mu_k; arguments of one window, nothing pruned.

    Args:
      loc: weights, any shape.
      gate_logits: shaped as `loc`.
      means: [K]; so are `log_scales` and `mixture_logits`.
      temperature: scalar.

    Returns:
      Array shaped as `loc`.
    """
    theta = loc.reshape(-1, 1)
    rows = means[None], log_scales[None], jax.nn.log_softmax(mixture_logits)[None]
    mu, log_sigma, log_pi = rows  # [1, K]
    joint = log_pi - log_sigma - 0.5 * ((theta - mu) / jnp.exp(log_sigma)) ** 2
    phi = jax.nn.softmax(joint / temperature, axis=-1)
    return jax.nn.sigmoid(gate_logits) * (phi @ means).reshape(loc.shape)
