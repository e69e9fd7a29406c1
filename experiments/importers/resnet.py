"""The names that residual networks of torchvision, timm and the usual PyTorch code for CIFAR have.

The last is chenyaofo/pytorch-cifar-models and akamaster/pytorch_resnet_cifar10. The names differ in
few places, so that one map serves all.
"""

import re

import numpy as np

# Of PyTorch's names, one after another: (pattern, what it becomes).
NAMES = (
    (r"^layer(\d+)\.(\d+)\.", r"layer\1_\2."),
    (r"\b(?:downsample|shortcut)\.0\.", "downsample_conv."),
    (r"\b(?:downsample|shortcut)\.1\.", "downsample_bn."),
    (r"^(?:linear|classifier)\.", "fc."),
)

# (layer's name, PyTorch's name) -> (collection, Flax's name, axes in Flax's order)
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
    """Return the path of a leaf here, and its weights with the axes as they are here."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    *layer, last = name.split(".")
    for pattern, theirs, collection, ours, axes in LEAVES:
        if layer and re.fullmatch(pattern, layer[-1]) and last == theirs:
            turned = array.transpose(axes) if axes and array.ndim == len(axes) else array
            return "/".join((collection, *layer, ours)), turned
    return name, array
