"""Real images in memory, the same split names and shapes whatever they come from."""

from experiments.data.augment import augment, augmented
from experiments.data.dataset import Dataset, Splits, batch_indices, load

__all__ = ["Dataset", "Splits", "augment", "augmented", "batch_indices", "load"]
