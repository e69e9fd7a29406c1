"""SubDistribution, the spike-and-slab posterior of a tensor's weights."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import hard, soft_weight, updates
from sqs_jax.distribution.codebook import Initialiser, init_mixture
from sqs_jax.distribution.kl import SpikeSlabPrior
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.relaxed import relaxed_weights
from sqs_jax.distribution.soft_weight import Evaluation, Task, soft_weights
from sqs_jax.distribution.stacking import per_slice
from sqs_jax.distribution.windows import Windows, window_index

# A gate starts almost open whatever the prior says: pruning decides, not the start.
INITIAL_INCLUSION = 0.99


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SubDistribution:
    """The posterior q(w_i) = rho_i sum_k phi_ik N(mu_k, sigma_k^2) + (1 - rho_i) delta_0.

    Invariants:
      * rho_i = kept_i * sigmoid(gate_logits_i); a pruned weight has inclusion 0 everywhere.
      * phi_i depends on loc_i alone, through the components of the window that holds it.
      * all but `kept` and the static fields are floating; `loc` has the parameter's own dtype,
        `gate_logits` any, the rest float32 (float64 if the parameter has).
      * every array may carry the same leading stacked axes S, a sub-distribution for each slice.

    Attributes:
      loc: latent weights theta, [*S, *shape].
      gate_logits: inclusion logits s, shaped as `loc`.
      kept: the current pruning decision, bool, shaped as `loc`.
      means: component means mu, [*S, W, K], units of the weights.
      log_scales: natural logs of the components' standard deviations, [*S, W, K].
      mixture_logits: unnormalised log mixture weights, [*S, W, K].
      boundaries: window edges in weight value, [*S, W - 1], never trained.
      prunable: whether `prune` may prune it (static).
      structure: (n, m) keeps n of every m weights along axis -2, or None (static).

    Example:
      >>> import jax.numpy as jnp
      >>> import sqs_jax
      >>> weights = jnp.array([[0.5, -0.25], [0.5, -0.25]])
      >>> q = sqs_jax.SubDistribution.init(weights, components=2)
      >>> q.means.tolist(), q.codes().tolist()
      ([[-0.25, 0.5]], [[2, 1], [2, 1]])
    """

    loc: jax.Array
    gate_logits: jax.Array
    kept: jax.Array
    means: jax.Array
    log_scales: jax.Array
    mixture_logits: jax.Array
    boundaries: jax.Array
    prunable: bool = dataclasses.field(default=True, metadata={"static": True})
    structure: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def init(
        cls,
        loc: jax.Array,
        *,
        components: int,
        windows: Windows | None = None,
        prunable: bool = True,
        structure: tuple[int, int] | None = None,
        stacked: int = 0,
        initialiser: Initialiser = "kmeans",
        gate_dtype: jax.typing.DTypeLike | None = None,
    ) -> "SubDistribution":
        """Start a sub-distribution at a tensor of weights.

        Args:
          loc: Weights, [*S, *shape], floating and finite; copied.
          components: Number K of components of a window.
          windows: Split of the weights by value; one window by default.
          prunable: Whether `prune` may prune the tensor.
          structure: Pair (n, m) or None.
          stacked: Number of leading axes S whose slices each get their own mixture.
          initialiser: Initializer, "kmeans" or "quantile".
          gate_dtype: Floating dtype of the gates; by default that of the means.

        Returns:
          A SubDistribution with every weight kept and inclusion 0.99.
        """
        loc = jnp.asarray(loc)  # numpy's too
        mixture = init_mixture(
            loc,
            components=components,
            windows=windows or Windows(),
            stacked=stacked,
            initialiser=initialiser,
        )
        gate = math.log(INITIAL_INCLUSION / (1 - INITIAL_INCLUSION))
        return cls(
            loc=jnp.array(loc, dtype=loc.dtype, copy=True),  # the dtype: never weakly typed
            gate_logits=jnp.full_like(loc, gate, gate_dtype or mixture.means.dtype),
            kept=jnp.ones_like(loc, bool),
            prunable=prunable,
            structure=structure,
            **mixture._asdict(),
        )

    @property
    def stacked(self) -> int:
        """Number of leading stacked axes."""
        return self.means.ndim - 2

    @property
    def mixture(self) -> Mixture:
        """The tensor's mixture."""
        return Mixture(self.means, self.log_scales, self.mixture_logits, self.boundaries)

    @property
    def latent(self) -> jax.Array:
        """`loc` in the dtype of the arithmetic, at least float32."""
        return self.loc.astype(self.means.dtype)

    def replace(self, **changes: Any) -> "SubDistribution":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def mean(
        self, temperature: jax.typing.ArrayLike = 1.0, evaluation: Evaluation = "auto"
    ) -> jax.Array:
        """Compute E_q[w], shaped and typed as `loc`.

        Args:
          temperature: Softmax temperature of the responsibilities, positive scalar.
          evaluation: "table", "loop" or "auto", see `spike_slab_gmm`.
        """
        return means([self], temperature, evaluation)[0]

    def kl(
        self,
        prior: SpikeSlabPrior,
        temperature: jax.typing.ArrayLike = 1.0,
        evaluation: Evaluation = "auto",
    ) -> jax.Array:
        """Bound KL(q || p) from above, summed over the tensor; scalar, nats.

        Args:
          prior: Spike-and-slab prior.
          temperature: Softmax temperature of the responsibilities, positive scalar.
          evaluation: "table", "loop" or "auto", see `spike_slab_gmm`.
        """
        return kls([self], prior, temperature, evaluation)[0]

    def mode(self) -> jax.Array:
        """Return the deployed weights, shaped and typed as `loc`; straight-through derivative."""
        return modes([self])[0]

    def codes(self) -> jax.Array:
        """Return the deployed codes: 0 = pruned, else 1 + window * K + component.

        uint8 where W * K <= 255, else uint16; shaped as `loc`.
        """
        return codes([self])[0]

    def sample(
        self,
        key: jax.Array,
        temperature: jax.typing.ArrayLike = 1.0,
        relaxation: jax.typing.ArrayLike = 0.5,
    ) -> jax.Array:
        """Draw relaxed weights, differentiable in every parameter; shaped and typed as `loc`.

        A Gumbel-softmax over the components, one standard normal per weight and a binary Concrete
        gate; biased until `relaxation` tends to 0.

        Args:
          key: PRNG key.
          temperature: Softmax temperature of the responsibilities, positive scalar.
          relaxation: Temperature of the Gumbel-softmax and of the gates, positive scalar.
        """

        def draw(leaf: SubDistribution, key: jax.Array) -> jax.Array:
            parts = leaf.loc, leaf.gate_logits, leaf.kept, leaf.mixture
            return relaxed_weights(key, *parts, temperature, relaxation)

        return self._per_slice(draw, self._keys(key))

    def sample_hard(self, key: jax.Array, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
        """Draw K-level weights: kept_i * mu_k with k ~ phi_i; shaped and typed as `loc`.

        Args:
          key: PRNG key.
          temperature: Softmax temperature of the responsibilities, positive scalar.
        """

        def draw(leaf: SubDistribution, key: jax.Array) -> jax.Array:
            return hard.draw_weights(key, leaf.loc, leaf.kept, leaf.mixture, temperature)

        return self._per_slice(draw, self._keys(key))

    def refit(self) -> "SubDistribution":
        """Set scales and mixture weights from the current assignments of the kept weights.

        An M-step: each component's spread about its mean, with a floor, and its share of its
        window. A component without weights gets its window's pooled spread and half a weight's
        share, so that it stays finite and can win weights back.
        """
        return self._per_slice(updates.refit)

    def at_price(self, widening: jax.typing.ArrayLike = 1.0) -> "SubDistribution":
        """Decide codes at a price for their length (Chou et al., 1989).

        A weight takes the component, or the zero, that is most probable a posteriori. All have
        one width s, the geometric mean of the scales times `widening`, and mixture weights that
        are their shares of the codes: (w - mu)^2 / (2 s^2) - log pi. A nat of code thus costs a
        squared error of 2 s^2, and the wider, the fewer bits the codes take.

        Args:
          widening: Factor of the width, positive scalar.

        Returns:
          Sub-distribution with new scales and mixture weights and, if it may be pruned, `kept`.
        """
        return self._per_slice(lambda leaf: updates.at_price(leaf, widening))

    def revive(self) -> "SubDistribution":
        """Give components without kept weights half of the window's widest component.

        Pruning takes the weights of the components near zero, and with the estimator "mode" a
        component without weights gets no gradient: it would be lost. The widest component (by its
        squared error) is split at its mean, and the halves of a normal lie 0.8 standard deviations
        from there. Means, scales and mixture weights change; `refit` afterwards.
        """
        return self._per_slice(updates.revive)

    def _per_slice(self, function: Callable[..., Any], *more: jax.Array) -> Any:
        """Apply a function to every slice of the stacked axes."""
        return per_slice(function, self.stacked, self, *more)

    def _keys(self, key: jax.Array) -> jax.Array:
        """Split a key for the slices, [*S]."""
        return jax.random.split(key, self.means.shape[:-2]) if self.stacked else key


# Several tensors together: fewer programs than one by one, see stacking.py.


def means(
    leaves: Sequence[SubDistribution],
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Compute `SubDistribution.mean` of each tensor."""
    tensors = [_soft(leaf) for leaf in leaves]
    results = soft_weights(tensors, temperature, Task(("weight",), evaluation))
    return [weights for (weights,) in results]


def kls(
    leaves: Sequence[SubDistribution],
    prior: SpikeSlabPrior,
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Compute `SubDistribution.kl` of each tensor."""
    tensors = [_soft(leaf) for leaf in leaves]
    results = soft_weights(tensors, temperature, Task((prior,), evaluation))
    return [jnp.sum(bound) for (bound,) in results]


def means_and_kls(
    leaves: Sequence[SubDistribution],
    prior: SpikeSlabPrior,
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Compute `means` and `kls` in a single pass over the weights."""
    tensors = [_soft(leaf) for leaf in leaves]
    results = soft_weights(tensors, temperature, Task(("weight", prior), evaluation))
    return [weights for weights, _ in results], [jnp.sum(bound) for _, bound in results]


def code_lengths(
    leaves: Sequence[SubDistribution],
    temperature: jax.typing.ArrayLike = 1.0,
    evaluation: Evaluation = "auto",
) -> list[jax.Array]:
    """Compute the expected length of each tensor's codes; scalars, nats.

    The codes of masks and windows depend on shares alone, and have no gradient.
    """
    tensors = [_soft(leaf) for leaf in leaves]
    results = soft_weights(tensors, temperature, Task(("length",), evaluation))
    return [
        jnp.sum(length) + jnp.sum(leaf._per_slice(_choices))
        for leaf, (length,) in zip(leaves, results, strict=True)
    ]


def modes(leaves: Sequence[SubDistribution]) -> list[jax.Array]:
    """Compute `SubDistribution.mode` of each tensor."""
    return hard.deployed_weights([_hard(leaf) for leaf in leaves])


def modes_and_kls(
    leaves: Sequence[SubDistribution], prior: SpikeSlabPrior
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Compute `modes` and the KL at the mode of each tensor, the limit at temperature 0."""
    tensors = [_hard(leaf, leaf.gate_logits) for leaf in leaves]
    results = hard.deployed_weights_and_kl(tensors, prior)
    return [weights for weights, _ in results], [jnp.sum(bound) for _, bound in results]


def codes(leaves: Sequence[SubDistribution]) -> list[jax.Array]:
    """Compute `SubDistribution.codes` of each tensor."""
    return hard.codes([_hard(leaf) for leaf in leaves])


def _soft(leaf: SubDistribution) -> soft_weight.Tensor:
    return soft_weight.Tensor(leaf.loc, leaf.gate_logits, leaf.kept, leaf.mixture)


def _hard(leaf: SubDistribution, *more: jax.Array) -> hard.Tensor:
    return hard.Tensor(leaf.loc, leaf.kept, leaf.mixture, more)


def _choices(leaf: SubDistribution) -> jax.Array:
    """Compute the code length of a slice's mask and of each kept weight's window, nats."""
    windows = leaf.means.shape[0]
    place = jnp.where(leaf.kept, window_index(leaf.latent, leaf.boundaries), windows)
    # windows are few: sums of comparisons, in integers, which no number of weights rounds
    counted = jnp.stack([jnp.sum(place == choice) for choice in range(windows + 1)])
    counts = counted.astype(leaf.means.dtype)
    shares = jnp.maximum(counts, 0.5) / max(leaf.loc.size, 1)
    return -jnp.sum(counts * jnp.log(shares))
