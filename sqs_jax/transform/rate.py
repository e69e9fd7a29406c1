"""The rate: how long the codes are under the model that an entropy coder has of them."""

from typing import Any

import jax

from sqs_jax.distribution import code_lengths
from sqs_jax.transform.rules import is_sub_distribution, require_positive, total


def code_length(posterior: Any, *, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """Compute the expected length of all codes, nats: what a term of the loss makes smaller.

    A coder that knows each tensor's share of pruned weights and its mixture weights pi needs
    -log(kept share) - log pi_k for a kept weight of component k, and -log(pruned share) for a
    pruned one. Components are averaged under the responsibilities, so that latent weights have a
    gradient. As the temperature tends to 0 it is what that coder needs for the deployed codes: at
    least their order-0 entropy, and that where the mixture weights are the codes' own shares.

    Args:
      posterior: a posterior.
      temperature: of the responsibilities, > 0.

    Returns:
      A scalar, differentiable in latent weights, means, scales and mixture weights.

    Raises:
      ValueError: if the temperature is not > 0.
    """
    require_positive("temperature", temperature)
    nodes = jax.tree.leaves(posterior, is_leaf=is_sub_distribution)
    leaves = [node for node in nodes if is_sub_distribution(node)]
    return total(code_lengths(leaves, temperature))
