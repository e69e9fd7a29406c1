"""Parameter names of PyTorch's residual networks.

The networks are those of torchvision, timm, chenyaofo/pytorch-cifar-models and
akamaster/pytorch_resnet_cifar10. Their names differ so little that one map serves all.
"""

import re

import numpy as np

# (pattern, replacement) of PyTorch's names, applied in this order
NAMES = (
    (r"^layer(\d+)\.(\d+)\.", r"layer\1_\2."),
    (r"\b(?:downsample|shortcut)\.0\.", "downsample_conv."),
    (r"\b(?:downsample|shortcut)\.1\.", "downsample_bn."),
    (r"^(?:linear|classifier)\.", "fc."),
)

# (pattern of the layer's name, PyTorch's name, Flax's collection, Flax's name, axes for Flax)
LEAVES: tuple[tuple[str, str, str, str, tuple[int, ...] | None], ...] = (
    (r".*conv\d*", "weight", "params", "kernel", (2, 3, 1, 0)),
    (r"fc", "weight", "params", "kernel", (1, 0)),
    (r"fc", "bias", "params", "bias", None),
    (r".*bn\d*", "weight", "params", "scale", None),
    (r".*bn\d*", "bias", "params", "bias", None),
    (r".*bn\d*", "running_mean", "batch_stats", "mean", None),
    (r".*bn\d*", "running_var", "batch_stats", "var", None),
)


def translate(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Convert PyTorch's name and array to Flax's path and axes.

    Args:
      name: Name in the state dict.
      array: Weights with PyTorch's axes.

    Returns:
      (path, weights with Flax's axes); the arguments themselves if the name is unknown.
    """
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    *layer, last = name.split(".")
    for pattern, torch_name, collection, flax_name, axes in LEAVES:
        if layer and re.fullmatch(pattern, layer[-1]) and last == torch_name:
            transposed = array.transpose(axes) if axes and array.ndim == len(axes) else array
            return "/".join((collection, *layer, flax_name)), transposed
    return name, array
