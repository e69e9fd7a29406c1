"""Sharding of a training over the devices of all processes, and gathering."""

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
    """Make the mesh of all devices by `config.mesh`, with the axes of AXES.

    Raises:
      ValueError: The product of the axes is not the number of devices, or does not divide the
        batch.
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
    """Compute the shardings of a training state.

    Args:
      state: Tree of arrays, or of their shapes, with the posterior and its optimizer moments. The
        moments get the sharding of their parameters.
      posterior: Posterior, or params.
      mesh: Mesh of all devices.
      config: Config of the experiment. `config.sharding` has the rules of the posterior; without
        rules every large leaf is split over "fsdp".

    Raises:
      ValueError: A rule of `config.sharding` does not fit.
    """
    if config.sharding:
        rules = [(pattern, PartitionSpec(*spec)) for pattern, spec in config.sharding]
        layout = sqs_jax.shardings(posterior, mesh, rules)
    else:
        layout = sqs_jax.fully_sharded(posterior, mesh, axis="fsdp")
    return sqs_jax.state_shardings(state, posterior, layout)


def place(tree: Any, layout: Any) -> Any:
    """Copy a tree that every process has to the devices of a layout."""

    def put(array: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(array)

        def part(index: Any) -> np.ndarray:
            return np.array(whole[index])

        return jax.make_array_from_callback(whole.shape, sharding, part)

    return jax.tree.map(put, tree, layout)


class Batch(NamedTuple):
    """A batch on the devices.

    Attributes:
      examples: Examples as the dataset stores them, [batch, ...].
      labels: Labels, int [batch, ...].
    """

    examples: jax.Array
    labels: jax.Array


def share_out(dataset: Dataset, chosen: np.ndarray, mesh: Mesh) -> Batch:
    """Read a batch, split over all devices; each process reads its own rows only.

    Args:
      dataset: Training examples.
      chosen: Indices of the examples, int [batch].
      mesh: Mesh of all devices.
    """
    rows = NamedSharding(mesh, PartitionSpec(AXES))

    def split(read: Callable[[np.ndarray], np.ndarray], *shape: int) -> jax.Array:
        return jax.make_array_from_callback(
            (len(chosen), *shape),
            rows,
            lambda index: read(chosen[index[0]]),  # type: ignore[index]
        )

    examples = split(lambda rows: dataset.examples[rows], *dataset.examples.shape[1:])
    return Batch(examples, split(lambda rows: dataset.labels[rows], *dataset.labels.shape[1:]))


def fetch(tree: Any) -> Any:
    """Gather a tree on the host of every process, as numpy arrays.

    All processes call `fetch` with the same tree. Leaves are gathered one after the other, so that
    a device needs memory for one whole leaf.
    """

    def gather(leaf: Any) -> np.ndarray:
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        return np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)
