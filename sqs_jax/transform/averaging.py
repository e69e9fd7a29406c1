"""Bayesian model averaging over K-level networks."""

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

    p(y|x) is about (1/M) sum_m p(y|x, w_m), every w_m a K-level draw: what M code streams hold.

    Args:
      predict_fn: (params) -> probabilities, [batch, classes]; a pure function, traced once.
      transform: the transform that made the posterior; its `sample` draws with hard=True.
      posterior: a posterior.
      key: PRNG key; the same key draws the same networks.
      num_samples: M >= 1.
      temperature: of the responsibilities the components are drawn with, > 0; an evaluation
        temperature of its own.

    Returns:
      Probabilities, [batch, classes].

    Raises:
      ValueError: if num_samples < 1 or the transform cannot sample.
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
