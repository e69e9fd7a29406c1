"""Pruning scores: a tree with an array per compressed leaf, None elsewhere. None reads `kept`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import SubDistribution
from sqs_jax.transform.rules import is_sub_distribution, map_tree


def _scores(function: Callable[..., jax.Array], posterior: Any, *rest: Any) -> Any:
    return map_tree(
        lambda path, leaf, *other: (
            function(path, leaf, *other) if is_sub_distribution(leaf) else None
        ),
        posterior,
        *rest,
    )


def _match(name: str, posterior: Any, tree: Any) -> Any:
    """Lay a tree over the posterior's compressed leaves; its other leaves do not matter."""
    given = {path: leaf for path, leaf in _paths(tree)}

    def pick(path: str, leaf: SubDistribution) -> Any:
        if given.get(path) is None:
            raise ValueError(
                f"{path}: {name} has no array at this path, which the posterior compresses; it "
                f"has: {', '.join(list(given)[:8]) or 'nothing'}."
            )
        return given[path]

    return _scores(pick, posterior)


def _paths(tree: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    map_tree(lambda path, leaf: found.append((path, leaf)), tree)
    return found


def _gates(leaf: SubDistribution) -> jax.Array:
    """Widen the gates, which may be of eight bits."""
    return leaf.gate_logits.astype(leaf.latent.dtype)


def magnitude(posterior: Any) -> Any:
    """Score rho_i * |theta_i|, the default; larger is kept."""
    return _scores(lambda _, leaf: jax.nn.sigmoid(_gates(leaf)) * jnp.abs(leaf.latent), posterior)


def gate(posterior: Any) -> Any:
    """Score the inclusion logit, a first-order importance once gates are trained under "mean".

    Gates that nothing trained are all equal, and prune by position: estimator "mode" never
    trains them.
    """
    return _scores(lambda _, leaf: _gates(leaf), posterior)


def activation(posterior: Any, input_norms: Any) -> Any:
    """Score |theta_ij| * ||x_i||_2, normalised per tensor to mean 1 (Wanda, arXiv:2306.11695).

    Args:
      posterior: a posterior.
      input_norms: tree with, at each compressed leaf's path, the calibration inputs' norms: shape
        [in], the length of axis -2, or `loc.shape[:-1]`.

    Returns:
      The scores, float arrays shaped as `loc`.

    Raises:
      ValueError: if a path is missing or a shape does not fit.
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
    """Score theta_i^2 * E[g_i^2], the diagonal Fisher information's estimate of the loss increase.

    Args:
      posterior: a posterior.
      squared_grads: tree with, at each compressed leaf's path, E[g^2] shaped as `loc`.

    Returns:
      The scores, float arrays shaped as `loc`.

    Raises:
      ValueError: if a path is missing or a shape differs.
    """

    def score(path: str, leaf: SubDistribution, squares: jax.Array) -> jax.Array:
        if squares.shape != leaf.loc.shape:
            raise ValueError(
                f"{path}: squared_grads have shape {squares.shape}, the weights {leaf.loc.shape}."
            )
        return leaf.latent**2 * squares.astype(leaf.latent.dtype)

    return _scores(score, posterior, _match("squared_grads", posterior, squared_grads))
