"""Rate: expected length of the codes under an entropy coder's model."""

from typing import Any

import jax

from sqs_jax.distribution import code_lengths
from sqs_jax.transform.rules import is_sub_distribution, require_positive, total


def code_length(posterior: Any, *, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
    """Compute the expected length of all codes, nats, a regularizer for the loss.

    The coder's model of a tensor is its share of pruned weights and its mixture weights pi. A kept
    weight of component k has the length -log(kept share) - log pi_k, a pruned weight
    -log(pruned share). The responsibilities average over components, so that latent weights have a
    gradient. As the temperature tends to 0, the result tends to the length of the deployed codes
    under this model. That is at least their order-0 entropy, with equality if the mixture weights
    are the shares of the codes.

    Args:
        posterior: Posterior, a tree with SubDistributions.
        temperature: Softmax temperature of the responsibilities; positive scalar.

    Returns:
        Scalar, nats, summed over the model; differentiable in latent weights, means, scales and
        mixture weights.

    Raises:
        ValueError: If the temperature is not > 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> length = sqs_jax.code_length(posterior, temperature=0.1)
        >>> length.shape, bool(0 < length <= 4 * jnp.log(2.0) + 1e-5)
        ((), True)
    """
    require_positive("temperature", temperature)
    nodes = jax.tree.leaves(posterior, is_leaf=is_sub_distribution)
    leaves = [node for node in nodes if is_sub_distribution(node)]
    return total(code_lengths(leaves, temperature))
