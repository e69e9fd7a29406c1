"""SubDistribution: the spike-and-slab posterior of one tensor's weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import groups, m_steps, together
from sqs_jax.distribution.assignment import draw_component, levels
from sqs_jax.distribution.codebook import Initialiser, init_mixture
from sqs_jax.distribution.kl import SpikeSlabPrior
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.relaxed import relaxed_weights
from sqs_jax.distribution.ways import Evaluation
from sqs_jax.distribution.windows import Windows

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
          loc: the weights, [*S, *shape], floating and finite; copied.
          components: K, per window.
          windows: how the weights are split by value; one window by default.
          prunable: whether `prune` may prune it.
          structure: (n, m) or None.
          stacked: number of leading axes S whose slices each get their own mixture.
          initialiser: "kmeans" or "quantile".
          gate_dtype: of the gates, floating; by default that of the means.

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
        """Compute E_q[w], shaped and typed as `loc`: `means` of one."""
        return together.means([self], temperature, evaluation)[0]

    def kl(
        self,
        prior: SpikeSlabPrior,
        temperature: jax.typing.ArrayLike = 1.0,
        evaluation: Evaluation = "auto",
    ) -> jax.Array:
        """Bound KL(q || p) from above, summed over the tensor; scalar, nats: `kls` of one."""
        return together.kls([self], prior, temperature, evaluation)[0]

    def mode(self) -> jax.Array:
        """Return the deployed weights: `modes` of one."""
        return together.modes([self])[0]

    def codes(self) -> jax.Array:
        """Return the deployed codes: `codes` of one."""
        return together.codes([self])[0]

    def sample(
        self,
        key: jax.Array,
        temperature: jax.typing.ArrayLike = 1.0,
        relaxation: jax.typing.ArrayLike = 0.5,
    ) -> jax.Array:
        """Draw relaxed weights, differentiable in every parameter; shaped and typed as `loc`.

        A Gumbel-softmax over the components, one standard normal per weight and a binary Concrete
        gate; biased until `relaxation` tends to 0.
        """

        def of(leaf: SubDistribution, key: jax.Array) -> jax.Array:
            parts = leaf.loc, leaf.gate_logits, leaf.kept, leaf.mixture
            return relaxed_weights(key, *parts, temperature, relaxation)

        return self._per_slice(of, self._keys(key))

    def sample_hard(self, key: jax.Array, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
        """Draw K-level weights: kept_i * mu_k with k ~ phi_i; shaped and typed as `loc`."""

        def of(leaf: SubDistribution, key: jax.Array) -> jax.Array:
            drawn = draw_component(key, leaf.latent, leaf.mixture, temperature)
            return levels(leaf.mixture, drawn, leaf.loc, leaf.kept)

        return self._per_slice(of, self._keys(key))

    def refit(self) -> "SubDistribution":
        """Set scales and mixture weights from the current assignments of the kept weights.

        An M-step: each component's spread about its mean, with a floor, and its share of its
        window. A component that holds no weight gets its window's pooled spread and half a
        weight's share, so that it stays finite and can win weights back.
        """
        return self._per_slice(m_steps.refit)

    def at_price(self, widening: jax.typing.ArrayLike = 1.0) -> "SubDistribution":
        """Decide what every weight becomes where codes cost their length (Chou et al., 1989).

        A weight takes the component, or the zero, that is most probable a posteriori. All have
        one width s, the geometric mean of the scales times `widening`, and mixture weights that
        are their shares of the codes: (w - mu)^2 / (2 s^2) - log pi. A nat of code thus costs a
        squared error of 2 s^2, and the wider, the fewer bits the codes take.

        Returns:
          The sub-distribution with new `kept`, if it may be pruned, scales and mixture weights.
        """
        return self._per_slice(lambda leaf: m_steps.at_price(leaf, widening))

    def revive(self) -> "SubDistribution":
        """Give every component that holds no kept weight half of its window's widest component.

        Pruning takes the weights of the components near zero, and with the estimator "mode" a
        component without weights gets no gradient: it would be lost. The widest component (by its
        squared error) is split at its mean, and the halves of a normal lie 0.8 standard deviations
        from there. Means, scales and mixture weights change; `refit` afterwards.
        """
        return self._per_slice(m_steps.revive)

    def _per_slice(self, function: Callable[..., Any], *rest: jax.Array) -> Any:
        """Apply function(slice, *rest) to every slice of the stacked axes, one after another."""
        return groups.per_slice(function, self.mixture, self, *rest)

    def _keys(self, key: jax.Array) -> jax.Array:
        """Split a key for the slices, [*S]."""
        return jax.random.split(key, self.means.shape[:-2]) if self.stacked else key
