"""Train towards a file of `config.sqs.target_bytes` bytes.

A file of that size is first made without training (experiments/calibration/bit_allocation.py). Its
number of levels K of each tensor becomes a rule, and the posterior starts at its codebooks. One
real number, the compression strength, then moves the size of the file:

start "weights"      The strength moves the overall sparsity. The allocated sparsities give each
                     tensor a unit of its pruning scores, so that one threshold meets them all.
start "calibration"  The strength is the price of a nat of code (`sqs_jax.at_price`). Where a tensor
                     has many levels, one percent of the bytes corresponds to many weights but to
                     few codes. Where no price leads to the size, pruning continues from the next
                     lower price.

The strength is solved for at the first decision of the mask, about ten times until the mask is
frozen, and after the last step. In between the masks or the widths of the components store it, so
that a resumed run needs no extra state. The sparsity has no ramp, because the allocated levels were
chosen together with the allocated zeros.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.export import shipped
from experiments.training.phases import MaskSchedule, Phase
from experiments.training.sharding import fetch
from experiments.training.warm_start import at_codes, start_near
from experiments.trees import flat_leaves, map_leaves, sparsity, sub_distributions
from sqs_jax.budget import TOLERANCE, Fit, fit_bytes

# Fraction of the budget that the final file takes at least. While the network trains, files take
# more: settled codes take about a percent less.
_PROMISED = 0.98
_MOST, _RESOLUTION = 40.0, 0.01  # of the strength
_MOST_PRUNED = 0.999  # largest sparsity
_SLOPE = 0.3  # first guess: minus the derivative of the logarithm of the size by the strength


def priced(posterior: Any, strength: float) -> Any:
    """Choose codes anew at exp(2 * strength) times their present price."""
    return sqs_jax.at_price(posterior, math.exp(strength))


def pruned(mask: MaskSchedule) -> Callable[[Any, float], Any]:
    """Build the assignment that multiplies the odds of the sparsity by exp(strength).

    Args:
      mask: Schedule of the mask; its final sparsity is that of a posterior without zeros.
    """

    def assign(posterior: Any, strength: float) -> Any:
        # The size of a file without zeros is no guide: the first zeros make the file larger.
        fraction = sparsity(posterior) or float(mask.sparsity(mask.freeze))
        return mask.prune(posterior, _scale_odds(fraction, strength))

    return assign


def _scale_odds(fraction: float, log_factor: float) -> float:
    """Multiply the odds of a fraction by exp(log_factor)."""
    if not log_factor:
        return fraction
    odds = math.exp(log_factor) * fraction / max(1 - fraction, 1e-6)
    return min(odds / (1 + odds), _MOST_PRUNED)


class Budget(NamedTuple):
    """A target size of the file, and the search for codes that meet the target.

    Attributes:
      target: Bytes of the whole file.
      transform: Transform of the posterior.
      config: Config of the experiment.
      assign: Function (posterior, strength) -> posterior with new codes. A larger strength gives
        fewer bytes; strength 0 gives the codes that are due at this step.
      at_price: Whether `assign` chooses codes at a price, and zeros with them.
    """

    target: int
    transform: sqs_jax.Transform
    config: Any
    assign: Callable[[Any, float], Any]
    at_price: bool

    def fit(self, posterior: Any, model_state: Any) -> Any:
        """Choose codes that take as many bytes as the budget allows.

        The size jumps where many weights lose their level at the same price. Pruning then fills the
        file: pruning starts from the next lower price, at which the file is too large.

        Args:
          posterior: Posterior of the network.
          model_state: Other collections of the network, which the file stores too.

        Returns:
          The posterior with new codes. Its file takes 99 to 100 % of the target, or as many bytes
          as its levels can fill.

        Raises:
          sqs_jax.BudgetError: The file is too large at every strength.
        """
        fit = self._largest(posterior, model_state)
        full = fit.bytes >= (1 - TOLERANCE) * self.target
        if not self.at_price or fit.above is None or full:
            return fit.candidate
        pruning = self._replace(assign=_dearest_pruned(fit.above), at_price=False)
        try:
            filled = pruning._largest(fit.above, model_state).candidate
        except sqs_jax.BudgetError:
            return fit.candidate
        best = _error(fit.candidate, posterior)
        return fit.candidate if _error(filled, posterior) > best else filled

    def _largest(self, posterior: Any, model_state: Any) -> Fit[Any]:
        """Find the largest file that fits, by the strength."""

        def measure(weakness: float) -> tuple[Any, int]:
            candidate = self.assign(posterior, -weakness)
            return candidate, self.file_bytes(candidate, model_state)

        return fit_bytes(
            measure,
            self.target,
            slope=_SLOPE,
            bracket=(-_MOST, math.inf),
            resolution=_RESOLUTION,
            name="config.sqs.target_bytes",
            remedy="raise it, or round more (config.sqs.dense_dtype)",
        )

    def land(self, posterior: Any, model_state: Any, scores: Any) -> Any:
        """Return the trained posterior with codes that fit the budget.

        Codes change only if the file is too large, or smaller than 98 % of the target. Where
        pruning moves the size, the mask changes only at kept weights of the lowest scores, or at
        pruned weights of the highest scores.
        """
        if _PROMISED * self.target <= self.file_bytes(posterior, model_state) <= self.target:
            return posterior
        if self.at_price:
            return self.fit(posterior, model_state)
        kept = {path: leaf.kept for path, leaf in sub_distributions(posterior).items()}
        ranked = map_leaves(lambda path, s: jnp.where(kept[path], s, s / (1 + s) - 1), scores)
        start = sparsity(posterior)

        def assign(posterior: Any, strength: float) -> Any:
            return sqs_jax.prune(posterior, _scale_odds(start, strength), scores=ranked)

        return self._replace(assign=assign, at_price=False).fit(posterior, model_state)

    def file_bytes(self, posterior: Any, model_state: Any) -> int:
        """Measure the bytes of model.sqs of a posterior."""
        compressed = fetch(self.transform.compress(posterior))
        tree, options = shipped(compressed, fetch(model_state), self.config)
        return sqs_jax.summarize(tree, **options).file_bytes


def _dearest_pruned(posterior: Any) -> Callable[[Any, float], Any]:
    """Build the assignment that keeps the fraction exp(-strength) of the kept weights.

    The order of pruning is that of `SubDistribution.at_price`: the squared error that a zero adds,
    minus the price of the nats that the zero saves. Pruning by the error alone gives 2 % more error
    at equal bytes (digits at 90 to 95 % of their bytes, tests/experiments/test_training_budget.py).

    Args:
      posterior: Posterior that `priced` returned; its mixture weights count the codes.
    """

    def scores(_: str, leaf: Any) -> Any:
        slices = leaf.loc.shape[: leaf.stacked]
        codes = jnp.asarray(leaf.codes(), jnp.int32).reshape(*slices, -1)
        counts = leaf.mixture_logits.reshape(*slices, -1)  # logarithms of the counts
        zeros = jnp.sum(jnp.where(codes, 0.0, 1.0), -1, keepdims=True)
        nats = jnp.take_along_axis(counts, jnp.maximum(codes - 1, 0), -1)
        nats = jnp.log(jnp.maximum(zeros, 0.5)) - nats
        width = _widths(leaf)
        added = (leaf.loc / width) ** 2 - ((leaf.loc - leaf.mode()) / width) ** 2
        return jnp.where(leaf.kept, added - 2 * nats.reshape(leaf.loc.shape), -jnp.inf)

    ranked = map_leaves(scores, sub_distributions(posterior))
    kept = 1 - sparsity(posterior)

    def assign(posterior: Any, strength: float) -> Any:
        fraction = min(1 - kept * math.exp(-strength), _MOST_PRUNED)
        return sqs_jax.prune(posterior, fraction, scores=ranked)

    return assign


def _error(posterior: Any, reference: Any) -> float:
    """Sum squared errors of all weights, in units of a reference's component widths."""
    widths = {path: _widths(leaf) for path, leaf in sub_distributions(reference).items()}
    return sum(
        float(jnp.sum(((leaf.mode() - leaf.loc) / widths[path]) ** 2))
        for path, leaf in sub_distributions(posterior).items()
    )


