"""Residual networks of torchvision, timm and the usual PyTorch code for CIFAR.

The last is chenyaofo/pytorch-cifar-models and akamaster/pytorch_resnet_cifar10. The names differ in
few places, so that one map serves all. What a file lacks, has too much, or has in another shape is
listed whole before anything runs.
"""

import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.importers.state_dict import read_state_dict

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

_COUNTER = "num_batches_tracked"  # how often PyTorch updated the statistics: not a weight


def import_resnet(path: Path, model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Read a state dict as variables of a network.

    Args:
      path: see `read_state_dict`.
      model: a `ResNet`.
      image_shape: (height, width, channels).

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays, float32.

    Raises:
      FileNotFoundError, ModuleNotFoundError: see `read_state_dict`.
      ValueError: if the file is not of this network; all that does not fit is listed.
    """
    example = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), example)
    flat, structure = jax.tree_util.tree_flatten_with_path(wanted)
    shapes = {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in flat}
    found: dict[str, np.ndarray] = {}
    source: dict[str, str] = {}
    problems = []
    for name, array in read_state_dict(path).items():
        if name.endswith(_COUNTER):
            continue
        leaf, weights = _translate(name, array)
        if leaf not in shapes:
            problems.append(f"{name} {array.shape}: the network has no such weights")
        elif leaf in found:
            problems.append(f"{name}: {source[leaf]} is the same leaf, {leaf}")
        elif weights.shape != shapes[leaf]:
            problems.append(f"{name}: as {leaf} its shape is {weights.shape}, not {shapes[leaf]}")
        elif not np.isfinite(weights).all():
            bad = int((~np.isfinite(weights)).sum())
            problems.append(f"{name}: {bad} of {weights.size} values are not finite")
        source.setdefault(leaf, name)
        found.setdefault(leaf, np.asarray(weights, np.float32))
    problems += [f"{leaf} {shapes[leaf]} is missing" for leaf in shapes if leaf not in found]
    if problems:
        raise ValueError(
            f"{path} does not fit this {type(model).__name__} in {len(problems)} places; choose "
            "the network (config.model) and the data whose classes it was trained for:\n  "
            + "\n  ".join(problems)
        )
    return jax.tree.unflatten(structure, [found[leaf] for leaf in shapes])


def _translate(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """Return the path of a leaf here, and its weights with the axes as they are here."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    *layer, last = name.split(".")
    for pattern, theirs, collection, ours, axes in LEAVES:
        if layer and re.fullmatch(pattern, layer[-1]) and last == theirs:
            turned = array.transpose(axes) if axes and array.ndim == len(axes) else array
            return "/".join((collection, *layer, ours)), turned
    return name, array
