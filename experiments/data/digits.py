"""scikit-learn's handwritten digits: 1,797 real 8x8 images that ship with the package."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Arrays = tuple[np.ndarray, np.ndarray]


def load(seed: int) -> tuple[Arrays, Arrays]:
    """Return (train, test), split 70/30 and stratified.

    Args:
      seed: Seed of the split.

    Returns:
      Two pairs of images [n, 8, 8, 1] from 0 to 16 and labels int [n].
    """
    images, labels = load_digits(return_X_y=True)
    return stratified_split(images.reshape(-1, 8, 8, 1), labels, fraction=0.3, seed=seed)


def stratified_split(
    images: np.ndarray, labels: np.ndarray, *, fraction: float, seed: int
) -> tuple[Arrays, Arrays]:
    """Split images into (rest, held out) with the same class frequencies.

    Args:
      images: Images [n, ...].
      labels: Class of each image, int [n].
      fraction: Share of each class that is held out, in (0, 1).
      seed: Seed of the draw.
    """
    rest, heldout = train_test_split(
        np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels
    )
    return (images[rest], labels[rest]), (images[heldout], labels[heldout])
