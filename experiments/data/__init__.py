"""Datasets of images and texts, with the same splits and shapes for every source."""

from experiments.data.augmentation import augment, augmented
from experiments.data.dataset import Dataset, Splits, batch_indices, load

__all__ = ["Dataset", "Splits", "augment", "augmented", "batch_indices", "load"]
