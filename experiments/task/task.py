"""Learning task of an experiment: a network and its data."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from experiments.data import Splits


class Task(NamedTuple):
    """A network and its data.

    Attributes:
      model: Network.
      splits: Training part and held-out part of the data.
      tokenizer: Tokenizer, a tokenizers.Tokenizer; None for images.
      score: Function from the probabilities of all held-out examples to the metrics of the task;
        None if accuracy and NLL are all metrics.
    """

    model: nn.Module
    splits: Splits
    tokenizer: Any = None
    score: Callable[[np.ndarray], dict[str, float]] | None = None
