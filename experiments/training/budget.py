"""Train towards a file of a given size: `config.sqs.target_bytes`.

K and sparsity of every tensor are those of a file of that size made without training, see
experiments/calibration/size.py. The K become rules, and the posterior starts at the
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
from experiments.training.calibrated import at_codebook, start_near
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


def require_compressed(compressed: Any, config: Any) -> None:
    """Raise ValueError if nothing of an allocation is compressed."""
    if not any(map(sqs_jax.is_compressed, flat_leaves(compressed).values())):
        raise ValueError(
            f"config.sqs.target_bytes is {config.sqs.target_bytes}: the network fits in that as it "
            "is, and nothing is left to compress; give fewer bytes."
        )


def with_budget(phase: Phase, dense: Any, config: Any, compressed: Any) -> Phase:
    """Return the compression with K and sparsity as an allocation has them.

    Args:
      phase: the compression as the config's rules describe it.
      dense: params of the dense network, on the host.
      config: the experiment; `config.sqs.target_bytes` is positive.
      compressed: the params in about so many bytes. The posterior starts at their codebooks, and at
        their codes if `config.sqs.start` is "calibration".
    """
    mask = phase.mask
    assert mask is not None  # a compression prunes
    found = {
        path: leaf
        for path, leaf in flat_leaves(compressed).items()
        if isinstance(leaf, sqs_jax.CompressedLeaf)
    }
    weights = {path: flat_leaves(dense)[path] for path in found}
    moved = {}
    if config.sqs.start == "calibration":
        weights = moved = {path: start_near(found[path], weights[path]) for path in found}
    zeros = {path: float(np.mean(leaf.codes == 0)) for path, leaf in found.items()}
    # At the allocated sparsity, every tensor's threshold is 1 in these units.
    units = {path: float(np.quantile(np.abs(weights[path]), zeros[path])) for path in zeros}

    def scores(posterior: Any) -> Any:
        magnitude = sqs_jax.saliency.magnitude(posterior)
        return map_leaves(lambda path, x: x / max(units[path], 1e-30), magnitude)

    books = {path: leaf.codebook for path, leaf in found.items()}
    transform = sqs_jax.spike_slab_gmm(sqs_jax.rules_for(compressed), prior=phase.prior)
    transform = _started_at(books, moved, transform)
    overall = sum(zeros[path] * leaf.codes.size for path, leaf in found.items())
    overall /= sum(leaf.codes.size for leaf in found.values())
    ramp = mask.sparsity  # from 0 to 1, see phases.py; of what is pruned first, see sequential.py
    mask = mask._replace(
        sparsity=lambda step: overall * ramp(step),
        scores=scores,
        scope="global",
        refit=mask.refit and not moved,
        budget=Budget(config.sqs.target_bytes, transform, config),
    )
    return phase._replace(transform=transform, mask=mask)


def _started_at(
    codebooks: dict[str, Any], moved: dict[str, Any], transform: sqs_jax.Transform
) -> sqs_jax.Transform:
    """Return the transform whose posteriors start at given codebooks, or at codes: moved weights.

    An allocation counts on its own: few weights at the outer levels, and short codes for the
    others. Levels from k-means share the weights more evenly, which takes more bits.
    """

    def init(params: Any) -> Any:
        def start(path: str, leaf: Any) -> Any:
            if path not in codebooks:
                return leaf
            if path in moved:
                return at_codebook(leaf, codebooks[path])
            return leaf.replace(means=jnp.asarray(codebooks[path], leaf.means.dtype))

        weights = map_leaves(lambda path, leaf: moved.get(path, leaf), params)
        posterior = map_leaves(start, transform.init(weights))
        return posterior if moved else sqs_jax.refit(posterior)

    return transform._replace(init=init)
