"""Residual networks for CIFAR, with batch normalization in training mode."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class ResNet(nn.Module):
    """Residual network of He et al. 2016.

    The network has a 3x3 stem, stages of basic blocks, and a linear classifier after pooling.

    ResNet-20 is widths (16, 32, 64) with 3 blocks each; ResNet-18 for CIFAR is
    (64, 128, 256, 512) with 2. Shortcuts are 1x1 convolutions where shapes change.

    Attributes:
        widths: Channels of each stage; every stage but the first halves the resolution.
        blocks: Number of blocks per stage.
        classes: Number of logits.
        dtype: Dtype of the arithmetic; weights and statistics are float32.
    """

    widths: Sequence[int]
    blocks: int
    classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Compute logits [B, classes] from images [B, height, width, channels]."""

        def conv(x: jax.Array, width: int, size: int = 3, stride: int = 1) -> jax.Array:
            x = nn.Conv(width, (size, size), stride, use_bias=False, dtype=self.dtype)(x)
            return nn.BatchNorm(use_running_average=False, dtype=self.dtype)(x)

        x = nn.relu(conv(images, self.widths[0]))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage and not block else 1
                y = conv(nn.relu(conv(x, width, stride=stride)), width)
                shortcut = conv(x, width, 1, stride) if x.shape != y.shape else x
                x = nn.relu(y + shortcut)
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
