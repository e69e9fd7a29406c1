"""Pruning to an exact sparsity, N:M patterns, and the M-step."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.distribution import SubDistribution
from sqs_jax.transform.rules import (
    flatten,
    is_sub_distribution,
    require_positive,
    require_whole,
)
from sqs_jax.transform.saliency import magnitude
from sqs_jax.transform.selection import keep_highest

Scope = Literal["global", "tensor"]


def refit(posterior: Any) -> Any:
    """Set every leaf's scales and mixture weights from the current assignments (an M-step).

    Each component gets the spread of its kept weights about its mean, with a floor, and its share.
    """
    return _on_leaves(_refit, posterior)


def revive(posterior: Any) -> Any:
    """Give components that hold no kept weight half of the widest component of their window.

    Pruning empties the components near zero, and under estimator "mode" nothing would bring them
    back. Call it between `prune` and `refit`.
    """
    return _on_leaves(_revive, posterior)


def at_price(posterior: Any, widening: float = 1.0) -> Any:
    """Decide every leaf's codes where they cost their length, see `SubDistribution.at_price`.

    Args:
      posterior: a posterior.
      widening: > 0, of all components; wider ones take fewer bits.

    Returns:
      The posterior with new `kept`, scales and mixture weights.

    Raises:
      ValueError: for a widening that is not positive.

    References:
      Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization", 1989.
    """
    require_positive("widening", widening)
    return _on_leaves(lambda leaf: _at_price(leaf, widening), posterior)


# Compiled once per shape, also for callers that do not jit: a decision of the mask is frequent.
_refit = jax.jit(SubDistribution.refit)
_revive = jax.jit(SubDistribution.revive)
_at_price = jax.jit(SubDistribution.at_price)


def _on_leaves(function: Callable[[SubDistribution], SubDistribution], posterior: Any) -> Any:
    pairs, treedef = flatten(posterior)
    return treedef.unflatten(
        [
            function(require_whole(path, leaf)) if is_sub_distribution(leaf) else leaf
            for path, leaf in pairs
        ]
    )


def prune(posterior: Any, sparsity: float, *, scores: Any = None, scope: Scope = "global") -> Any:
    """Decide anew which weights are kept, so that exactly round(sparsity * count) are pruned.

    The lowest scores are pruned; equal scores in order of position. The decision does not depend
    on the one before: weights pruned earlier come back if their scores say so. Leaves with
    structure (n, m) keep the best n of every m along axis -2 and ignore `sparsity`.

    Args:
      posterior: a posterior.
      sparsity: fraction to prune, a number in [0, 1).
      scores: tree with an array per compressed leaf (see `saliency`), larger is kept; by default
        `saliency.magnitude(posterior)`. inf is never pruned before anything finite.
      scope: "global", one threshold for all prunable leaves without structure together, or
        "tensor", one each.

    Returns:
      The posterior with new `kept`.

    Raises:
      ValueError: if sparsity is out of range, the tree holds nothing compressed, or the scores
        have other paths or shapes, or are NaN.
    """
    if isinstance(sparsity, jax.core.Tracer):
        raise TypeError(
            "sparsity is a traced value; the number of weights to prune must be a Python number. "
            "Call prune outside jit, or with static_argnums."
        )
    sparsity = float(sparsity)
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1).")
    if scope not in ("global", "tensor"):
        raise ValueError(f"scope is {scope!r}; it must be 'global' or 'tensor'.")

    pairs, treedef = flatten(posterior)
    for path, leaf in pairs:
        if is_sub_distribution(leaf):
            require_whole(path, leaf)
    score = _aligned(pairs, magnitude(posterior) if scores is None else scores)
    masks: dict[str, jax.Array] = {}
    free: dict[str, jax.Array] = {}
    for path, leaf in pairs:
        if is_sub_distribution(leaf) and leaf.prunable:
            if leaf.structure is not None:
                masks[path] = keep_n_of_m(score[path], *leaf.structure)
            else:
                free[path] = score[path]
    groups = [free] if scope == "global" else [{path: s} for path, s in free.items()]
    for group in groups:
        if not group:
            continue  # every leaf has a structure, or may not be pruned
        number = round(sparsity * sum(s.size for s in group.values()))
        masks |= dict(zip(group, keep_highest(tuple(group.values()), number), strict=True))
    return treedef.unflatten(
        [leaf.replace(kept=masks[path]) if path in masks else leaf for path, leaf in pairs]
    )


def _aligned(pairs: list[tuple[str, Any]], scores: Any) -> dict[str, jax.Array]:
    """Give each compressed path its scores, or say which path, shape or value is wrong."""
    leaves: dict[str, SubDistribution] = {p: s for p, s in pairs if is_sub_distribution(s)}
    if not leaves:
        raise ValueError("The posterior has no compressed leaf: there is nothing to prune.")
    given = dict(flatten(scores)[0])
    missing, extra = leaves.keys() - given.keys(), given.keys() - leaves.keys()
    if missing or extra:
        raise ValueError(
            "scores must have an array at exactly the posterior's compressed paths; missing: "
            f"{sorted(missing) or 'none'}, unexpected: {sorted(extra) or 'none'}."
        )
    for path, leaf in leaves.items():
        score = given[path]
        if np.shape(score) != leaf.loc.shape:
            raise ValueError(
                f"{path}: scores have shape {np.shape(score)}, the weights {leaf.loc.shape}."
            )
        if not isinstance(score, jax.core.Tracer) and bool(jnp.any(jnp.isnan(score))):
            raise ValueError(f"{path}: scores contain NaN; pruning needs an order.")
    return {path: jnp.asarray(given[path]) for path in leaves}


def keep_n_of_m(score: jax.Array, n: int, m: int) -> jax.Array:
    """Keep the n highest of every m scores along axis -2; of equal ones the first; bool mask."""
    *lead, rows, columns = score.shape
    groups = score.reshape(*lead, rows // m, m, columns)
    order = jnp.argsort(-groups, axis=-2, stable=True)
    rank = jnp.argsort(order, axis=-2)
    return (rank < n).reshape(score.shape)
