"""Networks for measurements of training steps."""

from benchmarks.models.decoder import Decoder
from benchmarks.models.resnet import ResNet

__all__ = ["Decoder", "ResNet"]
