"""scikit-learn's handwritten digits: 1,797 real 8x8 images that ship with the package."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Arrays = tuple[np.ndarray, np.ndarray]


def load(seed: int) -> tuple[Arrays, Arrays]:
    """Return (train, test), stratified 70/30 by the seed, images [n, 8, 8, 1] from 0 to 16."""
    images, labels = load_digits(return_X_y=True)
    return stratified_split(images.reshape(-1, 8, 8, 1), labels, fraction=0.3, seed=seed)


def stratified_split(
    images: np.ndarray, labels: np.ndarray, *, fraction: float, seed: int
) -> tuple[Arrays, Arrays]:
    """Split in (rest, held out), `fraction` of every class held out."""
    rest, held = train_test_split(
        np.arange(len(labels)), test_size=fraction, random_state=seed, stratify=labels
    )
    return (images[rest], labels[rest]), (images[held], labels[held])
