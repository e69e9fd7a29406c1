"""SubDistribution: the spike-and-slab posterior of one tensor's weights."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.distribution.codebook import (
    ABSOLUTE_FLOOR,
    RELATIVE_FLOOR,
    Initialiser,
    init_mixture,
)
from sqs_jax.distribution.kl import SpikeSlabPrior, kl_bound
from sqs_jax.distribution.mixture import (
    Mixture,
    draw_component,
    expectation,
    most_probable,
    relaxed_component,
)
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
        the rest float32 (float64 if the parameter has).
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

        Returns:
          A SubDistribution with every weight kept and inclusion 0.99.
        """
        mixture = init_mixture(
            loc,
            components=components,
            windows=windows or Windows(),
            stacked=stacked,
            initialiser=initialiser,
        )
        gate = math.log(INITIAL_INCLUSION / (1 - INITIAL_INCLUSION))
        return cls(
            loc=jnp.array(loc, copy=True),
            gate_logits=jnp.full(loc.shape, gate, mixture.means.dtype),
            kept=jnp.ones(loc.shape, bool),
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

    def mean(self, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
        """Compute E_q[w], shaped and typed as `loc`."""
        if self.stacked:
            return jax.vmap(lambda s: s.mean(temperature))(self)
        soft = expectation(self.latent, self.mixture, self.means, temperature)
        weight = jnp.where(self.kept, jax.nn.sigmoid(self.gate_logits) * soft, 0.0)
        return weight.astype(self.loc.dtype)

    def kl(
        self, prior: SpikeSlabPrior, temperature: jax.typing.ArrayLike = 1.0
    ) -> jax.Array:
        """Bound KL(q || p) from above, summed over the tensor; scalar, nats."""
        if self.stacked:
            return jnp.sum(jax.vmap(lambda s: s.kl(prior, temperature))(self))
        bound = kl_bound(
            self.latent, self.gate_logits, self.kept, self.mixture, prior, temperature
        )
        return jnp.sum(bound)

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
        if self.stacked:
            keys = jax.random.split(key, self.means.shape[0])
            return jax.vmap(lambda s, k: s.sample(k, temperature, relaxation))(self, keys)
        component_key, normal_key, gate_key = jax.random.split(key, 3)
        dtype = self.means.dtype
        mean, scale = relaxed_component(
            component_key, self.latent, self.mixture, temperature, relaxation
        )
        slab = mean + jax.random.normal(normal_key, self.loc.shape, dtype) * scale
        noise = jax.random.logistic(gate_key, self.loc.shape, dtype)
        gate = jax.nn.sigmoid((self.gate_logits + noise) / jnp.asarray(relaxation, dtype))
        return jnp.where(self.kept, gate * slab, 0.0).astype(self.loc.dtype)

    def sample_hard(self, key: jax.Array, temperature: jax.typing.ArrayLike = 1.0) -> jax.Array:
        """Draw K-level weights: kept_i * mu_k with k ~ phi_i; shaped and typed as `loc`."""
        if self.stacked:
            keys = jax.random.split(key, self.means.shape[0])
            return jax.vmap(lambda s, k: s.sample_hard(k, temperature))(self, keys)
        return self._levels(draw_component(key, self.latent, self.mixture, temperature))

    def mode(self) -> jax.Array:
        """Return the deployed weights: kept_i * mu of the most probable component.

        Straight-through: `loc` receives the weight's gradient as it is, pruned weights too, and a
        mean the sum over its kept weights; gates, scales and mixture weights receive none.
        """
        if self.stacked:
            return jax.vmap(lambda s: s.mode())(self)
        levels = self._levels(most_probable(self.latent, self.mixture))
        return levels + (self.loc - jax.lax.stop_gradient(self.loc))

    def codes(self) -> jax.Array:
        """Return the deployed codes: 0 = pruned, else 1 + window * K + component.

        uint8 where W * K <= 255, else uint16; shaped as `loc`.
        """
        if self.stacked:
            return jax.vmap(lambda s: s.codes())(self)
        windows, components = self.means.shape
        dtype = jnp.uint8 if windows * components <= 255 else jnp.uint16
        code = jnp.where(self.kept, 1 + most_probable(self.latent, self.mixture), 0)
        return code.astype(dtype)

    def refit(self) -> "SubDistribution":
        """Set scales and mixture weights from the current assignments of the kept weights.

        An M-step: each component's spread about its mean, with a floor, and its share of its
        window. A component that holds no weight gets its window's pooled spread and half a
        weight's share, so that it stays finite and can win weights back.
        """
        if self.stacked:
            return jax.vmap(lambda s: s.refit())(self)
        shape = self.means.shape
        held = most_probable(self.latent, self.mixture).reshape(-1)
        held = jnp.where(self.kept.reshape(-1), held, self.means.size)  # out of range: dropped

        def total(x: jax.Array) -> jax.Array:
            return jax.ops.segment_sum(x, held, num_segments=self.means.size).reshape(shape)

        latent = self.latent.reshape(-1)
        count = total(jnp.ones_like(latent))
        nearest = self.means.reshape(-1)[jnp.minimum(held, self.means.size - 1)]
        variance = total((latent - nearest) ** 2) / jnp.maximum(count, 1)
        # Fewer than two weights have no spread of their own.
        pooled = jnp.sum(variance * count, -1, keepdims=True) / jnp.maximum(
            jnp.sum(count, -1, keepdims=True), 1
        )
        variance = jnp.where(count > 1, variance, pooled)
        floor = RELATIVE_FLOOR * jnp.sqrt(jnp.mean(latent * latent)) + ABSOLUTE_FLOOR
        share = jnp.maximum(count, 0.5)
        return self.replace(
            log_scales=0.5 * jnp.log(jnp.maximum(variance, floor * floor)),
            mixture_logits=jnp.log(share / jnp.sum(share, axis=-1, keepdims=True)),
        )

    def _levels(self, component: jax.Array) -> jax.Array:
        """Look components (window * K + k) up in the codebook; pruned weights are exactly 0."""
        level = self.means.reshape(-1)[component]
        return jnp.where(self.kept, level, 0.0).astype(self.loc.dtype)
