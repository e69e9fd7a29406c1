"""Pruning to an exact sparsity and to N:M patterns, and M-steps on a whole posterior."""

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
    """Refit scales and mixture weights to the current assignments (an M-step).

    The scale of a component becomes the root mean square distance of its kept weights from its
    mean, with a lower bound. Its mixture weight becomes its share of the kept weights.

    Args:
        posterior: Posterior, a tree with SubDistributions.

    Returns:
        Posterior with new scales and mixture weights.

    Raises:
        ValueError: If the posterior is one part of a partitioned one.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> refitted = sqs_jax.refit(posterior)
        >>> refitted["kernel"].log_scales.shape
        (1, 2)
    """
    return _on_leaves(_refit, posterior)


def revive(posterior: Any) -> Any:
    """Re-seed empty components with half of the widest component of their window.

    Pruning empties the components near zero. With the estimator "mode", empty components have no
    gradient and would stay empty. The usual order is `prune`, `revive`, `refit`.

    Args:
        posterior: Posterior, a tree with SubDistributions.

    Returns:
        Posterior with new means, scales and mixture weights of the empty components.

    Raises:
        ValueError: If the posterior is one part of a partitioned one.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> pruned = sqs_jax.prune(posterior, 0.5)
        >>> refitted = sqs_jax.refit(sqs_jax.revive(pruned))
        >>> int(refitted["kernel"].kept.sum())
        2
    """
    return _on_leaves(_revive, posterior)


def at_price(posterior: Any, widening: float = 1.0) -> Any:
    """Assign codes by distortion plus code length, see `SubDistribution.at_price`.

    Args:
        posterior: Posterior, a tree with SubDistributions.
        widening: Factor of the scales of all components; positive scalar. Larger factors give
            shorter codes.

    Returns:
        Posterior with new `kept`, scales and mixture weights.

    Raises:
        ValueError: If the widening is not positive, or the posterior is one part of a partitioned
            one.

    References:
        Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization", 1989.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> shorter = sqs_jax.at_price(posterior, widening=2.0)
        >>> shorter["kernel"].kept.shape
        (2, 2)
    """
    require_positive("widening", widening)
    return _on_leaves(lambda leaf: _at_price(leaf, widening), posterior)


# jit compiles once per shape, also for callers outside jit: trainings update masks often.
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
    """Prune exactly round(sparsity * count) weights, by the lowest scores.

    Of equal scores, the earlier positions are pruned. The current `kept` has no influence: pruned
    weights return if their scores are high. Leaves with structure (n, m) keep the n highest scores
    of every m along axis -2, and ignore `sparsity`.

    Args:
        posterior: Posterior, a tree with SubDistributions.
        sparsity: Fraction of the weights to prune; Python number in [0, 1).
        scores: Tree with a floating array per compressed leaf, in the shape of its weights (see
            `saliency`); by default `saliency.magnitude(posterior)`. Infinite scores are pruned
            last.
        scope: "global" for one threshold over all prunable leaves without structure, or "tensor"
            for one threshold per leaf.

    Returns:
        Posterior with new `kept`.

    Raises:
        ValueError: If the sparsity is out of range, no leaf is compressed, or the scores have other
            paths or shapes, or are NaN.
        TypeError: If the sparsity is traced.

    Example:
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> sqs_jax.prune(posterior, 0.5)["kernel"].kept
        Array([[ True,  True],
               [False, False]], dtype=bool)
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
            continue  # every leaf has a structure or is not prunable
        pruned = round(sparsity * sum(score.size for score in group.values()))
        masks |= dict(zip(group, keep_highest(tuple(group.values()), pruned), strict=True))
    return treedef.unflatten(
        [leaf.replace(kept=masks[path]) if path in masks else leaf for path, leaf in pairs]
    )


def _aligned(pairs: list[tuple[str, Any]], scores: Any) -> dict[str, jax.Array]:
    """Return the scores by path, or raise ValueError for wrong paths, shapes or values."""
    leaves: dict[str, SubDistribution] = {p: s for p, s in pairs if is_sub_distribution(s)}
    if not leaves:
        raise ValueError("The posterior has no compressed leaf: there is nothing to prune.")
    by_path = dict(flatten(scores)[0])
    missing, extra = leaves.keys() - by_path.keys(), by_path.keys() - leaves.keys()
    if missing or extra:
        raise ValueError(
            "scores must have an array at exactly the posterior's compressed paths; missing: "
            f"{sorted(missing) or 'none'}, unexpected: {sorted(extra) or 'none'}."
        )
    for path, leaf in leaves.items():
        score = by_path[path]
        if np.shape(score) != leaf.loc.shape:
            raise ValueError(
                f"{path}: scores have shape {np.shape(score)}, the weights {leaf.loc.shape}."
            )
        if not isinstance(score, jax.core.Tracer) and bool(jnp.any(jnp.isnan(score))):
            raise ValueError(f"{path}: scores contain NaN; pruning needs an order.")
    return {path: jnp.asarray(by_path[path]) for path in leaves}


def keep_n_of_m(score: jax.Array, n: int, m: int) -> jax.Array:
    """Return the mask of the n highest of every m scores along axis -2.

    Of equal scores, the first are kept.

    Args:
        score: Floating array `[..., rows, columns]`; m divides rows.
        n: Number of scores to keep, 1 to m.
        m: Size of a group of consecutive rows.

    Returns:
        Bool array in the shape of the scores.
    """
    *lead, rows, columns = score.shape
    groups = score.reshape(*lead, rows // m, m, columns)
    order = jnp.argsort(-groups, axis=-2, stable=True)
    rank = jnp.argsort(order, axis=-2)
    return (rank < n).reshape(score.shape)
