"""The networks whose training steps are timed."""

from benchmarks.models.decoder import Decoder
from benchmarks.models.resnet import ResNet

__all__ = ["Decoder", "ResNet"]