def _widths(leaf: sqs_jax.SubDistribution) -> Any:
    """Compute the geometric mean of each slice's scales, to broadcast with the weights."""
    width = jnp.exp(jnp.mean(leaf.log_scales, (-2, -1)))
    return jnp.expand_dims(width, tuple(range(width.ndim, leaf.loc.ndim)))


def require_compressed(compressed: Any, config: Any) -> None:
    """Raise ValueError if an allocation compresses no tensor."""
    if not any(map(sqs_jax.is_compressed, flat_leaves(compressed).values())):
        raise ValueError(
            f"config.sqs.target_bytes is {config.sqs.target_bytes}: the network fits in that as it "
            "is, and nothing is left to compress; give fewer bytes."
        )


def with_budget(phase: Phase, dense: Any, config: Any, compressed: Any) -> Phase:
    """Build the compression phase with the levels and sparsities of an allocation.

    Args:
      phase: Compression phase by the rules of the config.
      dense: Params of the dense network, on the host.
      config: Config of the experiment; `config.sqs.target_bytes` is positive.
      compressed: Params compressed to about `target_bytes`. The posterior starts at their codebooks
        and zeros, and at all of their codes if `config.sqs.start` is "calibration".
    """
    mask = phase.mask
    assert mask is not None  # A compression prunes.
    calibrated = config.sqs.start == "calibration"
    if calibrated:
        compressed = _of_few_sizes(compressed)
    leaves = {
        path: leaf
        for path, leaf in flat_leaves(compressed).items()
        if isinstance(leaf, sqs_jax.CompressedLeaf)
    }
    weights = {path: flat_leaves(dense)[path] for path in leaves}
    if calibrated:
        weights = {path: start_near(leaves[path], weights[path]) for path in leaves}
    zeros = {path: float(np.mean(leaf.codes == 0)) for path, leaf in leaves.items()}
    # In these units the threshold of every tensor is 1 at the allocated sparsity.
    units = {path: float(np.quantile(np.abs(weights[path]), zeros[path])) for path in zeros}

    def scores(posterior: Any) -> Any:
        magnitude = sqs_jax.saliency.magnitude(posterior)
        return map_leaves(lambda path, x: x / max(units[path], 1e-30), magnitude)

    transform = sqs_jax.spike_slab_gmm(sqs_jax.rules_for(compressed), prior=phase.prior)
    init = transform.init
    start = _at_codes(init, leaves, weights) if calibrated else _at_levels(init, leaves)
    transform = transform._replace(init=start)
    overall = sum(zeros[path] * leaf.codes.size for path, leaf in leaves.items())
    overall /= sum(leaf.codes.size for leaf in leaves.values())
    ramp = mask.sparsity  # from 0 to 1, see phases.py and, for pruning first, sequential.py
    mask = mask._replace(sparsity=lambda step: overall * ramp(step), scores=scores, scope="global")
    assign = priced if calibrated else pruned(mask)
    budget = Budget(config.sqs.target_bytes, transform, config, assign, at_price=calibrated)
    return phase._replace(transform=transform, mask=mask._replace(budget=budget))


