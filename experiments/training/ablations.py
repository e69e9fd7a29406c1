"""Ablations: mistakes of the published code, restored by `config.sqs.mistakes`.

The paper recipe corrects the mistakes of the published code. A run with a restored mistake measures
the value of its correction. Two more mistakes need no code: `kl_weight=1` lets the prior pull the
gates of the survivors down, and the row `mean` of every run multiplies survivors by their gates.
"""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax
from experiments.training.phases import Phase
from experiments.trees import map_leaves, sub_distributions

_BINS = 32


def with_mistakes(phase: Phase, names: Any, num_data: int) -> Phase:
    """Restore mistakes in a compression phase.

    Args:
      phase: Compression phase.
      names: Keys of MISTAKES.
      num_data: Number of training examples.

    Raises:
      ValueError: A name is not in MISTAKES; the message lists the unknown names.
    """
    unknown = [name for name in names if name not in MISTAKES]
    if unknown:
        raise ValueError(f"config.sqs.mistakes has {unknown}; there are {list(MISTAKES)}.")
    for name in names:
        phase = MISTAKES[name](phase, num_data)
    return phase


def half_bernoulli(phase: Phase, num_data: int) -> Phase:
    """Drop the term of the spike, (1 - rho) log((1 - rho) / (1 - lambda)), from the KL."""
    whole, prior = phase.transform.kl, phase.prior

    def kl(posterior: Any, *, temperature: Any = 1.0) -> jax.Array:
        spikes = jnp.zeros(())
        for leaf in sub_distributions(posterior).values():
            logits = leaf.gate_logits.astype(leaf.means.dtype)
            term = jax.nn.log_sigmoid(-logits) - math.log1p(-prior.inclusion)
            spikes += jnp.sum(jnp.where(leaf.kept, jax.nn.sigmoid(-logits) * term, 0.0))
        return whole(posterior, temperature=temperature) - spikes

    return phase._replace(transform=phase.transform._replace(kl=kl))


def unscaled_kl(phase: Phase, num_data: int) -> Phase:
    """Add the KL of the model to the mean NLL without dividing by the examples."""
    return phase._replace(kl_weight=phase.kl_weight * num_data)


def binned(phase: Phase, num_data: int) -> Phase:
    """Replace every weight by the mean of its bin; 32 bins have equal widths."""
    init = phase.transform.init

    def of_bins(params: Any) -> Any:
        compressed = set(sub_distributions(jax.eval_shape(init, params)))

        def snap(path: str, leaf: Any) -> Any:
            if path not in compressed:
                return leaf
            flat = jnp.ravel(leaf)
            edges = jnp.linspace(flat.min(), flat.max(), _BINS + 1)[1:-1]
            place = jnp.searchsorted(edges, flat)
            count = jnp.zeros(_BINS).at[place].add(1.0)
            total = jnp.zeros(_BINS).at[place].add(flat)
            return (total / jnp.maximum(count, 1))[place].reshape(leaf.shape).astype(leaf.dtype)

        return init(map_leaves(snap, params))

    return phase._replace(transform=phase.transform._replace(init=of_bins))


def untrained_scores(phase: Phase, num_data: int) -> Phase:
    """Prune at random, as untrained scores do."""

    def drawn(path: str, score: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), zlib.crc32(path.encode()))
        return jax.random.uniform(key, score.shape)

    def scores(posterior: Any) -> Any:
        return map_leaves(drawn, sqs_jax.saliency.magnitude(posterior))

    return phase.scored_by(scores)


MISTAKES: dict[str, Callable[[Phase, int], Phase]] = {
    "half_bernoulli": half_bernoulli,
    "unscaled_kl": unscaled_kl,
    "binned": binned,
    "untrained_scores": untrained_scores,
}
