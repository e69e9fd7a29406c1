"""Residual networks for CIFAR and ImageNet, with torchvision's names for their parameters.

He et al. 2016, arXiv:1512.03385; bottleneck blocks stride in their 3x3 convolution.
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
from experiments.training.batch_norm import EPSILON, MOMENTUM


class ResNet(nn.Module):
    """A stem, stages of residual blocks, an average pool and a linear classifier.

    Attributes:
      blocks: of each stage; every stage but the first halves the resolution.
      widths: channels of each stage's 3x3 convolutions.
      num_classes: number of logits.
      bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions, the last one four times as wide, in place
        of two 3x3 convolutions.
      stem: "cifar", a 3x3 convolution; "imagenet", a 7x7 one and a max pool, both of stride 2.
      stem_width: channels of the stem; the first stage's by default.
      shortcut: where shapes change: "pad", every second pixel, and channels of zeros on both sides
        (option A); "project", a 1x1 convolution (option B).
      relu_after: "block", or "stage": none between the blocks of a stage.
      pool: side of what the pool leaves; what is flattened is [channels, pool, pool].
      rule: None for flax.linen's layers; a `sqs_jax.Rule` for compressible ones with the same
        parameter paths.
      dtype: of the arithmetic; weights and statistics are float32.
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
        """Compute logits [batch, num_classes] from images [batch, height, width, channels].

        Args:
          images: normalised.
          train: normalise by the batch's own statistics, and move the running ones.
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
    """A residual block, up to the sum that it ends in.

    Attributes:
      width: channels of its 3x3 convolutions.
      stride: of the first of them.
      bottleneck, shortcut: as for `ResNet`.
      layers: what it is built of.
    """

    width: int
    stride: int
    bottleneck: bool
    shortcut: str
    layers: "Layers"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers, width = self.layers, self.width
        first = 3, self.stride
        sizes = ((1, 1), first, (1, 1)) if self.bottleneck else (first, (3, 1))
        y = x
        for i, (size, stride) in enumerate(sizes, start=1):
            last = i == len(sizes)
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
    """Makes the layers of a network: PyTorch's padding, momentum and epsilon."""

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
        """Return a batch normalisation."""
        return nn.BatchNorm(
            use_running_average=not self.train, momentum=MOMENTUM, epsilon=EPSILON,
            dtype=self.dtype, name=name,
        )  # fmt: skip

    def dense(self, width: int, name: str) -> nn.Module:
        """Return a linear layer."""
        make = self._compressible(sqs_jax.linen.Dense) or nn.Dense
        return make(width, dtype=self.dtype, name=name)

    def _compressible(self, layer: Any) -> Any:
        return None if self.rule is None else partial(layer, rule=self.rule)
