"""Datasets of images by name, and batches that depend only on seed and step."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.data import digits, npz_file, tfds
from experiments.data.lazy_images import LazyImages


class Dataset(NamedTuple):
    """Examples with their labels.

    Attributes:
      examples: Images [n, height, width, channels], uint8 or float32 as stored, or tokens int32
        [n, length]; an array, or an object that returns an array when indexed.
      labels: Labels, int32 [n, ...]; negative labels are ignored.
      mean: Mean of each channel, float32 [channels] or scalar, in the images' units; None for
        tokens.
      deviation: Standard deviation of each channel, like `mean`.
    """

    examples: Any
    labels: np.ndarray
    mean: Any = np.float32(0)
    deviation: Any = np.float32(1)

    @property
    def units(self) -> int:
        """Number of labels that are not ignored."""
        return int((self.labels >= 0).sum())

    def standardize(self, examples: Any) -> Any:
        """Convert stored examples to a network's inputs; works under jit."""
        if self.mean is None:
            return examples
        return (examples.astype(np.float32) - self.mean) / self.deviation

    @property
    def black(self) -> np.ndarray:
        """Standardized value of a black pixel, [channels] or scalar."""
        if self.mean is None:
            return np.zeros((), np.float32)
        return np.asarray(-self.mean / self.deviation, np.float32)

    def inputs(self, chosen: Any) -> np.ndarray:
        """Return a network's inputs for the examples at an index, slice or index array."""
        return self.standardize(self.examples[chosen])


class Splits(NamedTuple):
    """Training part, evaluation part, and the number of classes."""

    train: Dataset
    holdout: Dataset
    num_classes: int


def load(config: Any, seed: int) -> Splits:
    """Load the images that an experiment's `data` section names.

    Args:
      config: The section, see configs/base.py. The file `NAME.npz` of the directory is read if it
        exists; otherwise the directory is that of tensorflow-datasets.
      seed: Seed of the split of datasets without a test part, and of their validation part.

    Returns:
      Splits. With holdout "validation", a tenth of the training part is the evaluation part, and
      the test part is not used. This tenth is the last one, or stratified for datasets without a
      test part.

    Raises:
      ValueError: If the holdout is unknown, the file or its images cannot be read, the parts do
        not match, or mean and deviation do not match the images.
      FileNotFoundError: If the dataset does not exist.
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
        npz = Path(config.directory) / f"{config.name}.npz"
        if config.directory and npz.exists():
            train, holdout = npz_file.load(npz)
        else:
            try:
                train, holdout = tfds.load(
                    config.name, config.directory or None, config.test_split, config.image_size
                )
            except FileNotFoundError as error:
                if not config.directory:
                    raise
                raise FileNotFoundError(f"There is no file {npz}. {error}") from error
        _check_parts(config, train, holdout)
        if validate:
            boundary = len(train[1]) - len(train[1]) // 10
            images, labels = train
            train, holdout = (
                (_part(images, s), labels[s]) for s in (slice(boundary), slice(boundary, None))
            )
    mean, deviation = _standardization(config, train[0])

    def dataset(images: Any, labels: np.ndarray) -> Dataset:
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
        return Dataset(images, labels.astype(np.int32), mean, deviation)

    num_classes = int(max(train[1].max(), holdout[1].max())) + 1
    return Splits(dataset(*train), dataset(*holdout), num_classes)


def _check_parts(config: Any, train: Any, test: Any) -> None:
    """Raise ValueError if a network of the training part cannot be tested on the other."""
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


def _standardization(config: Any, images: Any) -> tuple[Any, Any]:
    """Return mean and deviation in the images' units, from the config or measured."""
    channels = images.shape[-1]
    if not config.mean and not config.deviation:
        if isinstance(images, LazyImages):
            raise ValueError(
                "config.data.mean and deviation are empty, but images of several sizes are read "
                "when they are needed, and not measured: give both, for values from 0 to 1."
            )
        # Measured on the training part, one number for all channels.
        deviation = max(float(images.std(dtype=np.float64)), 1e-12)
        return np.float32(images.mean(dtype=np.float64)), np.float32(deviation)
    for name, values in (("mean", config.mean), ("deviation", config.deviation)):
        if len(values) != channels:
            raise ValueError(
                f"config.data.{name} has {len(values)} numbers, the images {channels} channels; "
                "give one for each, of values from 0 to 1, or none in mean and deviation."
            )
    if min(config.deviation) <= 0:
        raise ValueError(f"config.data.deviation is {config.deviation}; it must be positive.")
    white = 255 if images.dtype == np.uint8 else 1
    return np.float32(config.mean) * white, np.float32(config.deviation) * white


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the indices of the examples of a training step.

    Every epoch has a new random order; an incomplete last batch is left out.

    Args:
      size: Number of training examples.
      batch_size: Number of examples per step, at most `size`.
      seed: Seed of the orders.
      step: Number of the step, from 0.

    Returns:
      Indices, int [batch_size].

    Raises:
      ValueError: If a batch is larger than the dataset.
    """
    if batch_size > size:
        raise ValueError(f"config.batch_size is {batch_size}, but there are {size} examples.")
    epoch, position = divmod(step, size // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(size)
    return order[position * batch_size : (position + 1) * batch_size]
