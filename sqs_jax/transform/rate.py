"""The rate: how long the codes are under the model that an entropy coder has of them."""

from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import code_lengths
from sqs_jax.transform.rules import is_sub_distribution


def code_length(posterior: Any, *, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """Compute the expected length of all codes, nats: what a term of the loss makes smaller.

    A coder that knows each tensor's share of pruned weights and its mixture weights pi needs
    -log(kept share) - log pi_k for a kept weight of component k, and -log(pruned share) for a
    pruned one. Components are averaged under the responsibilities, so that latent weights have a
    gradient. As the temperature tends to 0, after `refit`, it is the order-0 entropy of the codes.

    Args:
      posterior: a posterior.
      temperature: of the responsibilities, > 0.

    Returns:
      A scalar, differentiable in latent weights, means, scales and mixture weights.
    """
    nodes = jax.tree.leaves(posterior, is_leaf=is_sub_distribution)
    leaves = [node for node in nodes if is_sub_distribution(node)]
    return sum(code_lengths(leaves, temperature), start=jnp.zeros(()))
