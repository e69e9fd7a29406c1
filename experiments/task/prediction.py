"""Predictions of networks, and of averages of networks, for a dataset."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.data import Dataset
from experiments.scores import Judgement, judge
from sqs_jax.progress import progress

_BATCH = 500  # most examples of a batch
_LOGITS = 1 << 24  # most logits of a batch


@partial(jax.jit, static_argnums=0)  # All networks of a model share a program.
def _apply(model: nn.Module, variables: Any, examples: Any) -> Any:
    logits: Any = model.apply(variables, examples)
    return jax.nn.softmax(logits, axis=-1)


def probabilities(
    model: nn.Module, variables: Any, dataset: Dataset
) -> Iterator[tuple[slice, jax.Array]]:
    """Predict the examples of a dataset in order, batch by batch.

    Args:
      model: Network.
      variables: Variables of the network.
      dataset: Examples.

    Yields:
      The slice of the examples, and their probabilities, [batch, ..., classes].
    """
    variables = jax.device_put(variables)
    logits = jax.eval_shape(partial(model.apply, variables), dataset.inputs(slice(1))).size
    size = min(_BATCH, max(1, _LOGITS // logits))
    for i in range(0, len(dataset.examples), size):
        chosen = slice(i, i + size)
        yield chosen, _apply(model, variables, dataset.inputs(chosen))


def averaged(
    model: nn.Module, networks: Sequence[Any], dataset: Dataset
) -> Iterator[tuple[slice, jax.Array]]:
    """Yield the averaged predictions of several networks, as `probabilities` does."""
    with progress("evaluation", len(dataset.examples)) as advance:
        for parts in zip(*(probabilities(model, x, dataset) for x in networks), strict=True):
            yield parts[0][0], sum(predicted for _, predicted in parts) / len(parts)
            advance(len(parts[0][1]))


def predict(model: nn.Module, networks: Sequence[Any], dataset: Dataset) -> Judgement:
    """Judge the averaged predictions of several networks.

    Args:
      model: Network.
      networks: Variables of each network.
      dataset: Examples and labels.
    """
    return judge_all(averaged(model, networks, dataset), dataset)


def judge_all(parts: Iterable[tuple[slice, jax.Array]], dataset: Dataset) -> Judgement:
    """Judge predictions of a dataset, batch by batch."""
    judged = [judge(predicted, dataset.labels[chosen]) for chosen, predicted in parts]
    return Judgement(*map(np.concatenate, zip(*judged, strict=True)))
