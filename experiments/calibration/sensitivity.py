"""What a squared error of a tensor's weights costs."""

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
    """Return what a squared error of each tensor's weights costs, as `config.sqs.sensitivity` says.

    Of "scale", one over the tensor's root mean square: normalisations that follow undo any scale,
    so that squared errors as they are have no common unit; over the squared scale, a first layer
    would get no more bits than a last one, which uses every weight at fewer places.

    Args:
      model, variables: the network, its weights on the host or still in their files.
      train: examples.
      config: the experiment.

    Returns:
      A tree as the params, of float32 scalars.
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
    """Return the mean squared gradient of each tensor's weights, in nats per label.

    Labels are drawn from what the network predicts, so that none are needed, and the mean gradient
    is 0 at any weights: batches of any size have the same expectation. Stages are read one at a
    time, last to first; gradients of a tensor that two of them share count as independent.

    Args:
      model: the network.
      variables: its variables, on the host or still in their files.
      train: examples.
      batch_size: of the sixteen batches that are looked at.
      seed: of the batches and the drawn labels.

    Returns:
      A tree as the params, of float32 scalars; half of it times a squared error is about what a
      label loses.
    """
    stages, params = stages_of(model, variables), variables["params"]
    batches = [batch_indices(len(train.labels), batch_size, seed, step) for step in range(_BATCHES)]
    inputs: list[list[Any]] = [[train.inputs(chosen) for chosen in batches]]
    for stage in track(stages[:-1], "inputs of each part"):
        its = jax.device_put(values(read(params, stage)))
        inputs.append(outputs(stage, its, inputs[-1]))
    found = jax.tree.map(lambda leaf: np.float32(0), params)
    back: list[Any] = [jax.random.fold_in(jax.random.key(seed), i) for i in range(_BATCHES)]
    with progress("sensitivities", len(stages) * _BATCHES) as advance:
        for stage in stages[::-1]:
            last, first = stage is stages[-1], stage is stages[0]
            its = jax.device_put(values(read(params, stage)))
            sums, back = _backward(stage, its, inputs.pop(), back, last, first, advance)
            for name, squares in zip(stage.names, sums, strict=True):
                found[name] = jax.tree.map(lambda a, b: a + b / _BATCHES, found[name], squares)
    return found


def _backward(
    stage: Stage,
    params: list[Any],
    inputs: Sequence[Any],
    back: Sequence[Any],
    last: bool,
    first: bool,
    advance: Advance,
) -> tuple[list[Any], list[Any]]:
    """Return the summed mean squared gradients of a stage's params, and those of its inputs."""
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
    """Go through a stage backwards; `back` is the key of drawn labels if it is the last."""

    def value(params: Any, x: jax.Array) -> jax.Array:
        y = apply(params, x)
        if not last:
            return jnp.vdot(y, back.astype(y.dtype))
        drawn = jax.random.categorical(back, jax.lax.stop_gradient(y))
        each = optax.softmax_cross_entropy_with_integer_labels(y, drawn)
        return jnp.sum(each) / jnp.sqrt(each.size)

    gradients = jax.grad(value, argnums=0 if first else (0, 1))(params, x)
    its, before = (gradients, None) if first else gradients
    return jax.tree.map(lambda g: jnp.mean(jnp.square(g.astype(jnp.float32))), its), before
