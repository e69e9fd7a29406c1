"""Load a dataset by its name; draw batches that depend on nothing but (seed, step)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import digits, files, tfds
from experiments.data.lazy import LazyImages


class Dataset(NamedTuple):
    """Examples and labels in memory.

    Attributes:
      examples: images [n, height, width, channels], as stored, uint8 or float32, or tokens int32
        [n, length]: an array, or what gives one when indexed.
      labels: int32 [n, ...]; negative ones are not asked for.
      mean, deviation: of each channel, float32 [channels], in the images' units; None for tokens.
    """

    examples: Any
    labels: np.ndarray
    mean: Any = np.float32(0)
    deviation: Any = np.float32(1)

    @property
    def units(self) -> int:
        """The number of labels that are asked for."""
        return int((self.labels >= 0).sum())

    def standardise(self, examples: Any) -> Any:
        """Return what a network gets for examples as they are stored; on any device."""
        if self.mean is None:
            return examples
        return (examples.astype(np.float32) - self.mean) / self.deviation

    @property
    def black(self) -> np.ndarray:
        """What a network gets for a black pixel, [channels] or a number."""
        if self.mean is None:
            return np.zeros((), np.float32)
        return np.asarray(-self.mean / self.deviation, np.float32)

    def inputs(self, chosen: Any) -> np.ndarray:
        """Return what a network gets for some of the examples: images float32, standardised."""
        return self.standardise(self.examples[chosen])


class Splits(NamedTuple):
    """What is trained on, what is evaluated at the end, and the number of classes."""

    train: Dataset
    holdout: Dataset
    num_classes: int


def load(config: Any, seed: int) -> Splits:
    """Load the data an experiment's `data` section names.

    Args:
      config: the section, see configs/base.py. A file `NAME.npz` in the directory is read; without
        one the directory is tensorflow-datasets'.
      seed: draws the split of datasets that have none of their own, and their validation part.

    Returns:
      Splits. With holdout "validation" a tenth of the training part is held out, and the test part
      is not used: the last tenth, or a stratified one of datasets without splits of their own.

    Raises:
      ValueError: for a holdout that is unknown, a file or images that cannot be read, parts that do
        not fit each other, or a mean and a deviation that do not fit.
      FileNotFoundError: for a dataset that is not there.
    """
    if config.holdout not in ("test", "validation"):
        raise ValueError(
            f"config.data.holdout is {config.holdout!r}; it must be 'test' or 'validation'."
        )
    if config.pad not in ("black", "edge"):
        raise ValueError(f"config.data.pad is {config.pad!r}; it must be 'black' or 'edge'.")
    validate = config.holdout == "validation"
    if config.name == "digits":
        train, holdout = digits.load(seed)
        if validate:
            train, holdout = digits.stratified_split(*train, fraction=0.1, seed=seed)
    else:
        plain = Path(config.directory) / f"{config.name}.npz"
        if config.directory and plain.exists():
            train, holdout = files.load(plain)
        else:
            try:
                train, holdout = tfds.load(
                    config.name, config.directory or None, config.test_split, config.image_size
                )
            except FileNotFoundError as error:
                if not config.directory:
                    raise
                raise FileNotFoundError(f"There is no file {plain}. {error}") from error
        _require_alike(config, train, holdout)
        if validate:
            first = len(train[1]) - len(train[1]) // 10
            images, labels = train
            train, holdout = (
                (_part(images, s), labels[s]) for s in (slice(first), slice(first, None))
            )
    mean, deviation = _standardisation(config, train[0])

    def dataset(images: Any, labels: np.ndarray) -> Dataset:
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
        return Dataset(images, labels.astype(np.int32), mean, deviation)

    num_classes = int(max(train[1].max(), holdout[1].max())) + 1
    return Splits(dataset(*train), dataset(*holdout), num_classes)


def _require_alike(config: Any, train: Any, test: Any) -> None:
    """Refuse parts of which one network cannot be trained on the one and tested on the other."""
    problems = []
    for part, (_, labels) in (("training", train), ("test", test)):
        if labels.min() < 0:
            problems.append(f"{int((labels < 0).sum())} labels of the {part} part are negative")
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = [images.shape[1:] for images, _ in (train, test)]
        problems.append(f"training images are {shapes[0]}, test images {shapes[1]}")
    if problems:
        raise ValueError(
            f"Dataset {config.name!r} cannot be used: {'; '.join(problems)}. A part without labels "
            "cannot be tested on: config.data.test_split names another."
        )


def _part(images: Any, chosen: slice) -> Any:
    return images.part(chosen) if isinstance(images, LazyImages) else images[chosen]


def _standardisation(config: Any, images: Any) -> tuple[Any, Any]:
    """Return mean and deviation of each channel: given for values from 0 to 1, or measured."""
    channels = images.shape[-1]
    if not config.mean and not config.deviation:
        if isinstance(images, LazyImages):
            raise ValueError(
                "config.data.mean and deviation are empty, but images of several sizes are read "
                "when they are needed, and not measured: give both, for values from 0 to 1."
            )
        # the training part's own, one number for all channels
        deviation = max(float(images.std(dtype=np.float64)), 1e-12)
        return np.float32(images.mean(dtype=np.float64)), np.float32(deviation)
    for name, given in (("mean", config.mean), ("deviation", config.deviation)):
        if len(given) != channels:
            raise ValueError(
                f"config.data.{name} has {len(given)} numbers, the images {channels} channels; "
                "give one for each, of values from 0 to 1, or none in mean and deviation."
            )
    if min(config.deviation) <= 0:
        raise ValueError(f"config.data.deviation is {config.deviation}; it must be positive.")
    most = 255 if images.dtype == np.uint8 else 1
    return np.float32(config.mean) * most, np.float32(config.deviation) * most


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
