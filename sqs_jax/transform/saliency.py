"""Saliency scores for `prune`.

Every function returns a tree with a floating array per compressed leaf, in the shape of its
weights, and None at dense leaves. No score depends on `kept`. Larger scores are kept.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import SubDistribution
from sqs_jax.transform.rules import is_sub_distribution, map_tree


def _scores(function: Callable[..., jax.Array], posterior: Any, *rest: Any) -> Any:
    """Map a function over the compressed leaves of a posterior; None at the other leaves."""
    return map_tree(
        lambda path, leaf, *other: (
            function(path, leaf, *other) if is_sub_distribution(leaf) else None
        ),
        posterior,
        *rest,
    )


def _match(name: str, posterior: Any, tree: Any) -> Any:
    """Return a tree's arrays at the posterior's compressed leaves, or raise ValueError."""
    by_path = dict(_paths(tree))

    def pick(path: str, leaf: SubDistribution) -> Any:
        if by_path.get(path) is None:
            raise ValueError(
                f"{path}: {name} has no array at this path, which the posterior compresses; it "
                f"has: {', '.join(list(by_path)[:8]) or 'nothing'}."
            )
        return by_path[path]

    return _scores(pick, posterior)


def _paths(tree: Any) -> list[tuple[str, Any]]:
    """Return the (path, leaf) pairs of a tree."""
    pairs: list[tuple[str, Any]] = []
    map_tree(lambda path, leaf: pairs.append((path, leaf)), tree)
    return pairs


def _gates(leaf: SubDistribution) -> jax.Array:
    """Return the gate logits in the dtype of the weights, from as few as 8 bits."""
    return leaf.gate_logits.astype(leaf.latent.dtype)


def magnitude(posterior: Any) -> Any:
    """Score rho_i * |theta_i|, inclusion probability times magnitude; the default.

    Args:
        posterior: Posterior, a tree with SubDistributions.

    Returns:
        Tree of scores >= 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> scores = sqs_jax.saliency.magnitude(posterior)
        >>> int(scores["kernel"].argmin())
        3
    """
    return _scores(lambda _, leaf: jax.nn.sigmoid(_gates(leaf)) * jnp.abs(leaf.latent), posterior)


def gate(posterior: Any) -> Any:
    """Score the inclusion logit.

    Gates trained with estimator "mean" are a first-order importance. Estimator "mode" does not
    train gates: all are equal then, and `prune` decides by position.

    Args:
        posterior: Posterior, a tree with SubDistributions.

    Returns:
        Tree of scores, logits of any sign.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> sqs_jax.saliency.gate(posterior)["kernel"].shape
        (2, 2)
    """
    return _scores(lambda _, leaf: _gates(leaf), posterior)


def activation(posterior: Any, input_norms: Any) -> Any:
    """Score |theta_ij| * ||x_i||_2, normalized to mean 1 per tensor (Wanda).

    Args:
        posterior: Posterior, a tree with SubDistributions.
        input_norms: Tree with the norms of the calibration inputs at the path of each compressed
            leaf; floating array `[in]`, the length of axis -2, or of shape `loc.shape[:-1]`.

    Returns:
        Tree of scores >= 0.

    Raises:
        ValueError: If a path is missing or a shape does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> norms = {"kernel": jnp.array([1.0, 10.0])}
        >>> int(sqs_jax.saliency.activation(posterior, norms)["kernel"].argmax())
        2

    References:
        Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language
        Models", arXiv:2306.11695.
    """

    def score(path: str, leaf: SubDistribution, norms: jax.Array) -> jax.Array:
        shape = leaf.loc.shape[:-1]
        if norms.shape not in (shape, shape[-1:]):
            raise ValueError(
                f"{path}: input_norms have shape {norms.shape}; weights of shape "
                f"{leaf.loc.shape} need {shape[-1:]} or {shape}."
            )
        norms = jnp.broadcast_to(norms.astype(leaf.latent.dtype), shape)
        raw = jnp.abs(leaf.latent) * norms[..., None]
        mean = jnp.mean(raw)
        return raw / jnp.where(mean > 0, mean, 1)

    return _scores(score, posterior, _match("input_norms", posterior, input_norms))


def fisher(posterior: Any, squared_grads: Any) -> Any:
    """Score theta_i^2 * E[g_i^2], the loss increase by the diagonal Fisher information.

    Args:
        posterior: Posterior, a tree with SubDistributions.
        squared_grads: Tree with the mean squared gradients E[g^2] at the path of each compressed
            leaf, in the shape of its weights; values >= 0.

    Returns:
        Tree of scores >= 0, twice the estimated increase of the loss.

    Raises:
        ValueError: If a path is missing or a shape differs.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> squares = {"kernel": jnp.array([[0.0, 1.0], [1.0, 1.0]])}
        >>> int(sqs_jax.saliency.fisher(posterior, squares)["kernel"].argmax())
        1
    """

    def score(path: str, leaf: SubDistribution, squares: jax.Array) -> jax.Array:
        if squares.shape != leaf.loc.shape:
            raise ValueError(
                f"{path}: squared_grads have shape {squares.shape}, the weights {leaf.loc.shape}."
            )
        return leaf.latent**2 * squares.astype(leaf.latent.dtype)

    return _scores(score, posterior, _match("squared_grads", posterior, squared_grads))
