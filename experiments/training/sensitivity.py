"""How much the likelihood loses per squared error of a tensor's weights: its Fisher information."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from experiments.data import Dataset, batch_indices

_BATCHES = 16


def fisher_information(
    model: nn.Module, variables: Any, train: Dataset, batch_size: int, seed: int
) -> Any:
    """Return the mean squared gradient of each tensor's weights, in nats per label.

    Labels are drawn from what the network predicts, so that none are needed, and the mean gradient
    is 0 at any weights: batches of any size have the same expectation.

    Args:
      model: the network.
      variables: its variables, arrays on the host.
      train: examples.
      batch_size: of the sixteen batches that are looked at.
      seed: of the batches and the drawn labels.

    Returns:
      A tree as the params, of float32 scalars; half of it times a squared error is about what a
      label loses.
    """
    state = {name: value for name, value in variables.items() if name != "params"}

    @jax.jit
    def of_batch(params: Any, inputs: jax.Array, key: jax.Array) -> Any:
        def nll(params: Any) -> jax.Array:
            logits: Any = model.apply({"params": params, **state}, inputs)
            drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
            each = optax.softmax_cross_entropy_with_integer_labels(logits, drawn)
            return jnp.sum(each) / jnp.sqrt(each.size)

        return jax.tree.map(
            lambda g: jnp.mean(jnp.square(g.astype(jnp.float32))), jax.grad(nll)(params)
        )

    found = []
    params = jax.device_put(variables["params"])
    for step in track(range(_BATCHES), "sensitivities", transient=True):
        chosen = batch_indices(len(train.labels), batch_size, seed, step)
        key = jax.random.fold_in(jax.random.key(seed), step)
        found.append(jax.device_get(of_batch(params, train.inputs(chosen), key)))
    return jax.tree.map(lambda *each: np.mean(each, dtype=np.float32), *found)
