"""Transform of a tree of weights into sub-distributions, and of these into codes."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sqs_jax.artifact import CompressedLeaf
from sqs_jax.distribution import (
    EVALUATIONS,
    Evaluation,
    Initialiser,
    SpikeSlabPrior,
    SubDistribution,
    kls,
    means,
    means_and_kls,
    modes,
    modes_and_kls,
)
from sqs_jax.transform.rules import (
    DEFAULT_RULES,
    Rule,
    assign,
    check_rules,
    flatten,
    is_sub_distribution,
    map_assigned,
    require_finite,
    require_positive,
    require_whole,
    total,
)


class _Functions(NamedTuple):
    """Fields of a Transform."""

    init: Callable[..., Any]
    mean: Callable[..., Any]
    sample: Callable[..., Any] | None
    mode: Callable[..., Any]
    kl: Callable[..., jax.Array]
    compress: Callable[..., Any]
    mean_and_kl: Callable[..., tuple[Any, jax.Array]] | None = None
    mode_and_kl: Callable[..., tuple[Any, jax.Array]] | None = None


class Transform(_Functions):
    """Hold a compression method as pure functions; the caller holds all state.

    Attributes:
      init: (params) -> posterior, same tree paths. Copies; works under `jax.eval_shape`.
      mean: (posterior, *, temperature=1.0) -> params, E_q[w].
      sample: (posterior, key, *, temperature=1.0, relaxation=0.5, hard=False) -> params; with
        hard=True a K-level draw. None if the method has no sampling.
      mode: (posterior) -> params, the deployed weights, dense; straight-through derivative.
      kl: (posterior, *, temperature=1.0) -> scalar, the bound in nats, summed over the model (or
        any scalar regulariser of another method).
      compress: (posterior) -> compressed, codes and codebooks at the same tree paths.
      mean_and_kl: (posterior, *, temperature=1.0) -> (params, scalar), both in one pass over the
        weights; None if the method has no such pass.
      mode_and_kl: (posterior) -> (params, scalar), `mode` and the KL at temperature 0 in one pass,
        the KL differentiable in the means alone; None if the method has no such pass. `_replace`
        of mean, mode or kl removes the passes that would bypass the new function.

    Example:
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
      >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
      >>> def weight_decay(posterior, *, temperature=1.0):
      ...     return jnp.sum(sqs.mean(posterior, temperature=temperature)["kernel"] ** 2)
      >>> decayed = sqs._replace(kl=weight_decay)  # the same posterior, another regularizer
      >>> posterior = decayed.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
      >>> decayed.kl(posterior).shape
      ()
    """

    __slots__ = ()

    def _replace(self, **changes: Any) -> "Transform":
        """Return a Transform with some functions changed."""
        for other in ("mean", "mode"):
            if {other, "kl"} & changes.keys():
                changes = {f"{other}_and_kl": None, **changes}
        return Transform(*super()._replace(**changes))


class _Method(NamedTuple):
    """Arguments of `spike_slab_gmm`, checked."""

    rules: tuple[Rule, ...]
    prior: SpikeSlabPrior
    initialiser: Initialiser
    gate_dtype: np.dtype
    evaluation: Evaluation


def spike_slab_gmm(
    rules: Iterable[Rule] = DEFAULT_RULES,
    *,
    prior: SpikeSlabPrior,
    initialiser: Initialiser = "kmeans",
    gate_dtype: jax.typing.DTypeLike = jnp.float32,
    evaluation: Evaluation = "auto",
) -> Transform:
    """Build the SQS transform: spike-and-slab posteriors whose slab is a Gaussian mixture.

    Example:
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> sqs = sqs_jax.spike_slab_gmm(
      ...     [sqs_jax.Rule(pattern=".*kernel", components=4)],
      ...     prior=sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=1.0),
      ... )
      >>> params = {"kernel": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8), "bias": jnp.zeros(8)}
      >>> posterior = sqs.init(params)
      >>> len(jnp.unique(sqs.mode(posterior)["kernel"]))
      4

    Args:
      rules: Rules that say which leaves are compressed, and how; the first that matches wins, and
        leaves that none matches stay dense.
      prior: Spike-and-slab prior of every compressed weight.
      initialiser: Initializer of codebooks, "kmeans" or "quantile".
      gate_dtype: Floating dtype of the gates; bfloat16 or 8 bits save memory where they are not
        trained. float64 weights have float64 gates if this is float32.
      evaluation: Evaluation of `mean` and `kl`: "table", "loop", or "auto", by platform (see
        docs/performance.md).

    Returns:
      A Transform. Its functions raise ValueError, naming the leaf's path, for a rule that matches
      nothing, for weights that cannot be compressed (integer, complex, not finite) and for a
      posterior that these rules did not make.

    References:
      Wang, Jiang, Lin, Song, "SQS: Bayesian DNN Compression through Sparse Quantized
      Sub-distributions", arXiv:2510.08999.
    """
    rules = check_rules(rules)
    if not isinstance(prior, SpikeSlabPrior):
        raise TypeError(f"prior must be a sqs_jax.SpikeSlabPrior, not {prior!r}.")
    if initialiser not in ("kmeans", "quantile"):
        raise ValueError(f"initialiser is {initialiser!r}; it must be 'kmeans' or 'quantile'.")
    if evaluation not in EVALUATIONS:
        raise ValueError(f"evaluation is {evaluation!r}; it must be one of {EVALUATIONS}.")
    gate_dtype = jnp.dtype(gate_dtype)
    if not jnp.issubdtype(gate_dtype, jnp.floating):
        raise ValueError(f"gate_dtype is {gate_dtype}; gates are floating.")

    method = _Method(rules, prior, initialiser, gate_dtype, evaluation)
    return Transform(
        init=partial(_init, method),
        mean=partial(_mean, method),
        sample=partial(_sample, method),
        mode=partial(_mode, method),
        kl=partial(_kl, method),
        compress=partial(_compress, method),
        mean_and_kl=partial(_mean_and_kl, method),
        mode_and_kl=partial(_mode_and_kl, method),
    )


def _init(method: _Method, params: Any) -> Any:
    def start(path: str, leaf: Any, rule: Rule | None) -> Any:
        if is_sub_distribution(leaf):
            raise ValueError(f"{path}: already a SubDistribution; init takes plain params.")
        if rule is None or not rule.compresses(leaf):
            return jnp.array(leaf, dtype=jnp.result_type(leaf), copy=True)
        # the dtype JAX gives it: numpy's float64 is float32 unless x64 is enabled
        array = jnp.asarray(leaf, jnp.result_type(leaf))
        wide = array.dtype == jnp.float64 and method.gate_dtype == jnp.float32
        gates = array.dtype if wide else method.gate_dtype
        return rule.init_leaf(path, array, initialiser=method.initialiser, gate_dtype=gates)

    return map_assigned(start, method.rules, params)


def _mean(method: _Method, posterior: Any, *, temperature: jax.typing.ArrayLike = 1.0) -> Any:
    require_positive("temperature", temperature)
    leaves, put = _sub_distributions(method, posterior)
    return put(means(leaves, temperature, method.evaluation))


def _sample(
    method: _Method,
    posterior: Any,
    key: jax.Array,
    *,
    temperature: jax.typing.ArrayLike = 1.0,
    relaxation: jax.typing.ArrayLike = 0.5,
    hard: bool = False,
) -> Any:
    require_positive("temperature", temperature)
    require_positive("relaxation", relaxation)
    leaves, put = _sub_distributions(method, posterior)

    def draw(leaf: SubDistribution, index: int) -> jax.Array:
        leaf_key = jax.random.fold_in(key, index)
        if hard:
            return leaf.sample_hard(leaf_key, temperature)
        return leaf.sample(leaf_key, temperature, relaxation)

    return put([draw(leaf, i) for i, leaf in enumerate(leaves)])


def _mode(method: _Method, posterior: Any) -> Any:
    leaves, put = _sub_distributions(method, posterior)
    return put(modes(leaves))


def _kl(method: _Method, posterior: Any, *, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
    require_positive("temperature", temperature)
    leaves, _ = _sub_distributions(method, posterior)
    return total(kls(leaves, method.prior, temperature, method.evaluation))


def _mean_and_kl(
    method: _Method, posterior: Any, *, temperature: jax.typing.ArrayLike = 1.0
) -> tuple[Any, jax.Array]:
    require_positive("temperature", temperature)
    leaves, put = _sub_distributions(method, posterior)
    weights, bounds = means_and_kls(leaves, method.prior, temperature, method.evaluation)
    return put(weights), total(bounds)


def _mode_and_kl(method: _Method, posterior: Any) -> tuple[Any, jax.Array]:
    leaves, put = _sub_distributions(method, posterior)
    weights, bounds = modes_and_kls(leaves, method.prior)
    return put(weights), total(bounds)


def _compress(method: _Method, posterior: Any) -> Any:
    leaves, put = _sub_distributions(method, posterior)
    paths = [path for path, leaf in flatten(posterior)[0] if is_sub_distribution(leaf)]
    compressed = []
    # one after another: the temporary arrays of a tensor are freed before the next
    for path, leaf in zip(paths, leaves, strict=True):
        for array in (leaf.loc, leaf.means):
            if not isinstance(array, jax.core.Tracer):
                require_finite(path, array)
        book = leaf.means.astype(leaf.loc.dtype)
        compressed.append(CompressedLeaf(codes=leaf.codes(), codebook=book))
    return put(compressed)


def _sub_distributions(
    method: _Method, posterior: Any
) -> tuple[list[SubDistribution], Callable[[list[Any]], Any]]:
    """Return the SubDistributions of a posterior, and a function that replaces them."""
    pairs, treedef = _checked(method.rules, posterior)
    at = [i for i, (_, leaf) in enumerate(pairs) if is_sub_distribution(leaf)]

    def put(results: list[Any]) -> Any:
        leaves = [leaf for _, leaf in pairs]
        for i, result in zip(at, results, strict=True):
            leaves[i] = result
        return treedef.unflatten(leaves)

    return [pairs[i][1] for i in at], put


def _checked(rules: tuple[Rule, ...], posterior: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Flatten a posterior, or raise an error if the rules did not make it."""
    pairs, treedef = flatten(posterior)
    for (path, leaf), rule in zip(pairs, assign(rules, [p for p, _ in pairs]), strict=True):
        if not is_sub_distribution(leaf):
            if rule is not None and rule.compresses(leaf):
                raise ValueError(
                    f"{path}: rule {rule.pattern!r} compresses this leaf, but it is a plain array "
                    f"of shape {np.shape(leaf)}: pass a posterior, transform.init(params)."
                )
            continue
        require_whole(path, leaf)
        actual = (*leaf.means.shape[-2:], leaf.stacked, leaf.prunable, leaf.structure)
        expected = None
        if rule is not None and rule.compresses(leaf.loc):
            expected = (
                rule.windows.count, rule.components, rule.stacked, rule.prunable, rule.structure
            )  # fmt: skip
        if actual != expected:
            raise ValueError(
                f"{path}: this posterior was made by other rules: (windows, components, stacked, "
                f"prunable, structure) is {actual}, but these rules give "
                f"{expected or 'a dense leaf'}. Use the transform that made it."
            )
    return pairs, treedef
