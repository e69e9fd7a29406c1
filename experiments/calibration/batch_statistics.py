"""Batch statistics of a network that was compressed without training: kept, or estimated anew."""

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
    """Draw the images of the first steps of a training, augmented as there.

    Plain images would not do: a network that was trained on shifted ones has never seen so few
    black borders, and its statistics are not theirs.
    """
    for step in track(range(count), "batch statistics"):
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        chosen = batch_indices(len(train.labels), config.batch_size, config.seed, step)
        key, _ = jax.random.split(key)
        yield augmented(key, train.examples[chosen], train, config.data)


def with_statistics(
    model: nn.Module, params: Any, variables: Any, train: Dataset, config: Any
) -> tuple[Any, str]:
    """Return the collections with which compressed params ship, and which statistics those have.

    Args:
      model: the network.
      params: compressed.
      variables: of the dense network, on the host.
      train: the training part. Statistics are estimated from the first examples of
        `config.calibration.examples`, augmented; "best" compares outputs for as many that follow,
        of which no labels are used, with the dense network's, and keeps what there is unless it
        loses by more than two standard errors. A training part of fewer than twice as many has
        some of the first among them.
      config: the experiment; `config.calibration.statistics` is one of CHOICES.

    Returns:
      (model state; "kept" or "reestimated").

    Raises:
      ValueError: for another choice.
    """
    check_choice(config)
    state, wanted = other_collections(variables), config.calibration.statistics
    if "batch_stats" not in state or wanted == "kept":
        return state, "kept"
    weights = jax.device_put(sqs_jax.materialize(params))
    anew = estimate_statistics(
        model, weights, state, training_batches(train, config, _batches(train, config))
    )
    if wanted == "reestimated":
        return anew, wanted
    divergences = _divergences(model, variables, train, config)
    lost = divergences({"params": weights, **state}) - divergences({"params": weights, **anew})
    # The dense network has learned its training images, and other images lose more by statistics
    # anew than these tell: a difference within chance is none.
    keep = np.mean(lost) <= 2 * np.std(lost) / np.sqrt(lost.size)
    return (state, "kept") if keep else (anew, "reestimated")


def outputs_lost(
    model: nn.Module, params: Any, variables: Any, train: Dataset, config: Any
) -> float:
    """Return how far predictions are from the dense network's, as compressed params ship them.

    Arguments and errors as of `with_statistics`.

    Returns:
      KL(dense || compressed), nats a prediction.
    """
    state, _ = with_statistics(model, params, variables, train, config)
    shipped = {"params": sqs_jax.materialize(params), **state}
    return float(np.mean(_divergences(model, variables, train, config)(shipped)))


def check_choice(config: Any) -> None:
    """Raise ValueError unless `config.calibration.statistics` is one of CHOICES."""
    wanted = config.calibration.statistics
    if wanted not in CHOICES:
        names = ", ".join(map(repr, CHOICES))
        raise ValueError(f"config.calibration.statistics is {wanted!r}; it must be one of {names}.")


def _batches(train: Dataset, config: Any) -> int:
    return max(1, min(config.calibration.examples, len(train.labels)) // config.batch_size)


def _divergences(
    model: nn.Module, dense: Any, train: Dataset, config: Any
) -> Callable[[Any], np.ndarray]:
    """Build a function from variables to KL(dense || variables) of each held-out prediction.

    Nats; on the batches that follow those of the calibration.
    """
    count = _batches(train, config)

    @jax.jit
    def log_shares(variables: Any, examples: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, examples)
        return jax.nn.log_softmax(logits)

    held = [
        train.inputs(batch_indices(len(train.labels), config.batch_size, config.seed, step))
        for step in range(count, 2 * count)
    ]

    targets = [log_shares(dense, examples) for examples in track(held, "dense outputs")]

    def divergences(variables: Any) -> np.ndarray:
        apart = []
        for examples, target in zip(track(held, "compressed outputs"), targets, strict=True):
            gap = target - log_shares(variables, examples)
            apart.append(np.ravel(jnp.sum(jnp.exp(target) * gap, -1)))
        return np.concatenate(apart)

    return divergences
