"""The networks that are compressed."""

from experiments.models.convnet import ConvNet

__all__ = ["ConvNet"]
