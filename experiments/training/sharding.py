"""How a training lies on the devices of all its processes, and how it comes to one of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import sqs_jax
from experiments.data import Dataset

AXES = ("data", "fsdp")


def make_mesh(config: Any) -> Mesh:
    """Return the mesh of all devices that `config.mesh` describes, with the axes of AXES.

    Raises:
      ValueError: if `config.mesh` does not describe as many devices as there are, or the batch
        cannot be shared equally among them.
    """
    count = jax.device_count()
    sizes = [config.mesh[axis] for axis in AXES]
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = count // max(-sizes[0] * sizes[1], 1)
    if min(sizes) < 1 or sizes[0] * sizes[1] != count:
        raise ValueError(
            f"config.mesh.data is {config.mesh.data} and config.mesh.fsdp {config.mesh.fsdp}, but "
            f"there are {count} devices; their product must be that, and one may be -1 for the "
            "rest."
        )
    if config.batch_size % count:
        raise ValueError(
            f"config.batch_size is {config.batch_size}, no multiple of the {count} devices that "
            "share it."
        )
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def lay_out(state: Any, posterior: Any, mesh: Mesh, config: Any) -> Any:
    """Return the shardings of a state: the posterior's by config, the rest's like them.

    Args:
      state: any tree of arrays or their shapes that holds the posterior, its moments, ...
      posterior: the posterior, or the params.
      mesh: of all devices.
      config: the experiment. Without `config.sharding` every large leaf is split over "fsdp".

    Raises:
      ValueError: for a rule of `config.sharding` that does not fit.
    """
    if config.sharding:
        rules = [(pattern, PartitionSpec(*spec)) for pattern, spec in config.sharding]
        layout = sqs_jax.shardings(posterior, mesh, rules)
    else:
        layout = sqs_jax.fully_sharded(posterior, mesh, axis="fsdp")
    return sqs_jax.state_shardings(state, posterior, layout)


def place(tree: Any, layout: Any) -> Any:
    """Put a tree that every process has where a layout says; nothing is shared with the tree."""

    def one(array: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(array)

        def part(index: Any) -> np.ndarray:
            return np.array(whole[index])

        return jax.make_array_from_callback(whole.shape, sharding, part)

    return jax.tree.map(one, tree, layout)


class Batch(NamedTuple):
    """Examples as they are stored, and their labels, [batch, ...], on the devices."""

    examples: jax.Array
    labels: jax.Array


def share_out(dataset: Dataset, chosen: np.ndarray, mesh: Mesh) -> Batch:
    """Return a batch split over all devices; a process reads the rows of its own devices only."""
    rows = NamedSharding(mesh, PartitionSpec(AXES))

    def split(read: Callable[[np.ndarray], np.ndarray], *shape: int) -> jax.Array:
        return jax.make_array_from_callback(
            (len(chosen), *shape),
            rows,
            lambda index: read(chosen[index[0]]),  # type: ignore[index]
        )

    examples = split(lambda these: dataset.examples[these], *dataset.examples.shape[1:])
    return Batch(examples, split(lambda these: dataset.labels[these], *dataset.labels.shape[1:]))


def fetch(tree: Any) -> Any:
    """Bring a tree to every process as numpy arrays; no device ever holds more than one leaf more.

    All processes must call it, with the same tree.
    """

    def one(leaf: Any) -> np.ndarray:
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        return np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)
