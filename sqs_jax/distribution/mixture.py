"""Gaussian mixture of one tensor, and the responsibilities of the components.

These are [N, K], as the formulas are written: the reference of the tests of soft_average.py and
lookup.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sqs_jax.distribution.windows import window_index


class Mixture(NamedTuple):
    """Mixture of K Gaussians for each of the W windows of a tensor.

    Attributes:
      means: [W, K], in units of the weights.
      log_scales: [W, K], natural log of the standard deviations.
      mixture_logits: [W, K], unnormalised log mixture weights.
      boundaries: [W - 1], window edges in weight value.
    """

    means: jax.Array
    log_scales: jax.Array
    mixture_logits: jax.Array
    boundaries: jax.Array


def rows_of(loc: jax.Array, boundaries: jax.Array, *tables: jax.Array) -> list[jax.Array]:
    """Return the rows of tables [W, K] of each weight's window, [B, K] or [1, K]."""
    if boundaries.shape[0] == 0:
        return list(tables)
    # A product with one-hot rows selects exactly, and its derivative is a product too, where that
    # of a gather would be a slow scatter.
    one_hot = jax.nn.one_hot(
        window_index(loc, boundaries), boundaries.shape[0] + 1, dtype=tables[0].dtype
    )
    return [jnp.matmul(one_hot, t, precision=jax.lax.Precision.HIGHEST) for t in tables]


def log_joint(loc: jax.Array, mixture: Mixture) -> jax.Array:
    """Compute log pi_k + log N(loc; mu_k, sigma_k^2) of each weight's window.

    Args:
      loc: Weights, [B], of the mixture's dtype.
      mixture: Mixture of the tensor.

    Returns:
      [B, K], nats, less the constant log(2 pi) / 2, which no responsibility depends on.
    """
    log_weights = jax.nn.log_softmax(mixture.mixture_logits, axis=-1)
    means, log_scales, log_weights = rows_of(
        loc, mixture.boundaries, mixture.means, mixture.log_scales, log_weights
    )
    z = (loc[:, None] - means) * jnp.exp(-log_scales)
    return log_weights - log_scales - 0.5 * z * z


def log_responsibilities(
    loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Compute log phi_k = log softmax_k(log joint / temperature); [B] -> [B, K], nats."""
    temperature = jnp.asarray(temperature, loc.dtype)
    return jax.nn.log_softmax(log_joint(loc, mixture) / temperature, axis=-1)


def responsibilities(
    loc: jax.Array, mixture: Mixture, temperature: jax.typing.ArrayLike
) -> jax.Array:
    """Compute phi, the probability of each component of a weight's window given its value.

    This is the [N, K] reference; nothing in a training step calls it on a whole tensor.

    Args:
      loc: Weights, [B].
      mixture: Mixture of the tensor.
      temperature: Positive scalar; 1 is the exact posterior, towards 0 the most probable component.

    Returns:
      [B, K] probabilities, rows summing to 1.
    """
    return jnp.exp(log_responsibilities(loc, mixture, temperature))
