"""Train towards a file of a given size: `config.sqs.target_bytes`.

The allocator chooses K and sparsity of every tensor from the dense network's weights, by squared
errors times the tensors' sensitivities. The K become rules, and the posterior starts at the
allocated codebooks; the sparsities become one unit per tensor for the pruning scores, so that a
single threshold meets them all and a single number, the overall sparsity, moves the file's size.
That number is solved for at the first decision of the mask, a few times until it is frozen, and
once more when training is over; in between it is read from the masks, so that a resumed run needs
no memory of its own. There is no ramp: allocated levels need the zeros beside them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.export import shipped
from experiments.training.calibrated import start_near
from experiments.training.layout import fetch
from experiments.training.phases import Phase
from experiments.trees import flat_leaves, map_leaves, sparsity, sub_distributions

_PROMISED = 0.98  # of the budget, at least
_LEAST, _AIM = 0.99, 0.996  # while training: codes take a percent less once they have settled
_MOST = 0.99  # sparsity
_TRIALS = 24


class Budget(NamedTuple):
    """The size of a file, and the compression that is to meet it.

    Attributes:
      target: bytes of the whole file.
      transform: of the posterior.
      config: the experiment.
    """

    target: int
    transform: sqs_jax.Transform
    config: Any

    def fit(
        self,
        posterior: Any,
        fraction: float,
        model_state: Any,
        prune: Callable[[Any, float], Any],
    ) -> Any:
        """Prune as little as the budget allows.

        Args:
          posterior: a posterior.
          fraction: the sparsity to begin with.
          model_state: the network's other collections, which the file holds too.
          prune: (posterior, sparsity) -> posterior.

        Returns:
          The pruned posterior, whose file takes 99 to 100 % of the target, or as much as one
          weight more or less lets it.

        Raises:
          ValueError: if the file is too large even with 99 % of the weights pruned.
        """
        low, high, best = 0.0, 1.0, None
        for trial in range(_TRIALS):
            candidate = prune(posterior, fraction)
            found = self.file_bytes(candidate, model_state)
            if found > self.target:
                if fraction >= _MOST:
                    raise ValueError(
                        f"config.sqs.target_bytes is {self.target}: with {_MOST:.0%} of the "
                        f"weights pruned the file still takes {found} bytes; raise it, or round "
                        "more (config.sqs.dense_dtype)."
                    )
                low = fraction
            else:
                high, best = fraction, candidate
                if found >= _LEAST * self.target:
                    break
            # The file takes about as many bytes as weights are kept; bisection if that fails.
            fraction = 1 - (1 - fraction) * _AIM * self.target / found
            if trial >= 5 or not low < fraction < high:
                fraction = (low + high) / 2
            fraction = min(fraction, _MOST)
        assert best is not None  # or the error above
        return best

    def land(self, posterior: Any, model_state: Any, scores: Any) -> Any:
        """Return the trained posterior, with some weights more or less if its size asks for it.

        The mask stays as it is but for the weights of the lowest scores that are kept, or of the
        highest that are not.
        """
        if _PROMISED * self.target <= self.file_bytes(posterior, model_state) <= self.target:
            return posterior
        kept = {path: leaf.kept for path, leaf in sub_distributions(posterior).items()}
        ranked = map_leaves(lambda path, s: jnp.where(kept[path], s, s / (1 + s) - 1), scores)

        def prune(posterior: Any, fraction: float) -> Any:
            return sqs_jax.prune(posterior, fraction, scores=ranked)

        return self.fit(posterior, sparsity(posterior), model_state, prune)

    def file_bytes(self, posterior: Any, model_state: Any) -> int:
        """Return the size of the file that this posterior ships as."""
        tree, options = shipped(self.transform.compress(posterior), model_state, self.config)
        return sqs_jax.summarize(fetch(tree), **options).file_bytes


def with_budget(
    phase: Phase,
    dense: Any,
    config: Any,
    sensitivity: Any,
    recode: Callable[[Any], Any] | None = None,
) -> Phase:
    """Return the compression with K and sparsity as the budget has them.

    Args:
      phase: the compression as the config's rules describe it.
      dense: variables of the dense network.
      config: the experiment; `config.sqs.target_bytes` is positive.
      sensitivity: what a squared error of each tensor's weights costs, a tree of scalars as the
        params.
      recode: compressed params -> such whose codes the posterior is to start at; by default it
        starts at the weights.

    Raises:
      ValueError: if the network fits in the budget as it is, or cannot be made so small.
    """
    sqs, mask = config.sqs, phase.mask
    assert mask is not None  # a compression prunes
    dense = fetch(dense)
    model_state = {name: value for name, value in dense.items() if name != "params"}
    tree, options = shipped(dense["params"], model_state, config)
    compressed = sqs_jax.compress_to_budget(
        {"params": tree["params"]},  # what normalisations keep beside them takes next to nothing
        target_bytes=sqs.target_bytes,
        sensitivity={"params": sensitivity},
        rules=[sqs_jax.Rule(pattern=f"params/(?:{sqs.pattern})")],
        **options,
    )["params"]
    found = {
        path: leaf
        for path, leaf in flat_leaves(compressed).items()
        if isinstance(leaf, sqs_jax.CompressedLeaf)
    }
    if not found:
        raise ValueError(
            f"config.sqs.target_bytes is {sqs.target_bytes}: the network fits in that as it is, "
            "and nothing is left to compress; give fewer bytes."
        )
    weights = {path: flat_leaves(dense["params"])[path] for path in found}
    if recode is not None:
        recoded = flat_leaves(recode(compressed))
        found = {path: recoded[path] for path in found}
        weights = {path: start_near(found[path], weights[path]) for path in found}
    zeros = {path: float(np.mean(leaf.codes == 0)) for path, leaf in found.items()}
    # At the allocated sparsity, every tensor's threshold is 1 in these units.
    units = {path: float(np.quantile(np.abs(weights[path]), zeros[path])) for path in zeros}

    def scores(posterior: Any) -> Any:
        magnitude = sqs_jax.saliency.magnitude(posterior)
        return map_leaves(lambda path, x: x / max(units[path], 1e-30), magnitude)

    transform = _started_at(
        {path: leaf.codebook for path, leaf in found.items()},
        weights if recode is not None else {},
        sqs_jax.spike_slab_gmm(sqs_jax.rules_for(compressed), prior=phase.prior),
    )
    overall = sum(zeros[path] * leaf.codes.size for path, leaf in found.items())
    overall /= sum(leaf.codes.size for leaf in found.values())
    ramp = mask.sparsity  # from 0 to 1, see phases.py; of what is pruned first, see sequential.py
    mask = mask._replace(
        sparsity=lambda step: overall * ramp(step),
        scores=scores,
        scope="global",
        budget=Budget(sqs.target_bytes, transform, config),
    )
    return phase._replace(transform=transform, mask=mask)


def _started_at(
    codebooks: dict[str, Any], weights: dict[str, Any], transform: sqs_jax.Transform
) -> sqs_jax.Transform:
    """Return the transform whose posteriors start at given codebooks, and maybe weights.

    An allocation counts on its own: few weights at the outer levels, and short codes for the
    others. Levels from k-means share the weights more evenly, which takes more bits.
    """

    def init(params: Any) -> Any:
        def start(path: str, leaf: Any) -> Any:
            if path not in codebooks:
                return leaf
            return leaf.replace(means=jnp.asarray(codebooks[path], leaf.means.dtype))

        moved = map_leaves(lambda path, leaf: weights.get(path, leaf), params)
        return sqs_jax.refit(map_leaves(start, transform.init(moved)))

    return transform._replace(init=init)
