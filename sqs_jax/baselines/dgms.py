"""DGMS: Gaussian-mixture weight sharing with a component at zero, the predecessor of SQS.

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

_CERTAIN = 40.0  # a gate's logit: the weight is included, to the last bit


def dgms(rules: Iterable[Rule] = DEFAULT_RULES, *, evaluation: Evaluation = "auto") -> Transform:
    """Build the DGMS transform, for the loop, the budget and the file of `spike_slab_gmm`.

    Kept: each weight trains as its expectation under a mixture; one component stays at zero, and
    what it holds in the end is pruned: how many is learned, not set; means, scales, mixture weights
    and latent weights are all trained; k-means begins. Different: responsibilities are the softmax
    of the log joint over a temperature, theirs of the posterior over it, so that at low
    temperatures theirs at t is ours at 2 t (docs/math.md); the temperature is the caller's to
    lower, not trained.

    Args:
      rules: as of `spike_slab_gmm`; K counts the components that are not at zero. Windows must be
        one, and `prunable` and `structure` are not read.
      evaluation: as of `spike_slab_gmm`.

    Returns:
      A Transform without `sample`, whose `kl` is 0: train it with estimator "mean". A posterior's
      first component is the one at zero.

    Raises:
      ValueError: for several windows, or see `spike_slab_gmm`.
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
    )  # whose KL is not used

    def init(params: Any) -> Any:
        return _map(_start, base.init(params))

    def on_zero(function: Callable[..., Any]) -> Callable[..., Any]:
        def of(posterior: Any, **options: Any) -> Any:
            return function(_map(_at_zero, posterior), **options)

        return of

    def compress(posterior: Any) -> Any:
        found = base.compress(_map(_at_zero, posterior))
        return jax.tree.map(
            lambda leaf: _pruned(leaf) if isinstance(leaf, CompressedLeaf) else leaf,
            found,
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
    """Bring the component that is nearest to zero to the front, and include every weight."""
    nearest = jnp.argmin(jnp.abs(leaf.means), axis=-1, keepdims=True)
    others = jnp.arange(leaf.means.shape[-1]).reshape(*(1,) * (leaf.means.ndim - 1), -1)
    order = jnp.argsort(others != nearest, axis=-1, stable=True)
    fields = ("means", "log_scales", "mixture_logits")
    turned = {name: jnp.take_along_axis(getattr(leaf, name), order, axis=-1) for name in fields}
    gates = jnp.full_like(leaf.gate_logits, _CERTAIN)
    return _at_zero(leaf.replace(**turned, gate_logits=gates))


def _at_zero(leaf: SubDistribution) -> SubDistribution:
    return leaf.replace(means=leaf.means.at[..., 0].set(0.0))


def _pruned(leaf: CompressedLeaf) -> CompressedLeaf:
    """Make the first component's weights zeros, with no level of their own."""
    codes = jnp.maximum(leaf.codes.astype(jnp.int32) - 1, 0)
    levels = leaf.codebook.shape[-1] - 1
    return CompressedLeaf(
        codes.astype(jnp.uint8 if levels <= 255 else jnp.uint16), leaf.codebook[..., 1:]
    )
