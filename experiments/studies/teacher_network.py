"""Teacher networks with sparse quantized weights, and examples of their function."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_TESTS = 4096  # inputs on which the function error is measured


class Task(NamedTuple):
    """Teacher network with noisy examples of its function.

    Attributes:
      truth: Weights of the teacher.
      start: Initial weights of the students.
      inputs: Inputs of the examples, [n, inputs].
      targets: Noisy outputs of the teacher, [n].
      tests: Inputs on which functions are compared, [tests, inputs].
      key: PRNG key of the trainings.
    """

    truth: Any
    start: Any
    inputs: jax.Array
    targets: jax.Array
    tests: jax.Array
    key: jax.Array


def network(params: Any, x: jax.Array) -> jax.Array:
    """Compute outputs [n] of a ReLU network with a hidden layer and no biases."""
    return (jax.nn.relu(x @ params["hidden"]["kernel"]) @ params["out"]["kernel"])[:, 0]


def make_task(seed: int, hidden: int, config: Any) -> Task:
    """Draw a teacher, noisy examples, and initial weights near the teacher.

    Args:
      seed: Seed of all draws.
      hidden: Number of hidden units.
      config: Config of the study.
    """
    keys = iter(jax.random.split(jax.random.key(seed), 10))
    shapes = {"hidden": (config.inputs, hidden), "out": (hidden, 1)}
    truth, start = {}, {}
    for layer, shape in shapes.items():
        levels = jax.random.choice(next(keys), jnp.asarray(config.levels), shape)
        zeros = jax.random.bernoulli(next(keys), config.sparsity, shape)
        weights = jnp.where(zeros, 0.0, levels)
        truth[layer] = {"kernel": weights}
        noise = config.start_noise * jax.random.normal(next(keys), shape)
        start[layer] = {"kernel": weights + noise}

    def draw_inputs(count: int) -> jax.Array:
        return jax.random.uniform(next(keys), (count, config.inputs), minval=-1, maxval=1)

    inputs = draw_inputs(max(config.examples))
    targets = network(truth, inputs)
    targets += config.noise * jax.random.normal(next(keys), targets.shape)
    return Task(truth, start, inputs, targets, draw_inputs(_TESTS), next(keys))
