"""Upper bound of the KL divergence from the spike-and-slab prior, term by term."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpikeSlabPrior:
    """The prior of every weight: inclusion * N(0, scale^2) + (1 - inclusion) * delta at 0.

    Attributes:
      inclusion: Prior probability that a weight is not zero, strictly between 0 and 1.
      scale: Standard deviation of the slab, in units of the weights, > 0.

    Raises:
      ValueError: If either is out of range.

    Example:
      >>> import sqs_jax
      >>> sqs_jax.SpikeSlabPrior(inclusion=0.2, scale=0.1)
      SpikeSlabPrior(inclusion=0.2, scale=0.1)
    """

    inclusion: float
    scale: float

    def __post_init__(self) -> None:
        if not 0 < self.inclusion < 1:
            raise ValueError(
                f"SpikeSlabPrior.inclusion is {self.inclusion!r}; it must lie strictly in (0, 1)."
            )
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"SpikeSlabPrior.scale is {self.scale!r}; it must be finite and > 0.")


def bernoulli_kl(logits: jax.Array, inclusion: float) -> jax.Array:
    """Compute KL(Bernoulli(sigmoid(logits)) || Bernoulli(inclusion)), nats, both terms.

    Args:
      logits: Logits, any shape.
      inclusion: Prior probability of 1, in (0, 1).

    Returns:
      Array shaped as `logits`, >= 0 but for rounding, finite for every finite logit.
    """
    on, off = jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)
    # on log on + off log off, without a logarithm of what rounds to 0
    size = jnp.abs(logits)
    minus_entropy = -jnp.minimum(on, off) * size - jnp.log(1 + jnp.exp(-size))
    return minus_entropy - on * math.log(inclusion) - off * math.log1p(-inclusion)


def gaussian_kl(means: jax.Array, log_scales: jax.Array, prior_scale: float) -> jax.Array:
    """Compute KL(N(mu, sigma^2) || N(0, prior_scale^2)), nats, elementwise."""
    square = jnp.exp(2.0 * log_scales) + means * means
    return math.log(prior_scale) - log_scales + square / (2.0 * prior_scale**2) - 0.5


def kl_bound(
    slab: jax.Array, gate_logits: jax.Array, kept: jax.Array, prior: SpikeSlabPrior
) -> jax.Array:
    """Bound KL(q || p) of each weight from above, nats.

    Spike and slab are mutually singular, so the KL is that of the two Bernoullis plus the
    inclusion times that of the slabs. The latter is convex in its first argument (Jensen):
    KL(sum_k phi_k N_k || p) <= sum_k phi_k KL(N_k || p). The gap is at most rho * H(phi), and 0
    where phi is one-hot. Source: arXiv:2510.08999, with the Bernoulli term whole.

    Args:
      slab: Averages sum_k phi_k KL(N_k || p) of each weight, any shape, nats; see `gaussian_kl`.
      gate_logits: Inclusion logits, shaped as `slab`.
      kept: Pruning decision, bool, shaped as `slab`; a pruned weight has inclusion 0.
      prior: Spike-and-slab prior.

    Returns:
      Array shaped as `slab`. Where `kept` is False: the constant -log(1 - inclusion).
    """
    bound = bernoulli_kl(gate_logits, prior.inclusion) + jax.nn.sigmoid(gate_logits) * slab
    return jnp.where(kept, bound, -math.log1p(-prior.inclusion))
