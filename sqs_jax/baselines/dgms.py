"""DGMS: Gaussian-mixture weight sharing with a component fixed at zero.

The predecessor of SQS.

Dong, Tan, Wu and Zhang 2022, arXiv:2112.15139.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.distribution import Evaluation, SpikeSlabPrior, SubDistribution
from sqs_jax.transform.rules import DEFAULT_RULES, Rule, check_rules
from sqs_jax.transform.transform import Transform, spike_slab_gmm

_CERTAIN = 40.0  # gate logit whose sigmoid is 1 in float32: every weight is included


def dgms(rules: Iterable[Rule] = DEFAULT_RULES, *, evaluation: Evaluation = "auto") -> Transform:
    """Build the DGMS transform, which trains, budgets and saves like `spike_slab_gmm`.

    Kept: each weight trains as its expectation under a mixture. One component stays at zero, and
    the weights assigned to it at the end are pruned; their number is learned, not set. Means,
    scales, mixture weights and latent weights are all trained, starting from k-means. Different:
    responsibilities are the softmax of the log joint divided by the temperature. The paper divides
    the posterior, so that at low temperatures its t corresponds to 2 t here (docs/math.md). The
    caller lowers the temperature; it is not trained.

    Args:
        rules: Rules as for `spike_slab_gmm`; K counts the components that are not at zero. The
            number of windows must be 1; `prunable` and `structure` are ignored.
        evaluation: Evaluation of the soft average, as for `spike_slab_gmm`.

    Returns:
        Transform without `sample`, whose `kl` is 0. Train it with estimator "mean". The first
        component of a posterior is the one at zero.

    Raises:
        ValueError: If a rule has several windows; or as `spike_slab_gmm`.

    Example:
        >>> import jax.numpy as jnp
        >>> from sqs_jax import Rule
        >>> from sqs_jax.baselines.dgms import dgms
        >>> transform = dgms([Rule(components=4)])
        >>> posterior = transform.init({"kernel": jnp.linspace(-1, 1, 12).reshape(4, 3)})
        >>> float(posterior["kernel"].means[0, 0])
        0.0
    """
    wider = []
    for rule in check_rules(rules):
        if rule.windows.count != 1:
            raise ValueError(
                f"Rule {rule.pattern!r} has {rule.windows.count} windows; the component at zero "
                "needs one."
            )
        more = None if rule.components is None else rule.components + 1
        wider.append(dataclasses.replace(rule, components=more))
    base = spike_slab_gmm(
        wider, prior=SpikeSlabPrior(inclusion=0.5, scale=1.0), evaluation=evaluation
    )  # the prior does not matter: this transform's KL is 0

    def init(params: Any) -> Any:
        return _map(_start, base.init(params))

    def on_zero(function: Callable[..., Any]) -> Callable[..., Any]:
        def apply(posterior: Any, **options: Any) -> Any:
            return function(_map(_at_zero, posterior), **options)

        return apply

    def compress(posterior: Any) -> Any:
        compressed = base.compress(_map(_at_zero, posterior))
        return jax.tree.map(
            lambda leaf: _pruned(leaf) if isinstance(leaf, CompressedLeaf) else leaf,
            compressed,
            is_leaf=lambda node: isinstance(node, CompressedLeaf),
        )

    return Transform(
        init=init,
        mean=on_zero(base.mean),
        sample=None,
        mode=on_zero(base.mode),
        kl=lambda posterior, *, temperature=1.0: jnp.zeros(()),
        compress=compress,
    )


def _map(function: Callable[[SubDistribution], SubDistribution], posterior: Any) -> Any:
    def is_leaf(node: Any) -> bool:
        return isinstance(node, SubDistribution)

    return jax.tree.map(
        lambda leaf: function(leaf) if is_leaf(leaf) else leaf, posterior, is_leaf=is_leaf
    )


def _start(leaf: SubDistribution) -> SubDistribution:
    """Move the component nearest to zero to the front, and include every weight."""
    nearest = jnp.argmin(jnp.abs(leaf.means), axis=-1, keepdims=True)
    others = jnp.arange(leaf.means.shape[-1]).reshape(*(1,) * (leaf.means.ndim - 1), -1)
    order = jnp.argsort(others != nearest, axis=-1, stable=True)
    fields = ("means", "log_scales", "mixture_logits")
    reordered = {name: jnp.take_along_axis(getattr(leaf, name), order, axis=-1) for name in fields}
    gates = jnp.full_like(leaf.gate_logits, _CERTAIN)
    return _at_zero(leaf.replace(**reordered, gate_logits=gates))


def _at_zero(leaf: SubDistribution) -> SubDistribution:
    return leaf.replace(means=leaf.means.at[..., 0].set(0.0))


def _pruned(leaf: CompressedLeaf) -> CompressedLeaf:
    """Replace the first component by code 0, and remove its level from the codebook."""
    codes = jnp.maximum(leaf.codes.astype(jnp.int32) - 1, 0)
    levels = leaf.codebook.shape[-1] - 1
    return CompressedLeaf(
        codes.astype(jnp.uint8 if levels <= 255 else jnp.uint16), leaf.codebook[..., 1:]
    )
