"""Bayesian model averaging over quantized networks drawn from the posterior."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sqs_jax.transform.transform import Transform


def bayesian_average(
    predict_fn: Callable[[Any], jax.Array],
    transform: Transform,
    posterior: Any,
    key: jax.Array,
    *,
    num_samples: int,
    temperature: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Average predicted probabilities over networks drawn from the posterior.

    The estimate is p(y|x) = (1/M) sum_m p(y|x, w_m). Each draw w_m has the levels of the codebooks,
    so that M streams of codes store the ensemble.

    Args:
        predict_fn: Pure function (params) -> probabilities `[batch, classes]`; traced once.
        transform: Transform whose `init` returned the posterior; `sample` draws with hard=True.
        posterior: Posterior, a tree with SubDistributions.
        key: PRNG key; equal keys draw equal networks.
        num_samples: Number M of networks, >= 1.
        temperature: Softmax temperature of the responsibilities in the draws; positive scalar,
            independent of the temperature in training.

    Returns:
        Probabilities, floating array `[batch, classes]`.

    Raises:
        ValueError: If num_samples < 1, the transform cannot sample, or `predict_fn` does not
            return a floating array.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import sqs_jax
        >>> prior = sqs_jax.SpikeSlabPrior(inclusion=0.5, scale=1.0)
        >>> sqs = sqs_jax.spike_slab_gmm([sqs_jax.Rule(components=2)], prior=prior)
        >>> posterior = sqs.init({"kernel": jnp.array([[0.5, -0.3], [0.2, 0.1]])})
        >>> predict_fn = lambda params: jax.nn.softmax(jnp.ones((3, 2)) @ params["kernel"])
        >>> key = jax.random.key(0)
        >>> sqs_jax.bayesian_average(predict_fn, sqs, posterior, key, num_samples=8).shape
        (3, 2)
    """
    if type(num_samples) is not int or num_samples < 1:
        raise ValueError(f"num_samples is {num_samples!r}; it must be an int >= 1.")
    if transform.sample is None:
        raise ValueError("This transform cannot sample, so there is nothing to average.")
    sample = transform.sample

    def predict(draw_key: jax.Array) -> jax.Array:
        return predict_fn(sample(posterior, draw_key, temperature=temperature, hard=True))

    shape = jax.eval_shape(predict, key)
    if not (hasattr(shape, "dtype") and jnp.issubdtype(shape.dtype, jnp.floating)):
        raise ValueError(
            f"predict_fn must return one array of probabilities, not {shape}; classes and tuples "
            "have no average."
        )
    dtype = jnp.float64 if shape.dtype == jnp.float64 else jnp.float32
    total, _ = jax.lax.scan(
        lambda total, draw_key: (total + predict(draw_key).astype(dtype), None),
        jnp.zeros(shape.shape, dtype),
        jax.random.split(key, num_samples),
    )
    return (total / num_samples).astype(shape.dtype)
