"""How much the loss minds a change of each tensor's weights."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.data import Dataset

_EXAMPLES = 512


def squared_gradients(model: nn.Module, variables: Any, train: Dataset, seed: int) -> Any:
    """Estimate the diagonal Fisher information, averaged over each tensor.

    E[g^2] of the log-likelihood of labels that are drawn from the network's own predictions, over
    512 training images. (The labels' own gradients vanish where a network has learned them.)

    Args:
      model: the network.
      variables: its params and other collections.
      train: the training examples.
      seed: chooses images and labels.

    Returns:
      A tree like the params, with an array of one element, of as many axes, for each.
    """
    chosen = np.random.default_rng([seed, 1]).choice(len(train.labels), _EXAMPLES, replace=False)
    rest = {name: value for name, value in variables.items() if name != "params"}

    def nll(params: Any, image: jax.Array, key: jax.Array) -> jax.Array:
        logits = model.apply({"params": params, **rest}, image[None])[0]
        label = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)

    def add(total: Any, example: Any) -> tuple[Any, None]:
        gradient = jax.grad(nll)(variables["params"], *example)
        return jax.tree.map(lambda t, g: t + jnp.mean(g * g, keepdims=True), total, gradient), None

    zeros = jax.tree.map(lambda x: jnp.zeros((1,) * x.ndim), variables["params"])
    keys = jax.random.split(jax.random.key(seed), _EXAMPLES)
    total, _ = jax.jit(lambda xs: jax.lax.scan(add, zeros, xs))((train.inputs(chosen), keys))
    return jax.tree.map(lambda t: np.asarray(t) / _EXAMPLES, total)
