"""Sensitivity of each tensor: the cost of a squared error of its weights."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.calibration.stages import Stage, outputs, read, stages_of, values
from experiments.data import Dataset, batch_indices
from sqs_jax.progress import Advance, progress, track

_BATCHES = 16


def sensitivities(model: nn.Module, variables: Any, train: Dataset, config: Any) -> Any:
    """Compute the cost of a squared error of each tensor, by `config.sqs.sensitivity`.

    "fisher" is the Fisher information. "scale" is one over the root mean square of the tensor.
    Normalization layers undo any scale, so that plain squared errors have no common unit. One over
    the mean square was rejected: a first layer, which uses each weight at more places, would get no
    more bits than a last layer.

    Args:
      model: Network.
      variables: Variables of the network, on the host or lazy.
      train: Training examples.
      config: Config of the experiment.

    Returns:
      Tree of the structure of the params; leaves are float32 scalars.
    """
    if config.sqs.sensitivity == "fisher":
        return fisher_information(model, variables, train, config.batch_size, config.seed)
    return jax.tree.map(_per_scale, variables["params"])


def _per_scale(weights: Any) -> np.ndarray:
    scale = np.sqrt(np.mean(np.square(np.asarray(weights, np.float32))))
    return np.asarray(1 / max(scale, 1e-12), np.float32)


def fisher_information(
    model: nn.Module, variables: Any, train: Dataset, batch_size: int, seed: int
) -> Any:
    """Estimate the diagonal Fisher information, averaged over each tensor, per label.

    Labels are drawn from the predictions of the network, so that the data need no labels. The mean
    gradient is then 0 at any weights, and the expectation does not depend on the batch size. Stages
    are read one at a time, from last to first. Gradients of a tensor that two stages share count
    as independent.

    Args:
      model: Network.
      variables: Variables of the network, on the host or lazy.
      train: Training examples.
      batch_size: Number of examples of each of the 16 batches.
      seed: Seed of the batches and of the drawn labels.

    Returns:
      Tree of the structure of the params; leaves are float32 scalars. Half a leaf times a squared
      error approximates the increase of the NLL, nats per label.
    """
    stages, params = stages_of(model, variables), variables["params"]
    batches = [batch_indices(len(train.labels), batch_size, seed, step) for step in range(_BATCHES)]
    inputs: list[list[Any]] = [[train.inputs(chosen) for chosen in batches]]
    for stage in track(stages[:-1], "inputs of each part"):
        weights = jax.device_put(values(read(params, stage)))
        inputs.append(outputs(stage, weights, inputs[-1]))
    information = jax.tree.map(lambda leaf: np.float32(0), params)
    back: list[Any] = [jax.random.fold_in(jax.random.key(seed), i) for i in range(_BATCHES)]
    with progress("sensitivities", len(stages) * _BATCHES) as advance:
        for stage in stages[::-1]:
            last, first = stage is stages[-1], stage is stages[0]
            weights = jax.device_put(values(read(params, stage)))
            sums, back = _backward(stage, weights, inputs.pop(), back, last, first, advance)
            for name, squares in zip(stage.names, sums, strict=True):
                information[name] = jax.tree.map(
                    lambda a, b: a + b / _BATCHES, information[name], squares
                )
    return information


def _backward(
    stage: Stage,
    params: list[Any],
    inputs: Sequence[Any],
    back: Sequence[Any],
    last: bool,
    first: bool,
    advance: Advance,
) -> tuple[list[Any], list[Any]]:
    """Backpropagate all batches through a stage.

    Returns:
      Mean squared gradients of the params, summed over batches; and cotangents of the inputs.
    """
    sums, through = jax.tree.map(lambda leaf: np.float32(0), params), []
    for x, gradient in zip(inputs, back, strict=True):
        squares, before = _one_batch(stage.apply, params, x, gradient, last, first)
        sums = jax.tree.map(lambda a, b: a + np.asarray(b), sums, squares)
        through.append(np.asarray(before) if not first else None)
        advance()
    return sums, through


@partial(jax.jit, static_argnums=(0, 4, 5))
def _one_batch(
    apply: Any, params: Any, x: jax.Array, back: jax.Array, last: bool, first: bool
) -> tuple[Any, Any]:
    """Backpropagate a batch through a stage.

    Args:
      apply: Function (params, inputs) -> outputs of the stage.
      params: `values` of the params.
      x: Inputs of the stage.
      back: Cotangent of the outputs; for the last stage, the key of the drawn labels.
      last: Whether the outputs are the logits of the network.
      first: Whether the inputs need no cotangent.
    """

    def value(params: Any, x: jax.Array) -> jax.Array:
        y = apply(params, x)
        if not last:
            return jnp.vdot(y, back.astype(y.dtype))
        drawn = jax.random.categorical(back, jax.lax.stop_gradient(y))
        losses = optax.softmax_cross_entropy_with_integer_labels(y, drawn)
        return jnp.sum(losses) / jnp.sqrt(losses.size)

    gradients = jax.grad(value, argnums=0 if first else (0, 1))(params, x)
    weight_gradients, before = (gradients, None) if first else gradients
    squares = jax.tree.map(lambda g: jnp.mean(jnp.square(g.astype(jnp.float32))), weight_gradients)
    return squares, before
