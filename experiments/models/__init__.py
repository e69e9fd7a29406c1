"""The networks that are compressed, by the name that a config gives them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments.models.convnet import ConvNet
from experiments.models.resnet import ResNet

__all__ = ["NETWORKS", "ConvNet", "ResNet", "build_model"]


def _cifar(depth: int, shortcut: str) -> Callable[..., ResNet]:
    """Three stages of 16, 32 and 64 channels, as He et al. have for CIFAR."""
    return partial(ResNet, ((depth - 2) // 6,) * 3, (16, 32, 64), shortcut=shortcut)


def _wide(*blocks: int, bottleneck: bool = False) -> Callable[..., ResNet]:
    """Four stages of 64 to 512 channels, as for ImageNet."""
    return partial(ResNet, blocks, (64, 128, 256, 512), bottleneck=bottleneck)


def _staged(blocks: int) -> Callable[..., ResNet]:
    """A variant with a stem of 64 channels, ReLU after stages only, a classifier of 2x2 pixels."""
    return partial(ResNet, (blocks,) * 3, (16, 32, 64), stem_width=64, relu_after="stage", pool=2)


# name -> network(num_classes=, ...)
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    # option A shortcuts, and b: option B, as chenyaofo/pytorch-cifar-models has them
    **{f"resnet{depth}": _cifar(depth, "pad") for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}b": _cifar(depth, "project") for depth in (20, 32, 44, 56, 110)},
    "resnet18": _wide(2, 2, 2, 2),
    "resnet34": _wide(3, 4, 6, 3),
    "resnet50": _wide(3, 4, 6, 3, bottleneck=True),
    "staged_resnet20": _staged(3),
    "staged_resnet32": _staged(5),
}


def build_model(config: Any, num_classes: int, **options: Any) -> nn.Module:
    """Return the network that a config's `model` section describes.

    Args:
      config: the section: name, and what the network of that name needs.
      num_classes: number of logits.
      **options: further fields of the network.

    Raises:
      ValueError: for an unknown name, stem or dtype.
    """
    if config.name == "convnet":
        return ConvNet(
            features=tuple(config.features),
            hidden=config.hidden,
            num_classes=num_classes,
            **options,
        )
    if config.name not in NETWORKS:
        raise ValueError(
            f"config.model.name is {config.name!r}; there are convnet, {', '.join(NETWORKS)}."
        )
    if config.stem not in ("cifar", "imagenet"):
        raise ValueError(f"config.model.stem is {config.stem!r}; it must be 'cifar' or 'imagenet'.")
    if config.dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"config.model.dtype is {config.dtype!r}; it must be 'float32' or 'bfloat16'."
        )
    return NETWORKS[config.name](
        num_classes=num_classes, stem=config.stem, dtype=jnp.dtype(config.dtype), **options
    )
