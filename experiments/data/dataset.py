"""Load a dataset by its name; draw batches that depend on nothing but (seed, step)."""

from typing import Any, NamedTuple

import numpy as np

from experiments.data import digits, tfds


class Dataset(NamedTuple):
    """Images [n, height, width, channels] (float32, standardised) and labels [n] (int32)."""

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    """What is trained on, what is evaluated at the end, and the number of classes."""

    train: Dataset
    holdout: Dataset
    num_classes: int


def load(config: Any, seed: int) -> Splits:
    """Load the data an experiment's `data` section names.

    Args:
      config: the section: name, directory, holdout.
      seed: draws the split of datasets that have none of their own, and the validation part.

    Returns:
      Splits. With holdout "validation" a stratified tenth of the training part is held out, and
      the test part is not read.

    Raises:
      ValueError: for an unknown holdout.
      FileNotFoundError: for a tensorflow-datasets dataset that is not prepared.
    """
    if config.holdout not in ("test", "validation"):
        raise ValueError(
            f"config.data.holdout is {config.holdout!r}; it must be 'test' or 'validation'."
        )
    if config.name == "digits":
        train, holdout = digits.load(seed)
    else:
        train, holdout = tfds.load(config.name, config.directory or None)
    if config.holdout == "validation":
        train, holdout = digits.stratified_split(*train, fraction=0.1, seed=seed)
    # Standardised by the training part's own mean and deviation, one number each.
    mean, deviation = train[0].mean(dtype=np.float64), train[0].std(dtype=np.float64)

    def standardised(images: np.ndarray, labels: np.ndarray) -> Dataset:
        scaled = (images.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
        return Dataset(scaled, labels.astype(np.int32))

    num_classes = int(max(train[1].max(), holdout[1].max())) + 1
    return Splits(standardised(*train), standardised(*holdout), num_classes)


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the training examples of a step: every epoch a new order, incomplete batches left out.

    Raises:
      ValueError: if a batch is larger than the dataset.
    """
    if batch_size > size:
        raise ValueError(f"config.batch_size is {batch_size}, but there are {size} examples.")
    epoch, position = divmod(step, size // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(size)
    return order[position * batch_size : (position + 1) * batch_size]
