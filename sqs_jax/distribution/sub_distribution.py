"""SubDistribution: the spike-and-slab posterior of one tensor's weights."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution import groups, together
from sqs_jax.distribution.assignment import (
    candidates,
    draw_component,
    levels,
    most_probable,
    sum_by_component,
)
from sqs_jax.distribution.codebook import (
    ABSOLUTE_FLOOR,
    RELATIVE_FLOOR,
    Initialiser,
    init_mixture,
)
from sqs_jax.distribution.kl import SpikeSlabPrior
from sqs_jax.distribution.mixture import Mixture
from sqs_jax.distribution.relaxed import relaxed_weights
from sqs_jax.distribution.ways import Evaluation
from sqs_jax.distribution.windows import Windows

# A gate starts almost open whatever the prior says: pruning decides, not the start.
INITIAL_INCLUSION = 0.99

# Mean of a half-normal distribution, in standard deviations.
_HALF_NORMAL = math.sqrt(2 / math.pi)


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
        return self._per_slice(SubDistribution._refit)

    def _refit(self) -> "SubDistribution":
        count, variance = self._spreads()
        # Fewer than two weights have no spread of their own.
        pooled = jnp.sum(variance * count, -1, keepdims=True) / jnp.maximum(
            jnp.sum(count, -1, keepdims=True), 1
        )
        variance = jnp.where(count > 1, variance, pooled)
        size = jnp.sum(jnp.abs(self.latent)) / max(self.latent.size, 1)
        floor = RELATIVE_FLOOR * size + ABSOLUTE_FLOOR
        share = jnp.maximum(count, 0.5)
        return self.replace(
            log_scales=0.5 * jnp.log(jnp.maximum(variance, floor * floor)),
            mixture_logits=jnp.log(share / jnp.sum(share, axis=-1, keepdims=True)),
        )

    def revive(self) -> "SubDistribution":
        """Give every component that holds no kept weight half of its window's widest component.

        Pruning takes the weights of the components near zero, and with the estimator "mode" a
        component without weights gets no gradient: it would be lost. The widest component (by its
        squared error) is split at its mean, and the halves of a normal lie 0.8 standard deviations
        from there. Means, scales and mixture weights change; `refit` afterwards.
        """
        return self._per_slice(SubDistribution._revive)

    def _revive(self) -> "SubDistribution":
        count, variance = self._spreads()
        numbers = jnp.arange(count.shape[-1])[None]

        def split(
            _: int, state: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            means, count, error = state
            # K is small: comparisons fuse, gathers and scatters would not
            dead = numbers == jnp.argmin(count, axis=-1, keepdims=True)
            widest = numbers == jnp.argmax(error, axis=-1, keepdims=True)

            def of(x: jax.Array, which: jax.Array) -> jax.Array:
                return jnp.sum(jnp.where(which, x, 0), axis=-1, keepdims=True)

            weights, squares, centre = of(count, widest), of(error, widest), of(means, widest)
            spread = jnp.sqrt(squares / jnp.maximum(weights, 1))
            due = (of(count, dead) == 0) & (spread > 0)
            for which, sign in ((dead, 1), (widest, -1)):
                means = jnp.where(due & which, centre + sign * _HALF_NORMAL * spread, means)
                count = jnp.where(due & which, weights / 2, count)
                left = (1 - _HALF_NORMAL**2) * squares / 2
                error = jnp.where(due & which, left, error)
            return means, count, error

        state = (self.means, count, count * variance)
        means, count, error = jax.lax.fori_loop(0, self.means.shape[-1], split, state)
        moved = means != self.means
        spread = jnp.sqrt(error / jnp.maximum(count, 0.5))
        share = jnp.maximum(count, 0.5)
        share = jnp.log(share / jnp.sum(share, axis=-1, keepdims=True))
        changed = jnp.any(moved, axis=-1, keepdims=True)
        return self.replace(
            means=means,
            log_scales=jnp.where(moved, jnp.log(jnp.maximum(spread, 1e-30)), self.log_scales),
            mixture_logits=jnp.where(changed, share, self.mixture_logits),
        )

    def _spreads(self) -> tuple[jax.Array, jax.Array]:
        """Count each component's kept weights, and average their squared distance from its mean."""
        size, shape, latent = self.means.size, self.means.shape, self.latent
        (found,) = candidates([latent], [self.mixture])
        held = most_probable(latent, self.mixture, found)
        nearest = self.means.reshape(-1)[held]
        held = jnp.where(self.kept, held, size)  # out of range: dropped
        count = sum_by_component(jnp.ones_like(latent), held, size).reshape(shape)
        square = sum_by_component((latent - nearest) ** 2, held, size).reshape(shape)
        return count, square / jnp.maximum(count, 1)

    def _per_slice(self, function: Callable[..., Any], *rest: jax.Array) -> Any:
        """Apply function(slice, *rest) to every slice of the stacked axes, one after another."""
        return groups.per_slice(function, self.mixture, self, *rest)

    def _keys(self, key: jax.Array) -> jax.Array:
        """Split a key for the slices, [*S]."""
        return jax.random.split(key, self.means.shape[:-2]) if self.stacked else key
