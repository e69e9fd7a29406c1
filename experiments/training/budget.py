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

        Sizes jump where many weights lose their level at one price. Pruning then fills the file: it
        starts from the price just below, at which the file is too large.

        Args:
          posterior: a posterior.
          model_state: the network's other collections, which the file holds too.

        Returns:
          The posterior with other codes, whose file takes 99 to 100 % of the target, or as much as
          its levels can fill.

        Raises:
          sqs_jax.BudgetError: if the file is too large wherever the knob is.
        """
        best, size, larger = self._search(posterior, model_state)
        if best is None:
            raise sqs_jax.BudgetError(
                f"config.sqs.target_bytes is {self.target}: with as few codes as can be, the file "
                f"still takes {self.file_bytes(larger, model_state)} bytes; raise it, or round "
                "more (config.sqs.dense_dtype)."
            )
        if self.assign is not priced or larger is None or size >= _LEAST * self.target:
            return best
        filled, *_ = self._replace(assign=_dearest_pruned(larger))._search(larger, model_state)
        if filled is None or _error(filled, posterior) > _error(best, posterior):
            return best
        return filled

    def _search(self, posterior: Any, model_state: Any) -> tuple[Any, int, Any]:
        """Return the largest candidate that fits, its file's bytes, and the last that does not.

        A candidate that no knob leads to is None, and its size 0.
        """
        low, high, knob = -math.inf, math.inf, 0.0
        best, best_size, larger, before = None, 0, None, None
        for _ in range(_TRIALS):
            candidate = self.assign(posterior, knob)
            found, width = self.file_bytes(candidate, model_state), high - low
            if found > self.target:
                low, larger = knob, candidate
            else:
                high = knob
                if found == best_size and low == -math.inf:
                    break  # levels that cannot fill more: the price need not fall for nothing
                if found > best_size:
                    best, best_size = candidate, found
            if _LEAST * self.target <= found <= self.target or high - low < 1e-2:
                break
            if best is None and knob > _MOST:
                break
            # regula falsi on the logarithms; bisection where that leaves the bracket, or stays near
            # one end of it, as beside a jump
            here, slope = (knob, math.log(found / (_AIM * self.target))), _SLOPE
            if before and before[1] != here[1]:
                slope = min((here[1] - before[1]) / (here[0] - before[0]), -1e-3)
            before, knob = here, knob + min(max(-here[1] / slope, -_STEP), _STEP)
            if not low < knob < high or width / 2 < high - low < math.inf:
                knob = (low + high) / 2
        return best, best_size, larger

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


def _dearest_pruned(posterior: Any) -> Callable[[Any, float], Any]:
    """Return the knob of what stays of the kept weights: exp(-knob) of them.

    The order is that of the price, `SubDistribution.at_price`: by the error that a zero adds, less
    what its shorter code saves. By the error alone, files of as many bytes err 2 % more (digits at
    90 to 95 % of their bytes, tests/experiments/test_training_budget.py).

    Args:
      posterior: what `priced` returns: the mixture weights count the codes.
    """

    def scores(_: str, leaf: Any) -> Any:
        slices = leaf.loc.shape[: leaf.stacked]
        codes = jnp.asarray(leaf.codes(), jnp.int32).reshape(*slices, -1)
        counts = leaf.mixture_logits.reshape(*slices, -1)  # logarithms
        zeros = jnp.sum(jnp.where(codes, 0.0, 1.0), -1, keepdims=True)
        nats = jnp.take_along_axis(counts, jnp.maximum(codes - 1, 0), -1)
        nats = jnp.log(jnp.maximum(zeros, 0.5)) - nats
        width = _widths(leaf)
        added = (leaf.loc / width) ** 2 - ((leaf.loc - leaf.mode()) / width) ** 2
        return jnp.where(leaf.kept, added - 2 * nats.reshape(leaf.loc.shape), -jnp.inf)

    ranked = map_leaves(scores, sub_distributions(posterior))
    kept = 1 - sparsity(posterior)

    def assign(posterior: Any, knob: float) -> Any:
        fraction = min(1 - kept * math.exp(-knob), _MOST_PRUNED)
        return sqs_jax.prune(posterior, fraction, scores=ranked)

    return assign


def _error(posterior: Any, reference: Any) -> float:
    """Sum the squared errors of all weights, in the widths that a posterior's components have."""
    widths = {path: _widths(leaf) for path, leaf in sub_distributions(reference).items()}
    return sum(
        float(jnp.sum(((leaf.mode() - leaf.loc) / widths[path]) ** 2))
        for path, leaf in sub_distributions(posterior).items()
    )


def _widths(leaf: sqs_jax.SubDistribution) -> Any:
    """Return the geometric mean of each slice's scales, which broadcasts with its weights."""
    width = jnp.exp(jnp.mean(leaf.log_scales, (-2, -1)))
    return jnp.expand_dims(width, tuple(range(width.ndim, leaf.loc.ndim)))


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
