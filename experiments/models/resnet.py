"""Residual networks for CIFAR and ImageNet with torchvision's parameter names.

He et al. 2016, arXiv:1512.03385. As in torchvision, the 3x3 convolution of a bottleneck block has
the stride.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

import sqs_jax.linen
from experiments.models.convolution import conv_general_dilated
from experiments.training.normalisation import EPSILON, MOMENTUM


class ResNet(nn.Module):
    """Residual network: stem, stages of residual blocks, average pool, linear classifier.

    Attributes:
      blocks: Number of blocks of each stage; every stage but the first halves the resolution.
      widths: Channels of each stage's 3x3 convolutions.
      num_classes: Number of logits.
      bottleneck: Whether a block has 1x1, 3x3 and 1x1 convolutions, the last with four times the
        channels, instead of two 3x3 convolutions.
      stem: "cifar" for a 3x3 convolution; "imagenet" for a 7x7 convolution and a max pool, both of
        stride 2.
      stem_width: Channels of the stem; None for those of the first stage.
      shortcut: Shortcut of a block that changes the shape. "pad" takes every second pixel and pads
        the channels with zeros on both sides (option A); "project" is a 1x1 convolution (option B).
      relu_after: Position of the ReLU: "block" for after each block, "stage" for after each stage.
      pool: Side of the pooled images, pixels; the classifier reads [channels, pool, pool].
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible layers with the same
        parameter paths.
      dtype: Data type of the arithmetic; weights and statistics are float32.
    """

    blocks: Sequence[int]
    widths: Sequence[int]
    num_classes: int
    bottleneck: bool = False
    stem: str = "cifar"
    stem_width: int | None = None
    shortcut: str = "project"
    relu_after: str = "block"
    pool: int = 1
    rule: sqs_jax.Rule | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> jax.Array:
        """Compute logits.

        Args:
          images: Standardized images [batch, height, width, channels].
          train: Whether to normalize by the batch's statistics and update the running ones.

        Returns:
          Logits [batch, num_classes], float32.
        """
        layers = Layers(self.rule, train, self.dtype)
        large = self.stem == "imagenet"
        width = self.stem_width or self.widths[0]
        x = layers.conv(width, 7 if large else 3, 2 if large else 1, "conv1")(images)
        x = nn.relu(layers.norm("bn1")(x))
        if large:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True)):
            for block in range(count):
                x = Block(
                    width,
                    stride=2 if stage and not block else 1,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    layers=layers,
                    name=f"layer{stage + 1}_{block}",
                )(x)
                if self.relu_after == "block" or block == count - 1:
                    x = nn.relu(x)
        batch, height, wide, channels = x.shape
        parts = x.reshape(
            batch, self.pool, height // self.pool, self.pool, wide // self.pool, channels
        )
        x = jnp.moveaxis(parts.mean((2, 4)), -1, 1).reshape(batch, -1)
        return layers.dense(self.num_classes, "fc")(x).astype(jnp.float32)


class Block(nn.Module):
    """Residual block without the ReLU after the sum.

    Attributes:
      width: Channels of the 3x3 convolutions.
      stride: Stride of the first 3x3 convolution, pixels.
      bottleneck: Whether the block is a bottleneck, see `ResNet`.
      shortcut: Kind of shortcut, see `ResNet`.
      layers: Constructors of the layers.
    """

    width: int
    stride: int
    bottleneck: bool
    shortcut: str
    layers: "Layers"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers, width = self.layers, self.width
        strided = 3, self.stride  # (size, stride)
        convolutions = ((1, 1), strided, (1, 1)) if self.bottleneck else (strided, (3, 1))
        y = x
        for i, (size, stride) in enumerate(convolutions, start=1):
            last = i == len(convolutions)
            channels = 4 * width if last and self.bottleneck else width
            y = layers.norm(f"bn{i}")(layers.conv(channels, size, stride, f"conv{i}")(y))
            y = y if last else nn.relu(y)
        if x.shape != y.shape and self.shortcut == "pad":
            extra = (y.shape[-1] - x.shape[-1]) // 2
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((extra, extra),))
        elif x.shape != y.shape:
            x = layers.conv(y.shape[-1], 1, self.stride, "downsample_conv")(x)
            x = layers.norm("downsample_bn")(x)
        return x + y


@dataclasses.dataclass(frozen=True)
class Layers:
    """Constructors of layers with PyTorch's padding, momentum and epsilon.

    Attributes:
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible layers.
      train: Whether batch norms use the batch's statistics.
      dtype: Data type of the arithmetic.
    """

    rule: sqs_jax.Rule | None
    train: bool
    dtype: Any

    def conv(self, width: int, size: int, stride: int, name: str) -> nn.Module:
        """Return a convolution without bias."""
        make = self._compressible(sqs_jax.linen.Conv) or nn.Conv
        return make(
            width, (size, size), stride, padding=size // 2, use_bias=False,
            kernel_init=nn.initializers.he_normal(), conv_general_dilated=conv_general_dilated,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def norm(self, name: str) -> nn.Module:
        """Return a batch norm."""
        return nn.BatchNorm(
            use_running_average=not self.train, momentum=MOMENTUM, epsilon=EPSILON,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def dense(self, width: int, name: str) -> nn.Module:
        """Return a linear layer with `width` outputs."""
        make = self._compressible(sqs_jax.linen.Dense) or nn.Dense
        return make(width, dtype=self.dtype, name=name)

    def _compressible(self, layer: Any) -> Any:
        return None if self.rule is None else partial(layer, rule=self.rule)
