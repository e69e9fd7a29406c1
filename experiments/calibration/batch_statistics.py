"""Batch statistics of a network compressed without training: kept or reestimated."""

from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import sqs_jax
from experiments.data import Dataset, augmented, batch_indices
from experiments.training.batch_norm import estimate_statistics
from experiments.trees import other_collections
from sqs_jax.progress import track

CHOICES = ("kept", "reestimated", "best")


def training_batches(train: Dataset, config: Any, count: int) -> Iterator[Any]:
    """Yield the augmented images of the first steps of a training.

    Statistics of plain images are wrong for a network that was trained with random shifts, because
    plain images have fewer black borders.

    Args:
      train: Training examples.
      config: Config of the experiment.
      count: Number of batches.
    """
    for step in track(range(count), "batch statistics"):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        chosen = batch_indices(len(train.labels), config.batch_size, config.seed, step)
        key, _ = jax.random.split(key)
        yield augmented(key, train.examples[chosen], train, config.data)


def with_statistics(
    model: nn.Module, params: Any, variables: Any, train: Dataset, config: Any
) -> tuple[Any, str]:
    """Choose the batch statistics of compressed params.

    "reestimated" uses the first `config.calibration.examples` examples, augmented. "best" compares
    the outputs of both choices with those of the dense network, on equally many further examples,
    without labels. It keeps the dense network's statistics unless they lose by more than two
    standard errors. If the training part is too small, both sets of examples overlap.

    Args:
      model: Network.
      params: Compressed params.
      variables: Variables of the dense network, on the host.
      train: Training examples.
      config: Config of the experiment; `config.calibration.statistics` is one of CHOICES.

    Returns:
      The other collections to ship, and the choice: "kept" or "reestimated".

    Raises:
      ValueError: `config.calibration.statistics` is not in CHOICES.
    """
    check_choice(config)
    state, choice = other_collections(variables), config.calibration.statistics
    if "batch_stats" not in state or choice == "kept":
        return state, "kept"
    weights = jax.device_put(sqs_jax.materialize(params))
    anew = estimate_statistics(
        model, weights, state, training_batches(train, config, _batches(train, config))
    )
    if choice == "reestimated":
        return anew, choice
    divergences = _divergences(model, variables, train, config)
    lost = divergences({"params": weights, **state}) - divergences({"params": weights, **anew})
    # The dense network was fitted to these images; on other images new statistics lose more than
    # measured here. A difference within two standard errors therefore does not count.
    keep = np.mean(lost) <= 2 * np.std(lost) / np.sqrt(lost.size)
    return (state, "kept") if keep else (anew, "reestimated")


def outputs_lost(
    model: nn.Module, params: Any, variables: Any, train: Dataset, config: Any
) -> float:
    """Compute the mean KL divergence of shipped predictions from the dense network's.

    Arguments and errors are those of `with_statistics`.

    Returns:
      KL(dense || compressed), nats per prediction.
    """
    state, _ = with_statistics(model, params, variables, train, config)
    shipped = {"params": sqs_jax.materialize(params), **state}
    return float(np.mean(_divergences(model, variables, train, config)(shipped)))


def check_choice(config: Any) -> None:
    """Raise ValueError if `config.calibration.statistics` is not in CHOICES."""
    choice = config.calibration.statistics
    if choice not in CHOICES:
        names = ", ".join(map(repr, CHOICES))
        raise ValueError(f"config.calibration.statistics is {choice!r}; it must be one of {names}.")


def _batches(train: Dataset, config: Any) -> int:
    return max(1, min(config.calibration.examples, len(train.labels)) // config.batch_size)


def _divergences(
    model: nn.Module, dense: Any, train: Dataset, config: Any
) -> Callable[[Any], np.ndarray]:
    """Build a function from variables to KL(dense || variables) per prediction, nats.

    The predictions are those of the batches that follow the calibration data.
    """
    count = _batches(train, config)

    @jax.jit
    def log_shares(variables: Any, examples: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, examples)
        return jax.nn.log_softmax(logits)

    held_out = [
        train.inputs(batch_indices(len(train.labels), config.batch_size, config.seed, step))
        for step in range(count, 2 * count)
    ]

    targets = [log_shares(dense, examples) for examples in track(held_out, "dense outputs")]

    def divergences(variables: Any) -> np.ndarray:
        apart = []
        for examples, target in zip(track(held_out, "compressed outputs"), targets, strict=True):
            gap = target - log_shares(variables, examples)
            apart.append(np.ravel(jnp.sum(jnp.exp(target) * gap, -1)))
        return np.concatenate(apart)

    return divergences
