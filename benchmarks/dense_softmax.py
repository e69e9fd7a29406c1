"""Mean of a sub-distribution by a dense [N, K] softmax, transcribed from docs/math.md."""

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
    """Compute sigmoid(s) sum_k phi_k mu_k for a single window and no pruned weights.

    Args:
        loc: Latent weights, of any shape.
        gate_logits: Gate logits, in the shape of `loc`.
        means: Means mu `[K]`.
        log_scales: Logarithms of the scales `[K]`.
        mixture_logits: Logits of the mixture weights `[K]`.
        temperature: Softmax temperature of the responsibilities; positive scalar.

    Returns:
        Array in the shape of `loc`.
    """
    theta = loc.reshape(-1, 1)
    rows = means[None], log_scales[None], jax.nn.log_softmax(mixture_logits)[None]
    mu, log_sigma, log_pi = rows  # [1, K]
    joint = log_pi - log_sigma - 0.5 * ((theta - mu) / jnp.exp(log_sigma)) ** 2
    phi = jax.nn.softmax(joint / temperature, axis=-1)
    return jax.nn.sigmoid(gate_logits) * (phi @ means).reshape(loc.shape)
