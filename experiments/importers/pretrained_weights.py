"""Pretrained weights from a file as the variables of a network."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

import sqs_jax
from experiments.importers.resnet import translate
from experiments.importers.state_dict import read_state_dict
from experiments.trees import flat_leaves

_COUNTER = "num_batches_tracked"  # PyTorch's count of statistics updates, not a weight


def import_weights(path: Path, model: nn.Module, example: Any) -> Any:
    """Read the variables of a network.

    Args:
      path: PyTorch state dict of a residual network, see `read_state_dict`, or an .sqs file of
        this network, such as the dense.sqs of a run.
      model: Network to fill.
      example: Batch of the network's inputs, or its ShapeDtypeStruct.

    Returns:
      {"params": ..., "batch_stats": ...} of numpy arrays, float32.

    Raises:
      FileNotFoundError: If the file does not exist.
      ModuleNotFoundError: If the file needs PyTorch, which is not installed.
      ValueError: If the file does not fit the network; the message lists every mismatch.
    """
    abstract = jax.eval_shape(model.init, jax.random.key(0), example)
    shapes = {leaf: x.shape for leaf, x in flat_leaves(abstract).items()}
    leaves: dict[str, np.ndarray] = {}
    source: dict[str, str] = {}
    problems = []
    for name, leaf, weights in _read(path):
        if leaf not in shapes:
            problems.append(f"{name} {weights.shape}: the network has no such weights")
        elif leaf in leaves:
            problems.append(f"{name}: {source[leaf]} is the same leaf, {leaf}")
        elif weights.shape != shapes[leaf]:
            problems.append(f"{name}: as {leaf} its shape is {weights.shape}, not {shapes[leaf]}")
        elif not np.isfinite(weights).all():
            bad = int((~np.isfinite(weights)).sum())
            problems.append(f"{name}: {bad} of {weights.size} values are not finite")
        source.setdefault(leaf, name)
        leaves.setdefault(leaf, np.asarray(weights, np.float32))
    problems += [f"{leaf} {shapes[leaf]} is missing" for leaf in shapes if leaf not in leaves]
    if problems:
        raise ValueError(
            f"{path} does not fit this {type(model).__name__} in {len(problems)} places; choose "
            "the network (config.model) and the data whose classes it was trained for:\n  "
            + "\n  ".join(problems)
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[leaf] for leaf in shapes])


def _read(path: Path) -> Iterable[tuple[str, str, np.ndarray]]:
    """List (name in the file, path of the leaf, weights with Flax's axes)."""
    if path.suffix == ".sqs":
        tree = sqs_jax.materialize(sqs_jax.load(path))
        return [(leaf, leaf, np.asarray(x)) for leaf, x in flat_leaves(tree).items()]
    arrays = read_state_dict(path).items()
    return [(name, *translate(name, x)) for name, x in arrays if not name.endswith(_COUNTER)]
