"""Real images in memory, the same split names and shapes whatever they come from."""

from experiments.data.augment import augment
from experiments.data.dataset import Dataset, Splits, batch_indices, load

__all__ = ["Dataset", "Splits", "augment", "batch_indices", "load"]
