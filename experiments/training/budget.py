"""Train towards a file of a given size: `config.sqs.target_bytes`.

K and sparsity of every tensor are those of a file of that size made without training, see
experiments/calibration/size.py. The K become rules, and the posterior starts at the allocated
codebooks. One number, a knob, then moves the file's size:

start "weights"      the overall sparsity: the allocated sparsities become one unit per tensor for
                     the pruning scores, so that a single threshold meets them all
start "calibration"  the price of a nat of code (`sqs_jax.at_price`): where levels are many, a
                     percent of the bytes would cost many weights, and few codes

It is solved for at the first decision of the mask, a few times until it is frozen, and once more
when training is over; in between it is read from the masks or the components' widths, so that a
resumed run needs no memory of its own. There is no ramp: allocated levels need the zeros beside
them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.export import shipped
from experiments.training.calibrated import at_codes, start_near
from experiments.training.layout import fetch
from experiments.training.phases import MaskSchedule, Phase
from experiments.trees import flat_leaves, map_leaves, sparsity, sub_distributions

_PROMISED = 0.98  # of the budget, at least
_LEAST, _AIM = 0.99, 0.996  # while training: codes take a percent less once they have settled
_STEP, _MOST = 6.0, 40.0  # of a knob; in all, for a file that is too large
_MOST_PRUNED = 0.999
_SLOPE = -0.3  # of the logarithm of a size against a knob, to begin with
_TRIALS = 24


def priced(posterior: Any, knob: float) -> Any:
    """Choose codes at exp(2 * knob) times the price that they have."""
    return sqs_jax.at_price(posterior, math.exp(knob))


def pruned(mask: MaskSchedule) -> Callable[[Any, float], Any]:
    """Return the knob of the sparsity: exp(knob) times its odds, kept to one."""

    def assign(posterior: Any, knob: float) -> Any:
        # of what is not pruned yet, a size says nothing: the first zeros cost bytes
        fraction = sparsity(posterior) or float(mask.sparsity(mask.freeze))
        return mask.prune(posterior, _moved(fraction, knob))

    return assign


def _moved(fraction: float, knob: float) -> float:
    """Multiply the odds of a fraction by exp(knob)."""
    if not knob:
        return fraction
    odds = math.exp(knob) * fraction / max(1 - fraction, 1e-6)
    return min(odds / (1 + odds), _MOST_PRUNED)


class Budget(NamedTuple):
    """The size of a file, and the compression that is to meet it.

    Attributes:
      target: bytes of the whole file.
      transform: of the posterior.
      config: the experiment.
      assign: (posterior, knob) -> posterior: its codes as they are due at 0, which take the fewer
        bytes the larger the knob is.
    """

    target: int
    transform: sqs_jax.Transform
    config: Any
    assign: Callable[[Any, float], Any]

    def fit(self, posterior: Any, model_state: Any) -> Any:
        """Let codes take as many bytes as the budget allows.

        Args:
          posterior: a posterior.
          model_state: the network's other collections, which the file holds too.

        Returns:
          The posterior with other codes, whose file takes 99 to 100 % of the target, or as much as
          its levels can fill.

        Raises:
          sqs_jax.BudgetError: if the file is too large wherever the knob is.
        """
        low, high, knob = -math.inf, math.inf, 0.0
        best, best_size, before = None, 0, None
        for _ in range(_TRIALS):
            candidate = self.assign(posterior, knob)
            found = self.file_bytes(candidate, model_state)
            if found > self.target:
                low = knob
            else:
                high = knob
                if found == best_size:
                    break  # levels that cannot fill more: the price need not fall for nothing
                if found > best_size:
                    best, best_size = candidate, found
            if _LEAST * self.target <= found <= self.target or high - low < 1e-2:
                break
            if best is None and knob > _MOST:
                break
            # regula falsi on the logarithms, and bisection where that leaves the bracket
            here, slope = (knob, math.log(found / (_AIM * self.target))), _SLOPE
            if before and before[1] != here[1]:
                slope = min((here[1] - before[1]) / (here[0] - before[0]), -1e-3)
            before, knob = here, knob + min(max(-here[1] / slope, -_STEP), _STEP)
            if not low < knob < high:
                knob = (low + high) / 2
        if best is None:
            raise sqs_jax.BudgetError(
                f"config.sqs.target_bytes is {self.target}: with as few codes as can be, the file "
                f"still takes {found} bytes; raise it, or round more (config.sqs.dense_dtype)."
            )
        return best

    def land(self, posterior: Any, model_state: Any, scores: Any) -> Any:
        """Return the trained posterior, with some other codes if its size asks for it.

        Where pruning moves the size, the mask stays as it is but for the weights of the lowest
        scores that are kept, or of the highest that are not.
        """
        if _PROMISED * self.target <= self.file_bytes(posterior, model_state) <= self.target:
            return posterior
        if self.assign is priced:
            return self.fit(posterior, model_state)
        kept = {path: leaf.kept for path, leaf in sub_distributions(posterior).items()}
        ranked = map_leaves(lambda path, s: jnp.where(kept[path], s, s / (1 + s) - 1), scores)
        start = sparsity(posterior)

        def assign(posterior: Any, knob: float) -> Any:
            return sqs_jax.prune(posterior, _moved(start, knob), scores=ranked)

        return self._replace(assign=assign).fit(posterior, model_state)

    def file_bytes(self, posterior: Any, model_state: Any) -> int:
        """Return the size of the file that this posterior ships as."""
        compressed = fetch(self.transform.compress(posterior))
        tree, options = shipped(compressed, fetch(model_state), self.config)
        return sqs_jax.summarize(tree, **options).file_bytes


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
      compressed: the params in about so many bytes. The posterior starts at their codebooks and
        zeros, and at all of their codes if `config.sqs.start` is "calibration".
    """
    mask = phase.mask
    assert mask is not None  # a compression prunes
    calibrated = config.sqs.start == "calibration"
    if calibrated:
        compressed = _of_few_sizes(compressed)
    found = {
        path: leaf
        for path, leaf in flat_leaves(compressed).items()
        if isinstance(leaf, sqs_jax.CompressedLeaf)
    }
    weights = {path: flat_leaves(dense)[path] for path in found}
    if calibrated:
        weights = {path: start_near(found[path], weights[path]) for path in found}
    zeros = {path: float(np.mean(leaf.codes == 0)) for path, leaf in found.items()}
    # At the allocated sparsity, every tensor's threshold is 1 in these units.
    units = {path: float(np.quantile(np.abs(weights[path]), zeros[path])) for path in zeros}

    def scores(posterior: Any) -> Any:
        magnitude = sqs_jax.saliency.magnitude(posterior)
        return map_leaves(lambda path, x: x / max(units[path], 1e-30), magnitude)

    transform = sqs_jax.spike_slab_gmm(sqs_jax.rules_for(compressed), prior=phase.prior)
    init = transform.init
    start = _at_codes(init, found, weights) if calibrated else _at_levels(init, found)
    transform = transform._replace(init=start)
    overall = sum(zeros[path] * leaf.codes.size for path, leaf in found.items())
    overall /= sum(leaf.codes.size for leaf in found.values())
    ramp = mask.sparsity  # from 0 to 1, see phases.py; of what is pruned first, see sequential.py
    mask = mask._replace(sparsity=lambda step: overall * ramp(step), scores=scores, scope="global")
    assign = priced if calibrated else pruned(mask)
    budget = Budget(config.sqs.target_bytes, transform, config, assign)
    return phase._replace(transform=transform, mask=mask._replace(budget=budget))


