"""Networks to compress, by their name in a config."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments.models.convnet import ConvNet
from experiments.models.resnet import ResNet

__all__ = ["NETWORKS", "ConvNet", "ResNet", "build_model"]


def _cifar(depth: int, shortcut: str) -> Callable[..., ResNet]:
    """Return a constructor of the CIFAR ResNet of He et al., 16, 32 and 64 channels."""
    return partial(ResNet, ((depth - 2) // 6,) * 3, (16, 32, 64), shortcut=shortcut)


def _wide(*blocks: int, bottleneck: bool = False) -> Callable[..., ResNet]:
    """Return a constructor of the ImageNet ResNet of He et al., 64 to 512 channels."""
    return partial(ResNet, blocks, (64, 128, 256, 512), bottleneck=bottleneck)


def _staged(blocks: int) -> Callable[..., ResNet]:
    """Return a constructor of a ResNet with a wide stem and ReLU after stages only."""
    return partial(ResNet, (blocks,) * 3, (16, 32, 64), stem_width=64, relu_after="stage", pool=2)


# Keys are values of config.model.name.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    # Shortcuts are of option A, or with the suffix "b" of option B, as in
    # chenyaofo/pytorch-cifar-models.
    **{f"resnet{depth}": _cifar(depth, "pad") for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}b": _cifar(depth, "project") for depth in (20, 32, 44, 56, 110)},
    "resnet18": _wide(2, 2, 2, 2),
    "resnet34": _wide(3, 4, 6, 3),
    "resnet50": _wide(3, 4, 6, 3, bottleneck=True),
    "staged_resnet20": _staged(3),
    "staged_resnet32": _staged(5),
}


def build_model(config: Any, num_classes: int, **options: Any) -> nn.Module:
    """Build the network that a config's `model` section describes.

    Args:
      config: The section: name, and the fields that this network needs.
      num_classes: Number of logits.
      **options: Further fields of the network.

    Raises:
      ValueError: If the name, the stem or the dtype is unknown.
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