def _of_few_sizes(compressed: Any) -> Any:
    """Pad the codebooks of tensors of equal shape to an equal number of levels.

    One program then serves these tensors. A training step of dozens of tensors with different
    numbers of levels compiles for minutes. The padding repeats the first level with no share of the
    codes: hardly a weight takes a repeated level, and the file leaves out unused levels.
    """

    def group(leaf: sqs_jax.CompressedLeaf) -> Any:
        return leaf.codes.shape, leaf.codebook.shape[:-1], leaf.codes.dtype

    most: dict[Any, int] = {}
    for leaf in flat_leaves(compressed).values():
        if isinstance(leaf, sqs_jax.CompressedLeaf):
            most[group(leaf)] = max(most.get(group(leaf), 0), leaf.codebook.shape[-1])

    def pad(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, sqs_jax.CompressedLeaf):
            return leaf
        codebook = np.asarray(leaf.codebook)
        padding = np.repeat(codebook[..., :1], most[group(leaf)] - codebook.shape[-1], axis=-1)
        return sqs_jax.CompressedLeaf(leaf.codes, np.concatenate([codebook, padding], axis=-1))

    return map_leaves(pad, compressed)


def _at_codes(
    init: Callable[[Any], Any],
    compressed: dict[str, sqs_jax.CompressedLeaf],
    weights: dict[str, Any],
) -> Callable[[Any], Any]:
    """Build an init whose posteriors start at the codes of a compressed network."""

    def start(path: str, leaf: Any) -> Any:
        return at_codes(leaf, compressed[path]) if path in compressed else leaf

    def started(params: Any) -> Any:
        moved = map_leaves(lambda path, leaf: weights.get(path, leaf), params)
        return map_leaves(start, init(moved))

    return started


def _at_levels(
    init: Callable[[Any], Any], compressed: dict[str, sqs_jax.CompressedLeaf]
) -> Callable[[Any], Any]:
    """Build an init whose posteriors start at the levels of a compressed network.

    An allocation relies on its own levels: few weights at the outer levels, and short codes for the
    other levels. Levels from k-means share the weights more evenly, which takes more bits.
    """

    def start(path: str, leaf: Any) -> Any:
        if path not in compressed:
            return leaf
        return leaf.replace(means=jnp.asarray(compressed[path].codebook, leaf.means.dtype))

    return lambda params: sqs_jax.refit(map_leaves(start, init(params)))