def _of_few_sizes(compressed: Any) -> Any:
    """Fill codebooks up, so that tensors of one shape have as many levels: one program serves them.

    A training step of dozens of tensors that all differ compiles for minutes. What fills up is the
    first level again, with no share of the codes, so that hardly a weight takes it; a file leaves
    out what none takes.
    """

    def kind(leaf: sqs_jax.CompressedLeaf) -> Any:
        return leaf.codes.shape, leaf.codebook.shape[:-1], leaf.codes.dtype

    most: dict[Any, int] = {}
    for leaf in flat_leaves(compressed).values():
        if isinstance(leaf, sqs_jax.CompressedLeaf):
            most[kind(leaf)] = max(most.get(kind(leaf), 0), leaf.codebook.shape[-1])

    def filled(_: str, leaf: Any) -> Any:
        if not isinstance(leaf, sqs_jax.CompressedLeaf):
            return leaf
        book = np.asarray(leaf.codebook)
        again = np.repeat(book[..., :1], most[kind(leaf)] - book.shape[-1], axis=-1)
        return sqs_jax.CompressedLeaf(leaf.codes, np.concatenate([book, again], axis=-1))

    return map_leaves(filled, compressed)


def _at_codes(
    init: Callable[[Any], Any],
    compressed: dict[str, sqs_jax.CompressedLeaf],
    weights: dict[str, Any],
) -> Callable[[Any], Any]:
    """Return an init whose posteriors start at codes: at weights that have these."""

    def start(path: str, leaf: Any) -> Any:
        return at_codes(leaf, compressed[path]) if path in compressed else leaf

    def started(params: Any) -> Any:
        moved = map_leaves(lambda path, leaf: weights.get(path, leaf), params)
        return map_leaves(start, init(moved))

    return started


def _at_levels(
    init: Callable[[Any], Any], compressed: dict[str, sqs_jax.CompressedLeaf]
) -> Callable[[Any], Any]:
    """Return an init whose posteriors start at given levels.

    An allocation's count on their own: few weights at the outer levels, and short codes for the
    others. Levels from k-means share the weights more evenly, which takes more bits.
    """

    def start(path: str, leaf: Any) -> Any:
        if path not in compressed:
            return leaf
        return leaf.replace(means=jnp.asarray(compressed[path].codebook, leaf.means.dtype))

    return lambda params: sqs_jax.refit(map_leaves(start, init(params)))
