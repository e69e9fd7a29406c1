"""Common image corruptions, strong enough to lower a network's accuracy."""

from collections.abc import Callable

import numpy as np

from experiments.data.dataset import Dataset


def corrupt(dataset: Dataset, name: str, seed: int) -> Dataset:
    """Return a dataset with corrupted images and the same mean and deviation.

    Args:
      dataset: Dataset of images from 0 to 255, or from 0 to their largest value.
      name: Key of CORRUPTIONS.
      seed: Seed of the noise.
    """
    images = dataset.examples[:]  # reads lazy images
    white = np.float32(255 if images.dtype == np.uint8 else images.max())
    images = images.astype(np.float32) / white
    corrupted = CORRUPTIONS[name](images, np.random.default_rng(seed))
    return dataset._replace(examples=white * np.clip(corrupted, 0, 1).astype(np.float32))


def _noise(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return images + 0.06 * rng.standard_normal(images.shape, np.float32)


def _blur(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Average 3x3 pixels."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return np.mean(shifted, axis=0)


def _contrast(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mean = images.mean((1, 2), keepdims=True)
    return mean + 0.4 * (images - mean)


def _brightness(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return images + 0.25


# Keys are names; values map (images from 0 to 1, generator) to corrupted images.
CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
}
