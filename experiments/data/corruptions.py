"""What happens to images in the world, once each, at a strength that a good network notices."""

from collections.abc import Callable

import numpy as np

from experiments.data.dataset import Dataset


def corrupt(dataset: Dataset, name: str, seed: int) -> Dataset:
    """Return a dataset whose images are corrupted; the network's standardisation stays.

    Args:
      dataset: images from 0 to 255, or from 0 to their largest value.
      name: of CORRUPTIONS.
      seed: of the noise.
    """
    images = dataset.examples[:]  # read, where they are not yet
    top = np.float32(255 if images.dtype == np.uint8 else images.max())
    images = images.astype(np.float32) / top
    changed = CORRUPTIONS[name](images, np.random.default_rng(seed))
    return dataset._replace(examples=top * np.clip(changed, 0, 1).astype(np.float32))


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


# name -> corrupt(images from 0 to 1, rng)
CORRUPTIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
}
