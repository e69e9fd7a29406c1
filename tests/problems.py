"""Small posteriors, and float64 references in numpy, written from docs/math.md alone."""

import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax

KEY = jax.random.key(7)
PRIOR = sqs_jax.SpikeSlabPrior(inclusion=0.3, scale=0.7)
FIELDS = ("loc", "gate_logits", "means", "log_scales", "mixture_logits")


def transform(**rule):
    rule = {"pattern": ".*kernel", "components": 4} | rule
    return sqs_jax.spike_slab_gmm([sqs_jax.Rule(**rule)], prior=PRIOR)


def params(shape=(12, 8), *, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    kernel = jnp.asarray(rng.standard_t(3, shape) * 0.3, dtype)
    return {"a": {"kernel": kernel, "bias": jnp.asarray(rng.normal(size=shape[-1]), dtype)}}


def leaf(posterior):
    return posterior["a"]["kernel"]


def with_leaf(posterior, **changes):
    return {"a": {**posterior["a"], "kernel": leaf(posterior).replace(**changes)}}


def generic(posterior, *, seed=1, spread=0.3):
    """Move a posterior's leaf away from every special point of its start; a quarter is pruned."""
    rng = np.random.default_rng(seed)
    d = leaf(posterior)

    def noise(x):
        return jnp.asarray(rng.normal(size=x.shape), x.dtype)

    return with_leaf(
        posterior,
        gate_logits=noise(d.gate_logits),
        kept=jnp.asarray(rng.random(d.loc.shape) > 0.25),
        means=d.means + 0.02 * noise(d.means),
        log_scales=d.log_scales + spread * (1 + noise(d.log_scales)),
        mixture_logits=d.mixture_logits + 0.2 * noise(d.mixture_logits),
    )


def reference(d, temperature=1.0):
    """The float64 responsibilities [N, K] of a leaf, and each weight's own means and log scales."""
    theta = np.asarray(d.loc, np.float64).ravel()
    window = np.searchsorted(np.asarray(d.boundaries, np.float64), theta, side="right")
    means, log_scales, logits = (
        np.asarray(x, np.float64)[window] for x in (d.means, d.log_scales, d.mixture_logits)
    )
    joint = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - log_scales
    joint = (joint - 0.5 * ((theta[:, None] - means) / np.exp(log_scales)) ** 2) / temperature
    phi = np.exp(joint - joint.max(axis=1, keepdims=True))
    return phi / phi.sum(axis=1, keepdims=True), means, log_scales


def inclusion(d):
    """rho tilde, float64, raveled."""
    gates = np.asarray(d.gate_logits, np.float64).ravel()
    return np.asarray(d.kept).ravel() / (1 + np.exp(-gates))


def reference_mean(d, temperature=1.0):
    phi, means, _ = reference(d, temperature)
    return (inclusion(d) * (phi * means).sum(axis=1)).reshape(d.loc.shape)


def reference_kl(d, temperature=1.0, prior=PRIOR):
    """The Jensen bound of each weight, float64, raveled."""
    phi, means, log_scales = reference(d, temperature)
    rho, lam, scale = inclusion(d), prior.inclusion, prior.scale
    slab = np.log(scale) - log_scales + (np.exp(2 * log_scales) + means**2) / (2 * scale**2) - 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        on = np.where(rho > 0, rho * np.log(rho / lam), 0)
        off = np.where(rho < 1, (1 - rho) * np.log((1 - rho) / (1 - lam)), 0)
    return on + off + rho * (phi * slab).sum(axis=1)


def differences(function, x, step=1e-5):
    """Central differences of a scalar function of one float64 array, entry by entry."""
    x = np.array(x, np.float64)
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        out[index] = (float(function(up)) - float(function(down))) / (2 * step)
    return out
