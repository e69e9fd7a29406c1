"""Mean-field Gaussian variational inference (Blundell et al., 2015)."""

from typing import Any

import jax
import jax.numpy as jnp

import sqs_jax


def dense_gaussians(prior_scale: float) -> sqs_jax.Transform:
    """Return mean-field Gaussian variational inference as a Transform.

    Args:
      prior_scale: Standard deviation of the Gaussian prior, positive.
    """

    def init(params: Any) -> Any:
        return {"mean": params, "log_scale": jax.tree.map(lambda x: jnp.full_like(x, -4.0), params)}

    def sample(posterior: Any, key: jax.Array, **_: Any) -> Any:
        leaves, treedef = jax.tree.flatten(posterior["mean"])
        keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))
        return jax.tree.map(
            lambda mean, scale, key: mean + jnp.exp(scale) * jax.random.normal(key, mean.shape),
            posterior["mean"], posterior["log_scale"], keys,
        )  # fmt: skip

    def kl(posterior: Any, **_: Any) -> jax.Array:
        def tensor_kl(mean: jax.Array, log_scale: jax.Array) -> jax.Array:
            square = (jnp.exp(2 * log_scale) + mean**2) / prior_scale**2
            return jnp.sum(jnp.log(prior_scale) - log_scale + 0.5 * square - 0.5)

        terms = jax.tree.map(tensor_kl, posterior["mean"], posterior["log_scale"])
        return sum(jax.tree.leaves(terms), start=jnp.zeros(()))

    def mean(posterior: Any, **_: Any) -> Any:
        return posterior["mean"]

    return sqs_jax.Transform(init, mean, sample, mean, kl, compress=mean)
